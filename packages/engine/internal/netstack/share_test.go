package netstack

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func TestOneSourceGetsAnEighthAndManyLeaveRoom(t *testing.T) {
	source := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(n >> 8), byte(n)}) }
	for _, most := range []int{16, sessionsMaximum, streamsMaximum} {
		s := newShares(most)
		greedy := 0
		for s.take(source(1)) {
			greedy++
		}
		if greedy > most/shareOfFree || greedy < most/shareOfFree-most/64-1 {
			t.Errorf("of %d places one source got %d", most, greedy)
		}
	}
	// An agent and its 64 sub-agents.
	s := newShares(sessionsMaximum)
	for more := true; more; {
		more = false
		for n := range 65 {
			more = s.take(source(n)) || more
		}
	}
	got := 0
	for s.take(source(100)) {
		got++
	}
	if fair := s.held[source(1)]; got < fair-2 || got < 10 {
		t.Errorf("where 65 took %d each all that they got, the next one gets %d", fair, got)
	}
	for n := range 101 {
		for s.held[source(n)] > 0 {
			s.leave(source(n))
		}
	}
	if s.taken != 0 || len(s.held) != 0 {
		t.Errorf("left: %d places of %d sources", s.taken, len(s.held))
	}
}

// quiet keeps a flood out of the test's log.
func quiet(t *testing.T) {
	t.Helper()
	before := slog.Default()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { slog.SetDefault(before) })
}

// second gives the far end another address: another agent's.
func (w *world) second(t *testing.T) netip.Addr {
	t.Helper()
	address := netip.MustParseAddr("10.96.2.77")
	full := tcpip.ProtocolAddress{Protocol: protocolOf(address), AddressWithPrefix: tcpip.AddrFromSlice(address.AsSlice()).WithPrefix()}
	if problem := w.net.stack.AddProtocolAddress(nicID, full, stack.AddressProperties{}); problem != nil {
		t.Fatal(problem)
	}
	return address
}

func (w *world) dialFrom(from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	connection, err := gonet.DialTCPWithBind(ctx, w.net.stack, full(netip.AddrPortFrom(from, 0)), full(to), protocolOf(from))
	if err != nil {
		return nil, err
	}
	return connection, nil
}

// One agent's connections leave others a place, whatever they are for.
func TestOneAgentLeavesOthersRoomAtAConnector(t *testing.T) {
	port := 0
	for name, prepare := range map[string]func(*testing.T, *world) netip.AddrPort{
		"a route": func(t *testing.T, w *world) netip.AddrPort {
			w.spec["router"] = true
			w.put(t)
			w.route(t, loopback, nameRoute{routed, "api.localhost", port})
			return netip.AddrPortFrom(netip.MustParseAddr(routed), uint16(port))
		},
		"a service": func(t *testing.T, w *world) netip.AddrPort {
			w.put(t)
			for _, protocol := range []string{"tcp", "udp"} {
				status, answer := w.call(t, http.MethodPost, "/v1/tunnels/p1/forwards", map[string]any{
					"listenPort": port, "protocol": protocol, "target": fmt.Sprintf("127.0.0.1:%d", port)})
				if status != http.StatusCreated {
					t.Fatal(status, answer)
				}
			}
			return netip.AddrPortFrom(netip.MustParseAddr(agentIP), uint16(port))
		},
	} {
		t.Run(name, func(t *testing.T) {
			port = echo(t)
			w := newWorld(t)
			to := prepare(t, w)
			other := w.second(t)
			t.Run("datagrams", func(t *testing.T) {
				var last net.Conn
				for n := range sessionsMaximum + 8 {
					local := full(netip.AddrPortFrom(netip.MustParseAddr(gatewayIP), uint16(20000+n)))
					remote := full(to)
					socket, err := gonet.DialUDP(w.net.stack, &local, &remote, protocolOf(to.Addr()))
					if err != nil {
						t.Fatal(err)
					}
					defer socket.Close()
					_, _ = socket.Write([]byte("hello"))
					last = socket
					if n%64 == 63 {
						time.Sleep(time.Millisecond)
					}
				}
				// Only so many are refused in a second, and the last of a flood may be dropped.
				waitFor(t, "a refusal", func() bool {
					_, err := last.Write([]byte("hello")) // tells of what came after the last read
					if err == nil {
						_ = last.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
						_, err = last.Read(make([]byte, 64))
					}
					return err != nil && strings.Contains(err.Error(), "refused")
				})
				socket, err := w.net.openUDP(netip.AddrPortFrom(other, 40000), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer socket.Close()
				_, _ = socket.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to))
				_ = socket.SetReadDeadline(time.Now().Add(30 * time.Second))
				if _, _, err := socket.ReadFrom(make([]byte, 64)); err != nil {
					t.Errorf("another agent's datagram: %v", err)
				}
			})
			t.Run("streams", func(t *testing.T) {
				open := 0
				for range streamsMaximum/shareOfFree + 8 {
					stream, err := w.dialFrom(netip.MustParseAddr(gatewayIP), to)
					if err != nil {
						break
					}
					defer stream.Close()
					if !echoes(stream, "hello") {
						break
					}
					open++
				}
				t.Logf("%d connections", open)
				if open > streamsMaximum/shareOfFree {
					t.Error("an agent has more than an eighth of the places")
				}
				if open < 100 {
					t.Error("the flood was none")
				}
				stream, err := w.dialFrom(other, to)
				if err != nil {
					t.Fatalf("another agent: %v", err)
				}
				defer stream.Close()
				if !echoes(stream, "hello") {
					t.Error("another agent's connection does not carry")
				}
			})
		})
	}
}

