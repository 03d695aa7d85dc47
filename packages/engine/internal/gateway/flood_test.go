package gateway

import (
	"net/netip"
	"testing"
	"time"
)

// floodLimit is what the gateway may take under a flood, in MiB: its buffers, as much again that the garbage
// collector has not looked at yet, and itself. With the race detector on, memory weighs several times as much.
const floodLimit = 400

func TestAFloodTakesABoundedAmountOfMemoryAndLeavesOthersTheirTunnel(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		flooder, agent := g.client("flooder", "10.96.2.5"), g.client("agent", "10.96.2.6")
		service, offline := g.client("service", "10.96.0.7"), g.client("offline", "10.96.0.8")
		offline.leave()
		g.put(
			flooder.body(600, m{"to": "10.96.0.7", "protocol": "udp", "port": 5000}, m{"to": "10.96.0.8", "protocol": "udp", "port": 5000}),
			agent.body(600, toTCP(service, 443)), service.body(nil), offline.body(nil))
		flooder.up()
		agent.up()
		service.up()
		service.serve(443, hello)
		for _, to := range []string{"10.96.0.7:5000", "10.96.0.8:5000"} {
			socket, err := flooder.net.DialUDPAddrPort(netip.AddrPort{}, netip.MustParseAddrPort(to))
			if err != nil {
				t.Fatal(err)
			}
			packet := make([]byte, 1300)
			peak, sent := 0, 0
			for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
				for range 1000 {
					_, _ = socket.Write(packet)
					sent++
				}
				peak = max(peak, g.resident())
			}
			socket.Close()
			t.Logf("%d datagrams to %s: at most %d MiB resident", sent, to, peak)
			if peak > floodLimit {
				t.Errorf("%d MiB resident", peak)
			}
		}
		stream, err := agent.dial(service, 443, patience)
		if err != nil {
			t.Fatalf("another agent, after the flood: %v", err)
		}
		stream.Close()
	})
}
