package gateway

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"testing"
	"time"
)

func TestDeniedFlowsAreReportedWithTheirAgent(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
		g.put(agent.body(600), service.body(nil))
		agent.up()
		service.up()
		lines := g.events()
		if _, err := agent.dial(service, 22, patience); !isRefused(err) {
			t.Errorf("tcp: %v", err)
		}
		await(t, lines, m{"type": "denied", "id": "agent", "source": "10.96.2.5", "destination": "10.96.0.7", "protocol": "tcp", "port": 22})
		outside := &client{address: netip.MustParseAddr("198.51.100.7")}
		if _, err := agent.dial(outside, 80, patience); !isRefused(err) {
			t.Errorf("outside the overlay: %v", err)
		}
		await(t, lines, m{"type": "denied", "id": "agent", "destination": "198.51.100.7", "protocol": "tcp", "port": 80})
		gateway := &client{address: netip.MustParseAddr("10.96.0.1")}
		if _, err := agent.dial(gateway, 22, patience); !isRefused(err) {
			t.Errorf("the gateway itself: %v", err)
		}
		await(t, lines, m{"type": "denied", "id": "agent", "destination": "10.96.0.1", "protocol": "tcp", "port": 22})
		socket, err := agent.net.DialUDPAddrPort(netip.AddrPort{}, netip.MustParseAddrPort("10.96.0.7:53"))
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		for range 3 {
			_, _ = socket.Write([]byte("x"))
		}
		await(t, lines, m{"type": "denied", "id": "agent", "destination": "10.96.0.7", "protocol": "udp", "port": 53})
	})
}

func TestLastAttemptOfAnIdentityIsReportedUnderItsName(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		service := g.client("service", "10.96.0.7")
		g.put(service.body(nil))
		service.up()
		lines := g.events()
		for _, id := range []string{"a", "b", "c", "d"} { // at whatever moment the kernel is read
			agent := g.client(id, "10.96.2."+strconv.Itoa(int(id[0])))
			g.patch(agent.body(600))
			agent.up()
			if _, err := agent.dial(service, 22, patience); !isRefused(err) {
				t.Fatal(err)
			}
			g.remove(id)
			await(t, lines, m{"type": "denied", "id": id, "destination": "10.96.0.7", "port": 22})
		}
	})
}

func TestEventsWaitForAReader(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		g.put(g.client("agent", "10.96.2.5").body(0.2))
		for g.get("/v1/status")["peers"] != 0.0 {
			time.Sleep(20 * time.Millisecond)
		}
		await(t, g.events(), m{"type": "expired", "id": "agent"})
	})
}

func TestAPeerThatHasEndedOnTheWayIsNotLetIn(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		if answer := g.put(g.client("agent", "10.96.2.5").body(-1)); answer["peers"] != 0.0 {
			t.Errorf("%v", answer)
		}
		await(t, g.events(), m{"type": "expired", "id": "agent"})
	})
}

func TestUDPReplyStreamEndsWithItsReceiversIdentity(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
		grant := m{"to": "10.96.0.7", "protocol": "udp", "port": 5000}
		g.put(agent.body(600, grant), service.body(nil))
		agent.up()
		service.up()
		server, err := service.net.ListenUDPAddrPort(netip.MustParseAddrPort("10.96.0.7:5000"))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		go func() {
			_, from, err := server.ReadFrom(make([]byte, 64))
			for err == nil {
				time.Sleep(10 * time.Millisecond)
				_, err = server.WriteTo(fmt.Append(nil, time.Now().UnixNano()), from)
			}
		}()
		socket, err := agent.net.DialUDPAddrPort(netip.AddrPort{}, netip.MustParseAddrPort("10.96.0.7:5000"))
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		// Once it is answered, the original direction is silent.
		packet := make([]byte, 64)
		for until := time.Now().Add(patience); ; {
			if _, err := socket.Write([]byte("go")); err != nil {
				t.Fatal(err)
			}
			_ = socket.SetReadDeadline(time.Now().Add(time.Second))
			if _, err = socket.Read(packet); err == nil {
				break
			}
			if time.Now().After(until) {
				t.Fatal(err)
			}
		}
		g.patch(agent.body(5, grant))
		deadline := time.Now().Add(5 * time.Second)
		var last time.Time
		count := 0
		_ = socket.SetReadDeadline(deadline.Add(3 * time.Second))
		for ; ; count++ {
			n, err := socket.Read(packet)
			if err != nil {
				break
			}
			last = stamp(string(packet[:n]))
		}
		t.Logf("%d datagrams, the last was sent %v after the deadline", count, last.Sub(deadline))
		if count < 10 {
			t.Error("the stream never ran")
		}
		if last.Sub(deadline) > 500*time.Millisecond {
			t.Error("the stream outlived the identity")
		}
	})
}

