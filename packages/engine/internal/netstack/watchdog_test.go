package netstack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lattice.dev/engine/internal/wg"
)

// way leads to the gateway: datagrams to its address go there and back.
type way struct {
	at     string
	socket net.PacketConn
}

// lay makes a way to the endpoint of the world's gateway.
func (w *world) lay(t *testing.T, gateway string) *way {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to, err := net.ResolveUDPAddr("udp", gateway)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	backs := map[string]*net.UDPConn{}
	t.Cleanup(func() {
		_ = socket.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, back := range backs {
			_ = back.Close()
		}
	})
	go func() {
		packet := make([]byte, 65536)
		for {
			size, from, err := socket.ReadFrom(packet)
			if err != nil {
				return
			}
			mu.Lock()
			back := backs[from.String()]
			if back == nil {
				if back, err = net.DialUDP("udp", nil, to); err != nil {
					mu.Unlock()
					return
				}
				backs[from.String()] = back
				go func() {
					answer := make([]byte, 65536)
					for {
						size, err := back.Read(answer)
						if errors.Is(err, net.ErrClosed) {
							return
						}
						if err == nil {
							_, _ = socket.WriteTo(answer[:size], from)
						}
					}
				}()
			}
			mu.Unlock()
			_, _ = back.Write(packet[:size])
		}
	}()
	return &way{socket.LocalAddr().String(), socket}
}

func (w *way) cut() { _ = w.socket.Close() }

// named has the world's gateway found under a name, and its tunnels watched impatiently; the returned function moves it.
func (w *world) named(first string) (move func(to string)) {
	var address atomic.Value
	address.Store(first)
	w.service.watchdog = newWatchdog(time.Second)
	w.service.watchdog.resolve = func(context.Context, string) (string, error) { return address.Load().(string), nil }
	peer := w.spec["peer"].(map[string]any)
	peer["endpoint"], peer["persistentKeepalive"] = first, 1
	return func(to string) { address.Store(to) }
}

// happenings reads the engine's events.
func (w *world) happenings(t *testing.T) <-chan event {
	t.Helper()
	request, _ := http.NewRequest("GET", w.api.URL+"/v1/events", nil)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	told := make(chan event, 100)
	go func() {
		lines := bufio.NewScanner(answer.Body)
		for lines.Scan() {
			var what event
			if json.Unmarshal(lines.Bytes(), &what) == nil {
				told <- what
			}
		}
	}()
	return told
}

func (w *world) state(t *testing.T) any {
	t.Helper()
	_, view := w.call(t, "GET", "/v1/tunnels/p1", nil)
	return view["state"]
}

// patient writes for as long as its reader is there, however long that hears nothing.
func patient(rw http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		if _, err := rw.Write(make([]byte, 1024)); err != nil {
			return
		}
		_ = http.NewResponseController(rw).Flush()
		time.Sleep(time.Millisecond)
	}
}

func TestATunnelFollowsAGatewayThatMovesAndKeepsItsConnections(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		gateway := w.spec["peer"].(map[string]any)["endpoint"].(string)
		before, after := w.lay(t, gateway), w.lay(t, gateway)
		move := w.named(before.at)
		w.service.watchdog.lost = 30 * time.Second
		w.serveHTTP(t, 80, patient)
		client := throughProxy(w.put(t), "agent:s3cret")
		client.Timeout = 90 * time.Second // with the body, which waits for the tunnel to be back
		answer, err := client.Get("http://tools.lattice/")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		before.cut()
		waitFor(t, "the tunnel to be found silent", func() bool { return w.state(t) == stateSilent })
		move(after.at)
		waitFor(t, "the tunnel to be back", func() bool { return w.state(t) == stateUp })
		_, view := w.call(t, "GET", "/v1/tunnels/p1", nil)
		if view["recovered"].(float64) < 1 {
			t.Error(view)
		}
		if _, err := io.CopyN(io.Discard, answer.Body, 1<<20); err != nil {
			t.Error("the connection of before: ", err)
		}
	})
}

