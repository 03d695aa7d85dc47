package gateway

import (
	"errors"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"lattice.dev/engine/internal/link"
	"lattice.dev/engine/internal/userns"
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
	device, err := link.NewPacket(opts.iface, opts.mtu)
	if err != nil {
		if errors.Is(err, unix.EPERM) && opts.namespace == namespaceOwn {
			return nil, "", startFailure("userns_forbidden", "%w", userns.Forbidden("an ordinary user's gateway", err))
		}
		return nil, "", startFailure("device_failed", "the interface %s cannot be made (%w): without /dev/net/tun the gateway needs the kernel's veth and CAP_NET_ADMIN in its network namespace", opts.iface, err)
	}
	return device, devicePacket, nil
}

// configureLink gives the interface its address, its sysctls and the route to the overlay, and sets it up.
func configureLink(opts *options) error {
	iface, err := netlink.LinkByName(opts.iface)
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
		if err := setSysctl(path, value); err != nil {
			return startFailure("sysctl_failed", "%s cannot be set to %s (%w): the gateway needs a writable /proc/sys/net; in a container use --namespace own, mount it writable, or have conf/default set before the gateway starts", path, value, err)
		}
	}
	link.DisableIPv6(opts.iface)
	if opts.namespace == namespaceOwn {
		// The nftables table limits refusals itself, for all peers together. The kernel's limits, of one a second and
		// destination and of so many in all the machine's namespaces together, would turn refusals into time-outs; the
		// mask says which kinds of ICMP they hold for. Windows are not the gateway's to judge.
		_ = os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0)
		_ = os.WriteFile("/proc/sys/net/ipv4/icmp_ratemask", []byte("0"), 0)
		_ = os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", []byte("1"), 0)
	}
	if err := link.SetAddress(iface, opts.address); err != nil {
		return startFailure("address_failed", "the address %s cannot be set on %s: %w", opts.address, opts.iface, err)
	}
	if err := netlink.LinkSetUp(iface); err != nil {
		return startFailure("device_failed", "the interface %s cannot be set up: %w", opts.iface, err)
	}
	if opts.namespace == namespaceOwn {
		// What an agent sends past the overlay shall meet the same refusal and the same record, not a routing error.
		if err := link.Route(iface, link.Everything); err != nil {
			return startFailure("device_failed", "the default route of the namespace cannot be set: %w", err)
		}
	}
	return nil
}

// setSysctl sets what is not set already: in a container /proc/sys is read-only, and new interfaces are as
// conf/default says.
func setSysctl(path, value string) error {
	if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0)
}
