package gateway

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"strconv"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// deniedInterval is how often refused flows are read from the kernel.
const deniedInterval = 250 * time.Millisecond

// deniedLoop turns the counters of refused flows into events.
func (g *gateway) deniedLoop() {
	defer g.loops.Done()
	ticker := time.NewTicker(deniedInterval)
	defer ticker.Stop()
	seen := newCounted()
	failing := false
	for {
		select {
		case <-g.closing:
			return
		case <-ticker.C:
		}
		began := time.Now()
		next, err := g.readDenied(seen)
		if errors.Is(err, unix.ENOENT) {
			err = g.restore()
		}
		if err != nil {
			if !failing {
				slog.Warn("refused flows cannot be read", "error", err.Error())
			}
			failing = true
			continue
		}
		g.forgetFormer(began)
		seen, failing = next, false
	}
}

// deniedKey is a key of the set of denied flows, and sourceKey one of the set of totals.
type (
	deniedKey [16]byte
	sourceKey [4]byte
)

func (k deniedKey) source() sourceKey { return sourceKey(k[0:4]) }

// counted is what the kernel's counters were when they were read.
type counted struct {
	flows  map[deniedKey]uint64
	totals map[sourceKey]uint64
	// ahead are packets that were seen with their flow before they were seen in the total, which is read first.
	ahead map[sourceKey]uint64
}

func newCounted() *counted {
	return &counted{flows: map[deniedKey]uint64{}, totals: map[sourceKey]uint64{}, ahead: map[sourceKey]uint64{}}
}

// refused is what has come since a former reading: packets of a flow, or of all flows of a source for which there was no
// room, whose key is all zero but for the source.
type refused struct {
	key     deniedKey
	packets uint64
}

// since works out what has come since a former reading. What totals have and no flow has is nobody's in particular.
func (c *counted) since(before *counted) []refused {
	var all []refused
	known := maps.Clone(before.ahead)
	for key, packets := range c.flows {
		if n := more(packets, before.flows[key]); n > 0 {
			known[key.source()] += n
			all = append(all, refused{key, n})
			if _, read := c.totals[key.source()]; !read {
				c.ahead[key.source()] += n
			}
		}
	}
	for source, packets := range c.totals {
		come, of := more(packets, before.totals[source]), known[source]
		switch {
		case come > of:
			key := deniedKey{}
			copy(key[:], source[:])
			all = append(all, refused{key, come - of})
		case come < of:
			c.ahead[source] = of - come
		}
	}
	return all
}

// more is how far a counter has got; one that is behind has timed out and come again.
func more(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// readDenied reads the counters and reports what has come.
func (g *gateway) readDenied(before *counted) (*counted, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	// The library's errors hide the kernel's number, and a table that is gone must be told from one that is empty.
	if _, err := conn.ListTableOfFamily(g.firewall.table.Name, g.firewall.table.Family); err != nil {
		return nil, err
	}
	next := newCounted()
	totals, err := conn.GetSetElements(g.firewall.sets[setTotals])
	if err != nil || len(totals) == 0 {
		return next, err // a total outlives its flows
	}
	for _, element := range totals {
		if len(element.Key) == len(sourceKey{}) && element.Counter != nil {
			next.totals[sourceKey(element.Key)] = element.Counter.Packets
		}
	}
	flows, err := conn.GetSetElements(g.firewall.sets[setDenied])
	if err != nil {
		return nil, err
	}
	for _, element := range flows {
		if len(element.Key) == len(deniedKey{}) && element.Counter != nil {
			next.flows[deniedKey(element.Key)] = element.Counter.Packets
		}
	}
	for _, one := range next.since(before) {
		g.events.add(g.denied(one))
	}
	return next, nil
}

func (g *gateway) denied(what refused) event {
	key, from := what.key, netip.AddrFrom4(what.key.source())
	port := binary.BigEndian.Uint16(key[12:14])
	var destination, protocol string
	if to := netip.AddrFrom4([4]byte(key[4:8])); !to.IsUnspecified() || key[8] != 0 {
		destination, protocol = to.String(), protocolName(key[8])
	}
	e := event{
		Type: "denied", Source: from.String(), Destination: &destination, Protocol: &protocol, Port: &port, Packets: what.packets,
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if who := g.table.byAddress[from]; who != nil {
		e.ID = who.id
	} else if who, known := g.former[from]; known {
		e.ID = who.id
	}
	return e
}

// former is who had an address until its identity ended: what it tried last is read from the kernel only afterwards.
type former struct {
	id    string
	ended time.Time
}

// remember notes the identities that a plan has ended. Called with the lock.
func (g *gateway) remember(p *plan) {
	for _, who := range p.remove {
		if g.table.byAddress[who.address] == nil {
			g.former[who.address] = former{who.id, time.Now()}
		}
	}
}

// forgetFormer drops those that had ended before a reading of the kernel began.
func (g *gateway) forgetFormer(read time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.former, func(_ netip.Addr, who former) bool { return who.ended.Before(read) })
}

func protocolName(protocol uint8) string {
	switch protocol {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	}
	return strconv.Itoa(int(protocol))
}
