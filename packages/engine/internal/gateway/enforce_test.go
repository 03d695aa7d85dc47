package gateway

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"
)

func isRefused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || (err != nil && strings.Contains(err.Error(), "refused")) ||
		(err != nil && strings.Contains(err.Error(), "prohibited"))
}

func TestGrantedFlowPassesWithTheEnrolledAddressAndAnythingElseIsRefusedAtOnce(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
		g.put(agent.body(600, toTCP(service, 443)), service.body(nil))
		agent.up()
		service.up()
		service.serve(443, hello)
		service.serve(444, hello)
		stream, err := agent.dial(service, 443, patience)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(stream).ReadString('\n')
		stream.Close()
		if line != "hello 10.96.2.5\n" {
			t.Fatalf("%q %v", line, err)
		}
		quickest := time.Hour
		for n := 0; n < 5 && quickest > time.Second; n++ {
			began := time.Now()
			if _, err = agent.dial(service, 444, patience); !isRefused(err) {
				t.Fatalf("a port that was not granted: %v", err)
			}
			if _, err = service.dial(agent, 80, patience); !isRefused(err) {
				t.Fatalf("the way back was not granted: %v", err)
			}
			quickest = min(quickest, time.Since(began))
		}
		if quickest > time.Second {
			t.Errorf("refusals took %v: they came by a time-out", quickest)
		}
		if agent.ping("10.96.0.7", 300*time.Millisecond) {
			t.Error("an echo to a peer passed without a grant")
		}
	})
}

func TestRemovalOfEitherEndCutsARunningDownload(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		for _, victim := range []string{"agent", "service"} {
			agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
			g.put(agent.body(600, toTCP(service, 443)), service.body(nil))
			agent.up()
			service.up()
			service.serve(443, endless)
			_, progress := agent.download(service, 443)
			if !progress(patience) {
				t.Fatal("the download does not run")
			}
			g.remove(victim)
			drained(t, progress)
			agent.leave()
			service.leave()
		}
	})
}

// drained waits until a stream has stopped.
func drained(t *testing.T, progress func(time.Duration) bool) {
	t.Helper()
	for until := time.Now().Add(patience); progress(silence); {
		if time.Now().After(until) {
			t.Fatal("the stream goes on")
		}
	}
}

func TestExpiryCutsOffWithNobodyConnectedAndIsReported(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
		g.put(agent.body(600, toTCP(service, 443)), service.body(nil))
		agent.up()
		service.up()
		service.serve(443, stamped)
		stream, err := agent.dial(service, 443, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		g.patch(agent.body(6, toTCP(service, 443)))
		deadline := time.Now().Add(6 * time.Second)
		g.http.CloseIdleConnections()
		var last time.Time
		_ = stream.SetReadDeadline(deadline.Add(3 * time.Second))
		for lines := bufio.NewReader(stream); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			last = stamp(line)
		}
		late := last.Sub(deadline)
		t.Logf("the last line was sent %v after the deadline", late)
		if late > 500*time.Millisecond {
			t.Errorf("the stream ran on for %v after the deadline", late)
		}
		if late < -5*time.Second {
			t.Errorf("the stream ended %v before the deadline", -late)
		}
		event := await(t, g.events(), m{"type": "expired", "id": "agent", "address": "10.96.2.5"})
		if by := event["lateBy"].(float64); by < 0 || by > 5 {
			t.Errorf("lateBy %v", by)
		}
		if peers := g.get("/v1/peers")["peers"].([]any); len(peers) != 1 {
			t.Errorf("peers left: %v", peers)
		}
	})
}

func TestRenewalKeepsARunningConnectionPastTheOldDeadline(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
		g.put(agent.body(600, toTCP(service, 443)), service.body(nil))
		agent.up()
		service.up()
		service.serve(443, endless)
		broken, progress := agent.download(service, 443)
		if !progress(patience) {
			t.Fatal("the download does not run")
		}
		g.patch(agent.body(8, toTCP(service, 443)))
		old := time.Now().Add(8 * time.Second)
		g.patch(agent.body(600, toTCP(service, 443)))
		for time.Now().Before(old.Add(time.Second)) {
			if !progress(patience) {
				t.Fatal("the renewal has broken the download")
			}
		}
		select {
		case err := <-broken:
			t.Fatal(err)
		default:
		}
	})
}

func TestRemovingAGrantCutsItsFlowAndLeavesTheOther(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
		g.put(agent.body(600, toTCP(service, 443), toTCP(service, 444)), service.body(nil))
		agent.up()
		service.up()
		service.serve(443, endless)
		service.serve(444, endless)
		broken, progress := agent.download(service, 443)
		staysBroken, stays := agent.download(service, 444)
		if !progress(patience) || !stays(patience) {
			t.Fatal("the downloads do not run")
		}
		g.put(agent.body(600, toTCP(service, 444)), service.body(nil))
		select {
		case err := <-broken:
			if errors.Is(err, io.EOF) {
				t.Errorf("ended as if complete: %v", err)
			}
		case <-time.After(patience):
			t.Error("the flow of the removed grant was not reset")
		}
		if !stays(patience) || len(staysBroken) > 0 {
			t.Error("the other flow was touched")
		}
	})
}
