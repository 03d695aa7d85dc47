// Package wg joins wireguard-go to what the engine gives it: sockets and configuration.
package wg

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const socketBuffer = 4 << 20

// Bind is one UDP socket that receives one packet at a time, and sends at once what it is given at once.
// wireguard-go's own bind keeps 128 buffers of 64 KiB for each address family and device, 16 MiB for an
// agent that mostly waits.
type Bind struct {
	mu     sync.Mutex
	socket *net.UDPConn
	single atomic.Bool // the kernel or the way out does not split datagrams
}

// NewBind returns a bind that opens its socket when the device comes up.
func NewBind() *Bind { return &Bind{} }

type endpoint struct{ netip.AddrPort }

func (e endpoint) ClearSrc()           {}
func (e endpoint) SrcToString() string { return "" }
func (e endpoint) SrcIP() netip.Addr   { return netip.Addr{} }
func (e endpoint) DstIP() netip.Addr   { return e.Addr() }
func (e endpoint) DstToString() string { return e.AddrPort.String() }
func (e endpoint) DstToBytes() []byte {
	bytes, _ := e.MarshalBinary()
	return bytes
}

// Open implements conn.Bind.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return nil, 0, err
	}
	// A TCP window arrives in one burst; what the kernel cannot hold meanwhile is lost and waits for a
	// retransmission. The kernel grants what its net.core.rmem_max allows.
	_ = socket.SetReadBuffer(socketBuffer)
	_ = socket.SetWriteBuffer(socketBuffer)
	b.socket = socket
	receive := func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		size, from, err := socket.ReadFromUDPAddrPort(packets[0])
		if err != nil {
			return 0, err
		}
		sizes[0] = size
		endpoints[0] = endpoint{netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
		return 1, nil
	}
	return []conn.ReceiveFunc{receive}, uint16(socket.LocalAddr().(*net.UDPAddr).Port), nil
}

// Send implements conn.Bind.
func (b *Bind) Send(packets [][]byte, to conn.Endpoint) error {
	b.mu.Lock()
	socket := b.socket
	b.mu.Unlock()
	if socket == nil {
		return net.ErrClosed
	}
	destination, ok := to.(endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	for len(packets) > 0 {
		train := 1
		if !b.single.Load() {
			train = trainOf(packets)
		}
		if train > 1 {
			err := sendTrain(socket, packets[:train], destination.AddrPort)
			if err == nil {
				packets = packets[train:]
				continue
			}
			if !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EINVAL) {
				b.single.Store(true) // for good: it is not the size of these that is in the way
			}
		}
		for _, packet := range packets[:train] {
			if _, err := socket.WriteToUDPAddrPort(packet, destination.AddrPort); err != nil {
				return err
			}
		}
		packets = packets[train:]
	}
	return nil
}

// Close implements conn.Bind.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket == nil {
		return nil
	}
	err := b.socket.Close()
	b.socket = nil
	return err
}

// SetMark implements conn.Bind; marks need a capability that the engine does not have.
func (b *Bind) SetMark(uint32) error { return nil }

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(text string) (conn.Endpoint, error) {
	address, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, err
	}
	return endpoint{address}, nil
}

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return 1 }
