package gateway

import (
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// toUDP is a grant as toTCP's.
func toUDP(r *raw, port int) m {
	return m{"to": r.address.String(), "protocol": "udp", "port": port}
}

// paced sends packets as fast as the queues on the way take them, and has all of them arrive.
func (r *raw) paced(n int, packet func(int) []byte) {
	r.t.Helper()
	for i := range n {
		r.send(packet(i))
		if i%256 == 255 || i == n-1 {
			r.rawUp() // a tunnel keeps the order
		}
	}
}

// denials takes what is reported of refused flows until a probe of an agent is, which is known by its port, and then for
// as long as something comes. The rest is by agent: events, packets, and packets without a flow.
type denials struct{ events, packets, rest map[string]int }

func (g *running) denialsUntil(lines <-chan m, id string, port int) (denials, bool) {
	d := denials{map[string]int{}, map[string]int{}, map[string]int{}}
	found := false
	limit := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return d, found
			}
			if line["type"] != "denied" {
				continue
			}
			who, _ := line["id"].(string)
			d.events[who]++
			d.packets[who] += int(line["packets"].(float64))
			if line["destination"] == "" {
				d.rest[who] += int(line["packets"].(float64))
			}
			if who == id && (port == 0 && line["destination"] == "" || port != 0 && line["port"] == float64(port)) {
				found = true
			}
			if found {
				limit = time.After(3 * time.Second)
			}
		case <-limit:
			return d, found
		}
	}
}

// The set of refused flows is everybody's: who fills it must not have others' refusals go without record.
func TestAScanHidesNobodysRefusals(t *testing.T) {
	one4(t, func(t *testing.T, g *running, scanner, service *raw) {
		other := g.raw("other", "10.96.2.6")
		g.patch(other.body(600))
		other.rawUp()
		lines := g.events()
		const tried = 10000
		scanner.paced(tried, func(i int) []byte {
			return ip4{from: scanner.address, to: service.address, protocol: unix.IPPROTO_UDP}.packet(datagram(4000, uint16(1000+i), []byte("x")))
		})
		other.send(tcp4(other.address, service.address, 4000, 22, flagSYN))
		d, found := g.denialsUntil(lines, "other", 22)
		if !found {
			t.Error("another agent's attempt is not on record")
		}
		if d.packets["other"] != 1 {
			t.Errorf("%d packets of another agent, and it sent one", d.packets["other"])
		}
		t.Logf("%d packets in %d reports, %d without their flow", d.packets["agent"], d.events["agent"], d.rest["agent"])
		if n := d.packets["agent"]; n < tried*8/10 || n > tried {
			t.Errorf("%d packets of %d are on record", n, tried)
		}
		if n := d.events["agent"]; n > deniedPerAgent+100 {
			t.Errorf("%d reports of one agent's scan", n)
		}
	})
}

// Where there is no room at all any more, the sums are right by agent.
func TestAFullRecordStillCountsByAgent(t *testing.T) {
	one4(t, func(t *testing.T, g *running, other, service *raw) {
		// A connector may send from each address that it serves, which makes it many.
		many := g.raw("many", "10.96.3.1")
		for i := range deniedSize/(deniedPerAgent/2) + 30 {
			many.routes = append(many.routes, netip.AddrFrom4([4]byte{10, 96, byte(64 + i/200), byte(1 + i%200)}))
		}
		g.patch(many.body(600))
		many.rawUp()
		lines := g.events()
		each := deniedPerAgent / 2
		many.paced(len(many.routes)*each, func(i int) []byte {
			return ip4{from: many.routes[i/each], to: service.address, protocol: unix.IPPROTO_UDP}.packet(datagram(4000, uint16(1000+i%each), []byte("x")))
		})
		// As soon as something of theirs has no place of its own, there is none.
		full, found := g.denialsUntil(lines, "many", 0)
		if !found {
			t.Fatalf("%d packets do not fill the record", full.packets["many"])
		}
		other.paced(20, func(i int) []byte { return tcp4(other.address, service.address, 4000, uint16(2000+i), flagSYN) })
		d, found := g.denialsUntil(lines, "agent", 0)
		t.Logf("%d of %d packets on record with their flow", full.packets["many"]-full.rest["many"], full.packets["many"])
		if !found || d.packets["agent"] != 20 {
			t.Errorf("%d packets of another agent are on record, and it sent 20", d.packets["agent"])
		}
	})
}

