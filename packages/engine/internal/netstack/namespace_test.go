package netstack

import (
	"bufio"
	"io"
	"net/netip"
	"strings"
	"testing"
)

func (w *world) echoTCP(t *testing.T, port uint16) {
	t.Helper()
	listener, err := w.net.ListenTCPAddrPort(netip.AddrPortFrom(netip.MustParseAddr(gatewayIP), port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(connection, connection)
				_ = connection.Close()
			}()
		}
	}()
}

func TestAProgramInsideHasTheTunnelAndLoopbackAndNothingElse(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		if p.network["device"] != p.runner.device || p.network["interface"] != "lattice0" {
			t.Fatal(p.network)
		}
		links := p.does(t, "links")
		if links != "lo [127.0.0.1/8 ::1/128] 65536\nlattice0 [10.96.2.5/32] 1420" {
			t.Fatalf("%s", links)
		}
	})
}

func TestWhatAProgramInsideSendsArrivesUnharmedFromTheOverlayAddress(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		p.echoTCP(t, 80)
		if said := p.does(t, "tcp", gatewayIP+":80"); said != "10.96.2.5 unharmed" {
			t.Fatal(said)
		}
		echo, err := p.world.net.ListenUDPAddrPort(netip.MustParseAddrPort(gatewayIP + ":53"))
		if err != nil {
			t.Fatal(err)
		}
		defer echo.Close()
		go func() {
			packet := make([]byte, 2048)
			for {
				size, from, err := echo.ReadFrom(packet)
				if err != nil {
					return
				}
				_, _ = echo.WriteTo(append(packet[:size], from.String()...), from)
			}
		}()
		if said := p.does(t, "udp", gatewayIP+":53"); !strings.HasPrefix(said, "hello10.96.2.5:") {
			t.Fatal(said)
		}
	})
}

func TestAServerInsideIsReachedAtTheOverlayAddress(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		command := p.inside(t, "serve", ":80")
		out, _ := command.StdoutPipe()
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		if line, err := lines.ReadString('\n'); line != "listening\n" {
			t.Fatal(line, err)
		}
		connection, err := p.world.net.DialTCPAddrPort(netip.MustParseAddrPort(agentIP + ":80"))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(connection)
		if err != nil || !strings.HasPrefix(string(answer), gatewayIP+":") {
			t.Fatalf("%q %v", answer, err)
		}
		_ = command.Wait()
	})
}
