package gateway

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A fragment must not carry past the firewall what a whole packet may not.
func TestFragmentsCarryNothingPastTheFirewall(t *testing.T) {
	attacked4(t, func(t *testing.T, g *running, agent, service *raw) {
		split := func(id uint16, target uint16, at int) [][]byte {
			whole := segment(agent.address, service.address, 4000+id, target, flagSYN)
			h := ip4{from: agent.address, to: service.address, protocol: unix.IPPROTO_TCP, id: id}
			first, second := h, h
			first.flags, second.flags = moreFragments, uint16(at/8)
			return [][]byte{first.packet(whole[:at]), second.packet(whole[at:])}
		}
		for n, at := range []int{8, 16} { // in the middle of the header: flags, and what else is behind the ports
			good := split(uint16(10+n), 443, at)
			if agent.reaches(service, func(p []byte) bool { return isTCP(p, 443) }, good...) == nil {
				t.Errorf("what is granted does not pass in fragments of %d", at)
			}
			bad := split(uint16(20+n), 22, at)
			agent.send(bad[1], bad[0]) // the ports come last
			agent.send(split(uint16(30+n), 22, at)...)
			if service.receives(arrival, func(p []byte) bool { return isTCP(p, 22) }) {
				t.Errorf("port 22 passed in fragments of %d", at)
			}
		}
		// A fragment without the first has no ports to be looked up.
		lone := ip4{from: agent.address, to: service.address, protocol: unix.IPPROTO_TCP, id: 40, flags: 2}
		agent.send(lone.packet(make([]byte, 64)))
		// Beyond the longest packet, which once crashed others.
		giant := ip4{from: agent.address, to: service.address, protocol: unix.IPPROTO_UDP, id: 41, flags: 0x1fff}
		agent.send(giant.packet(make([]byte, 512)))
		if service.receives(arrival, func(p []byte) bool { return any4(p) && idOf(p) >= 20 }) {
			t.Error("a piece of a packet passed")
		}
		service.settled(agent, 443)
	})
}

// The first fragment says a port that is granted, and another one writes another port over it (RFC 1858).
func TestOverlappingFragmentsCarryNothingPastTheFirewall(t *testing.T) {
	attacked4(t, func(t *testing.T, g *running, agent, service *raw) {
		granted := segment(agent.address, service.address, 5000, 443, flagSYN)
		other := segment(agent.address, service.address, 5000, 22, flagSYN)
		h := ip4{from: agent.address, to: service.address, protocol: unix.IPPROTO_TCP}
		fragment := func(id uint16, flags uint16, data []byte) []byte {
			f := h
			f.id, f.flags = id, flags
			return f.packet(data)
		}
		for n, parts := range [][][]byte{
			{fragment(1, moreFragments, granted[:16]), fragment(1, moreFragments, other[:16]), fragment(1, 2, other[16:])},
			{fragment(2, moreFragments, other[:16]), fragment(2, moreFragments, granted[:16]), fragment(2, 2, granted[16:])},
			{fragment(3, moreFragments, granted[:8]), fragment(3, 0, other)},
			{fragment(4, 1, other[8:]), fragment(4, moreFragments, other[:16]), fragment(4, moreFragments, granted[:8])},
		} {
			agent.send(parts...)
			// What was put together from what is granted goes on in pieces of the size that it came in.
			if p := service.take(arrival, func(p []byte) bool { return protocolOf(p) == unix.IPPROTO_TCP && offsetOf(p) == 0 && !isTCP(p, 443) }); p != nil {
				t.Errorf("set %d: passed % x", n, p)
			}
		}
		service.settled(agent, 443)
	})
}

