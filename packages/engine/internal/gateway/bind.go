package gateway

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"lattice.dev/engine/internal/wg"
)

const (
	udpBatch = 64
	// udpBuffer is what both socket buffers ask for: 1,400-byte datagrams at 1 Gbit/s fill it in about 30 ms.
	udpBuffer = 4 << 20
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
	trains *wg.Trains
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
	trains, err := wg.NewTrains(socket)
	if err != nil {
		return nil, fmt.Errorf("the UDP socket cannot be used: %w", err)
	}
	return &socketBind{socket: socket, trains: trains, port: uint16(local.Port)}, nil
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
	receive := func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		got, err := b.trains.Receive(packets, sizes, endpoints, sender)
		select {
		case <-open:
			return 0, net.ErrClosed
		default:
			return got, err
		}
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

// Send sends the datagrams in order.
func (b *socketBind) Send(packets [][]byte, to conn.Endpoint) error {
	e, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	return b.trains.Send(packets, e.address, e.control)
}

// ParseEndpoint reads host:port with a numeric host.
func (b *socketBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	address, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &endpoint{address: address}, nil
}

// BatchSize is how many datagrams one call moves.
func (b *socketBind) BatchSize() int { return udpBatch }

func sender(from netip.AddrPort, control []byte) conn.Endpoint {
	return &endpoint{address: from, control: sourceControl(control)}
}

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
