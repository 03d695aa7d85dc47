package gateway

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flowsOf selects the tracked connections of addresses that have lost their identity and of grants that were cut.
type flowsOf struct {
	gone map[netip.Addr]struct{}
	cut  map[elementKey]struct{}
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f *flowsOf) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	if !ok {
		return false
	}
	to, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	if !ok {
		return false
	}
	from, to = from.Unmap(), to.Unmap()
	if _, is := f.gone[from]; is {
		return true
	}
	if _, is := f.gone[to]; is {
		return true
	}
	if len(f.cut) == 0 || !from.Is4() || !to.Is4() {
		return false
	}
	who := &peer{address: from}
	if _, is := f.cut[grant{to: to}.elementOf(who)]; is {
		return true
	}
	_, is := f.cut[grant{to: to, protocol: flow.Forward.Protocol, port: flow.Forward.DstPort}.elementOf(who)]
	return is
}

// forget deletes the tracked connections that a plan ends.
func forget(p *plan) error {
	if len(p.gone) == 0 && len(p.cut) == 0 {
		return nil
	}
	f := &flowsOf{gone: p.gone, cut: make(map[elementKey]struct{}, len(p.cut))}
	for _, key := range p.cut {
		f.cut[key] = struct{}{}
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
	return err
}