// An ICMP error about somebody else's flow makes its end slow down or give up (RFC 5927).
func TestCraftedErrorsReachNeitherEndOfAnothersFlow(t *testing.T) {
	attacked4(t, func(t *testing.T, g *running, victim, service *raw) {
		attacker, second := g.raw("attacker", "10.96.2.66"), g.raw("second", "10.96.0.8")
		g.patch(
			victim.body(600, toTCP(&service.client, 443), toTCP(&second.client, 80), m{"to": "10.96.2.66", "protocol": "any", "port": 0}),
			attacker.body(600, toTCP(&service.client, 443), m{"to": "10.96.2.5", "protocol": "any", "port": 0}), second.body(nil))
		attacker.rawUp()
		second.rawUp()
		open := tcp4(victim.address, service.address, 6000, 443, flagSYN)
		answer := tcp4(service.address, victim.address, 443, 6000, flagSYN|flagACK)
		if victim.reaches(service, func(p []byte) bool { return isTCP(p, 443) }, open) == nil {
			t.Fatal("no flow to attack")
		}
		if service.reaches(victim, func(p []byte) bool { return isTCP(p, 6000) }, answer) == nil {
			t.Fatal("no answer")
		}
		about := func(from *raw, to *raw, kind, code byte, rest uint32, inner []byte) []byte {
			return ip4{from: from.address, to: to.address, protocol: unix.IPPROTO_ICMP}.packet(icmp(kind, code, rest, inner[:28]))
		}
		for _, from := range []*raw{attacker, second} {
			for _, e := range []struct {
				kind, code byte
				rest       uint32
			}{{3, 1, 0}, {3, 3, 0}, {3, 4, 68}, {3, 13, 0}, {4, 0, 0}, {5, 1, 0x0a600242}, {11, 0, 0}, {12, 0, 0}} {
				from.send(about(from, victim, e.kind, e.code, e.rest, open), about(from, service, e.kind, e.code, e.rest, answer))
			}
		}
		if p := victim.take(arrival, func(p []byte) bool { return protocolOf(p) == unix.IPPROTO_ICMP }); p != nil {
			t.Errorf("the victim got ICMP type %d of %v", transport(p)[0], sourceOf(p))
		}
		if p := service.take(arrival, func(p []byte) bool { return protocolOf(p) == unix.IPPROTO_ICMP }); p != nil {
			t.Errorf("the service got ICMP type %d", transport(p)[0])
		}
		// The flow's own target is believed, and even it redirects nobody.
		p := service.reaches(victim, func(p []byte) bool { return protocolOf(p) == unix.IPPROTO_ICMP },
			about(service, victim, 5, 1, 0x0a600242, open), about(service, victim, 3, 3, 0, open))
		if p == nil || transport(p)[0] != 3 {
			t.Errorf("of the service's own errors came %v", p)
		}
	})
}

