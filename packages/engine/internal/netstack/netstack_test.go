package netstack

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"
	socks "golang.org/x/net/proxy"
	"golang.zx2c4.com/wireguard/device"

	"lattice.dev/engine/internal/control"
	"lattice.dev/engine/internal/keeper"
	"lattice.dev/engine/internal/wg"
)

const (
	gatewayIP = "10.96.0.1"
	agentIP   = "10.96.2.5"
)

func newKey(t *testing.T) (private, public []byte) {
	t.Helper()
	private = make([]byte, 32)
	_, _ = rand.Read(private)
	public, err := curve25519.X25519(private, curve25519.Basepoint)
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

func b64(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }

// far is the network stack at the other end.
type far struct{ *overlay }

func (f far) ListenTCPAddrPort(at netip.AddrPort) (net.Listener, error) { return f.listenTCP(at) }
func (f far) ListenUDPAddrPort(at netip.AddrPort) (net.PacketConn, error) {
	return f.openUDP(at, nil)
}
func (f far) DialTCPAddrPort(to netip.AddrPort) (net.Conn, error) {
	return f.dialTCP(context.Background(), to)
}

// world is a gateway's end of a tunnel, an engine's API, and the agent's keys.
type world struct {
	net     far
	spec    map[string]any
	api     *httptest.Server
	service *service
}

// newWorld starts a real WireGuard device as the other end, and the API over HTTP.
func newWorld(t *testing.T) *world {
	t.Helper()
	agentPrivate, agentPublic := newKey(t)
	gatewayPrivate, gatewayPublic := newKey(t)
	tun, err := newOverlay([]netip.Addr{netip.MustParseAddr(gatewayIP)}, 1420, false)
	if err != nil {
		t.Fatal(err)
	}
	dev := device.NewDevice(tun, wg.NewBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(dev.Close)
	if err := dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=0\npublic_key=%s\nallowed_ip=%s/32\nallowed_ip=0.0.0.0/0\n",
		hex.EncodeToString(gatewayPrivate), hex.EncodeToString(agentPublic), agentIP)); err != nil {
		t.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}
	text, _ := dev.IpcGet()
	var port string
	for line := range strings.SplitSeq(text, "\n") {
		if value, ok := strings.CutPrefix(line, "listen_port="); ok {
			port = value
		}
	}
	w := &world{net: far{tun}, service: newService("test", t.TempDir(), slog.New(slog.DiscardHandler))}
	w.spec = map[string]any{
		"interface": map[string]any{"privateKey": b64(agentPrivate), "addresses": []string{agentIP + "/32"}, "mtu": 1420},
		"peer": map[string]any{"publicKey": b64(gatewayPublic), "endpoint": "127.0.0.1:" + port,
			"allowedIPs": []string{"10.96.0.0/16"}},
		"probe":  map[string]any{"address": gatewayIP, "timeout": 20},
		"proxy":  map[string]any{"username": "agent", "password": "s3cret"},
		"hosts":  map[string]string{"tools.lattice": gatewayIP},
		"policy": map[string]any{"preset": "sandboxed", "grants": []map[string]any{{"to": gatewayIP, "port": 80, "protocol": "tcp"}}},
	}
	w.api = serveAPI(t, w.service)
	t.Cleanup(w.service.end)
	return w
}

// serveAPI serves the routes as the control server does, over TCP for the test's comfort.
func serveAPI(t *testing.T, s *service) *httptest.Server {
	t.Helper()
	server, err := control.New("netstack", t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	s.routes(server)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", server.RuntimeDir()+"/control.sock")
	}}
	front := httptest.NewUnstartedServer(http.NotFoundHandler())
	front.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Scheme, r.URL.Host, r.RequestURI = "http", "engine", ""
		answer, err := transport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		w.(http.Flusher).Flush()
		_, _ = io.Copy(flushing{w}, answer.Body)
	})
	front.Start()
	t.Cleanup(front.Close)
	return front
}

type flushing struct{ http.ResponseWriter }

func (f flushing) Write(text []byte) (int, error) {
	defer f.ResponseWriter.(http.Flusher).Flush()
	return f.ResponseWriter.Write(text)
}

