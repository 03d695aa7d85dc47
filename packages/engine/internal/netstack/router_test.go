package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const routed = "10.96.200.7"

// listenBoth listens for TCP and UDP on one loopback port: what is free for one may be taken for the other.
func listenBoth(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 50 {
		stream, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		datagrams, err := net.ListenPacket("udp", stream.Addr().String())
		if err == nil {
			t.Cleanup(func() { stream.Close(); datagrams.Close() })
			return stream, datagrams
		}
		stream.Close()
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Fatal("no port is free for both, in fifty tries")
	return nil, nil
}

// echo serves TCP and UDP on one loopback port and sends back what it gets.
func echo(t *testing.T) int {
	t.Helper()
	stream, datagrams := listenBoth(t)
	go func() {
		for {
			accepted, err := stream.Accept()
			if err != nil {
				return
			}
			go func() { defer accepted.Close(); _, _ = io.Copy(accepted, accepted) }()
		}
	}()
	go func() {
		packet := make([]byte, 2048)
		for {
			size, from, err := datagrams.ReadFrom(packet)
			if err != nil {
				return
			}
			_, _ = datagrams.WriteTo(packet[:size], from)
		}
	}()
	return stream.Addr().(*net.TCPAddr).Port
}

type nameRoute struct {
	address, name string
	port          int
}

// route makes the tunnel serve names, each with TCP and UDP on a port.
func (w *world) route(t *testing.T, private []string, names ...nameRoute) {
	t.Helper()
	if _, there := w.spec["router"]; !there {
		t.Fatal("the tunnel is no router")
	}
	list := []map[string]any{}
	for _, one := range names {
		list = append(list, map[string]any{"address": one.address, "name": one.name, "ports": []map[string]any{
			{"port": one.port, "protocol": "tcp"}, {"port": one.port, "protocol": "udp"}}})
	}
	status, answer := w.call(t, http.MethodPut, "/v1/tunnels/p1/routes", map[string]any{"names": list, "privateTargets": private})
	if status != http.StatusOK {
		t.Fatalf("%d %v", status, answer)
	}
}

func (w *world) dialRoute(port int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return w.net.dialTCP(ctx, netip.AddrPortFrom(netip.MustParseAddr(routed), uint16(port)))
}

func echoes(c net.Conn, word string) bool {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, word); err != nil {
		return false
	}
	got := make([]byte, len(word))
	_, err := io.ReadFull(c, got)
	return err == nil && string(got) == word
}

var loopback = []string{"127.0.0.0/8"}

func TestANameIsReachedAtItsAddress(t *testing.T) {
	w := newWorld(t)
	w.spec["router"] = true
	w.put(t)
	port := echo(t)
	w.route(t, loopback, nameRoute{routed, "api.localhost", port})
	stream, err := w.dialRoute(port)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !echoes(stream, "CONNECT elsewhere.example:443 HTTP/1.1\r\n\r\n") {
		t.Error("the name's target did not answer")
	}
	if _, err := w.dialRoute(port + 1); err == nil {
		t.Error("a port that is not routed was accepted")
	}
}

