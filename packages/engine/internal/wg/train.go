package wg

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	trainDatagrams = 64    // UDP_MAX_SEGMENTS of Linux before 6.9
	trainBytes     = 65000 // of one call, less than the largest IP packet
	trainBuffer    = 1 << 16
	// controlSize holds what comes along with a train: IPV6_PKTINFO, IP_PKTINFO and UDP_GRO.
	controlSize = 192
)

// Trains moves datagrams over a UDP socket, as many by one call as the kernel splits and joins (UDP_SEGMENT and
// UDP_GRO, udp(7)): a tunnel's packets come and go in bursts of one size. One goroutine receives, any may send.
type Trains struct {
	socket *net.UDPConn
	raw    syscall.RawConn
	ipv4   bool
	single atomic.Bool // the kernel or the way out does not split datagrams

	buffer *[trainBuffer]byte // of the train that rest is of; given back when it is done
	rest   []byte
	size   int // of each datagram of the train, but for the last
	from   conn.Endpoint

	name    unix.RawSockaddrInet6 // which a sockaddr_in fits into
	control [controlSize]byte
}

// Buffers of trains are held only while something is in them: most sockets mostly wait.
var trainBuffers = sync.Pool{New: func() any { return new([trainBuffer]byte) }}

// NewTrains is for a socket that is open.
func NewTrains(socket *net.UDPConn) (*Trains, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	t := &Trains{socket: socket, raw: raw}
	err = raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		t.ipv4 = err == nil && domain == unix.AF_INET
		// A kernel that does not join them hands them over one by one.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1)
	})
	return t, err
}

// trainOf is how many of the first packets the kernel can split from one call: all of one size, but for the last,
// which may be shorter.
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

// Send sends the packets in order. control goes with each call, and may be empty.
func (t *Trains) Send(packets [][]byte, to netip.AddrPort, control []byte) error {
	for len(packets) > 0 {
		train := 1
		if !t.single.Load() {
			train = trainOf(packets)
		}
		if train > 1 {
			err := t.sendTrain(packets[:train], to, control)
			if err == nil {
				packets = packets[train:]
				continue
			}
			if !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EINVAL) {
				t.single.Store(true) // for good: it is not the size of these that is in the way
			}
		}
		for _, packet := range packets[:train] {
			if _, _, err := t.socket.WriteMsgUDPAddrPort(packet, control, t.family(to)); err != nil {
				return err
			}
		}
		packets = packets[train:]
	}
	return nil
}

// family is where to, as the socket's family has it.
func (t *Trains) family(to netip.AddrPort) netip.AddrPort {
	if t.ipv4 || !to.Addr().Is4() {
		return to
	}
	return netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
}

// sendTrain sends the packets by one call, without copying them together.
func (t *Trains) sendTrain(packets [][]byte, to netip.AddrPort, control []byte) error {
	all := make([]byte, len(control)+unix.CmsgSpace(2))
	copy(all, control)
	segment := all[len(control):]
	header := (*unix.Cmsghdr)(unsafe.Pointer(&segment[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(segment[unix.CmsgLen(0):], uint16(len(packets[0])))
	var address unix.Sockaddr
	if t.ipv4 {
		address = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()}
	} else {
		zone, _ := strconv.ParseUint(to.Addr().Zone(), 10, 32)
		address = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16(), ZoneId: uint32(zone)}
	}
	var sent error
	err := t.raw.Write(func(fd uintptr) bool {
		_, sent = unix.SendmsgBuffers(int(fd), packets, all, address, 0)
		return sent != unix.EAGAIN && sent != unix.EINTR
	})
	if err != nil {
		return err
	}
	return sent
}

// Receive waits for one datagram and takes along what else is there. endpoint makes what stands for a sender, from its
// address and what came along with the datagram; once for each train.
func (t *Trains) Receive(packets [][]byte, sizes []int, endpoints []conn.Endpoint, endpoint func(netip.AddrPort, []byte) conn.Endpoint) (int, error) {
	n := t.hand(packets, sizes, endpoints, 0)
	if n > 0 {
		return n, nil // what is behind it is there at the next call
	}
	var failure error
	err := t.raw.Read(func(fd uintptr) bool {
		for n < len(packets) {
			switch failure = t.read(int(fd), endpoint); failure {
			case nil:
				n = t.hand(packets, sizes, endpoints, n)
			case unix.EAGAIN:
				failure = nil
				return n > 0
			case unix.EINTR, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE, unix.ENOBUFS, unix.ENOMEM:
				// An ICMP error that some datagram caused is not the socket's end.
			default:
				return true
			}
		}
		return true
	})
	if n > 0 {
		return n, nil
	}
	return 0, errors.Join(err, failure)
}

// read takes one train.
func (t *Trains) read(fd int, endpoint func(netip.AddrPort, []byte) conn.Endpoint) error {
	buffer := trainBuffers.Get().(*[trainBuffer]byte)
	// By hand, because unix.Recvmsg asks for the socket's protocol each time, by another call of the kernel.
	var header unix.Msghdr
	part := unix.Iovec{Base: &buffer[0]}
	part.SetLen(len(buffer))
	header.Name, header.Namelen = (*byte)(unsafe.Pointer(&t.name)), uint32(unsafe.Sizeof(t.name))
	header.Iov, header.Control = &part, &t.control[0]
	header.SetIovlen(1)
	header.SetControllen(len(t.control))
	size, _, failure := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&header)), 0)
	if failure != 0 || size == 0 {
		trainBuffers.Put(buffer)
		if failure != 0 {
			return failure
		}
		return nil
	}
	control := t.control[:header.Controllen]
	t.buffer, t.rest, t.size = buffer, buffer[:size], int(size)
	if joined := joinedSize(control); joined > 0 {
		t.size = joined
	}
	t.from = endpoint(addressOf(&t.name), control)
	return nil
}

// hand fills the packets from the n-th on with what is left of the train.
func (t *Trains) hand(packets [][]byte, sizes []int, endpoints []conn.Endpoint, n int) int {
	for ; n < len(packets) && len(t.rest) > 0; n++ {
		sizes[n] = copy(packets[n], t.rest[:min(t.size, len(t.rest))])
		endpoints[n] = t.from
		t.rest = t.rest[sizes[n]:]
	}
	if len(t.rest) == 0 && t.buffer != nil {
		trainBuffers.Put(t.buffer)
		t.buffer, t.from = nil, nil
	}
	return n
}

// joinedSize is the size of the datagrams that the kernel has joined, 0 for a single one.
func joinedSize(control []byte) int {
	for len(control) >= unix.CmsgLen(0) {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		if header.Level == unix.SOL_UDP && header.Type == unix.UDP_GRO && len(data) >= 2 {
			return int(binary.NativeEndian.Uint16(data)) // an int, of which 16 bits are used
		}
		control = rest
	}
	return 0
}

// addressOf is the address in what the kernel has written for a socket of either family.
func addressOf(name *unix.RawSockaddrInet6) netip.AddrPort {
	if name.Family == unix.AF_INET {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), inNetworkOrder(&four.Port))
	}
	address := netip.AddrFrom16(name.Addr).Unmap()
	if name.Scope_id != 0 && address.Is6() {
		address = address.WithZone(strconv.FormatUint(uint64(name.Scope_id), 10))
	}
	return netip.AddrPortFrom(address, inNetworkOrder(&name.Port))
}

func inNetworkOrder(port *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(port))[:])
}