func (w *world) call(t *testing.T, method, path string, body any) (int, map[string]any) {
	t.Helper()
	raw, _ := json.Marshal(body)
	request, _ := http.NewRequest(method, w.api.URL+path, bytes.NewReader(raw))
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	decoded := map[string]any{}
	_ = json.NewDecoder(answer.Body).Decode(&decoded)
	return answer.StatusCode, decoded
}

func (w *world) put(t *testing.T) string {
	t.Helper()
	status, answer := w.call(t, "PUT", "/v1/tunnels/p1", w.spec)
	if status != 201 {
		t.Fatalf("PUT: %d %v", status, answer)
	}
	where := answer["proxy"].(map[string]any)
	return fmt.Sprintf("%v:%v", where["host"], where["port"])
}

// serveHTTP is a service in the overlay, at the gateway's address.
func (w *world) serveHTTP(t *testing.T, port uint16, handler http.HandlerFunc) {
	t.Helper()
	listener, err := w.net.ListenTCPAddrPort(netip.AddrPortFrom(netip.MustParseAddr(gatewayIP), port))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

func throughProxy(address, userinfo string) *http.Client {
	target, _ := url.Parse("http://" + userinfo + "@" + address)
	return &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(target), DisableKeepAlives: true}, Timeout: 20 * time.Second}
}

func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: ", what)
		}
	}
}

func TestConnectionToTheServiceEndsWithTheClientsWhenItSaysSo(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP(t, 80, func(rw http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprint(rw, r.Close) })
	address := w.put(t)
	last, more := throughProxy(address, "agent:s3cret"), throughProxy(address, "agent:s3cret")
	more.Transport.(*http.Transport).DisableKeepAlives = false
	defer more.CloseIdleConnections()
	for client, wanted := range map[*http.Client]string{last: "true", more: "false"} {
		answer, err := client.Get("http://tools.lattice/")
		if err != nil {
			t.Fatal(err)
		}
		if told, _ := io.ReadAll(answer.Body); string(told) != wanted {
			t.Errorf("the service was told to close: %s, not %s", told, wanted)
		}
		_ = answer.Body.Close()
	}
}

func TestHTTPThroughTheTunnelComesFromTheOverlayAddress(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.serveHTTP(t, 80, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, r.RemoteAddr) })
		address := w.put(t)
		answer, err := throughProxy(address, "agent:s3cret").Get("http://tools.lattice/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		if !strings.HasPrefix(string(body), agentIP+":") {
			t.Fatalf("the service saw %q", body)
		}
	})
}

func TestProxyWithoutItsSecretServesNobody(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP(t, 80, func(http.ResponseWriter, *http.Request) {})
	address := w.put(t)
	for _, userinfo := range []string{"agent:wrong", "other:s3cret", "agent:"} {
		answer, err := throughProxy(address, userinfo).Get("http://tools.lattice/")
		if err != nil || answer.StatusCode != http.StatusProxyAuthRequired {
			t.Fatalf("%s: %v %v", userinfo, answer, err)
		}
	}
	dialer, _ := socks.SOCKS5("tcp", address, &socks.Auth{User: "agent", Password: "wrong"}, nil)
	if _, err := dialer.Dial("tcp", "tools.lattice:80"); err == nil {
		t.Fatal("SOCKS5 took a wrong password")
	}
	dialer, _ = socks.SOCKS5("tcp", address, nil, nil)
	if _, err := dialer.Dial("tcp", "tools.lattice:80"); err == nil {
		t.Fatal("SOCKS5 took no password")
	}
}

