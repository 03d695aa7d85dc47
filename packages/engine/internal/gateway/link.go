package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// openDevice makes the interface: a TUN where /dev/net/tun can be opened, else a veth pair read through a packet
// socket. It returns the kind that it made.
func openDevice(opts *options) (tun.Device, string, error) {
	if opts.device != devicePacket {
		device, err := tun.CreateTUN(opts.iface, opts.mtu)
		if err == nil {
			return device, deviceTUN, nil
		}
		if opts.device == deviceTUN {
			return nil, "", startFailure("tun_failed", "the TUN %s cannot be made (%w): load the module tun and let this user open /dev/net/tun, or leave --device out", opts.iface, err)
		}
	}
	device, err := newPacketDevice(opts.iface, opts.mtu)
	if err != nil {
		if errors.Is(err, unix.EPERM) && opts.namespace == namespaceOwn {
			return nil, "", startFailure("userns_forbidden", "%w", namespaceError(err))
		}
		return nil, "", startFailure("device_failed", "the interface %s cannot be made (%w): without /dev/net/tun the gateway needs the kernel's veth and CAP_NET_ADMIN in its network namespace", opts.iface, err)
	}
	return device, devicePacket, nil
}

// configureLink gives the interface its address, its sysctls and the route to the overlay, and sets it up.
func configureLink(opts *options) error {
	link, err := netlink.LinkByName(opts.iface)
	if err != nil {
		return startFailure("device_failed", "the interface %s is not there any more: %w", opts.iface, err)
	}
	base := "/proc/sys/net/ipv4/conf/" + opts.iface
	for path, value := range map[string]string{
		base + "/forwarding":     "1", // of this interface only: the host's other forwarding stays as it is
		base + "/send_redirects": "0",
		base + "/route_localnet": "0",
		base + "/accept_local":   "0",
	} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return startFailure("sysctl_failed", "%s cannot be set to %s (%w): the gateway needs a writable /proc/sys/net; in a container use --namespace own or mount it writable", path, value, err)
		}
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+opts.iface+"/disable_ipv6", []byte("1"), 0)
	if opts.namespace == namespaceOwn {
		// The nftables table limits refusals itself, for all peers together; the kernel's limit of one a second and
		// destination would turn refusals into time-outs. Windows are not the gateway's to judge.
		_ = os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0)
		_ = os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", []byte("1"), 0)
	}
	address := &netlink.Addr{IPNet: ipNet(opts.address)}
	if err := netlink.AddrReplace(link, address); err != nil {
		return startFailure("address_failed", "the address %s cannot be set on %s: %w", opts.address, opts.iface, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return startFailure("device_failed", "the interface %s cannot be set up: %w", opts.iface, err)
	}
	if opts.namespace == namespaceOwn {
		// What an agent sends past the overlay shall meet the same refusal and the same record, not a routing error.
		everything := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everything, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteReplace(route); err != nil {
			return startFailure("device_failed", "the default route of the namespace cannot be set: %w", err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// makePair makes the veth pair of the packet device: name is the kernel's side, the other end is ours.
func makePair(name, other string, mtu int) (kernel, ours netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.TxQLen = name, mtu, 1000
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: other, PeerMTU: uint32(mtu)}
	err = netlink.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) && removeAbandoned(other) {
		err = netlink.LinkAdd(pair)
	}
	if err != nil {
		return nil, nil, err
	}
	if kernel, err = netlink.LinkByName(name); err != nil {
		return nil, nil, err
	}
	if ours, err = netlink.LinkByName(other); err != nil {
		return nil, nil, err
	}
	for _, link := range []netlink.Link{kernel, ours} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+link.Attrs().Name+"/disable_ipv6", []byte("1"), 0)
		// There is nobody to ask for a link-layer address: every packet goes to the one other end.
		if err = netlink.LinkSetARPOff(link); err != nil {
			return nil, nil, err
		}
		// The kernel's own answers must leave with complete checksums: WireGuard carries them as they are.
		if err = noChecksumOffload(link.Attrs().Name); err != nil {
			return nil, nil, err
		}
	}
	return kernel, ours, netlink.LinkSetUp(ours)
}

// removeAbandoned removes the pair of a gateway that was killed: one whose end no packet socket reads.
func removeAbandoned(other string) bool {
	link, err := netlink.LinkByName(other)
	if err != nil || link.Type() != "veth" {
		return false
	}
	sockets, err := os.ReadFile("/proc/thread-self/net/packet")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(sockets)) {
		if columns := strings.Fields(line); len(columns) > 4 && columns[4] == strconv.Itoa(link.Attrs().Index) {
			return false
		}
	}
	return netlink.LinkDel(link) == nil
}

// noChecksumOffload is `ethtool -K name tx off`; segmentation offload goes with it.
func noChecksumOffload(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("checksum offload of %s cannot be turned off: %w", name, errno)
	}
	return nil
}
