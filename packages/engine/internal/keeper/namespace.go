package keeper

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/link"
	"lattice.dev/engine/internal/userns"
)

// namespace is the network namespace of one tunnel, and the thread that lives in it.
type namespace struct {
	opened
	id   int64
	spec *Spec
	jobs chan func()
	quit chan struct{} // closed by close
	gone chan struct{} // closed once the thread is ending
	pair string        // DevicePacket: the engine's end, in the keeper's own namespace
}

// open makes a namespace and returns the descriptor of its device. It is called outside of every tunnel's namespace.
func open(id int64, spec *Spec) (*namespace, int, error) {
	if spec == nil {
		return nil, -1, errors.New("a namespace needs its spec")
	}
	n := &namespace{id: id, spec: spec, jobs: make(chan func()), quit: make(chan struct{}), gone: make(chan struct{})}
	entered := make(chan error, 1)
	go n.live(entered)
	if err := <-entered; err != nil {
		n.close()
		return nil, -1, err
	}
	fd, err := n.openDevice()
	if err != nil {
		n.close()
		return nil, -1, err
	}
	if err := n.do(n.configure); err != nil {
		closeFD(fd)
		n.close()
		return nil, -1, err
	}
	return n, fd, nil
}

// live is the thread in the namespace.
func (n *namespace) live(entered chan<- error) {
	defer close(n.gone)
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine and leaves the namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) {
			err = &Error{"namespaces_exhausted", fmt.Sprintf("there are as many network namespaces as this machine allows (%v): end some agents, or raise user.max_net_namespaces with sysctl", err)}
		} else {
			err = &Error{"userns_forbidden", userns.Forbidden("a network namespace for an agent", err).Error()}
		}
		entered <- err
		return
	}
	n.Thread = unix.Gettid()
	n.Cookie = cookie()
	entered <- n.setUp()
	for {
		select {
		case job := <-n.jobs:
			job()
		case <-n.quit:
			return
		}
	}
}

// do runs a function on the thread in the namespace.
func (n *namespace) do(job func() error) error {
	done := make(chan error, 1)
	select {
	case n.jobs <- func() { done <- job() }:
		return <-done
	case <-n.gone:
		return &Error{"namespace_gone", "there is no such namespace any more"}
	}
}

// cookie tells this thread's namespace from every other one since the machine has started.
func cookie() uint64 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	value, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return value
}

// setUp brings a namespace that is new into its state. A namespace takes some settings from the host's, so what
// matters is set here; where /proc/sys may not be written the gateway still decides what passes.
func (n *namespace) setUp() error {
	for path, value := range map[string]string{
		"ipv6/conf/default/disable_ipv6": "1", // there is none in the overlay, and nothing must leave by it
		"ipv6/conf/lo/disable_ipv6":      "0",
		"ipv4/ping_group_range":          pingGroups(),
		// Whoever may run a program here may have it listen on any port: the address is the tunnel's alone.
		"ipv4/ip_unprivileged_port_start": "0",
	} {
		sysctl(path, value)
	}
	hardenIPv4("all")
	hardenIPv4("default")
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return n.deviceError("the loopback interface", err)
	}
	return nil
}

func hardenIPv4(name string) {
	for key, value := range map[string]string{
		"forwarding": "0", "route_localnet": "0", "accept_local": "0", "accept_redirects": "0",
		"send_redirects": "0", "accept_source_route": "0",
	} {
		sysctl("ipv4/conf/"+name+"/"+key, value)
	}
}

func sysctl(path, value string) { _ = os.WriteFile("/proc/sys/net/"+path, []byte(value), 0) }

// pingGroups lets every group of the user namespace open an ICMP echo socket, as most distributions do.
func pingGroups() string {
	_, gids, _, err := userns.Identity()
	if err != nil || len(gids) == 0 {
		return fmt.Sprintf("%d %d", os.Getgid(), os.Getgid())
	}
	const most = 1<<31 - 1 // GID_T_MAX
	return fmt.Sprintf("%d %d", gids[0].ContainerID, min(gids[0].ContainerID+gids[0].Size-1, most))
}

