package gateway

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flowsOf selects the tracked connections of addresses that have lost their identity and of grants that were cut.
type flowsOf struct {
	gone   map[netip.Addr]struct{}
	lost   []netip.Prefix
	cut    map[elementKey]struct{}
	ranges []elementKey
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
	for _, network := range f.lost {
		if network.Contains(to) || network.Contains(from) {
			return true
		}
	}
	for _, key := range f.ranges {
		g := grant{to: netip.AddrFrom4([4]byte(key.key[4:8])), bits: key.bits}
		flowTo := grant{to: g.to, bits: g.bits, protocol: flow.Forward.Protocol, port: flow.Forward.DstPort}
		if g.network().Contains(to) && from.Is4() && flowTo.elementOf(&peer{address: from}) == key {
			return true
		}
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
	if len(p.gone) == 0 && len(p.lost) == 0 && len(p.cut) == 0 {
		return nil
	}
	f := &flowsOf{gone: p.gone, lost: p.lost, cut: make(map[elementKey]struct{}, len(p.cut))}
	for _, key := range p.cut {
		if key.set == inRanges {
			f.ranges = append(f.ranges, key)
			continue
		}
		f.cut[key] = struct{}{}
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
	return err
}
