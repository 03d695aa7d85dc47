package gateway

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// bufferLimit is how many packets of 64 KiB wireguard-go may hold at once: 128 MiB. By itself it has no limit, and
	// an agent that floods its tunnel could take the gateway's memory away from everybody.
	bufferLimit = 2048
	// sessionLife is WireGuard's Reject-After-Time (paper, section 6.1): after it a session is dead.
	sessionLife = 180 * time.Second
	// wakeInterval is how often one packet may pass to some peer whose session is dead, to make a new one. Each such
	// packet waits in a buffer for the handshake.
	wakeInterval = 100 * time.Millisecond
)

// guard stands between the interface and wireguard-go and keeps what it holds bounded: packets to peers that have no
// session would wait for one, in buffers that others need.
type guard struct {
	tun.Device
	entered chan struct{}
	armed   chan struct{}
	first   sync.Once
	events  chan tun.Event

	handshake uintptr // offset of the last handshake's time in device.Peer
	mu        sync.RWMutex
	peers     map[uint32]*device.Peer
	networks  map[netip.Prefix]*device.Peer
	woken     time.Time
}

func newGuard(dev tun.Device) (*guard, error) {
	field, ok := reflect.TypeFor[device.Peer]().FieldByName("lastHandshakeNano")
	if !ok || field.Type != reflect.TypeFor[atomic.Int64]() {
		return nil, errors.New("this wireguard-go keeps the time of the last handshake elsewhere: adapt gateway/guard.go")
	}
	return &guard{
		Device: dev, entered: make(chan struct{}), armed: make(chan struct{}), events: make(chan tun.Event),
		handshake: field.Offset, peers: map[uint32]*device.Peer{},
		networks: map[netip.Prefix]*device.Peer{},
	}, nil
}

// arm limits the device's buffers. It waits for the device's reader to stand at its first read: until then nothing but
// that reader's own batch has been taken, so the count that the limit needs is known.
func (g *guard) arm(dev *device.Device) error {
	<-g.entered
	defer close(g.armed)
	pool := reflect.ValueOf(dev).Elem().FieldByName("pool")
	if !pool.IsValid() || !pool.FieldByName("messageBuffers").IsValid() {
		return errors.New("this wireguard-go keeps its buffers elsewhere: adapt gateway/guard.go")
	}
	buffers := pool.FieldByName("messageBuffers").Elem()
	limit, count := buffers.FieldByName("max"), buffers.FieldByName("count")
	if !limit.IsValid() || !count.IsValid() || limit.Kind() != reflect.Uint32 || count.Kind() != reflect.Uint32 {
		return errors.New("this wireguard-go counts its buffers otherwise: adapt gateway/guard.go")
	}
	*(*uint32)(count.Addr().UnsafePointer()) = uint32(dev.BatchSize())
	*(*uint32)(limit.Addr().UnsafePointer()) = bufferLimit
	return nil
}

// Events holds back what the interface tells until the guard is armed: "up" makes the device take buffers.
func (g *guard) Events() <-chan tun.Event {
	go func() {
		defer close(g.events)
		<-g.armed
		for event := range g.Device.Events() {
			g.events <- event
		}
	}()
	return g.events
}

// Read leaves out, by a size of 0, packets to peers without a session.
func (g *guard) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	g.first.Do(func() {
		close(g.entered)
		<-g.armed
	})
	n, err := g.Device.Read(bufs, sizes, offset)
	at := time.Now()
	g.mu.RLock()
	defer g.mu.RUnlock()
	for i := range n {
		packet := bufs[i][offset : offset+sizes[i]]
		if len(packet) < 20 || packet[0]>>4 != 4 {
			sizes[i] = 0
			continue
		}
		to := g.peers[binary.BigEndian.Uint32(packet[16:20])]
		if to == nil {
			to = g.connector(netip.AddrFrom4([4]byte(packet[16:20])))
		}
		if to == nil {
			sizes[i] = 0
			continue
		}
		last := g.lastHandshake(to)
		if last != 0 && at.UnixNano()-last < int64(sessionLife) {
			continue
		}
		// The gateway knows no endpoint of a peer that it has never heard of: nothing could wake it.
		if last == 0 || at.Sub(g.woken) < wakeInterval {
			sizes[i] = 0
			continue
		}
		g.woken = at // only the one reader comes here
	}
	return n, err
}

// connector is the peer that serves the network of an address. There are few networks.
func (g *guard) connector(to netip.Addr) *device.Peer {
	for network, peer := range g.networks {
		if network.Contains(to) {
			return peer
		}
	}
	return nil
}

// lastHandshake is when a session was last made with a peer, in nanoseconds of Unix time; 0 for never.
func (g *guard) lastHandshake(of *device.Peer) int64 {
	return (*atomic.Int64)(unsafe.Add(unsafe.Pointer(of), g.handshake)).Load()
}

// know takes in which peers the device has now, and by which key each is reached.
func (g *guard) know(dev *device.Device, remove, put []*peer, key func(*peer) publicKey) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range remove {
		for _, address := range p.addresses() {
			if address.IsValid() {
				delete(g.peers, word(address))
			}
		}
		for _, network := range p.networks {
			delete(g.networks, network)
		}
	}
	for _, p := range put {
		known := dev.LookupPeer(device.NoisePublicKey(key(p)))
		for _, address := range p.addresses() {
			g.peers[word(address)] = known
		}
		for _, network := range p.networks {
			g.networks[network] = known
		}
	}
}

func word(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
