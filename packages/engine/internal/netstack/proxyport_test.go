package netstack

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// keptPort is a TCP port of an address where nobody listens. No other program is given it: a socket is bound to it, which
// leaves it to those who name it and share ports.
func keptPort(t *testing.T, address netip.Addr) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: address.As4()}); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return bound.(*unix.SockaddrInet4).Port
}

func TestNamedProxyPortIsKeptFromOneTunnelToItsSuccessor(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP(t, 80, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, r.RemoteAddr) })
	port := keptPort(t, netip.MustParseAddr("127.0.0.1"))
	w.spec["proxy"] = map[string]any{"username": "agent", "password": "s3cret", "port": port}
	if address := w.put(t); address != fmt.Sprintf("127.0.0.1:%d", port) {
		t.Fatal("the proxy listens on ", address)
	}
	if status, answer := w.call(t, "PUT", "/v1/tunnels/p2", w.spec); status != 201 {
		t.Fatal("the successor was not made: ", status, answer)
	}
	w.call(t, "DELETE", "/v1/tunnels/p1", nil)
	answer, err := throughProxy(fmt.Sprintf("127.0.0.1:%d", port), "agent:s3cret").Get("http://tools.lattice/")
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatal(answer, err)
	}
}

func TestNamedProxyPortOfAnotherProgramIsRefused(t *testing.T) {
	w := newWorld(t)
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	w.spec["proxy"] = map[string]any{"username": "agent", "password": "s3cret", "port": other.Addr().(*net.TCPAddr).Port}
	if status, answer := w.call(t, "PUT", "/v1/tunnels/p1", w.spec); status != 409 || answer["code"] != "port_in_use" {
		t.Fatal(status, answer)
	}
	if _, answer := w.call(t, "GET", "/v1/tunnels", nil); len(answer["tunnels"].([]any)) != 0 {
		t.Fatal("something was left behind: ", answer)
	}
}
