// Package wg joins wireguard-go to what the engine gives it: sockets and configuration.
package wg

import (
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

const socketBuffer = 4 << 20

// Bind is one UDP socket that receives and sends at once what comes at once. wireguard-go's own bind has a device keep
// 128 buffers of 64 KiB for each address family and direction, 16 MiB for an agent that mostly waits.
type Bind struct {
	mu     sync.Mutex
	socket *net.UDPConn
	trains *Trains
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
	trains, err := NewTrains(socket)
	if err != nil {
		_ = socket.Close()
		return nil, 0, err
	}
	b.socket, b.trains = socket, trains
	receive := func(packets [][]byte, sizes []int, endpoints []conn.Endpoint) (int, error) {
		return trains.Receive(packets, sizes, endpoints, func(from netip.AddrPort, _ []byte) conn.Endpoint { return endpoint{from} })
	}
	return []conn.ReceiveFunc{receive}, uint16(socket.LocalAddr().(*net.UDPAddr).Port), nil
}

// Send implements conn.Bind.
func (b *Bind) Send(packets [][]byte, to conn.Endpoint) error {
	b.mu.Lock()
	trains := b.trains
	b.mu.Unlock()
	if trains == nil {
		return net.ErrClosed
	}
	destination, ok := to.(endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	return trains.Send(packets, destination.AddrPort, nil)
}

// Close implements conn.Bind.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.socket == nil {
		return nil
	}
	err := b.socket.Close()
	b.socket, b.trains = nil, nil
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

// BatchSize implements conn.Bind: the device below decides, whose packets these are.
func (b *Bind) BatchSize() int { return 1 }
