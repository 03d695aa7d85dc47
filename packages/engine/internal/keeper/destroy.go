package keeper

import (
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// endConnections ends the TCP connections of this thread's namespace that went through the tunnel, where the kernel
// can (CONFIG_INET_DIAG_DESTROY). Without the interface they would get no answer and no error for many minutes, and
// whoever waits for one would not learn that the identity has ended.
func endConnections() {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, _ := netlink.SocketDiagTCP(family)
		for _, s := range sockets {
			if s.ID.Source.IsLoopback() || s.ID.Destination.IsUnspecified() {
				continue
			}
			_ = netlink.SocketDestroy(&net.TCPAddr{IP: s.ID.Source, Port: int(s.ID.SourcePort)},
				&net.TCPAddr{IP: s.ID.Destination, Port: int(s.ID.DestinationPort)})
		}
	}
}
