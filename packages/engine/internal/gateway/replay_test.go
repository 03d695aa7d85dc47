package gateway

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tap is a UDP relay to the gateway that keeps what its client sends.
type tap struct {
	socket *net.UDPConn
	mu     sync.Mutex
	kept   [][]byte
	sent   int // what the gateway has sent back
}

func newTap(t *testing.T, g *running) *tap {
	t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	tap := &tap{socket: socket}
	gateway, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: g.port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gateway.Close() })
	client := make(chan netip.AddrPort, 1)
	go func() {
		buffer := make([]byte, 2048)
		for {
			n, from, err := socket.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			select {
			case client <- from:
			default:
			}
			tap.mu.Lock()
			tap.kept = append(tap.kept, bytes.Clone(buffer[:n]))
			tap.mu.Unlock()
			_, _ = gateway.Write(buffer[:n])
		}
	}()
	go func() {
		to := <-client
		buffer := make([]byte, 2048)
		for {
			n, err := gateway.Read(buffer)
			if err != nil {
				return
			}
			tap.mu.Lock()
			tap.sent++
			tap.mu.Unlock()
			_, _ = socket.WriteToUDPAddrPort(buffer[:n], to)
		}
	}()
	return tap
}

func (p *tap) port() int { return p.socket.LocalAddr().(*net.UDPAddr).Port }

func (p *tap) answers() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// messages are the kept ones of a WireGuard type: 1 initiation, 4 data.
func (p *tap) messages(kind byte) [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found [][]byte
	for _, message := range p.kept {
		if message[0] == kind {
			found = append(found, message)
		}
	}
	return found
}

// replay sends messages to the gateway from elsewhere and tells whether anything comes back.
func replay(t *testing.T, g *running, messages [][]byte) bool {
	t.Helper()
	if len(messages) == 0 {
		t.Fatal("there is nothing to replay")
	}
	socket, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: g.port})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, message := range messages {
		if _, err := socket.Write(message); err != nil {
			t.Fatal(err)
		}
	}
	_ = socket.SetReadDeadline(time.Now().Add(arrival))
	n, _ := socket.Read(make([]byte, 2048))
	return n > 0
}

// Whoever has recorded a tunnel's messages gets neither an answer nor the agent's traffic by sending them again.
func TestReplayedMessagesOpenAndMoveNothing(t *testing.T) {
	attacked(t, func(t *testing.T, g *running) {
		tap, service := newTap(t, g), g.raw("service", "10.96.0.7")
		private, public := newKey(t)
		agent := g.raw("agent", "10.96.2.5")
		agent.public = public
		agent.configure(g, private, tap.port())
		g.put(agent.body(600, toTCP(&service.client, 443)), service.body(nil))
		service.rawUp()
		agent.rawUp()
		if agent.reaches(service, func(p []byte) bool { return isTCP(p, 443) }, tcp4(agent.address, service.address, 1234, 443, flagSYN)) == nil {
			t.Fatal("the agent has no way to the service")
		}
		if replay(t, g, tap.messages(1)) {
			t.Error("a replayed handshake was answered")
		}
		if replay(t, g, tap.messages(4)) {
			t.Error("replayed data was answered")
		}
		if service.receives(arrival, func(p []byte) bool { return isTCP(p, 443) }) {
			t.Error("a replayed packet passed")
		}
		// The tunnel is where it was: answers still come to the agent.
		agent.rawUp()
		// Bits changed on the way open nothing either.
		for _, message := range tap.messages(1) {
			for _, at := range []int{4, 8, 40, 88, 116, len(message) - 1} {
				forged := bytes.Clone(message)
				forged[at] ^= 1
				if replay(t, g, [][]byte{forged}) {
					t.Errorf("a handshake with byte %d changed was answered", at)
				}
			}
		}
	})
}

func TestHandshakesOfADeletedKeyAreNotAnswered(t *testing.T) {
	attacked(t, func(t *testing.T, g *running) {
		tap := newTap(t, g)
		private, public := newKey(t)
		agent := g.raw("agent", "10.96.2.5")
		agent.public = public
		agent.configure(g, private, tap.port())
		g.put(agent.body(600))
		agent.rawUp()
		g.remove("agent")
		before := tap.answers()
		if replay(t, g, tap.messages(1)) || replay(t, g, tap.messages(4)) {
			t.Error("what was recorded while it lived was answered")
		}
		// A handshake of its own making, and new: the key is good cryptography and nobody's.
		agent.configure(g, private, tap.port())
		initiations := len(tap.messages(1))
		echo := ip4{from: agent.address, to: to4("10.96.0.1"), protocol: unix.IPPROTO_ICMP}.packet(icmp(8, 0, 1, nil))
		if err := agent.device.Down(); err != nil {
			t.Fatal(err)
		}
		agent.configure(g, private, tap.port())
		until := time.Now().Add(patience)
		for len(tap.messages(1)) == initiations {
			if time.Now().After(until) {
				t.Fatal("it did not try")
			}
			agent.send(echo)
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(arrival)
		if tap.answers() != before {
			t.Error("the gateway answered a key that it does not know")
		}
		if agent.receives(0, any4) {
			t.Error("something came through")
		}
	})
}

// A key that nobody gave it gets no word out of the gateway, whatever it sends.
func TestStrangersGetNoAnswer(t *testing.T) {
	attacked(t, func(t *testing.T, g *running) {
		stranger := g.raw("stranger", "10.96.2.9")
		stranger.send(ip4{from: stranger.address, to: to4("10.96.0.1"), protocol: unix.IPPROTO_ICMP}.packet(icmp(8, 0, 1, nil)))
		if stranger.receives(arrival, any4) {
			t.Error("a stranger has a tunnel")
		}
		var messages [][]byte
		for kind := range byte(6) {
			for _, size := range []int{0, 1, 4, 31, 32, 64, 92, 148, 149, 1500} {
				message := make([]byte, size)
				if size >= 4 {
					binary.LittleEndian.PutUint32(message, uint32(kind))
				}
				messages = append(messages, message)
			}
		}
		if replay(t, g, messages) {
			t.Error("noise was answered")
		}
	})
}
