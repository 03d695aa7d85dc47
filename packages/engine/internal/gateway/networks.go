package gateway

import (
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"

	"lattice.dev/engine/internal/link"
)

// shortestNetwork is the widest network that a connector may advertise: nobody routes the Internet through here.
const shortestNetwork = 8

// notForwarded are the networks that no router forwards to.
var notForwarded = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"), // multicast and what is reserved behind it
}

// parseNetwork reads a network, or one address, outside the overlay.
func parseNetwork(text string, overlay netip.Prefix) (netip.Prefix, error) {
	network, err := netip.ParsePrefix(text)
	if err != nil {
		address, bad := netip.ParseAddr(text)
		if bad != nil {
			return network, fmt.Errorf("%q is not an IPv4 network such as 10.0.7.0/24", text)
		}
		network = netip.PrefixFrom(address, address.BitLen())
	}
	if !network.Addr().Is4() || network != network.Masked() {
		return network, fmt.Errorf("%q is not an IPv4 network such as 10.0.7.0/24", text)
	}
	if network.Overlaps(overlay) {
		return network, fmt.Errorf("%s overlaps the overlay %s", network, overlay.Masked())
	}
	if network.Bits() < shortestNetwork || slices.ContainsFunc(notForwarded, network.Overlaps) {
		return network, fmt.Errorf("%s is wider than /%d, or nothing that can be routed to", network, shortestNetwork)
	}
	return network, nil
}

// within tells whether inner is a part of outer, or all of it.
func within(inner, outer netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// hostRoutes leads what comes out of the tunnel for a connector's networks back into it, where the gateway lives in the
// host's network namespace. It is a routing table that only packets from the interface ask: the host's own routes, also
// those to the same networks, stay as they are. In a namespace of its own the default route does it.
type hostRoutes struct {
	link  netlink.Link
	table int
	known map[netip.Prefix]bool
}

const (
	firstTable   = 5_182_000 // plus the interface's index
	rulePriority = 5182
)

func newHostRoutes(iface string) (*hostRoutes, error) {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return nil, startFailure("device_failed", "the interface %s is not there any more: %w", iface, err)
	}
	h := &hostRoutes{link: link, table: firstTable + link.Attrs().Index, known: map[netip.Prefix]bool{}}
	h.forget() // left by a gateway that was killed
	return h, nil
}

// forget removes every rule of this interface's.
func (h *hostRoutes) forget() {
	rules, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return
	}
	for _, rule := range rules {
		if rule.IifName == h.link.Attrs().Name && rule.Priority == rulePriority {
			_ = netlink.RuleDel(&rule)
		}
	}
}

// lead makes the table hold these networks too.
func (h *hostRoutes) lead(networks []netip.Prefix) error {
	if h == nil {
		return nil
	}
	for _, network := range networks {
		if h.known[network] {
			continue
		}
		if len(h.known) == 0 {
			rule := netlink.NewRule()
			rule.IifName, rule.Table, rule.Priority, rule.Family = h.link.Attrs().Name, h.table, rulePriority, netlink.FAMILY_V4
			if err := netlink.RuleAdd(rule); err != nil {
				return fmt.Errorf("the routing rule of %s: %w", rule.IifName, err)
			}
			// What comes from a network of a connector has, in the host's own table, another way back. WireGuard has
			// checked the source already.
			_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+rule.IifName+"/rp_filter", []byte("2"), 0)
		}
		if err := netlink.RouteReplace(h.route(network)); err != nil {
			return fmt.Errorf("the route to %s: %w", network, err)
		}
		h.known[network] = true
	}
	return nil
}

// drop takes a network out again.
func (h *hostRoutes) drop(network netip.Prefix) {
	if h == nil || !h.known[network] {
		return
	}
	_ = netlink.RouteDel(h.route(network))
	delete(h.known, network)
	if len(h.known) == 0 {
		h.forget()
	}
}

func (h *hostRoutes) close() {
	if h != nil {
		h.forget()
	}
}

func (h *hostRoutes) route(network netip.Prefix) *netlink.Route {
	return &netlink.Route{LinkIndex: h.link.Attrs().Index, Dst: link.IPNet(network), Table: h.table, Scope: netlink.SCOPE_LINK}
}
