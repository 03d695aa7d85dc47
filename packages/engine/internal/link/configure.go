// Package link makes and configures the engine's network interfaces, by netlink and in the network namespace of the
// calling thread.
package link

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DisableIPv6 turns IPv6 off on an interface; a kernel without IPv6 has nothing to turn off.
func DisableIPv6(name string) {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
}

// SetAddress gives the interface an address with its prefix.
func SetAddress(link netlink.Link, address netip.Prefix) error {
	return netlink.AddrReplace(link, &netlink.Addr{IPNet: IPNet(address)})
}

// Route sends what is for the prefix into the interface.
func Route(link netlink.Link, to netip.Prefix) error {
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: IPNet(to), Scope: netlink.SCOPE_LINK})
}

// RouteAfter does the same and leaves a route to the same prefix that is there already before this one.
func RouteAfter(link netlink.Link, to netip.Prefix) error {
	index := link.Attrs().Index
	route := &netlink.Route{LinkIndex: index, Dst: IPNet(to), Scope: netlink.SCOPE_LINK}
	err := netlink.RouteAdd(route)
	if errors.Is(err, unix.EEXIST) {
		route.Priority = index // no two interfaces have the same
		err = netlink.RouteAdd(route)
	}
	return err
}

// Everything is the prefix of the default route.
var Everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// IPNet is a prefix as netlink takes it.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
