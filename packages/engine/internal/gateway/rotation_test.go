package gateway

import (
	"encoding/hex"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// rotating is a running download of an agent, and how to exchange the agent's key at the gateway.
type rotating struct {
	agent    *client
	broken   <-chan error
	progress func(time.Duration) bool
	exchange func() (private [32]byte)
	restore  func()
}

func startRotating(t *testing.T, g *running) *rotating {
	t.Helper()
	agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
	first := agent.body(600, toTCP(service, 443))
	g.put(first, service.body(nil))
	agent.up()
	service.up()
	service.serve(443, endless)
	r := &rotating{agent: agent}
	r.broken, r.progress = agent.download(service, 443)
	r.exchange = func() [32]byte {
		private, public := newKey(t)
		agent.public = public
		g.patch(agent.body(600, toTCP(service, 443)))
		return private
	}
	r.restore = func() { g.patch(first) }
	r.goesOn(t, "before anything")
	return r
}

func (r *rotating) goesOn(t *testing.T, when string) {
	t.Helper()
	for range 5 {
		if !r.progress(patience) {
			t.Fatalf("the download does not run %s", when)
		}
	}
	select {
	case err := <-r.broken:
		t.Fatalf("the download broke %s: %v", when, err)
	default:
	}
}

// use gives the agent's device another key, and has it shake hands.
func (c *client) use(g *running, private [32]byte) {
	c.t.Helper()
	if err := c.device.IpcSet("private_key=" + hex.EncodeToString(private[:]) + "\n"); err != nil {
		c.t.Fatal(err)
	}
	if err := c.device.LookupPeer(device.NoisePublicKey(g.publicKey)).SendHandshakeInitiation(false); err != nil {
		c.t.Fatal(err)
	}
}

// agent is what the gateway tells of the agent.
func (g *running) agent() m {
	g.t.Helper()
	for _, one := range g.get("/v1/peers")["peers"].([]any) {
		if one.(m)["id"] == "agent" {
			return one.(m)
		}
	}
	g.t.Fatal("the gateway does not know the agent")
	return nil
}

func TestAnExchangedKeyLeavesNoGap(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		r := startRotating(t, g)
		for range 3 {
			received := g.agent()["rxBytes"].(float64)
			private := r.exchange()
			r.goesOn(t, "under the former key, while the agent does not know the new one yet")
			if now := g.agent(); now["rxBytes"].(float64) < received || now["publicKey"] != r.agent.public.String() || now["exchanging"] != true {
				t.Fatalf("the gateway tells %v", now)
			}
			r.agent.use(g, private)
			r.goesOn(t, "while the agent takes the new key up")
			r.agent.up()
			r.goesOn(t, "under the new key")
			if now := g.agent(); now["exchanging"] != false {
				t.Fatalf("the gateway tells %v", now)
			}
		}
	})
}

func TestAnExchangedKeyIsDeadOnceTheNewOneIsInUse(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		private, public := newKey(t)
		old := g.clientWith("agent", "10.96.2.5", private, public)
		g.put(old.body(600))
		old.up()
		fresh := g.client("agent", "10.96.2.5")
		g.patch(fresh.body(600))
		old.up()
		fresh.up()
		thief := g.clientWith("agent", "10.96.2.5", private, public)
		if old.ping("10.96.0.1", 600*time.Millisecond) || thief.ping("10.96.0.1", 600*time.Millisecond) {
			t.Error("the former key still works")
		}
		fresh.up()
	})
}

func TestAnExchangedKeyEndsInTimeWhereTheNewOneIsNotUsed(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		r := startRotating(t, g)
		began := time.Now()
		r.exchange()
		exchanged := time.Now()
		second := began.Add(shorterRotation / 2)
		for time.Now().Before(second) {
			r.goesOn(t, "within the time of the former key")
		}
		// Exchanging again does not make it longer.
		r.exchange()
		last := time.Now()
		for r.progress(silence) {
			if last = time.Now(); last.Sub(exchanged) > shorterRotation+10*time.Second {
				t.Fatalf("the former key works after %v", last.Sub(exchanged))
			}
		}
		if last.Before(second) {
			t.Error("the former key has ended too early")
		}
	})
}

func TestRemovalWhileAKeyIsExchangedEndsBoth(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		r := startRotating(t, g)
		private := r.exchange()
		g.remove("agent")
		drained(t, r.progress)
		if r.agent.ping("10.96.0.1", 600*time.Millisecond) {
			t.Error("the former key works on")
		}
		r.agent.use(g, private)
		if r.agent.ping("10.96.0.1", 600*time.Millisecond) {
			t.Error("the new key works")
		}
		g.put()
		if left := g.get("/v1/status")["peers"]; left != 0.0 {
			t.Errorf("%v peers are left", left)
		}
	})
}

// An exchange that the control plane takes back, for one.
func TestAFormerKeyMayComeBackWithoutAGap(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		r := startRotating(t, g)
		taken := r.exchange()
		r.restore()
		r.goesOn(t, "with the key that it always had")
		thief := g.clientWith("agent", "10.96.2.5", taken, r.agent.public)
		if thief.ping("10.96.0.1", 600*time.Millisecond) {
			t.Error("the key that was taken back works")
		}
		r.goesOn(t, "after that")
	})
}

func TestAnExchangedKeyMayBecomeAnothers(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		private, public := newKey(t)
		first := g.clientWith("first", "10.96.2.5", private, public)
		g.put(first.body(600))
		first.up()
		fresh := g.client("first", "10.96.2.5")
		g.patch(fresh.body(600))
		second := g.clientWith("second", "10.96.2.6", private, public)
		g.patch(second.body(600))
		second.up()
		fresh.up()
		if first.ping("10.96.0.1", 600*time.Millisecond) {
			t.Error("the key has two addresses")
		}
	})
}

func TestRoutesChangeWhileAKeyIsExchanged(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		agent := g.client("agent", "10.96.2.5")
		connector := g.connector("egress", "10.96.0.9", "10.96.200.7", "10.96.200.8")
		g.put(agent.body(600, toTCP(at("10.96.200.7"), 443), toTCP(at("10.96.200.8"), 443)), connector.body(600))
		agent.up()
		connector.up()
		connector.serveAll(443)
		_, kept := agent.download(at("10.96.200.7"), 443)
		_, lost := agent.download(at("10.96.200.8"), 443)
		if !kept(patience) || !lost(patience) {
			t.Fatal("the downloads do not run")
		}
		private, public := newKey(t)
		connector.public = public
		g.patch(connector.body(600))
		one := connector.body(600)
		one["routes"] = []string{"10.96.200.7"}
		g.patch(one)
		if _, err := agent.dial(at("10.96.200.8"), 443, patience); !isRefused(err) {
			t.Errorf("a route that has gone leads somewhere under the former key: %v", err)
		}
		if !kept(patience) {
			t.Error("a route that stays is lost under the former key")
		}
		connector.use(g, private)
		connector.up()
		drained(t, lost)
		g.patch(connector.body(600))
		if stream, err := agent.dial(at("10.96.200.8"), 443, patience); err != nil {
			t.Errorf("a route that comes leads nowhere under the new key: %v", err)
		} else {
			stream.Close()
		}
		if !kept(patience) {
			t.Error("a route that stays is lost under the new key")
		}
	})
}
