package netstack

import (
	"context"
	"net"
	"net/netip"

	"lattice.dev/engine/internal/wg"
)

// network is what a tunnel's own connections live in: gVisor's, or the kernel's in some namespace.
type network interface {
	// begin brings up the WireGuard device that moves its packets; when that fails, close is called all the same.
	begin(read *settings) (wg.Device, error)
	dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	listenTCP(at netip.AddrPort) (net.Listener, error)
	// openUDP opens an unconnected socket. refused, which may be nil, is called for each datagram that a router
	// or the destination sent back.
	openUDP(at netip.AddrPort, refused func()) (net.PacketConn, error)
	// dialPing opens an ICMP echo socket; what is written and read are ICMP messages.
	dialPing(to netip.Addr) (net.Conn, error)
	// lost is closed when the network has gone by itself; nil where it cannot.
	lost() <-chan struct{}
	// close ends it with every connection. It is called once the device is closed.
	close()
}