func TestPacketsWithIPOptionsAreDropped(t *testing.T) {
	attacked4(t, func(t *testing.T, g *running, agent, service *raw) {
		to := service.address.As4()
		gateway := to4("10.96.0.1")
		through := func(kind byte, hop [4]byte) []byte { return append([]byte{kind, 7, 4}, append(hop[:], 0)...) }
		for name, h := range map[string]ip4{
			"record route":             {to: service.address, options: []byte{7, 7, 4, 0, 0, 0, 0, 0}},
			"timestamp":                {to: service.address, options: []byte{68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
			"loose source route":       {to: gateway, options: through(131, to)},
			"strict source route":      {to: gateway, options: through(137, to)},
			"route through the target": {to: service.address, options: through(131, agent.address.As4())},
			"router alert":             {to: service.address, options: []byte{148, 4, 0, 0}},
			"no operation":             {to: service.address, options: []byte{1, 1, 1, 0}},
		} {
			h.from, h.protocol = agent.address, unix.IPPROTO_TCP
			agent.send(h.packet(segment(agent.address, service.address, 7000, 443, flagSYN)))
			// Any packet but a late one of those that have shown that the grant holds.
			attack := func(p []byte) bool { return any4(p) && (!isTCP(p, 443) || sourcePort(p) == 7000) }
			if p := service.take(arrival/3, attack); p != nil {
				t.Errorf("%s passed: % x", name, p)
			}
		}
		service.settled(agent, 443)
	})
}

// A key sends from its own address alone: what another peer may do, nobody does in its name.
func TestSpoofedSourceReachesNothing(t *testing.T) {
	attacked4(t, func(t *testing.T, g *running, victim, service *raw) {
		spoofer := g.raw("spoofer", "10.96.2.66")
		g.patch(spoofer.body(600, toTCP(&service.client, 443)))
		spoofer.rawUp()
		const mark = 0xbad
		marked := func(p []byte) bool { return any4(p) && idOf(p) == mark }
		tcp := func(from, to netip.Addr, source, target uint16, flags byte) []byte {
			return ip4{from: from, to: to, protocol: unix.IPPROTO_TCP, id: mark}.packet(segment(from, to, source, target, flags))
		}
		// The way and the watch: under its own name it gets there, with what it is known by here.
		if p := spoofer.reaches(service, marked, tcp(spoofer.address, service.address, 3000, 443, flagSYN)); p == nil || sourceOf(p) != spoofer.address {
			t.Fatalf("the spoofer has no way to the service under its own name: % x", p)
		}
		opened := func(p []byte) bool { return isTCP(p, 443) && sourceOf(p) == victim.address }
		if victim.reaches(service, opened, tcp4(victim.address, service.address, 6000, 443, flagSYN)) == nil {
			t.Fatal("the victim has no flow")
		}
		gateway := to4("10.96.0.1")
		for name, packet := range map[string][]byte{
			"a new flow of the victim's":        tcp(victim.address, service.address, 3001, 443, flagSYN),
			"data in a flow of the victim's":    tcp(victim.address, service.address, 6000, 443, flagACK),
			"the end of a flow of the victim's": tcp(victim.address, service.address, 6000, 443, flagRST),
			"a flow of the gateway's":           tcp(gateway, service.address, 3002, 443, flagSYN),
			"a flow from outside the overlay":   tcp(to4("198.51.100.7"), service.address, 3003, 443, flagSYN),
			"the service's answer":              tcp(service.address, victim.address, 443, 6000, flagSYN|flagACK),
			"a question of the victim's":        ip4{from: victim.address, to: gateway, protocol: unix.IPPROTO_ICMP, id: mark}.packet(icmp(8, 0, 1, nil)),
		} {
			spoofer.send(packet)
			spoofer.rawUp() // a tunnel keeps the order
			if p := service.take(arrival/3, marked); p != nil && sourceOf(p) != spoofer.address {
				t.Errorf("%s came to the service: % x", name, p)
			}
			if p := victim.take(arrival/3, any4); p != nil {
				t.Errorf("%s came back to the victim: % x", name, p)
			}
		}
		// The watch has seen all the time, and the flow is open.
		if service.reaches(victim, func(p []byte) bool { return isTCP(p, 6000) }, tcp4(service.address, victim.address, 443, 6000, flagSYN|flagACK)) == nil {
			t.Error("the victim's flow is not open any more")
		}
		service.settled(victim, 443)
	})
}

// A full connection table drops everybody's new connections: one agent must not be able to fill it, and while it tries,
// what others have goes on.
func TestOneAgentsConnectionsLeaveRoomForOthers(t *testing.T) {
	for name, flood := range map[string]struct {
		protocol byte
		packet   func(from, to netip.Addr, port uint16) []byte
	}{
		"tcp": {unix.IPPROTO_TCP, func(from, to netip.Addr, port uint16) []byte { return tcp4(from, to, port, 443, flagSYN) }},
		"udp": {unix.IPPROTO_UDP, func(from, to netip.Addr, port uint16) []byte {
			return ip4{from: from, to: to, protocol: unix.IPPROTO_UDP}.packet(datagram(port, 443, []byte("x")))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			attacked4(t, func(t *testing.T, g *running, agent, service *raw) {
				other, tool := g.client("other", "10.96.2.6"), g.client("tool", "10.96.0.8")
				g.patch(agent.body(600, toTCP(&service.client, 443), toUDP(service, 443)), other.body(600, toTCP(tool, 443)), tool.body(nil))
				other.up()
				tool.up()
				tool.serve(443, func(c net.Conn) { _, _ = io.Copy(c, c) })
				goes := answering(t, other, tool)
				arrived := map[uint16]bool{}
				refusal := func(p []byte) bool {
					return isICMP(3)(p) || protocolOf(p) == unix.IPPROTO_TCP && transport(p)[13]&flagRST != 0
				}
				refused := 0
				collect := func(pause time.Duration) {
					limit := time.After(pause)
					for {
						select {
						case p := <-service.tun.out:
							if protocolOf(p) == flood.protocol && sourceOf(p) == agent.address {
								arrived[sourcePort(p)] = true
							}
						case p := <-agent.tun.out:
							if refusal(p) {
								refused++
							}
						case <-limit:
							return
						}
					}
				}
				for port := uint16(1024); port < 1024+3*flowsPerAgent; port++ {
					agent.send(flood.packet(agent.address, service.address, port))
					if port%64 == 0 {
						collect(time.Millisecond) // the tunnel's queues hold as many as that
					}
					if port%1024 == 0 {
						if stream, err := other.dial(tool, 443, patience); err != nil {
							t.Errorf("another agent's new connection, after %d of the flood: %v", port-1024, err)
						} else {
							stream.Close()
						}
					}
				}
				collect(2 * time.Second)
				if rounds, longest := goes(); rounds < 10 || longest > 8*time.Second {
					t.Errorf("another agent's connection was answered %d times during the flood, after %v at the longest", rounds, longest)
				} else {
					t.Logf("another agent's connection was answered %d times during the flood, after %v at the longest", rounds, longest)
				}
				if len(arrived) > flowsPerAgent {
					t.Errorf("%d connections of one agent passed, and %d are the most", len(arrived), flowsPerAgent)
				}
				if len(arrived) < flowsPerAgent/2 {
					t.Errorf("only %d connections passed: the flood was none", len(arrived))
				}
				// A host's kernel may send one ICMP a second, and what it sends into the flood may get lost.
				if refused == 0 && agent.reaches(agent, refusal, flood.packet(agent.address, service.address, 1023)) == nil {
					t.Error("what was too many was not refused")
				}
			})
		})
	}
}

// answering has one agent's connection answered again and again, until the returned function is called: it tells how
// often it was, and the longest time that it took.
func answering(t *testing.T, from, to *client) func() (int, time.Duration) {
	t.Helper()
	stream, err := from.dial(to, 443, patience)
	if err != nil {
		t.Fatal(err)
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	rounds, longest := 0, time.Duration(0)
	go func() {
		defer close(ended)
		defer stream.Close()
		word := []byte("still here")
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			began := time.Now()
			_ = stream.SetDeadline(began.Add(10 * time.Second))
			if _, err := stream.Write(word); err != nil {
				t.Errorf("the open connection broke: %v", err)
				return
			}
			if _, err := io.ReadFull(stream, word); err != nil {
				t.Errorf("the open connection broke: %v", err)
				return
			}
			rounds++
			longest = max(longest, time.Since(began))
		}
	}()
	return func() (int, time.Duration) {
		close(stop)
		<-ended
		return rounds, longest
	}
}

// What is over does not count: an agent that closes its connections may open as many as it likes.
func TestClosedConnectionsMakeRoom(t *testing.T) {
	one4(t, func(t *testing.T, g *running, agent, service *raw) {
		closed := 0
		for port := uint16(1024); port < 1024+2*flowsPerAgent; port++ {
			opened := func(p []byte) bool { return isTCP(p, 443) && sourcePort(p) == port }
			if agent.reaches(service, opened, tcp4(agent.address, service.address, port, 443, flagSYN)) == nil {
				t.Fatalf("after %d connections that were closed, another one did not pass", closed)
			}
			reset := tcp4(service.address, agent.address, 443, port, flagRST|flagACK)
			if service.reaches(agent, func(p []byte) bool { return isTCP(p, port) }, reset) == nil {
				t.Fatal("an answer did not come")
			}
			closed++
		}
	})
}

// Whatever bytes come out of a tunnel, the gateway goes on and lets nothing through that is not granted.
func TestMalformedPacketsDoNoHarm(t *testing.T) {
	attacked4(t, func(t *testing.T, g *running, agent, service *raw) {
		seed := rand.New(rand.NewPCG(1, 2))
		valid := [][]byte{
			tcp4(agent.address, service.address, 8000, 443, flagSYN),
			tcp4(agent.address, service.address, 8000, 22, flagSYN),
			ip4{from: agent.address, to: service.address, protocol: unix.IPPROTO_UDP}.packet(datagram(8000, 53, []byte("x"))),
			ip4{from: agent.address, to: to4("10.96.0.1"), protocol: unix.IPPROTO_ICMP}.packet(icmp(8, 0, 1, []byte("x"))),
		}
		for n := range 3000 {
			p := bytes.Clone(valid[n%len(valid)])
			for range 1 + seed.IntN(4) {
				p[seed.IntN(len(p))] = byte(seed.IntN(256))
			}
			if seed.IntN(4) == 0 {
				p = p[:seed.IntN(len(p)+1)]
			}
			if len(p) > 0 {
				agent.send(p)
			}
		}
		ipv6 := append([]byte{0x60, 0, 0, 0, 0, 20, 6, 64}, make([]byte, 52)...)
		agent.send(ipv6)
		for _, protocol := range []byte{0, 1, 2, 4, 41, 47, 50, 51, 89, 132, 136, 255} {
			agent.send(ip4{from: agent.address, to: service.address, protocol: protocol}.packet(make([]byte, 24)))
		}
		for _, to := range []string{"10.96.0.0", "10.96.255.255", "255.255.255.255", "224.0.0.1", "127.0.0.1", "0.0.0.0", "169.254.169.254"} {
			agent.send(tcp4(agent.address, to4(to), 8000, 443, flagSYN))
		}
		if p := service.take(arrival, func(p []byte) bool { return any4(p) && !isTCP(p, 443) }); p != nil {
			t.Errorf("passed: % x", p)
		}
		service.settled(agent, 443)
		agent.rawUp()
	})
}

// The gateway itself answers pings of who lives, and nothing else.
func TestTheGatewayItselfOffersNothing(t *testing.T) {
	attacked(t, func(t *testing.T, g *running) {
		agent := g.raw("agent", "10.96.2.5")
		g.put(agent.body(600))
		agent.rawUp()
		gateway := to4("10.96.0.1")
		for _, port := range []uint16{22, 53, 80, 443, 8420, uint16(g.port)} {
			p := agent.reaches(agent, func(p []byte) bool { return protocolOf(p) == unix.IPPROTO_TCP },
				tcp4(agent.address, gateway, 9000, port, flagSYN))
			if p == nil || transport(p)[13]&flagRST == 0 {
				t.Errorf("port %d: %v", port, p)
			}
			p = agent.reaches(agent, func(p []byte) bool { return any4(p) && protocolOf(p) != unix.IPPROTO_TCP },
				ip4{from: agent.address, to: gateway, protocol: unix.IPPROTO_UDP}.packet(datagram(9000, port, []byte("x"))))
			if p == nil || protocolOf(p) != unix.IPPROTO_ICMP || transport(p)[0] != 3 {
				t.Errorf("UDP port %d: %v", port, p)
			}
		}
		for _, kind := range []byte{5, 9, 10, 13, 15, 17} { // redirect, router, timestamp, information, mask
			agent.send(ip4{from: agent.address, to: gateway, protocol: unix.IPPROTO_ICMP}.packet(icmp(kind, 0, 0, make([]byte, 12))))
			if agent.receives(arrival/3, func(p []byte) bool { return any4(p) && !isICMP(3)(p) }) {
				t.Errorf("ICMP type %d was answered", kind)
			}
		}
	})
}
