package gateway

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// rawTUN is a TUN whose packets the test writes and reads itself.
type rawTUN struct {
	in     chan []byte
	out    chan []byte
	events chan tun.Event
}

func (r *rawTUN) File() *os.File { return nil }

func (r *rawTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	packet, ok := <-r.in
	if !ok {
		return 0, os.ErrClosed
	}
	sizes[0] = copy(bufs[0][offset:], packet)
	return 1, nil
}

func (r *rawTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, buf := range bufs {
		select {
		case r.out <- append([]byte(nil), buf[offset:]...):
		default: // nobody looks
		}
	}
	return len(bufs), nil
}

func (r *rawTUN) MTU() (int, error)        { return 65535, nil }
func (r *rawTUN) Name() (string, error)    { return "raw", nil }
func (r *rawTUN) Events() <-chan tun.Event { return r.events }
func (r *rawTUN) BatchSize() int           { return 1 }
func (r *rawTUN) Close() error             { close(r.in); return nil }

// raw is a peer that sends whatever bytes it likes through a real tunnel, and sees what comes out of it.
type raw struct {
	client
	tun *rawTUN
}

func (g *running) raw(id, address string) *raw {
	g.t.Helper()
	private, public := newKey(g.t)
	r := &raw{
		client: client{t: g.t, id: id, address: netip.MustParseAddr(address), public: public},
		tun:    &rawTUN{in: make(chan []byte, 1024), out: make(chan []byte, 1<<16), events: make(chan tun.Event, 1)},
	}
	r.device = device.NewDevice(r.tun, g.bind(), device.NewLogger(device.LogLevelSilent, ""))
	g.t.Cleanup(r.device.Close)
	r.configure(g, private, g.port)
	return r
}

// configure points the tunnel at a port of loopback that leads to the gateway.
func (r *raw) configure(g *running, private [32]byte, port int) {
	g.t.Helper()
	config := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=127.0.0.1:%d\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
		hex.EncodeToString(private[:]), hex.EncodeToString(g.publicKey[:]), port)
	if err := r.device.IpcSet(config); err != nil {
		g.t.Fatal(err)
	}
	if err := r.device.Up(); err != nil {
		g.t.Fatal(err)
	}
}

func (r *raw) send(packets ...[]byte) {
	for _, packet := range packets {
		r.tun.in <- packet
	}
}

// rawUp proves the tunnel: the last echo of the gateway's comes back, so that none comes later, when a test looks.
func (r *raw) rawUp() *raw {
	r.t.Helper()
	wait := 200 * time.Millisecond
	for n, until := uint32(1), time.Now().Add(patience); time.Now().Before(until); n++ {
		r.send(ip4{from: r.address, to: to4("10.96.0.1"), protocol: unix.IPPROTO_ICMP}.packet(icmp(8, 0, n, []byte("up"))))
		if r.receives(wait, func(p []byte) bool { return isICMP(0)(p) && binary.BigEndian.Uint32(transport(p)[4:]) == n }) {
			return r
		}
		wait = min(2*wait, 3*time.Second)
	}
	r.t.Fatalf("%s has no tunnel", r.id)
	return nil
}

// receives tells whether a packet that fits comes within a time.
func (r *raw) receives(within time.Duration, fits func([]byte) bool) bool {
	return r.take(within, fits) != nil
}

// reaches sends packets, again where they get lost, until one that fits comes to another; nil when none does.
func (r *raw) reaches(to *raw, fits func([]byte) bool, packets ...[]byte) []byte {
	for until := time.Now().Add(patience); time.Now().Before(until); {
		r.send(packets...)
		if packet := to.take(2*time.Second, fits); packet != nil {
			return packet
		}
	}
	return nil
}

// take waits for a packet that fits; nil when none comes in time. Others are lost.
func (r *raw) take(within time.Duration, fits func([]byte) bool) []byte {
	limit := time.After(within)
	for {
		select {
		case packet := <-r.tun.out:
			if fits(packet) {
				return packet
			}
		case <-limit:
			return nil
		}
	}
}

// settled waits until what was sent before has arrived: a ping from elsewhere through the same gateway and tunnel.
func (r *raw) settled(from *raw, port uint16) {
	r.t.Helper()
	probe := uint16(time.Now().UnixNano())
	for range 50 {
		from.send(tcp4(from.address, r.address, probe, port, flagSYN))
		if r.receives(200*time.Millisecond, func(p []byte) bool { return isTCP(p, port) && sourcePort(p) == probe }) {
			return
		}
	}
	r.t.Fatal("what is granted does not pass")
}

// ip4 is an IPv4 header.
type ip4 struct {
	from, to netip.Addr
	protocol byte
	id       uint16
	flags    uint16 // with the fragment's offset in words of eight bytes
	options  []byte
	ttl      byte
}

const (
	moreFragments = 0x2000
	flagSYN       = 0x02
	flagACK       = 0x10
	flagRST       = 0x04
)