func (n *namespace) openDevice() (int, error) {
	if n.spec.Device != DevicePacket {
		fd := -1
		err := n.do(func() (err error) {
			fd, err = link.OpenTUN(n.spec.Interface)
			return err
		})
		if err == nil {
			n.Device = DeviceTUN
			return fd, nil
		}
		n.Why = fmt.Sprintf("a TUN is not to be had (%v)", err)
		if n.spec.Device == DeviceTUN {
			return -1, &Error{"tun_failed", fmt.Sprintf("the TUN cannot be made (%v): load the module tun and let this user open /dev/net/tun, or leave the device out", err)}
		}
	}
	fd, err := n.openPair()
	if err != nil {
		return -1, n.deviceError("the interface "+n.spec.Interface, err)
	}
	n.Device = DevicePacket
	return fd, nil
}

// openPair makes a veth pair with one end in the namespace and the other in the keeper's own, where no program is.
func (n *namespace) openPair() (int, error) {
	inside, err := unix.Open("/proc/self/task/"+strconv.Itoa(n.Thread)+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(inside)
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.TxQLen = "t"+strconv.FormatInt(n.id, 36), n.spec.MTU, 1000
	pair := &netlink.Veth{LinkAttrs: attributes, PeerName: n.spec.Interface, PeerMTU: uint32(n.spec.MTU),
		PeerNamespace: netlink.NsFd(inside)}
	if err := netlink.LinkAdd(pair); err != nil {
		return -1, err
	}
	n.pair = attributes.Name
	ours, err := netlink.LinkByName(n.pair)
	if err == nil {
		err = link.PrepareEnd(ours)
	}
	if err == nil {
		err = netlink.LinkSetUp(ours)
	}
	if err != nil {
		return -1, err
	}
	n.Index = ours.Attrs().Index
	err = n.do(func() error {
		end, err := netlink.LinkByName(n.spec.Interface)
		if err != nil {
			return err
		}
		n.Kernel = end.Attrs().HardwareAddr
		return link.PrepareEnd(end)
	})
	if err != nil {
		return -1, err
	}
	return link.OpenEnd(ours)
}

// configure gives the interface its addresses and the route to everything: what a program sends past the overlay
// shall meet the gateway's refusal, and be on its record.
func (n *namespace) configure() error {
	iface, err := netlink.LinkByName(n.spec.Interface)
	if err != nil {
		return n.deviceError("the interface "+n.spec.Interface, err)
	}
	link.DisableIPv6(n.spec.Interface)
	_ = netlink.LinkSetIP6AddrGenMode(iface, nl.IN6_ADDR_GEN_MODE_NONE)
	hardenIPv4(n.spec.Interface)
	if err := netlink.LinkSetMTU(iface, n.spec.MTU); err != nil {
		return n.deviceError("the MTU", err)
	}
	for _, address := range n.spec.Addresses {
		if !address.Is4() {
			continue // there is no IPv6 in the overlay
		}
		if err := link.SetAddress(iface, netip.PrefixFrom(address, 32)); err != nil {
			return n.deviceError("the address "+address.String(), err)
		}
	}
	if err := netlink.LinkSetUp(iface); err != nil {
		return n.deviceError("the interface "+n.spec.Interface, err)
	}
	if err := link.Route(iface, link.Everything); err != nil {
		return n.deviceError("the default route", err)
	}
	return nil
}

func (n *namespace) deviceError(what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return &Error{"userns_forbidden", userns.Forbidden("a network namespace for an agent", err).Error()}
	}
	return &Error{"device_failed", fmt.Sprintf("%s cannot be made in the tunnel's network namespace (%v): without /dev/net/tun the kernel's veth is needed", what, err)}
}

// close takes the device away and leaves the namespace, which is gone when the last program in it is.
func (n *namespace) close() {
	if n.pair != "" {
		if ours, err := netlink.LinkByName(n.pair); err == nil {
			_ = netlink.LinkDel(ours)
		}
	}
	_ = n.do(func() error {
		if iface, err := netlink.LinkByName(n.spec.Interface); err == nil {
			_ = netlink.LinkDel(iface)
		}
		link.EndConnections(n.spec.Addresses)
		return nil
	})
	close(n.quit)
	<-n.gone
}
