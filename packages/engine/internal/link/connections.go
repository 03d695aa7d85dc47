package link

import (
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EndConnections ends the TCP connections from and to these addresses of this network namespace, where the kernel can
// (CONFIG_INET_DIAG_DESTROY). When the interface is gone they would get no answer and no error for many minutes, and
// whoever waits for one would not learn that the identity has ended.
func EndConnections(of []netip.Addr) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} { // programs use IPv4 by IPv6 sockets, too
		sockets, _ := netlink.SocketDiagTCP(family)
		for _, s := range sockets {
			source, _ := netip.AddrFromSlice(s.ID.Source)
			if s.ID.Destination.IsUnspecified() || !slices.Contains(of, source.Unmap()) {
				continue
			}
			_ = netlink.SocketDestroy(&net.TCPAddr{IP: s.ID.Source, Port: int(s.ID.SourcePort)},
				&net.TCPAddr{IP: s.ID.Destination, Port: int(s.ID.DestinationPort)})
		}
	}
}
