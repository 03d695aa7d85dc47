package netstack

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"lattice.dev/engine/internal/keeper"
	"lattice.dev/engine/internal/link"
	"lattice.dev/engine/internal/userns"
	"lattice.dev/engine/internal/wg"
)

const deviceKernel = "kernel" // the kernel's own WireGuard

var errNetAdmin = &problem{http.StatusForbidden, "net_admin_missing", "an interface needs CAP_NET_ADMIN, and this process does not have it: " +
	"run as root, add NET_ADMIN to the container's capabilities, or use another backend"}

// openInterface makes an interface in the engine's own network namespace.
func (s *service) openInterface(read *settings) (network, networkView, error) {
	fail := func(err error) (network, networkView, error) { return nil, networkView{}, err }
	if !userns.Has(unix.CAP_NET_ADMIN) {
		return fail(errNetAdmin)
	}
	made, err := openDevice(read)
	if err != nil {
		return fail(err)
	}
	path := filepath.Join(s.runtimeDir, fmt.Sprintf("sockets-%d.sock", s.number()))
	open := func(family, kind string) (int, error) { return ownSocket(read.network.Interface, family, kind) }
	sockets, err := serveSockets(path, open)
	if err != nil {
		made.device.Close()
		return fail(err)
	}
	view := networkView{Kind: kindInterface, Device: made.kind, Why: made.why, Interface: &read.network.Interface, Sockets: &path}
	end := func() {
		sockets.close()
		link.EndConnections(read.addresses)
	}
	start := func() (wg.Device, error) { return made.device, nil }
	return &kernelNetwork{start: start, socket: open, shared: true, end: end}, view, nil
}

// madeDevice is a WireGuard device with its interface, and why it is not a better one.
type madeDevice struct {
	device    wg.Device
	kind, why string
}

// openDevice takes the first kind of device that this machine has: the kernel's own, the engine on a TUN, the engine
// on a veth pair.
func openDevice(read *settings) (*madeDevice, error) {
	var reasons []string
	for _, candidate := range []struct {
		kind, name string
		make       func(*settings) (wg.Device, error)
	}{
		{deviceKernel, "the kernel's WireGuard", kernelDevice},
		{keeper.DeviceTUN, "a TUN", tunDevice},
		{keeper.DevicePacket, "a veth pair", packetDevice},
	} {
		if wanted := read.network.Device; wanted != keeper.DeviceAuto && wanted != candidate.kind {
			continue
		}
		device, err := candidate.make(read)
		if err == nil {
			return &madeDevice{device, candidate.kind, strings.Join(reasons, "; ")}, nil
		}
		if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
			return nil, &problem{http.StatusConflict, "interface_exists", fmt.Sprintf("there is an interface %s already: name another one, or remove it", read.network.Interface)}
		}
		if errors.Is(err, wg.ErrRefused) {
			return nil, err
		}
		reasons = append(reasons, fmt.Sprintf("%s is not to be had (%v)", candidate.name, err))
	}
	return nil, &problem{http.StatusServiceUnavailable, "device_failed", "no interface can be made: " + strings.Join(reasons, "; ")}
}

func kernelDevice(read *settings) (wg.Device, error) {
	iface, err := link.AddWireGuard(read.network.Interface, read.mtu)
	if err != nil {
		return nil, err
	}
	remove := func() { _ = netlink.LinkDel(iface) }
	gone, unwatch, err := link.Gone(iface)
	if err != nil {
		remove()
		return nil, err
	}
	device, err := wg.NewKernel(read.network.Interface, read.privateKey, read.peer, gone, func() {
		unwatch()
		remove()
	})
	if err != nil {
		unwatch()
		remove()
		return nil, err
	}
	if err := configure(read); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

func tunDevice(read *settings) (wg.Device, error) {
	// wireguard-go's own would take over an interface that is there.
	if _, err := netlink.LinkByName(read.network.Interface); err == nil {
		return nil, unix.EEXIST
	}
	fd, err := link.OpenTUN(read.network.Interface)
	if err != nil {
		return nil, err
	}
	packets, err := link.JoinTUN(fd, read.mtu)
	if err != nil {
		return nil, err
	}
	return overPackets(read, packets)
}

func packetDevice(read *settings) (wg.Device, error) {
	packets, err := link.NewPacket(read.network.Interface, read.mtu)
	if err != nil {
		return nil, err
	}
	return overPackets(read, packets)
}

func overPackets(read *settings, packets tun.Device) (wg.Device, error) {
	if err := configure(read); err != nil {
		_ = packets.Close()
		return nil, err
	}
	return wg.NewUserspace(packets, read.privateKey, read.peer)
}

// configure gives the interface its addresses and the routes of the configuration, and no others. A route that is
// there already, another agent's for the same overlay, keeps its place before this one: the engine's own sockets are
// bound to the interface and need no first place.
func configure(read *settings) error {
	name := read.network.Interface
	iface, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	link.DisableIPv6(name)
	_ = netlink.LinkSetIP6AddrGenMode(iface, nl.IN6_ADDR_GEN_MODE_NONE) // also where /proc/sys may not be written
	// Answers come in where another agent's route leads out: loose reverse path filtering (RFC 3704 §2.4).
	_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("2"), 0)
	if err := netlink.LinkSetMTU(iface, read.mtu); err != nil {
		return err
	}
	for _, address := range read.addresses {
		if err := link.SetAddress(iface, netip.PrefixFrom(address, address.BitLen())); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(iface); err != nil {
		return err
	}
	for _, route := range read.routes {
		if !route.Addr().Is4() {
			continue // there is no IPv6 in the overlay
		}
		if err := link.RouteAfter(iface, route); err != nil {
			return fmt.Errorf("the route to %s: %w", route, err)
		}
	}
	return nil
}

// ownSocket opens a socket in the engine's own network namespace that sends through the interface and nowhere else.
func ownSocket(iface, family, kind string) (int, error) {
	fd, err := keeper.OpenSocket(family, kind)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, iface); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("a socket cannot be bound to %s: %w", iface, err)
	}
	return fd, nil
}
