package gateway

import (
	"bufio"
	"net/http"
	"net/netip"
	"testing"
)

// at is an address to dial, whoever answers there.
func at(address string) *client { return &client{address: netip.MustParseAddr(address)} }

func (g *running) connector(id, address string, routes ...string) *client {
	g.t.Helper()
	private, public := newKey(g.t)
	return g.clientWith(id, address, private, public, routes...)
}

// serveAll answers on a port of every address.
func (c *client) serveAll(port uint16) {
	c.t.Helper()
	for _, route := range c.routes {
		(&client{t: c.t, net: c.net, address: route}).serve(port, endless)
	}
}

func TestRoutesLeadToTheirConnector(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		agent := g.client("agent", "10.96.2.5")
		connector := g.connector("egress", "10.96.0.9", "10.96.200.7", "10.96.200.8")
		g.put(agent.body(600, toTCP(at("10.96.200.7"), 443)), connector.body(600))
		agent.up()
		connector.up()
		connector.serveAll(443)
		stream, err := agent.dial(at("10.96.200.7"), 443, patience)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(stream).ReadByte(); err != nil {
			t.Error(err)
		}
		stream.Close()
		for _, other := range []string{"10.96.200.8", "10.96.0.9"} {
			if _, err := agent.dial(at(other), 443, patience); !isRefused(err) {
				t.Errorf("another address of the same connector: %v", err)
			}
		}
		if _, err := connector.net.DialTCPAddrPort(netip.MustParseAddrPort("10.96.2.5:80")); !isRefused(err) {
			t.Errorf("a connector opened a flow to an agent: %v", err)
		}
	})
}

func TestARouteComesWithoutABreakAndItsEndCutsItsFlowsAlone(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		agent := g.client("agent", "10.96.2.5")
		connector := g.connector("egress", "10.96.0.9", "10.96.200.7", "10.96.200.8")
		grants := []m{toTCP(at("10.96.200.7"), 443), toTCP(at("10.96.200.8"), 443)}
		first := connector.body(600)
		first["routes"] = []string{"10.96.200.7"}
		g.put(agent.body(600, grants...), first)
		agent.up()
		connector.up()
		connector.serveAll(443)
		_, stays := agent.download(at("10.96.200.7"), 443)
		if _, err := agent.dial(at("10.96.200.8"), 443, patience); !isRefused(err) {
			t.Errorf("a route that is not there yet: %v", err)
		}
		g.patch(connector.body(600))
		_, goes := agent.download(at("10.96.200.8"), 443)
		if !goes(patience) || !stays(patience) {
			t.Fatal("a further route broke what ran, or carries nothing")
		}
		g.patch(first)
		drained(t, goes)
		if !stays(patience) {
			t.Error("the other route's download broke")
		}
		if _, err := agent.dial(at("10.96.200.8"), 443, patience); !isRefused(err) {
			t.Errorf("a route that has gone: %v", err)
		}
	})
}

func TestARouteEndsWithItsConnectorsLife(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		agent := g.client("agent", "10.96.2.5")
		connector := g.connector("egress", "10.96.0.9", "10.96.200.7")
		g.put(agent.body(600, toTCP(at("10.96.200.7"), 443)), connector.body(600))
		agent.up()
		connector.up()
		connector.serveAll(443)
		_, progress := agent.download(at("10.96.200.7"), 443)
		if !progress(patience) {
			t.Fatal("the download does not run")
		}
		g.patch(connector.body(2))
		drained(t, progress)
		if _, err := agent.dial(at("10.96.200.7"), 443, patience); !isRefused(err) {
			t.Errorf("after the connector's end: %v", err)
		}
	})
}

func TestRoutesThatCannotBeAreRefused(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		agent, connector := g.client("agent", "10.96.2.5"), g.client("egress", "10.96.0.9")
		g.put(agent.body(600))
		for route, code := range map[string]string{
			"10.96.7.0/24": "invalid_route", "10.0.0.0/8": "invalid_route", "127.0.0.0/8": "invalid_route",
			"169.254.169.254": "invalid_route", "0.0.0.0/0": "invalid_route", "10.0.7.1/24": "invalid_route",
			"10.96.0.1": "invalid_route", "10.96.0.9": "invalid_route",
			"10.96.255.255": "invalid_route", "api.example": "invalid_route", "10.96.2.5": "duplicate_address",
		} {
			body := connector.body(600)
			body["routes"] = []string{route}
			status, answer := g.request(http.MethodPatch, "/v1/state", m{"revision": 2, "upsert": []m{body}})
			if status < 400 || answer["code"] != code {
				t.Errorf("route %s: %d %v", route, status, answer)
			}
		}
	})
}