// Who ends itself must not have others count as probing for answering it.
func TestAnswersToWhoHasEndedAreNoAttempts(t *testing.T) {
	for name, end := range map[string]func(g *running, who *raw, grant m){
		"removed": func(g *running, who *raw, _ m) { g.remove(who.id) },
		"expired": func(g *running, who *raw, grant m) { g.patch(who.body(0.2, grant)) },
	} {
		t.Run(name, func(t *testing.T) {
			one4(t, func(t *testing.T, g *running, other, victim *raw) {
				attacker := g.raw("attacker", "10.96.2.66")
				grant := toUDP(victim, 5000)
				g.patch(attacker.body(600, grant), victim.body(600))
				attacker.rawUp()
				lines := g.events()
				packet := func(from, to *raw, source, target uint16) []byte {
					return ip4{from: from.address, to: to.address, protocol: unix.IPPROTO_UDP}.packet(datagram(source, target, []byte("x")))
				}
				if attacker.reaches(victim, func(p []byte) bool { return protocolOf(p) == unix.IPPROTO_UDP }, packet(attacker, victim, 4000, 5000)) == nil {
					t.Fatal("no flow to answer")
				}
				for n := range 1500 {
					victim.send(packet(victim, attacker, 5000, 4000))
					time.Sleep(2 * time.Millisecond)
					if n == 100 {
						end(g, attacker, grant)
					}
				}
				if status := g.get("/v1/status"); status["peers"] != 2.0 {
					t.Fatalf("the attacker has not ended: %v", status)
				}
				if !victim.receives(patience, isICMP(3)) {
					t.Error("what goes to nobody is not refused")
				}
				// What it is refused elsewhere counts.
				victim.send(packet(victim, other, 5000, 99))
				d, found := g.denialsUntil(lines, "service", 99)
				if !found || d.packets["service"] != 1 {
					t.Errorf("%d packets of the victim are on record as refused, and one was an attempt (found: %v)", d.packets["service"], found)
				}
			})
		})
	}
}

// What is tried is on record also where an agent has as many connections as it may have.
func TestAttemptsBeyondTheConnectionLimitAreOnRecord(t *testing.T) {
	attacked4(t, func(t *testing.T, g *running, agent, service *raw) {
		lines := g.events()
		agent.paced(flowsPerAgent+512, func(i int) []byte {
			return tcp4(agent.address, service.address, uint16(1024+i), 443, flagSYN)
		})
		await(t, lines, m{"type": "denied", "id": "agent", "port": 443}) // it has them all
		agent.send(tcp4(agent.address, service.address, 4000, 22, flagSYN))
		await(t, lines, m{"type": "denied", "id": "agent", "port": 22})
	})
}

func TestWhatCountersSayOfRefusedFlows(t *testing.T) {
	one, two := sourceKey{10, 96, 2, 5}, sourceKey{10, 96, 2, 6}
	flow := func(source sourceKey, port byte) deniedKey {
		key := deniedKey{4: 10, 5: 96, 7: 7, 8: 6, 13: port}
		copy(key[:], source[:])
		return key
	}
	rest := func(source sourceKey) deniedKey {
		key := deniedKey{}
		copy(key[:], source[:])
		return key
	}
	read := func(totals map[sourceKey]uint64, flows map[deniedKey]uint64) *counted {
		return &counted{flows: flows, totals: totals, ahead: map[sourceKey]uint64{}}
	}
	now := newCounted()
	for n, step := range []struct {
		next *counted
		want []refused
	}{
		{read(map[sourceKey]uint64{one: 3}, map[deniedKey]uint64{flow(one, 22): 3}), []refused{{flow(one, 22), 3}}},
		{read(map[sourceKey]uint64{one: 3}, map[deniedKey]uint64{flow(one, 22): 3}), nil},
		// No room for a part.
		{read(map[sourceKey]uint64{one: 10, two: 4}, map[deniedKey]uint64{flow(one, 22): 5}), []refused{{rest(one), 5}, {flow(one, 22), 2}, {rest(two), 4}}},
		// The total is read first.
		{read(map[sourceKey]uint64{one: 11, two: 4}, map[deniedKey]uint64{flow(one, 22): 8}), []refused{{flow(one, 22), 3}}},
		{read(map[sourceKey]uint64{one: 12, two: 4}, map[deniedKey]uint64{flow(one, 22): 8}), nil},
		{read(map[sourceKey]uint64{one: 14, two: 4}, map[deniedKey]uint64{flow(one, 22): 8}), []refused{{rest(one), 1}}},
		// Elements have timed out and come again.
		{read(map[sourceKey]uint64{one: 16}, map[deniedKey]uint64{flow(one, 22): 2}), []refused{{flow(one, 22), 2}}},
		{read(map[sourceKey]uint64{one: 1}, map[deniedKey]uint64{flow(one, 23): 1}), []refused{{flow(one, 23), 1}}},
		// The first of a source.
		{read(map[sourceKey]uint64{one: 1}, map[deniedKey]uint64{flow(two, 22): 1}), []refused{{flow(two, 22), 1}}},
		{read(map[sourceKey]uint64{one: 1, two: 2}, map[deniedKey]uint64{flow(two, 22): 1}), []refused{{rest(two), 1}}},
	} {
		got := step.next.since(now)
		slices.SortFunc(got, func(a, b refused) int { return slices.Compare(a.key[:], b.key[:]) })
		if !reflect.DeepEqual(got, step.want) {
			t.Errorf("step %d: %v, want %v", n, got, step.want)
		}
		now = step.next
	}
}

