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
	seen := map[[16]byte]uint64{}
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

func (g *gateway) readDenied(seen map[[16]byte]uint64) (map[[16]byte]uint64, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	// The library's errors hide the kernel's number, and a table that is gone must be told from one that is empty.
	if _, err := conn.ListTableOfFamily(g.firewall.table.Name, g.firewall.table.Family); err != nil {
		return nil, err
	}
	elements, err := conn.GetSetElements(g.firewall.sets[setDenied])
	if err != nil {
		return nil, err
	}
	next := make(map[[16]byte]uint64, len(elements))
	for _, element := range elements {
		if len(element.Key) != 16 || element.Counter == nil {
			continue
		}
		key := [16]byte(element.Key)
		packets := element.Counter.Packets
		next[key] = packets
		before := seen[key]
		if packets < before {
			before = 0 // it has timed out and come again
		}
		if packets > before {
			g.events.add(g.denied(key, packets-before))
		}
	}
	return next, nil
}

func (g *gateway) denied(key [16]byte, packets uint64) event {
	from := netip.AddrFrom4([4]byte(key[0:4]))
	port := binary.BigEndian.Uint16(key[12:14])
	e := event{
		Type: "denied", Source: from.String(), Destination: netip.AddrFrom4([4]byte(key[4:8])).String(),
		Protocol: protocolName(key[8]), Port: &port, Packets: packets,
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
