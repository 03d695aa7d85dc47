package netstack

import (
	"net/netip"
	"testing"
)

func TestPortIsFreeAgainAtOnceAndNotTwice(t *testing.T) {
	address := netip.MustParseAddr("10.96.0.9")
	stack, err := newOverlay([]netip.Addr{address}, 1420, false)
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	at := netip.AddrPortFrom(address, 7000)
	for range 20 {
		listener, err := stack.listenTCP(at)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := stack.listenTCP(at); err == nil {
			second.Close()
			t.Fatal("two listen on one port")
		}
		client, err := stack.dialTCP(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		// The one that closes first waits for what may still come (RFC 9293, TIME-WAIT).
		server.Close()
		client.Close()
		listener.Close()
	}
}