func TestDatagramsReachANameAtItsAddress(t *testing.T) {
	w := newWorld(t)
	w.spec["router"] = true
	w.put(t)
	port := echo(t)
	w.route(t, loopback, nameRoute{routed, "api.localhost", port})
	socket, err := w.net.openUDP(netip.AddrPortFrom(netip.MustParseAddr(gatewayIP), 40000), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	to := &net.UDPAddr{IP: net.ParseIP(routed), Port: port}
	packet := make([]byte, 64)
	for range 2 {
		if _, err := socket.WriteTo([]byte("a datagram"), to); err != nil {
			t.Fatal(err)
		}
		_ = socket.SetReadDeadline(time.Now().Add(30 * time.Second))
		size, from, err := socket.ReadFrom(packet)
		if err != nil || string(packet[:size]) != "a datagram" || from.String() != fmt.Sprintf("%s:%d", routed, port) {
			t.Fatalf("%q from %v: %v", packet[:size], from, err)
		}
	}
}

// ownAddress is one of this machine in a network that is not loopback.
func ownAddress(t *testing.T) netip.Addr {
	t.Helper()
	for _, prefix := range ownAddresses() {
		if address := prefix.Addr(); address.Is4() && !address.IsLoopback() {
			return address
		}
	}
	t.Fatal("this machine has no IPv4 address beside loopback, and a connector no network to advertise")
	return netip.Addr{}
}

func TestANetworkIsReachedAtItsOwnAddresses(t *testing.T) {
	w := newWorld(t)
	w.spec["router"] = true
	w.put(t)
	own := ownAddress(t)
	listener, err := net.Listen("tcp", netip.AddrPortFrom(own, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	go func() {
		for {
			accepted, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { defer accepted.Close(); _, _ = io.Copy(accepted, accepted) }()
		}
	}()
	serve := func(networks ...string) {
		status, answer := w.call(t, http.MethodPut, "/v1/tunnels/p1/routes", map[string]any{"networks": networks})
		if status != http.StatusOK {
			t.Fatalf("%d %v", status, answer)
		}
	}
	dial := func(address netip.Addr, port int) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return w.net.dialTCP(ctx, netip.AddrPortFrom(address, uint16(port)))
	}
	serve(netip.PrefixFrom(own, 30).Masked().String())
	stream, err := dial(own, port)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !echoes(stream, "hello") {
		t.Error("the target did not answer")
	}
	if _, err := dial(own, keptPort(t, own)); err == nil {
		t.Error("a port where nobody listens was accepted")
	}
	serve("198.51.100.7/32")
	if echoes(stream, "hello") {
		t.Error("the flow of a network that has gone goes on")
	}
	if _, err := dial(own, port); err == nil {
		t.Error("a network that has gone is served")
	}
}

func TestANameThatLeadsToLoopbackIsRefusedAndTold(t *testing.T) {
	w := newWorld(t)
	w.spec["router"] = true
	w.put(t)
	port := echo(t)
	w.route(t, nil, nameRoute{routed, "api.localhost", port})
	for range 2 {
		if stream, err := w.dialRoute(port); err == nil {
			stream.Close()
			t.Fatal("loopback was reached under a name")
		}
	}
	_, answer := w.call(t, http.MethodGet, "/v1/tunnels/p1/refusals", nil)
	want := map[string]any{"source": gatewayIP, "name": "api.localhost", "port": float64(port), "protocol": "tcp",
		"reason": "loopback", "resolved": "127.0.0.1"}
	list := answer["refusals"].([]any)
	if len(list) != 1 {
		t.Fatalf("%v, want %v", list, want)
	}
	told := list[0].(map[string]any)
	times, _ := told["times"].(float64)
	delete(told, "times")
	if times < 2 || fmt.Sprint(told) != fmt.Sprint(want) { // more where a SYN was sent again
		t.Errorf("%v, %v times, want %v", told, times, want)
	}
	_, answer = w.call(t, http.MethodGet, "/v1/tunnels/p1/refusals", nil)
	if list := answer["refusals"].([]any); len(list) != 0 {
		t.Errorf("told again: %v", list)
	}
}

func TestAFlowEndsWithItsRouteAndOthersStay(t *testing.T) {
	w := newWorld(t)
	w.spec["router"] = true
	w.put(t)
	first, second := echo(t), echo(t)
	w.route(t, loopback, nameRoute{routed, "one.localhost", first}, nameRoute{routed, "one.localhost", second})
	goes, err := w.dialRoute(first)
	if err != nil {
		t.Fatal(err)
	}
	defer goes.Close()
	stays, err := w.dialRoute(second)
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	if !echoes(goes, "one") || !echoes(stays, "two") {
		t.Fatal("the routes do not carry")
	}
	w.route(t, loopback, nameRoute{routed, "one.localhost", second})
	if echoes(goes, "one") {
		t.Error("the flow of a route that has gone goes on")
	}
	if !echoes(stays, "two") {
		t.Error("the flow of a route that stays broke")
	}
	if _, err := w.dialRoute(first); err == nil {
		t.Error("a route that has gone is served")
	}
}

func TestATargetThatIsNotThereIsARefusedConnection(t *testing.T) {
	w := newWorld(t)
	w.spec["router"] = true
	w.put(t)
	port := keptPort(t, netip.MustParseAddr("127.0.0.1"))
	w.route(t, loopback, nameRoute{routed, "gone.localhost", port})
	began := time.Now()
	if stream, err := w.dialRoute(port); err == nil {
		stream.Close()
		t.Error("accepted without a target")
	} else if !strings.Contains(err.Error(), "refused") || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestAddressesThatNoNameMayLeadTo(t *testing.T) {
	own := []netip.Prefix{netip.MustParsePrefix("93.184.215.14/24")}
	for address, want := range map[string]string{
		"127.0.0.1": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback", "127.255.255.254": "loopback",
		"10.0.0.1": "private", "172.31.0.1": "private", "192.168.1.1": "private", "fd00:ec2::254": "private",
		"100.100.100.200": "private", "198.18.0.1": "private", "::ffff:10.0.0.1": "private", "64:ff9b::a00:1": "private",
		"169.254.169.254": "metadata", "::ffff:169.254.169.254": "metadata", "64:ff9b::a9fe:a9fe": "metadata",
		"168.63.129.16": "metadata", "169.254.1.1": "link-local", "fe80::1": "link-local", "fe80::1%eth0": "link-local",
		"224.0.0.1": "multicast", "ff02::1": "multicast", "0.0.0.0": "reserved", "::": "reserved", "0.1.2.3": "reserved",
		"255.255.255.255": "reserved", "240.0.0.1": "reserved", "192.0.0.192": "reserved", "::10.0.0.1": "reserved",
		"2002:a00:1::1": "reserved", "2001:0:1::1": "reserved", "2001:db8::1": "reserved", "fec0::1": "reserved",
		"93.184.215.14": "this machine",
		"93.184.215.15": "", "8.8.8.8": "", "160.79.104.10": "", "2606:4700::1111": "", "64:ff9b::808:808": "",
	} {
		if got := judge(netip.MustParseAddr(address), nil, own); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
	opened := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	if judge(netip.MustParseAddr("10.1.2.3"), opened, nil) != "" || judge(netip.MustParseAddr("10.2.2.3"), opened, nil) != "private" {
		t.Error("what the workspace opens is not what is open")
	}
}

func TestOneForbiddenAddressForbidsTheName(t *testing.T) {
	_, err := newOutside().dialName(t.Context(), "tcp", "localhost", 80, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	if err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Error(err)
	}
}

func TestAForwardReachesAUnixSocket(t *testing.T) {
	w := newWorld(t)
	w.put(t)
	path := filepath.Join(t.TempDir(), "listener.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	from := make(chan string, 1)
	go func() {
		accepted, err := listener.Accept()
		if err == nil {
			from <- accepted.RemoteAddr().String()
			_, _ = io.Copy(accepted, accepted)
			accepted.Close()
		}
	}()
	status, answer := w.call(t, http.MethodPost, "/v1/tunnels/p1/forwards", map[string]any{"listenPort": 8080, "target": "unix:" + path})
	if status != http.StatusCreated {
		t.Fatalf("%d %v", status, answer)
	}
	stream, err := w.net.dialTCP(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(agentIP), 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !echoes(stream, "hello") {
		t.Error("the socket did not answer")
	}
	if name := <-from; !strings.HasSuffix(name, "/"+stream.LocalAddr().String()) {
		t.Errorf("the listener is told that %q calls, and it is %s", name, stream.LocalAddr())
	}
	status, answer = w.call(t, http.MethodPost, "/v1/tunnels/p1/forwards", map[string]any{"listenPort": 8081, "target": "unix:relative"})
	if status != http.StatusBadRequest {
		t.Errorf("a relative path: %d %v", status, answer)
	}
}
