package keeper

import (
	"fmt"

	"golang.zx2c4.com/wireguard/tun"

	"lattice.dev/engine/internal/link"
)

// Namespace is a network namespace that the keeper holds for a tunnel.
type Namespace struct {
	Device string // DeviceTUN or DevicePacket
	Why    string // it is not a better one
	Thread int    // of the keeper, in the namespace as long as the tunnel lives
	Cookie uint64 // SO_NETNS_COOKIE: never given twice, 0 before Linux 5.14

	keeper *Keeper
	id     int64
	packet link.End
	fd     int // of the device, until it is taken
	mtu    int
	name   string
}

// Open makes a namespace. Its device is up and has its address; packets wait until Join takes them.
func (k *Keeper) Open(spec Spec) (*Namespace, error) {
	r := &request{Op: opOpen, Spec: &spec}
	got, err := k.call(r)
	if err != nil {
		if r.ID != 0 { // it may come to be after all
			go func() { _, _ = k.call(&request{Op: opClose, Namespace: r.ID}) }()
		}
		return nil, err
	}
	if got.Opened == nil || got.fd < 0 {
		closeFD(got.fd)
		return nil, &Error{"keeper_failed", "the keeper of the network namespaces has answered without a device"}
	}
	return &Namespace{
		Device: got.Opened.Device, Why: got.Opened.Why, Thread: got.Opened.Thread, Cookie: got.Opened.Cookie, keeper: k, id: r.ID,
		packet: link.End{Socket: got.fd, Index: got.Opened.Index, Kernel: got.Opened.Kernel},
		fd:     got.fd, mtu: spec.MTU, name: spec.Interface,
	}, nil
}

// Join takes the namespace's device over; it may be called once.
func (n *Namespace) Join() (tun.Device, error) {
	fd := n.fd
	n.fd = -1
	if n.Device == DeviceTUN {
		return link.JoinTUN(fd, n.mtu)
	}
	return link.JoinPacket(n.packet, n.name, n.mtu, func() {})
}

// NetPath and UserPath are where the owner of the user namespace finds the namespaces. The keeper's own directory of
// descriptors would be closed to an ordinary user, because the keeper cannot be dumped.
func (n *Namespace) NetPath() string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", n.keeper.PID, n.Thread)
}

// UserPath is the user namespace that owns the network namespace.
func (n *Namespace) UserPath() string { return fmt.Sprintf("/proc/%d/ns/user", n.keeper.PID) }

// PID is the keeper's.
func (n *Namespace) PID() int { return n.keeper.PID }

// Lost is closed once the keeper is gone.
func (n *Namespace) Lost() <-chan struct{} { return n.keeper.done }

// Socket opens a socket in the namespace, unbound and unconnected, which the caller closes.
func (n *Namespace) Socket(family, kind string) (int, error) {
	got, err := n.keeper.call(&request{Op: opSocket, Namespace: n.id, Family: family, Type: kind})
	if err != nil {
		return -1, err
	}
	if got.fd < 0 {
		return -1, &Error{"keeper_failed", "the keeper of the network namespaces has answered without a socket"}
	}
	return got.fd, nil
}

// Close takes the device away. The namespace is gone once no program is in it.
func (n *Namespace) Close() {
	closeFD(n.fd)
	n.fd = -1
	_, _ = n.keeper.call(&request{Op: opClose, Namespace: n.id})
}