func TestAnyGrantPassesEveryProtocolAndTheServiceMayNotOpenTheWayBack(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		one, two := g.client("one", "10.96.2.5"), g.client("two", "10.96.2.6")
		g.put(one.body(600, m{"to": "10.96.2.6", "protocol": "any", "port": 0}), two.body(600))
		one.up()
		two.up()
		two.serve(9999, hello)
		one.serve(9999, hello)
		stream, err := one.dial(two, 9999, patience)
		if err != nil {
			t.Fatal(err)
		}
		stream.Close()
		if !one.ping("10.96.2.6", patience) {
			t.Error("no echo with a grant of any protocol")
		}
		if _, err := two.dial(one, 9999, patience); !isRefused(err) {
			t.Errorf("the way back: %v", err)
		}
	})
}

func TestTheSameStateAgainMovesNoDeadlineAndTouchesNoConnection(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
		state := []m{agent.body(600, toTCP(service, 443)), service.body(nil)}
		g.put(state...)
		agent.up()
		service.up()
		service.serve(443, func(c net.Conn) {
			lines := bufio.NewReader(c)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(line))
			}
		})
		stream, err := agent.dial(service, 443, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		answers := bufio.NewReader(stream)
		put := func(life float64) time.Duration {
			state[0]["expiresIn"] = life
			began := time.Now()
			if answer := g.put(state...); answer["grants"] != 1.0 {
				t.Fatalf("%v", answer)
			}
			return time.Since(began)
		}
		const late = 100 * time.Millisecond
		for n := range 10 {
			life := 700 + 10*float64(n) // a deadline that is not the last one, heard late
			first, longest := put(life), time.Duration(0)
			answered := time.Now() // the deadline is at most a life from here
			for range 20 {
				longest = max(longest, put(life-time.Since(answered).Seconds()+late.Seconds()))
				_, _ = stream.Write([]byte("still here\n"))
				if line, err := answers.ReadString('\n'); err != nil {
					t.Fatalf("%q %v", line, err)
				}
			}
			most := life - time.Since(answered).Seconds()
			left := g.agent()["expiresIn"].(float64)
			if left <= most {
				return
			}
			// What takes so long may have been heard too late to be the same deadline.
			if first+longest < lateSlack-late-10*time.Millisecond {
				t.Fatalf("the deadline has moved: %v left, at most %v", left, most)
			}
			t.Logf("requests took %v and %v", first, longest)
		}
		t.Log("the machine is too slow to tell whether a deadline moves")
	})
}

func TestANewKeyReplacesTheOldOneAndKeepsTheAddress(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		old, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
		g.put(old.body(600, toTCP(service, 443)), service.body(nil))
		old.up()
		service.up()
		service.serve(443, hello)
		fresh := g.client("agent", "10.96.2.5")
		g.patch(fresh.body(600, toTCP(service, 443)))
		fresh.up()
		stream, err := fresh.dial(service, 443, patience)
		if err != nil {
			t.Fatal(err)
		}
		stream.Close()
		if old.ping("10.96.0.1", 600*time.Millisecond) {
			t.Error("the old key still works")
		}
	})
}

func TestAnAddressMayPassFromOneIdentityToAnotherInOneChange(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		first, second, service := g.client("first", "10.96.2.5"), g.client("second", "10.96.2.5"), g.client("service", "10.96.0.7")
		g.put(first.body(600, toTCP(service, 443)), service.body(nil))
		first.up()
		service.up()
		service.serve(443, endless)
		_, progress := first.download(service, 443)
		if !progress(patience) {
			t.Fatal("the download does not run")
		}
		g.state(http.MethodPatch, m{"revision": 4, "upsert": []m{second.body(600)}, "remove": []string{"first"}})
		second.up()
		drained(t, progress)
		if _, err := second.dial(service, 443, patience); !isRefused(err) {
			t.Errorf("the address's next holder inherits its grants: %v", err)
		}
	})
}
