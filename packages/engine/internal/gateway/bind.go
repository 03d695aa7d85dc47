package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	udpBatch = 64
	// udpBuffer is what both socket buffers ask for: 1,400-byte datagrams at 1 Gbit/s fill it in about 30 ms.
	udpBuffer = 4 << 20
	// controlSize holds an IPV6_PKTINFO and an IP_PKTINFO message.
	controlSize = 128
)

// listenUDP opens one socket for IPv4 and IPv6, or for IPv4 alone where the machine has no IPv6.
func listenUDP(port int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	var address unix.Sockaddr = &unix.SockaddrInet6{Port: port}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
		if err == nil {
			err = unix.Bind(fd, address)
		}
		if err == unix.EADDRNOTAVAIL || err == unix.EAFNOSUPPORT {
			unix.Close(fd)
			err = unix.EAFNOSUPPORT
		}
	}
	if err == unix.EAFNOSUPPORT {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: port})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("UDP port %d cannot be opened (%w): take another with --listen-port, or 0 for any", port, err)
	}
	for option, force := range map[int]int{unix.SO_RCVBUF: unix.SO_RCVBUFFORCE, unix.SO_SNDBUF: unix.SO_SNDBUFFORCE} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, udpBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, udpBuffer)
		}
	}
	// Answers leave from the address that the peer has sent to, also on a machine with several.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	return os.NewFile(uintptr(fd), "udp"), nil
}

// endpoint is where a peer was last heard from, and the local address that it has sent to.
type endpoint struct {
	address netip.AddrPort
	udp     *net.UDPAddr
	control []byte // the source as a control message, empty when the kernel chooses
}

func (e *endpoint) ClearSrc()           { e.control = nil }
func (e *endpoint) SrcToString() string { return "" }
func (e *endpoint) DstToString() string { return e.address.String() }
func (e *endpoint) DstIP() netip.Addr   { return e.address.Addr() }
func (e *endpoint) SrcIP() netip.Addr   { return netip.Addr{} }
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.address.MarshalBinary()
	return b
}

// socketBind is wireguard-go's Bind over a socket that somebody else has opened, possibly in another
// network namespace: conn.StdNetBind cannot take one.
type socketBind struct {
	socket *net.UDPConn
	packet *ipv6.PacketConn // its ReadBatch and WriteBatch are recvmmsg and sendmmsg for either family
	port   uint16

	mu   sync.Mutex
	open chan struct{} // closed by Close
}

func newSocketBind(file *os.File) (*socketBind, error) {
	pc, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("the UDP socket cannot be used: %w", err)
	}
	file.Close()
	socket := pc.(*net.UDPConn)
	local := socket.LocalAddr().(*net.UDPAddr)
	return &socketBind{
		socket: socket,
		packet: ipv6.NewPacketConn(socket),
		port:   uint16(local.Port),
	}, nil
}

// Open starts receiving. The socket stays: its port never changes.
func (b *socketBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	open := make(chan struct{})
	b.open = open
	_ = b.socket.SetReadDeadline(time.Time{})
	messages := make([]ipv6.Message, udpBatch)
	for i := range messages {
		messages[i].Buffers = make([][]byte, 1)
		messages[i].OOB = make([]byte, controlSize)
	}
	receive := func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		n := min(len(packets), len(messages))
		for i := range n {
			messages[i].Buffers[0] = packets[i]
			messages[i].OOB = messages[i].OOB[:controlSize]
		}
		got, err := b.packet.ReadBatch(messages[:n], 0)
		select {
		case <-open:
			return 0, net.ErrClosed
		default:
		}
		if err != nil {
			// An ICMP error that some datagram caused is not the socket's end.
			if isTransient(err) {
				return 0, nil
			}
			return 0, err
		}
		for i := range got {
			sizes[i] = messages[i].N
			from, _ := messages[i].Addr.(*net.UDPAddr)
			if from == nil {
				sizes[i] = 0
				continue
			}
			port := from.AddrPort()
			endpoints[i] = &endpoint{
				address: netip.AddrPortFrom(port.Addr().Unmap(), port.Port()),
				udp:     from,
				control: sourceControl(messages[i].OOB[:messages[i].NN]),
			}
		}
		return got, nil
	}
	return []conn.ReceiveFunc{receive}, b.port, nil
}

// Close ends the receiving; the socket itself is closed with the process or by shut.
func (b *socketBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != nil {
		close(b.open)
		b.open = nil
		_ = b.socket.SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}

func (b *socketBind) shut() { b.socket.Close() }

// SetMark marks what is sent.
func (b *socketBind) SetMark(mark uint32) error {
	raw, err := b.socket.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}); err != nil {
		return err
	}
	return set
}

var sendMessages = sync.Pool{New: func() any {
	messages := make([]ipv6.Message, udpBatch)
	for i := range messages {
		messages[i].Buffers = make([][]byte, 1)
	}
	return &messages
}}

// Send sends the datagrams in order.
func (b *socketBind) Send(packets [][]byte, to conn.Endpoint) error {
	e, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	pooled := sendMessages.Get().(*[]ipv6.Message)
	defer sendMessages.Put(pooled)
	for len(packets) > 0 {
		n := min(len(packets), udpBatch)
		messages := (*pooled)[:n]
		for i := range n {
			messages[i].Buffers[0] = packets[i]
			messages[i].Addr = e.udp
			messages[i].OOB = e.control
		}
		for len(messages) > 0 {
			sent, err := b.packet.WriteBatch(messages, 0)
			if err != nil {
				return err
			}
			messages = messages[sent:]
		}
		packets = packets[n:]
	}
	for i := range *pooled {
		(*pooled)[i].Buffers[0], (*pooled)[i].Addr, (*pooled)[i].OOB = nil, nil, nil
	}
	return nil
}

// ParseEndpoint reads host:port with a numeric host.
func (b *socketBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	address, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &endpoint{address: address, udp: net.UDPAddrFromAddrPort(address)}, nil
}

// BatchSize is how many datagrams one call moves.
func (b *socketBind) BatchSize() int { return udpBatch }

// sourceControl turns the control messages of a received datagram into the one that makes its answer leave
// from the same local address.
func sourceControl(received []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(received)
	if err != nil {
		return nil
	}
	var v6 []byte
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&m.Data[0]))
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: info.Spec_dst})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&m.Data[0]))
			if !netip.AddrFrom16(info.Addr).Is4In6() {
				v6 = unix.PktInfo6(info)
			}
		}
	}
	return v6
}

func isTransient(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EMSGSIZE, syscall.EINTR, syscall.ENOBUFS, syscall.ENOMEM:
		return true
	}
	return false
}