// Connections that wait for a target that does not answer are not everybody's end.
func TestATargetThatDoesNotAnswerTakesNobodysRoom(t *testing.T) {
	quiet(t)
	hang := make(chan struct{})
	w := newWorld(t)
	port, hole := echo(t), echo(t)
	w.service.outside.dialer.ControlContext = func(ctx context.Context, _, address string, _ syscall.RawConn) error {
		if strings.HasSuffix(address, fmt.Sprintf(":%d", hole)) {
			select {
			case <-hang:
			case <-ctx.Done():
			}
			return net.ErrClosed
		}
		return nil
	}
	w.spec["router"] = true
	w.put(t)
	w.route(t, loopback, nameRoute{routed, "api.localhost", port}, nameRoute{"10.96.200.8", "hole.localhost", hole})
	other := w.second(t)
	var waiting sync.WaitGroup
	refused := make(chan struct{}, 1)
	for range streamsMaximum/shareOfFree + 100 {
		waiting.Go(func() {
			stream, err := w.dialFrom(netip.MustParseAddr(gatewayIP), netip.AddrPortFrom(netip.MustParseAddr("10.96.200.8"), uint16(hole)))
			if err == nil {
				_ = stream.Close()
				return
			}
			select {
			case <-hang:
			default:
				select {
				case refused <- struct{}{}:
				default:
				}
			}
		})
	}
	select {
	case <-refused:
	case <-time.After(targetTimeout - time.Second): // then the target is given up
		t.Error("what is too many is not refused")
	}
	stream, err := w.dialFrom(other, netip.AddrPortFrom(netip.MustParseAddr(routed), uint16(port)))
	if err != nil {
		t.Fatalf("another agent: %v", err)
	}
	if !echoes(stream, "hello") {
		t.Error("another agent's connection does not carry")
	}
	_ = stream.Close()
	close(hang)
	waiting.Wait()
}

// A revoked agent says nothing any more, not even that its connections end.
func TestConnectionsOfAnAgentThatHasGoneEndAtTheTarget(t *testing.T) {
	w := newWorld(t)
	w.service.alive = liveness{idle: 2 * time.Second, interval: 500 * time.Millisecond, count: 6, unanswered: 5 * time.Second}
	w.put(t)
	ended := make(chan string, 2)
	for n, serve := range []func(net.Conn){
		func(c net.Conn) { _, _ = io.Copy(c, c); ended <- "idle" },
		func(c net.Conn) {
			for word := []byte("data"); ; time.Sleep(20 * time.Millisecond) {
				if _, err := c.Write(word); err != nil {
					ended <- "sending"
					return
				}
			}
		},
	} {
		target, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { target.Close() })
		go func() {
			if c, err := target.Accept(); err == nil {
				defer c.Close()
				serve(c)
			}
		}()
		status, answer := w.call(t, http.MethodPost, "/v1/tunnels/p1/forwards", map[string]any{"listenPort": 8080 + n, "target": target.Addr().String()})
		if status != http.StatusCreated {
			t.Fatal(status, answer)
		}
		stream, err := w.net.dialTCP(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(agentIP), uint16(8080+n)))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = stream.Write([]byte("hello"))
		if _, err := stream.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	// While it lives it may be silent for longer than that.
	select {
	case which := <-ended:
		t.Fatalf("the connection of an agent that lives has ended (%s)", which)
	case <-time.After(6 * time.Second):
	}
	w.net.end()
	got := []string{}
	for range 2 {
		select {
		case which := <-ended:
			got = append(got, which)
		case <-time.After(30 * time.Second):
		}
	}
	if slices.Sort(got); !slices.Equal(got, []string{"idle", "sending"}) {
		t.Errorf("only these ended: %v", got)
	}
}
