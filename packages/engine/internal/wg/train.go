package wg

import (
	"encoding/binary"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	trainDatagrams = 64    // UDP_MAX_SEGMENTS of Linux before 6.9
	trainBytes     = 65000 // of one call, less than the largest IP packet
)

// trainOf is how many of the first packets the kernel can split from one call (UDP_SEGMENT, udp(7)): all of one size,
// but for the last, which may be shorter.
func trainOf(packets [][]byte) int {
	size, bytes := len(packets[0]), 0
	if size == 0 { // which would mean not to split
		return 1
	}
	for n, packet := range packets[:min(len(packets), trainDatagrams)] {
		if bytes += len(packet); bytes > trainBytes || len(packet) > size {
			return max(1, n)
		}
		if len(packet) < size {
			return n + 1
		}
	}
	return min(len(packets), trainDatagrams)
}

// sendTrain sends the packets by one call, without copying them together.
func sendTrain(socket *net.UDPConn, packets [][]byte, to netip.AddrPort) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	segment := make([]byte, unix.CmsgSpace(2))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&segment[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(segment[unix.CmsgLen(0):], uint16(len(packets[0])))
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		_, sent = unix.SendmsgBuffers(int(fd), packets, segment, address(int(fd), to), 0)
		return sent != unix.EAGAIN && sent != unix.EINTR
	})
	if err != nil {
		return err
	}
	return sent
}

// address is where to, as the socket's family has it.
func address(fd int, to netip.AddrPort) unix.Sockaddr {
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}
