// Package netstack is the engine's mode for agents and connectors: WireGuard tunnels in user space, reached
// through a loopback proxy with a secret of its own for each tunnel.
package netstack

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"lattice.dev/engine/internal/wg"
)

// Spec is the body of PUT /v1/tunnels/{id}.
type Spec struct {
	Interface struct {
		PrivateKey string   `json:"privateKey"`
		Addresses  []string `json:"addresses"`
		MTU        int      `json:"mtu"`
	} `json:"interface"`
	Peer struct {
		PublicKey           string   `json:"publicKey"`
		PresharedKey        string   `json:"presharedKey"`
		Endpoint            string   `json:"endpoint"`
		AllowedIPs          []string `json:"allowedIPs"`
		PersistentKeepalive int      `json:"persistentKeepalive"`
	} `json:"peer"`
	Network   NetworkSpec       `json:"network"`
	Probe     *ProbeSpec        `json:"probe"`
	Proxy     *Credentials      `json:"proxy"`
	Hosts     map[string]string `json:"hosts"`
	Policy    *Policy           `json:"policy"`
	ExpiresIn *float64          `json:"expiresIn"`
	Revoke    *Revoke           `json:"revoke"`
	Names     *NameSource       `json:"names"`
	// Router makes it the tunnel of a connector, which takes flows for other addresses than its own.
	Router bool `json:"router"`
}

// Change is the body of PATCH /v1/tunnels/{id}; what is left out stays.
type Change struct {
	Interface *struct {
		PrivateKey string `json:"privateKey"`
	} `json:"interface"`
	Peer *struct {
		Endpoint string `json:"endpoint"`
	} `json:"peer"`
	Hosts     map[string]string `json:"hosts"`
	Policy    *Policy           `json:"policy"`
	ExpiresIn *float64          `json:"expiresIn"`
	Revoke    *Revoke           `json:"revoke"`
	Names     *NameSource       `json:"names"`
}

// ProbeSpec says what proves a tunnel: an ICMP echo reply from Address within Timeout seconds.
type ProbeSpec struct {
	Address string  `json:"address"`
	Timeout float64 `json:"timeout"`
}

// Credentials are what the proxy of a tunnel asks for, and the loopback port that it listens on; 0 is any.
type Credentials struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Port     int    `json:"port"`
}

const (
	defaultMTU          = 1420 // WireGuard over IPv6 on a 1500 byte link, as wg-quick chooses
	minimumMTU          = 576  // RFC 791: what every IPv4 host takes
	defaultProbeTimeout = 5.0
)

// settings is a Spec that has been read and found good.
type settings struct {
	privateKey wg.Key
	addresses  []netip.Addr
	routes     []netip.Prefix
	mtu        int
	peer       wg.Peer
	network    NetworkSpec
	router     bool
	hosts      map[string]netip.Addr
	probe      netip.Addr
	timeout    time.Duration
}

func (s *Spec) read() (*settings, error) {
	read := &settings{mtu: s.Interface.MTU, router: s.Router, timeout: seconds(defaultProbeTimeout)}
	var err error
	if read.privateKey, err = wg.ParseKey(s.Interface.PrivateKey); err != nil {
		return nil, fmt.Errorf("interface.privateKey: %w", err)
	}
	for _, text := range s.Interface.Addresses {
		prefix, err := parsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("interface.addresses: %w", err)
		}
		read.addresses = append(read.addresses, prefix.Addr())
	}
	if len(read.addresses) == 0 {
		return nil, fmt.Errorf("interface.addresses: at least one overlay address is needed")
	}
	if read.mtu == 0 {
		read.mtu = defaultMTU
	}
	if read.mtu < minimumMTU || read.mtu > 65535 {
		return nil, fmt.Errorf("interface.mtu: %d is not between %d and 65535", read.mtu, minimumMTU)
	}
	if err := s.readPeer(read); err != nil {
		return nil, err
	}
	if err := s.readNetwork(read); err != nil {
		return nil, err
	}
	if read.hosts, err = readHosts(s.Hosts); err != nil {
		return nil, err
	}
	if s.Proxy != nil && (s.Proxy.Username == "" || s.Proxy.Password == "") {
		return nil, fmt.Errorf("proxy: user name and password are both needed; a proxy without a secret serves every process")
	}
	if s.Proxy != nil && (s.Proxy.Port < 0 || s.Proxy.Port > 65535) {
		return nil, fmt.Errorf("proxy.port: %d is not a port", s.Proxy.Port)
	}
	if s.Probe != nil {
		if read.probe, err = netip.ParseAddr(s.Probe.Address); err != nil {
			return nil, fmt.Errorf("probe.address: %w", err)
		}
		if s.Probe.Timeout > 0 {
			read.timeout = seconds(s.Probe.Timeout)
		}
	}
	if s.ExpiresIn != nil && *s.ExpiresIn <= 0 {
		return nil, fmt.Errorf("expiresIn: %g s is over already", *s.ExpiresIn)
	}
	if err := s.Names.check(); err != nil {
		return nil, err
	}
	return read, s.Revoke.check()
}

func (s *Spec) readPeer(read *settings) error {
	key, err := wg.ParseKey(s.Peer.PublicKey)
	if err != nil {
		return fmt.Errorf("peer.publicKey: %w", err)
	}
	read.peer = wg.Peer{PublicKey: key, Keepalive: s.Peer.PersistentKeepalive}
	if s.Peer.PresharedKey != "" {
		if read.peer.PresharedKey, err = wg.ParseKey(s.Peer.PresharedKey); err != nil {
			return fmt.Errorf("peer.presharedKey: %w", err)
		}
	}
	if read.peer.Keepalive < 0 || read.peer.Keepalive > 65535 {
		return fmt.Errorf("peer.persistentKeepalive: %d is not between 0 and 65535 seconds", read.peer.Keepalive)
	}
	for _, text := range s.Peer.AllowedIPs {
		prefix, err := parsePrefix(text)
		if err != nil {
			return fmt.Errorf("peer.allowedIPs: %w", err)
		}
		read.routes = append(read.routes, prefix.Masked())
		read.peer.AllowedIPs = append(read.peer.AllowedIPs, prefix.Masked().String())
	}
	if read.peer.Endpoint, err = wg.ResolveEndpoint(context.Background(), s.Peer.Endpoint); err != nil {
		return fmt.Errorf("peer.endpoint: %w", err)
	}
	return nil
}

func readHosts(texts map[string]string) (map[string]netip.Addr, error) {
	hosts := make(map[string]netip.Addr, len(texts))
	for name, text := range texts {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("hosts: %s: %w", name, err)
		}
		hosts[canonicalName(name)] = address
	}
	return hosts, nil
}

func canonicalName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// parsePrefix reads an address with or without a length.
func parsePrefix(text string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix, nil
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a prefix", text)
	}
	return netip.PrefixFrom(address, address.BitLen()), nil
}

func seconds(value float64) time.Duration { return time.Duration(value * float64(time.Second)) }
