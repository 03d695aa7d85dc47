package gateway

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// manyPeers is a state of peers that each hold grants to ten services.
func manyPeers(t *testing.T, peers, grants int) []m {
	t.Helper()
	all := make([]m, 0, peers+10)
	body := func(id string, n int, granted []m) {
		_, public := newKey(t)
		all = append(all, m{
			"id": id, "publicKey": public.String(), "address": fmt.Sprintf("10.96.%d.%d", n/250, 1+n%250),
			"expiresIn": 3600.0, "grants": granted,
		})
	}
	for n := range 10 {
		body(fmt.Sprintf("service-%d", n), 1+n, []m{})
	}
	for n := range peers {
		granted := make([]m, 0, grants)
		for i := range grants {
			granted = append(granted, m{"to": fmt.Sprintf("10.96.0.%d", 2+i%10), "protocol": "tcp", "port": 443 + i/10})
		}
		body(fmt.Sprintf("peer-%d", n), 250+n, granted)
	}
	return all
}

func (g *running) resident() int {
	g.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.inner))
	if err != nil {
		g.t.Fatal(err)
	}
	kb, err := strconv.Atoi(string(regexp.MustCompile(`VmRSS:\s+(\d+)`).FindSubmatch(status)[1]))
	if err != nil {
		g.t.Fatal(err)
	}
	return kb / 1024
}

func TestTenThousandPeersWithGrantsLoadAndRenewWhileAConnectionRuns(t *testing.T) {
	for _, s := range setups(t)[:1] {
		t.Run(s.name, func(t *testing.T) {
			g := startGateway(t, s)
			empty := g.resident()
			agent, service := g.client("agent", "10.96.200.5"), g.client("service", "10.96.200.7")
			g.put(agent.body(3600, toTCP(service, 443)), service.body(nil))
			agent.up()
			service.up()
			service.serve(443, endless)
			broken, progress := agent.download(service, 443)
			if !progress(patience) {
				t.Fatal("the download does not run")
			}
			all := append(manyPeers(t, 10000, 10), agent.body(3600, toTCP(service, 443)), service.body(nil))
			timed := func(what string, do func() m) {
				began := time.Now()
				answer := do()
				t.Logf("%s: %.2f s, %.2f s of it in the engine, %v peers, %v grants, %d MiB resident (%d empty)", what,
					time.Since(began).Seconds(), answer["seconds"], answer["peers"], answer["grants"], g.resident(), empty)
			}
			timed("load", func() m { return g.put(all...) })
			timed("the same again", func() m { return g.put(all...) })
			for _, p := range all[:10000] {
				p["expiresIn"] = 7200.0
			}
			timed("renewal of all", func() m { return g.put(all...) })
			if !progress(patience) || len(broken) > 0 {
				t.Error("the running download was touched")
			}
			timed("one more", func() m {
				return g.patch(m{"id": "new", "publicKey": all[0]["publicKey"].(string)[:10] + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "address": "10.96.201.1", "expiresIn": 60, "grants": []m{}})
			})
			timed("removal of all", func() m { return g.put() })
			if status := g.get("/v1/status"); status["grants"] != 0.0 || status["peers"] != 0.0 {
				t.Errorf("left: %v", status)
			}
		})
	}
}