func (h ip4) packet(payload []byte) []byte {
	words := 5 + (len(h.options)+3)/4
	p := make([]byte, words*4, words*4+len(payload))
	p[0] = 0x40 | byte(words)
	binary.BigEndian.PutUint16(p[2:], uint16(words*4+len(payload)))
	binary.BigEndian.PutUint16(p[4:], h.id)
	binary.BigEndian.PutUint16(p[6:], h.flags)
	p[8] = 64
	if h.ttl != 0 {
		p[8] = h.ttl
	}
	p[9] = h.protocol
	from, to := h.from.As4(), h.to.As4()
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	copy(p[20:], h.options)
	binary.BigEndian.PutUint16(p[10:], ^checksum.Checksum(p, 0))
	return append(p, payload...)
}

// segment is a TCP header without data, with its checksum.
func segment(from, to netip.Addr, source, target uint16, flags byte) []byte {
	s := make([]byte, 20)
	binary.BigEndian.PutUint16(s[0:], source)
	binary.BigEndian.PutUint16(s[2:], target)
	binary.BigEndian.PutUint32(s[4:], 1000)
	if flags&flagACK != 0 {
		binary.BigEndian.PutUint32(s[8:], 1001)
	}
	s[12], s[13] = 5<<4, flags
	binary.BigEndian.PutUint16(s[14:], 65535)
	sum := checksum.Checksum(from.AsSlice(), uint16(unix.IPPROTO_TCP)+uint16(len(s)))
	sum = checksum.Checksum(to.AsSlice(), sum)
	binary.BigEndian.PutUint16(s[16:], ^checksum.Checksum(s, sum))
	return s
}

func tcp4(from, to netip.Addr, source, target uint16, flags byte) []byte {
	return ip4{from: from, to: to, protocol: unix.IPPROTO_TCP}.packet(segment(from, to, source, target, flags))
}

// datagram is a UDP header and its data. Without a checksum, which IPv4 allows.
func datagram(source, target uint16, data []byte) []byte {
	d := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(d[0:], source)
	binary.BigEndian.PutUint16(d[2:], target)
	binary.BigEndian.PutUint16(d[4:], uint16(8+len(data)))
	return append(d, data...)
}

func icmp(kind, code byte, rest uint32, data []byte) []byte {
	m := make([]byte, 8, 8+len(data))
	m[0], m[1] = kind, code
	binary.BigEndian.PutUint32(m[4:], rest)
	m = append(m, data...)
	binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, 0))
	return m
}

func protocolOf(p []byte) byte {
	if len(p) < 20 || p[0]>>4 != 4 {
		return 0
	}
	return p[9]
}

func transport(p []byte) []byte { return p[int(p[0]&0x0f)*4:] }

func isTCP(p []byte, port uint16) bool {
	return protocolOf(p) == unix.IPPROTO_TCP && binary.BigEndian.Uint16(transport(p)[2:]) == port
}

func offsetOf(p []byte) uint16 { return binary.BigEndian.Uint16(p[6:]) & 0x1fff }

func sourceOf(p []byte) netip.Addr { return netip.AddrFrom4([4]byte(p[12:16])) }

func idOf(p []byte) uint16 { return binary.BigEndian.Uint16(p[4:]) }

func sourcePort(p []byte) uint16 { return binary.BigEndian.Uint16(transport(p)) }

func isICMP(kind byte) func([]byte) bool {
	return func(p []byte) bool { return protocolOf(p) == unix.IPPROTO_ICMP && transport(p)[0] == kind }
}

func any4(p []byte) bool { return protocolOf(p) != 0 }

func to4(s string) netip.Addr { return netip.MustParseAddr(s) }

// arrival is long enough for a packet that is let through to arrive.
const arrival = 700 * time.Millisecond

// attacked runs a test in the setups that an attacker meets: root's gateway is on a TUN in the host's network namespace
// where nobody says otherwise.
func attacked(t *testing.T, test func(t *testing.T, g *running)) {
	t.Helper()
	for _, s := range setups(t) {
		if !s.root {
			t.Run(s.name, func(t *testing.T) { test(t, startGateway(t, s)) })
			continue
		}
		s.name, s.host = s.name+"/host", true
		t.Run(s.name, func(t *testing.T) {
			inHostNamespace(t, func(t *testing.T) { test(t, startGateway(t, s)) })
		})
	}
}

// attacked4 and one4 are attacked and inOne with an agent that may reach port 443 of a service, both up.
func attacked4(t *testing.T, test func(t *testing.T, g *running, agent, service *raw)) {
	t.Helper()
	attacked(t, func(t *testing.T, g *running) { with4(t, g, test) })
}

func one4(t *testing.T, test func(t *testing.T, g *running, agent, service *raw)) {
	t.Helper()
	inOne(t, func(t *testing.T, g *running) { with4(t, g, test) })
}

func with4(t *testing.T, g *running, test func(t *testing.T, g *running, agent, service *raw)) {
	t.Helper()
	agent, service := g.raw("agent", "10.96.2.5"), g.raw("service", "10.96.0.7")
	g.put(agent.body(600, toTCP(&service.client, 443)), service.body(nil))
	agent.rawUp()
	service.rawUp()
	test(t, g, agent, service)
}
