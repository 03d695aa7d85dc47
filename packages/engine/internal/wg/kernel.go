package wg

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// configurer is what wgctrl does with a device of the kernel.
type configurer interface {
	ConfigureDevice(name string, config wgtypes.Config) error
	Device(name string) (*wgtypes.Device, error)
	Close() error
}

// Kernel is a WireGuard interface of the kernel's own in this process's network namespace.
type Kernel struct {
	name    string
	control configurer
	remove  func()
	gone    <-chan struct{}

	mu     sync.Mutex
	peer   Peer
	before Counters // of peers that were made anew
	once   sync.Once
}

// NewKernel configures an interface of the type wireguard that is there. gone is closed when it has been removed;
// remove removes it, and is called by Close.
func NewKernel(name string, private Key, peer Peer, gone <-chan struct{}, remove func()) (*Kernel, error) {
	control, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("the kernel's WireGuard cannot be spoken to: %w", err)
	}
	return newKernel(control, name, private, peer, gone, remove)
}

func newKernel(control configurer, name string, private Key, peer Peer, gone <-chan struct{}, remove func()) (*Kernel, error) {
	k := &Kernel{name: name, control: control, remove: remove, gone: gone, peer: peer}
	key, err := typed(private)
	var full wgtypes.PeerConfig
	if err == nil {
		full, err = peer.config()
	}
	if err != nil {
		_ = control.Close()
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err := control.ConfigureDevice(name, wgtypes.Config{PrivateKey: &key, ReplacePeers: true, Peers: []wgtypes.PeerConfig{full}}); err != nil {
		_ = control.Close()
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return k, nil
}

// config is the peer as wgctrl wants it.
func (p Peer) config() (wgtypes.PeerConfig, error) {
	config := wgtypes.PeerConfig{ReplaceAllowedIPs: true}
	var err error
	if config.PublicKey, err = typed(p.PublicKey); err != nil {
		return config, err
	}
	if p.PresharedKey != "" {
		shared, err := typed(p.PresharedKey)
		if err != nil {
			return config, err
		}
		config.PresharedKey = &shared
	}
	endpoint, err := netip.ParseAddrPort(p.Endpoint)
	if err != nil {
		return config, err
	}
	config.Endpoint = net.UDPAddrFromAddrPort(endpoint)
	keepalive := time.Duration(p.Keepalive) * time.Second
	config.PersistentKeepaliveInterval = &keepalive
	for _, text := range p.AllowedIPs {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return config, err
		}
		config.AllowedIPs = append(config.AllowedIPs, net.IPNet{
			IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		})
	}
	return config, nil
}

func typed(key Key) (wgtypes.Key, error) {
	raw, err := hex.DecodeString(string(key))
	if err != nil {
		return wgtypes.Key{}, err
	}
	return wgtypes.NewKey(raw)
}

// SetPrivateKey implements Device.
func (k *Kernel) SetPrivateKey(key Key) error {
	private, err := typed(key)
	if err != nil {
		return err
	}
	return k.control.ConfigureDevice(k.name, wgtypes.Config{PrivateKey: &private})
}

// SetEndpoint implements Device.
func (k *Kernel) SetEndpoint(endpoint string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed := k.peer
	changed.Endpoint = endpoint
	config, err := changed.config()
	if err != nil {
		return err
	}
	only := wgtypes.PeerConfig{PublicKey: config.PublicKey, UpdateOnly: true, Endpoint: config.Endpoint}
	if err := k.control.ConfigureDevice(k.name, wgtypes.Config{Peers: []wgtypes.PeerConfig{only}}); err != nil {
		return err
	}
	k.peer = changed
	return nil
}

// Counters implements Device.
func (k *Kernel) Counters() (Counters, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.counters()
}

func (k *Kernel) counters() (Counters, error) {
	device, err := k.control.Device(k.name)
	if err != nil {
		return Counters{}, err
	}
	sum := k.before
	for _, peer := range device.Peers {
		sum.LastHandshake = peer.LastHandshakeTime
		sum.Received += uint64(peer.ReceiveBytes)
		sum.Sent += uint64(peer.TransmitBytes)
	}
	return sum, nil
}

// Initiate implements Device. The kernel begins a handshake by itself, when it has something to send and no session:
// what it is given to send is a keepalive, which it sends at once when keepalives are switched on. A peer that is made
// anew has no session and has waited for none.
func (k *Kernel) Initiate(anew bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	full, err := k.peer.config()
	if err != nil {
		return err
	}
	off, on, wanted := time.Duration(0), time.Second, *full.PersistentKeepaliveInterval
	if wanted > 0 {
		on = wanted
	}
	steps := []wgtypes.PeerConfig{{PublicKey: full.PublicKey, UpdateOnly: true, PersistentKeepaliveInterval: &off}}
	if anew {
		if sum, err := k.counters(); err == nil {
			k.before = Counters{Received: sum.Received, Sent: sum.Sent}
		}
		fresh := full
		fresh.PersistentKeepaliveInterval = &off
		steps = []wgtypes.PeerConfig{{PublicKey: full.PublicKey, Remove: true}, fresh}
	}
	steps = append(steps, wgtypes.PeerConfig{PublicKey: full.PublicKey, UpdateOnly: true, PersistentKeepaliveInterval: &on})
	if wanted == 0 {
		steps = append(steps, wgtypes.PeerConfig{PublicKey: full.PublicKey, UpdateOnly: true, PersistentKeepaliveInterval: &wanted})
	}
	return k.control.ConfigureDevice(k.name, wgtypes.Config{Peers: steps})
}

// Rebind implements Device.
func (k *Kernel) Rebind() error {
	any := 0
	return k.control.ConfigureDevice(k.name, wgtypes.Config{ListenPort: &any})
}

// Gone implements Device.
func (k *Kernel) Gone() <-chan struct{} { return k.gone }

// Close implements Device.
func (k *Kernel) Close() {
	k.once.Do(func() {
		k.remove()
		_ = k.control.Close()
	})
}