func TestATunnelThatStaysSilentIsLostAndSaysSo(t *testing.T) {
	w := newWorld(t)
	way := w.lay(t, w.spec["peer"].(map[string]any)["endpoint"].(string))
	w.named(way.at)
	w.service.watchdog.lost = 500 * time.Millisecond
	w.put(t)
	told := w.happenings(t)
	way.cut()
	var heard []string
	for len(heard) == 0 || heard[len(heard)-1] != stateLost {
		select {
		case what := <-told:
			if what.ID != "p1" {
				t.Fatal(what)
			}
			heard = append(heard, what.Type)
		case <-time.After(60 * time.Second):
			t.Fatal(heard)
		}
	}
	if heard[0] != stateSilent {
		t.Error(heard)
	}
	if state := w.state(t); state != stateLost {
		t.Error(state)
	}
	if what := <-w.happenings(t); what.Type != stateLost { // who comes late hears of it, too
		t.Error(what)
	}
}

func (w *world) lastHandshake(t *testing.T) time.Time {
	t.Helper()
	one, err := w.service.find("p1")
	if err != nil {
		t.Fatal(err)
	}
	counters, err := one.device.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return counters.LastHandshake
}

func TestAfterASleepOfTheMachineTheGatewayIsLookedUpAndShakenHandsWith(t *testing.T) {
	w := newWorld(t)
	var slept, asked atomic.Int64
	w.service.watchdog = newWatchdog(rejectAfter)
	w.service.watchdog.gap = 50 * time.Millisecond
	w.service.watchdog.boot = func() time.Duration {
		defer asked.Add(1)
		return bootTime() + time.Duration(slept.Load())
	}
	lookedUp := make(chan time.Time, 1)
	w.service.watchdog.resolve = func(_ context.Context, endpoint string) (string, error) {
		lookedUp <- w.lastHandshake(t)
		return endpoint, nil
	}
	w.put(t)
	// The first is for when the tunnel was proven, the second for how long the machine has slept until now.
	waitFor(t, "the watch to begin", func() bool { return asked.Load() >= 2 })
	slept.Store(int64(time.Minute))
	select {
	case before := <-lookedUp:
		waitFor(t, "a handshake", func() bool { return w.lastHandshake(t).After(before) })
	case <-time.After(60 * time.Second):
		t.Fatal("nothing is done about it")
	}
}

// endingDevice is one whose tunnel ends while it is looked at.
type endingDevice struct {
	wg.Device
	end func()
}

func (d endingDevice) Counters() (wg.Counters, error) {
	d.end()
	return wg.Counters{LastHandshake: time.Now()}, nil
}

func TestATunnelThatEndsWhileItIsLookedAtStaysWhatItHasBecome(t *testing.T) {
	s := newService("test", "", slog.Default())
	for _, state := range []string{stateExpired, stateLost} {
		ended := &Tunnel{state: stateSilent, vigil: &vigil{limits: s.watchdog.limits, silent: true}}
		ended.device = endingDevice{end: func() {
			ended.mu.Lock()
			ended.down, ended.state = true, state
			ended.mu.Unlock()
		}}
		s.look(ended, s.watchdog.boot(), false)
		if found := ended.current(); found != state {
			t.Errorf("a tunnel that is %s is %s", state, found)
		}
	}
}

func TestAChangedEndpointIsShakenHandsWithAtOnce(t *testing.T) {
	w := newWorld(t)
	gateway := w.spec["peer"].(map[string]any)["endpoint"].(string)
	way := w.lay(t, gateway)
	w.spec["peer"].(map[string]any)["endpoint"] = way.at
	w.put(t)
	took := time.Hour
	for tries := 0; tries < 3 && took > 4*time.Second; tries++ { // WireGuard itself would wait for 5 s
		way.cut()
		way = w.lay(t, gateway)
		// Two initiations within 20 ms are one to who answers.
		waitFor(t, "the handshake to be old", func() bool { return time.Since(w.lastHandshake(t)) > 50*time.Millisecond })
		shaken, changed := w.lastHandshake(t), time.Now()
		if status, answer := w.call(t, "PATCH", "/v1/tunnels/p1", map[string]any{"peer": map[string]any{"endpoint": way.at}}); status != http.StatusOK {
			t.Fatal(status, answer)
		}
		waitFor(t, "a handshake", func() bool { return w.lastHandshake(t).After(shaken) })
		took = time.Since(changed)
	}
	if took > 4*time.Second {
		t.Error(took)
	}
}