func TestOneAgentsPartOfTheConnectionTable(t *testing.T) {
	for most, want := range map[uint64][2]uint32{
		0: {2048, 8192}, 262144: {2048, 8192}, 65536: {2048, 8192}, 32768: {2048, 4096}, 16384: {2048, 2048},
		4096: {512, 512}, 128: {16, 16}, 127: {15, 15}, 64: {8, 8}, 8: {1, 1}, 7: {1, 1}, 1: {1, 1},
	} {
		if got := [2]uint32{flowLimit(flowsPerAgent, most), flowLimit(flowsPerLine, most)}; got != want {
			t.Errorf("a table of %d: %v, want %v", most, got, want)
		}
	}
}

// An agent with sub-agents has many addresses, each with connections of its own.
func TestALineOfDelegationsLeavesRoomForOthers(t *testing.T) {
	attacked4(t, func(t *testing.T, g *running, root, service *raw) {
		other := g.raw("other", "10.96.2.6")
		bodies := []m{other.body(600, toTCP(&service.client, 443))}
		var subs []*raw
		for n := range flowsPerLine/flowsPerAgent + 1 {
			sub := g.raw(fmt.Sprintf("sub-%d", n), fmt.Sprintf("10.96.4.%d", 1+n))
			body := sub.body(600, toTCP(&service.client, 443))
			body["line"] = root.address.String()
			bodies, subs = append(bodies, body), append(subs, sub)
		}
		if answer := g.patch(bodies...); answer["grants"] != float64(len(subs)+2) {
			t.Errorf("grants: %v", answer)
		}
		other.rawUp()
		arrived := map[string]int{}
		total := func() (n int) {
			for {
				select {
				case p := <-service.tun.out:
					if isTCP(p, 443) {
						arrived[sourceOf(p).String()]++
						n++
					}
				case <-time.After(300 * time.Millisecond):
					return n
				}
			}
		}
		passed := 0
		for _, sub := range subs {
			sub.rawUp()
			sub.paced(flowsPerAgent, func(i int) []byte {
				return tcp4(sub.address, service.address, uint16(1024+i), 443, flagSYN)
			})
			passed += total()
		}
		t.Logf("%d connections of a line of %d passed: %v", passed, len(subs), arrived)
		if passed > flowsPerLine {
			t.Errorf("%d connections of one line, and %d are the most", passed, flowsPerLine)
		}
		if passed < flowsPerLine*9/10 {
			t.Errorf("only %d connections passed: the flood was none", passed)
		}
		service.settled(other, 443)
		service.settled(root, 443)
		// A line that has gone has left nothing: its next agent starts anew.
		ids := []string{}
		for _, sub := range subs {
			ids = append(ids, sub.id)
		}
		g.remove(ids...)
		if status := g.get("/v1/status"); status["grants"] != 2.0 {
			t.Errorf("grants: %v", status)
		}
		next := g.raw("next", subs[0].address.String())
		body := next.body(600, toTCP(&service.client, 443))
		body["line"] = root.address.String()
		g.patch(body)
		next.rawUp()
		service.settled(next, 443)
	})
}

func TestALineIsAnotherAgentsAddress(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		if limits := g.get("/v1/status")["connections"].(m); limits["agent"] != float64(flowLimit(flowsPerAgent, trackedMaximum())) {
			t.Errorf("the status says %v", limits)
		}
		for _, line := range []string{"10.96.0.1", "10.96.2.5", "198.51.100.7", "here"} {
			body := g.client("agent", "10.96.2.5").body(600)
			body["line"] = line
			code, answer := g.request(http.MethodPut, "/v1/state", m{"revision": 1, "upsert": []m{body}})
			if code != 422 || answer["code"] != "invalid_line" {
				t.Errorf("%s: %d %v", line, code, answer)
			}
		}
	})
}
