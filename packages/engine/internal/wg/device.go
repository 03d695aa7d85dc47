package wg

import (
	"encoding/hex"
	"errors"
	"fmt"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// Device is a WireGuard device with one peer, which is up.
type Device interface {
	SetPrivateKey(key Key) error
	SetEndpoint(endpoint string) error
	Counters() (Counters, error)
	// Initiate has the device begin a handshake; anew also where one is under way or done already.
	Initiate(anew bool) error
	// Rebind has the device leave by a new UDP socket, of another port.
	Rebind() error
	// Gone is closed when the device has ended.
	Gone() <-chan struct{}
	// Close ends the device and closes what it takes packets from.
	Close()
}

// ErrRefused is a configuration that no device takes.
var ErrRefused = errors.New("the device refuses the configuration")

// ErrClosed is what a device answers that has ended.
var ErrClosed = errors.New("the device is closed")

// Userspace is wireguard-go over a TUN or something like it.
type Userspace struct {
	device *device.Device
	peer   Key
}

// NewUserspace brings the device up. It takes the TUN over, also where it fails.
func NewUserspace(packets tun.Device, private Key, peer Peer) (*Userspace, error) {
	u := &Userspace{
		device: device.NewDevice(packets, NewBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}),
		peer:   peer.PublicKey,
	}
	if err := u.device.IpcSet(fmt.Sprintf("private_key=%s\n%s", private, peer.UAPI())); err != nil {
		u.device.Close()
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err := u.device.Up(); err != nil {
		u.device.Close()
		return nil, fmt.Errorf("cannot open the tunnel's UDP socket: %w", err)
	}
	return u, nil
}

// SetPrivateKey implements Device.
func (u *Userspace) SetPrivateKey(key Key) error {
	return u.device.IpcSet(fmt.Sprintf("private_key=%s\n", key))
}

// SetEndpoint implements Device.
func (u *Userspace) SetEndpoint(endpoint string) error {
	return u.device.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", u.peer, endpoint))
}

// Counters implements Device.
func (u *Userspace) Counters() (Counters, error) { return readCounters(u.device) }

// Initiate implements Device.
func (u *Userspace) Initiate(anew bool) error {
	raw, err := hex.DecodeString(string(u.peer))
	if err != nil {
		return err
	}
	peer := u.device.LookupPeer(device.NoisePublicKey(raw))
	if peer == nil {
		return ErrClosed
	}
	if anew { // Without this the device would hold back a second initiation for 5 s.
		peer.ExpireCurrentKeypairs()
	}
	// An initiation that cannot be sent now (no route yet) is tried again; the deadline bounds it.
	_ = peer.SendHandshakeInitiation(false)
	return nil
}

// Rebind implements Device.
func (u *Userspace) Rebind() error { return u.device.IpcSet("listen_port=0\n") }

// Gone implements Device.
func (u *Userspace) Gone() <-chan struct{} { return u.device.Wait() }

// Close implements Device.
func (u *Userspace) Close() { u.device.Close() }