func TestSOCKSCarriesALargeTransferWithHalfClose(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		listener, err := w.net.ListenTCPAddrPort(netip.MustParseAddrPort(gatewayIP + ":80"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			received, _ := io.ReadAll(connection) // until the client's half-close
			_, _ = connection.Write(received)
			_ = connection.Close()
		}()
		address := w.put(t)
		dialer, _ := socks.SOCKS5("tcp", address, &socks.Auth{User: "agent", Password: "s3cret"}, nil)
		connection, err := dialer.Dial("tcp", "tools.lattice:80")
		if err != nil {
			t.Fatal(err)
		}
		sent := make([]byte, 3<<20)
		_, _ = rand.Read(sent)
		go func() {
			_, _ = connection.Write(sent)
			_ = connection.(*net.TCPConn).CloseWrite()
		}()
		received, err := io.ReadAll(connection)
		if err != nil || !bytes.Equal(sent, received) {
			t.Fatalf("%d of %d bytes came back: %v", len(received), len(sent), err)
		}
	})
}

func TestWhatPolicyDoesNotHoldIsRefusedWithASentence(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		address := w.put(t)
		client := throughProxy(address, "agent:s3cret")
		for target, expected := range map[string]string{
			"http://" + gatewayIP + ":81/": "10.96.0.1:81", // refused by the other end
			"http://unknown.example/":      "unknown.example",
			"http://192.0.2.1/":            "outside the overlay",
		} {
			answer, err := client.Get(target)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(answer.Body)
			if answer.StatusCode != 403 || answer.Header.Get("Lattice-Refusal") != "policy" ||
				!strings.Contains(string(body), expected) || !strings.Contains(string(body), "sandboxed") {
				t.Fatalf("%s: %d %s", target, answer.StatusCode, body)
			}
		}
		answer, err := client.Get("http://tools.lattice:80/") // granted, and nobody listens
		if err != nil || answer.StatusCode != 502 || answer.Header.Get("Lattice-Refusal") != "" {
			t.Fatalf("granted: %v %v", answer, err)
		}
	})
}

func TestDatagramsThroughAnAssociation(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		echo, err := w.net.ListenUDPAddrPort(netip.MustParseAddrPort(gatewayIP + ":53"))
		if err != nil {
			t.Fatal(err)
		}
		defer echo.Close()
		go func() {
			packet := make([]byte, 2048)
			for {
				size, from, err := echo.ReadFrom(packet)
				if err != nil {
					return
				}
				_, _ = echo.WriteTo(packet[:size], from)
			}
		}()
		address := w.put(t)
		connection, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		_, _ = connection.Write([]byte("\x05\x01\x02\x01\x05agent\x06s3cret\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"))
		answer := make([]byte, 2+2+10)
		if _, err := io.ReadFull(connection, answer); err != nil || answer[5] != 0 {
			t.Fatalf("%x %v", answer, err)
		}
		relay := &net.UDPAddr{IP: answer[8:12], Port: int(answer[12])<<8 | int(answer[13])}
		local, err := net.DialUDP("udp", nil, relay)
		if err != nil {
			t.Fatal(err)
		}
		defer local.Close()
		name := "tools.lattice"
		_, _ = local.Write(append([]byte{0, 0, 0, 3, byte(len(name))}, name+"\x00\x35hello"...))
		_ = local.SetReadDeadline(time.Now().Add(10 * time.Second))
		packet := make([]byte, 2048)
		size, err := local.Read(packet)
		if err != nil || !bytes.HasSuffix(packet[:size], []byte("\x0a\x60\x00\x01\x00\x35hello")) {
			t.Fatalf("%x %v", packet[:size], err)
		}
		_ = connection.Close() // ends the association
		waitFor(t, "the association to end", func() bool {
			_, _ = local.Write([]byte{0, 0, 0, 1, 10, 96, 0, 1, 0, 53, 'x'})
			_ = local.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, err := local.Read(packet)
			return err != nil
		})
	})
}

