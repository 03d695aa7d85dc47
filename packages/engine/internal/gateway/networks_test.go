package gateway

import (
	"bufio"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func toNetwork(network string, port int) m {
	return m{"to": network, "protocol": "tcp", "port": port}
}

// office is a connector that advertises 10.0.7.0/24 and answers at two of its addresses.
func (g *running) office() (*client, func(life any) m) {
	g.t.Helper()
	c := g.connector("office", "10.96.0.9", "10.0.7.5", "10.0.7.200")
	return c, func(life any) m {
		body := c.body(life)
		body["routes"] = []string{"10.0.7.0/24"}
		return body
	}
}

func greets(who *client, address string, port uint16) bool {
	stream, err := who.dial(at(address), port, patience)
	if err != nil {
		return false
	}
	defer stream.Close()
	_ = stream.SetReadDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(stream).ReadString('\n')
	return err == nil && line == "hello "+who.address.String()+"\n"
}

func (c *client) greetAt(port uint16) {
	c.t.Helper()
	for _, route := range c.routes {
		(&client{t: c.t, net: c.net, address: route}).serve(port, hello)
	}
}

func networkOf(t *testing.T, g *running) {
	t.Helper()
	connector, body := g.office()
	wide, narrow, none := g.client("wide", "10.96.2.5"), g.client("narrow", "10.96.2.6"), g.client("none", "10.96.2.7")
	g.put(body(600), none.body(600), wide.body(600, toNetwork("10.0.7.0/24", 443)), narrow.body(600, toNetwork("10.0.7.5", 443)))
	for _, one := range []*client{connector, wide, narrow, none} {
		one.up()
	}
	for _, port := range []uint16{443, 444} {
		connector.greetAt(port)
	}
	for _, address := range []string{"10.0.7.5", "10.0.7.200"} {
		if !greets(wide, address, 443) {
			t.Errorf("%s is granted to wide and not reached", address)
		}
	}
	if !greets(narrow, "10.0.7.5", 443) {
		t.Error("10.0.7.5 is granted to narrow and not reached")
	}
	for name, c := range map[string]struct {
		who     *client
		address string
		port    uint16
	}{
		"another port": {wide, "10.0.7.5", 444}, "beyond the network": {wide, "10.0.8.5", 443}, "beyond the address": {narrow, "10.0.7.200", 443},
		"no grant": {none, "10.0.7.5", 443}, "the connector itself": {wide, "10.96.0.9", 443},
	} {
		if _, err := c.who.dial(at(c.address), c.port, patience); !isRefused(err) && !(g.setup.host && err != nil && strings.Contains(err.Error(), "unreachable")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := connector.net.DialTCP(&net.TCPAddr{IP: net.ParseIP("10.96.2.5"), Port: 80}); !isRefused(err) {
		t.Errorf("a connector opened a flow to an agent: %v", err)
	}
}

func TestAnAdvertisedNetworkIsReachedAsFarAsItIsGranted(t *testing.T) { each(t, networkOf) }

func TestInTheHostsNamespaceANetworkIsRoutedForTheTunnelAlone(t *testing.T) {
	inHostNamespace(t, func(t *testing.T) {
		g := startGateway(t, setup{"host", setups(t)[0].device, true, true})
		networkOf(t, g)
		if found, err := netlink.RouteGet(net.ParseIP("10.0.7.5")); err == nil {
			t.Errorf("the host itself is led into the tunnel: %v", found)
		}
		_ = g.cmd.Process.Kill() // leaves its rule
		<-g.ended
		g = startGateway(t, setup{"host", setups(t)[0].device, true, true})
		g.stop()
		<-g.ended
		rules, err := netlink.RuleList(netlink.FAMILY_V4)
		if err != nil || len(rules) != 3 { // local, main, default
			t.Errorf("rules are left: %v %v", rules, err)
		}
	})
}

func TestFlowsIntoANetworkEndWithTheirGrantAndWithTheConnector(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		connector, body := g.office()
		agent, short := g.client("agent", "10.96.2.5"), g.client("short", "10.96.2.6")
		grant := toNetwork("10.0.7.0/24", 443)
		g.put(body(600), agent.body(600, grant))
		agent.up()
		connector.up()
		connector.serveAll(443)
		for _, end := range []struct {
			who *client
			cut func()
		}{
			{agent, func() { g.patch(agent.body(600)) }},
			{agent, func() { g.patch(connector.plain(600)) }},
			{short, func() { g.patch(short.body(1.5, grant)) }},
			{agent, func() { g.remove("office") }},
		} {
			g.patch(body(600), end.who.body(600, grant))
			end.who.up()
			_, progress := end.who.download(at("10.0.7.5"), 443)
			if !progress(patience) {
				t.Fatal("the download does not run")
			}
			end.cut()
			drained(t, progress)
		}
		if _, err := agent.dial(at("10.0.7.5"), 443, patience); !isRefused(err) {
			t.Errorf("the connector has gone: %v", err)
		}
	})
}

// plain is the connector's body without routes.
func (c *client) plain(life any) m {
	body := c.body(life)
	delete(body, "routes")
	return body
}

func TestDatagramsFromANetworkStopWithTheirReceiversIdentity(t *testing.T) {
	each(t, func(t *testing.T, g *running) {
		connector, body := g.office()
		agent := g.client("agent", "10.96.2.5")
		g.put(body(600), agent.body(600, m{"to": "10.0.7.0/24", "protocol": "udp", "port": 5000}))
		agent.up()
		connector.up()
		server, err := connector.net.ListenUDPAddrPort(netip.MustParseAddrPort("10.0.7.5:5000"))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		go func() {
			_, from, err := server.ReadFrom(make([]byte, 64))
			for err == nil {
				time.Sleep(2 * time.Millisecond)
				_, err = server.WriteTo([]byte("data"), from)
			}
		}()
		socket, err := agent.net.DialUDPAddrPort(netip.AddrPort{}, netip.MustParseAddrPort("10.0.7.5:5000"))
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		receives := func(within time.Duration) bool {
			_ = socket.SetReadDeadline(time.Now().Add(within))
			_, err := socket.Read(make([]byte, 64))
			return err == nil
		}
		for until := time.Now().Add(patience); ; {
			if _, err := socket.Write([]byte("go")); err != nil {
				t.Fatal(err)
			}
			if receives(time.Second) {
				break
			}
			if time.Now().After(until) {
				t.Fatal("nothing comes back")
			}
		}
		g.patch(agent.body(600))
		for range 1000 {
			if !receives(500 * time.Millisecond) {
				return
			}
		}
		t.Error("replies go on without their grant")
	})
}

func TestNetworksThatOverlapBelongToOneConnector(t *testing.T) {
	inOne(t, func(t *testing.T, g *running) {
		_, body := g.office()
		g.put(body(600))
		other := g.client("other", "10.96.0.10").body(600)
		other["routes"] = []string{"10.0.7.128/25"}
		status, answer := g.request(http.MethodPatch, "/v1/state", m{"revision": 2, "upsert": []m{other}})
		if status != http.StatusConflict || answer["code"] != "duplicate_address" {
			t.Errorf("%d %v", status, answer)
		}
		other["routes"] = []string{"10.0.8.0/24", "10.0.8.0/25"}
		status, answer = g.request(http.MethodPatch, "/v1/state", m{"revision": 2, "upsert": []m{other}})
		if status != http.StatusUnprocessableEntity || answer["code"] != "invalid_route" {
			t.Errorf("%d %v", status, answer)
		}
	})
}