func TestForwardTellsTheTargetWhoCalls(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		target, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer target.Close()
		go func() {
			connection, err := target.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(connection).ReadString('\n')
			_, _ = io.WriteString(connection, line)
			_ = connection.Close()
		}()
		w.put(t)
		status, answer := w.call(t, "POST", "/v1/tunnels/p1/forwards",
			map[string]any{"listenPort": 443, "target": target.Addr().String(), "proxyProtocol": "v1"})
		if status != 201 {
			t.Fatal(status, answer)
		}
		connection, err := w.net.DialTCPAddrPort(netip.MustParseAddrPort(agentIP + ":443"))
		if err != nil {
			t.Fatal(err)
		}
		line, err := io.ReadAll(connection)
		if err != nil || !strings.HasPrefix(string(line), "PROXY TCP4 10.96.0.1 10.96.2.5 ") {
			t.Fatalf("%q %v", line, err)
		}
		if status, _ := w.call(t, "DELETE", fmt.Sprintf("/v1/tunnels/p1/forwards/%v", answer["id"]), nil); status != 204 {
			t.Fatal(status)
		}
		if _, err := w.net.DialTCPAddrPort(netip.MustParseAddrPort(agentIP + ":443")); err == nil {
			t.Fatal("the removed forward still accepts")
		}
	})
}

func TestExpiryEndsARunningConnection(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.serveHTTP(t, 80, endless)
		w.spec["expiresIn"] = 600
		address := w.put(t)
		answer, err := throughProxy(address, "agent:s3cret").Get("http://tools.lattice/")
		if err != nil {
			t.Fatal(err)
		}
		if status, view := w.call(t, "PATCH", "/v1/tunnels/p1", map[string]any{"expiresIn": 0.5}); status != 200 {
			t.Fatal(status, view)
		}
		_, _ = io.Copy(io.Discard, answer.Body) // ends only because the tunnel does
		status, view := w.call(t, "GET", "/v1/tunnels/p1", nil)
		if status != 200 || view["state"] != "expired" {
			t.Fatal(status, view)
		}
		if _, err := net.Dial("tcp", address); err == nil {
			t.Fatal("the proxy of an expired tunnel still listens")
		}
	})
}

// endless writes until the other side is gone: reset, or silent so long that the buffers are full.
func endless(rw http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		_ = http.NewResponseController(rw).SetWriteDeadline(time.Now().Add(8 * time.Second))
		if _, err := rw.Write(make([]byte, 1024)); err != nil {
			return
		}
		_ = http.NewResponseController(rw).Flush()
		time.Sleep(time.Millisecond)
	}
}

func TestRenewalMovesTheDeadlineOfARunningConnection(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP(t, 80, endless)
	const life = 10
	w.spec["expiresIn"] = life
	address, started := w.put(t), time.Now()
	answer, err := throughProxy(address, "agent:s3cret").Get("http://tools.lattice/")
	if err != nil {
		t.Fatal(err)
	}
	if status, view := w.call(t, "PATCH", "/v1/tunnels/p1", map[string]any{"expiresIn": 60}); status != 200 {
		t.Fatal(status, view)
	}
	for time.Since(started) < (life+1)*time.Second {
		if _, err := io.CopyN(io.Discard, answer.Body, 1024); err != nil {
			t.Fatal("the connection ended at the old deadline: ", err)
		}
	}
}

func TestTunnelToNobodySaysSo(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.spec["peer"].(map[string]any)["endpoint"] = "127.0.0.1:9"
		w.spec["probe"] = map[string]any{"address": gatewayIP, "timeout": 0.3}
		status, answer := w.call(t, "PUT", "/v1/tunnels/p1", w.spec)
		if status != 504 || answer["code"] != "handshake_timeout" {
			t.Fatal(status, answer)
		}
		if status, _ := w.call(t, "GET", "/v1/tunnels/p1", nil); status != 404 {
			t.Fatal("something was left behind: ", status)
		}
	})
}

func TestBadTunnelsAreRefusedWithoutTheirSecrets(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(){
		"key":     func() { w.spec["interface"].(map[string]any)["privateKey"] = "c2VjcmV0" },
		"address": func() { w.spec["interface"].(map[string]any)["addresses"] = []string{"x"} },
		"mtu":     func() { w.spec["interface"].(map[string]any)["mtu"] = 10 },
		"proxy":   func() { w.spec["proxy"] = map[string]any{"username": "agent"} },
		"port":    func() { w.spec["proxy"].(map[string]any)["port"] = 65536 },
		"expiry":  func() { w.spec["expiresIn"] = -1 },
		"revoke":  func() { w.spec["revoke"] = map[string]any{"url": "file:///etc/passwd"} },
		"unknown": func() { w.spec["surprise"] = true },
	} {
		fresh := *w
		fresh.spec = map[string]any{}
		raw, _ := json.Marshal(w.spec)
		original := map[string]any{}
		_ = json.Unmarshal(raw, &original)
		change()
		status, answer := w.call(t, "PUT", "/v1/tunnels/p1", w.spec)
		if status != 400 || strings.Contains(fmt.Sprint(answer), "c2VjcmV0") {
			t.Fatalf("%s: %d %v", name, status, answer)
		}
		w.spec = original
	}
}

func TestEndRevokesAtTheControlPlane(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		calls := make(chan string, 3)
		failures := 1
		controlPlane := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			calls <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
			if failures > 0 {
				failures--
				rw.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			rw.WriteHeader(http.StatusNoContent)
		}))
		defer controlPlane.Close()
		w.spec["revoke"] = map[string]any{"url": controlPlane.URL + "/api/v1/peers/p1", "headers": map[string]string{"Authorization": "Bearer t"}}
		address := w.put(t)
		w.service.end()
		for range 2 { // the failed attempt and the repeated one
			if call := <-calls; call != "DELETE /api/v1/peers/p1 Bearer t" {
				t.Fatal(call)
			}
		}
		if _, err := net.Dial("tcp", address); err == nil {
			t.Fatal("the proxy still listens")
		}
	})
}

func TestEndRevokesWhatIsBeingMadeBeforeItWaitsForTheKeeper(t *testing.T) {
	w := newWorld(t)
	calls := make(chan string, 3)
	controlPlane := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		calls <- r.Method + " " + r.URL.Path
		rw.WriteHeader(http.StatusNoContent)
	}))
	defer controlPlane.Close()
	w.spec["revoke"] = map[string]any{"url": controlPlane.URL + "/api/v1/peers/p1"}
	w.spec["network"] = map[string]any{"kind": kindNamespace}
	w.service.keeping.Lock() // as a keeper that hangs while it is started has it
	var waiting sync.WaitGroup
	waiting.Go(func() { w.call(t, "PUT", "/v1/tunnels/p1", w.spec) })
	waitFor(t, "the tunnel to be asked for", func() bool {
		w.service.mu.Lock()
		defer w.service.mu.Unlock()
		_, reserved := w.service.tunnels["p1"]
		return reserved
	})
	waiting.Go(w.service.end)
	select {
	case call := <-calls:
		if call != "DELETE /api/v1/peers/p1" {
			t.Error(call)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was revoked")
	}
	w.service.keeping.Unlock()
	waiting.Wait()
	w.service.endKeeper() // which the tunnel may have started since
	if len(calls) != 0 {
		t.Error("it was revoked again: ", <-calls)
	}
}

func TestWhoWaitsForAKeeperThatFailsHearsOfItAtOnce(t *testing.T) {
	s := newService("test", t.TempDir(), slog.New(slog.DiscardHandler))
	attempts, hang := 0, make(chan struct{})
	s.newKeeper = func() (*keeper.Keeper, error) {
		attempts++
		<-hang
		return nil, keeper.ErrLost
	}
	const callers = 5
	failed := make(chan error, callers)
	for range callers {
		go func() {
			_, err := s.startKeeper()
			failed <- err
		}()
	}
	waiting := func() int {
		stacks := make([]byte, 1<<20)
		all := strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n")
		return len(slices.DeleteFunc(all, func(one string) bool {
			return !strings.Contains(one, "[sync.Mutex.Lock]") || !strings.Contains(one, ".startKeeper(")
		}))
	}
	for end := time.Now().Add(20 * time.Second); waiting() < callers-1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(waiting(), "wait")
		}
	}
	close(hang)
	for range callers {
		if err := <-failed; !errors.Is(err, keeper.ErrLost) {
			t.Error(err)
		}
	}
	if attempts != 1 {
		t.Error(attempts, "attempts")
	}
	if _, err := s.startKeeper(); err == nil || attempts != 2 {
		t.Error("who comes later has it tried again: ", attempts)
	}
}
