package gateway

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// client is an agent or a tool service: a WireGuard tunnel over netstack in this process.
type client struct {
	t       *testing.T
	id      string
	address netip.Addr
	routes  []netip.Addr
	public  publicKey
	net     *netstack.Net
	device  *device.Device
}

// body is the client as a peer of the state, with a life in seconds (or nil) and grants.
func (c *client) body(life any, grants ...m) m {
	if grants == nil {
		grants = []m{}
	}
	body := m{"id": c.id, "publicKey": c.public.String(), "address": c.address.String(), "expiresIn": life, "grants": grants}
	if len(c.routes) > 0 {
		body["routes"] = c.routes
	}
	return body
}

func toTCP(c *client, port int) m {
	return m{"to": c.address.String(), "protocol": "tcp", "port": port}
}

func (g *running) client(id, address string) *client {
	g.t.Helper()
	private, public := newKey(g.t)
	return g.clientWith(id, address, private, public)
}

// clientWith makes a client that answers at routes too.
func (g *running) clientWith(id, address string, private [32]byte, public publicKey, routes ...string) *client {
	g.t.Helper()
	c := &client{t: g.t, id: id, address: netip.MustParseAddr(address), public: public}
	for _, route := range routes {
		c.routes = append(c.routes, netip.MustParseAddr(route))
	}
	tun, stack, err := netstack.CreateNetTUN(append([]netip.Addr{c.address}, c.routes...), nil, 1420)
	if err != nil {
		g.t.Fatal(err)
	}
	c.net = stack
	c.device = device.NewDevice(tun, g.bind(), device.NewLogger(device.LogLevelSilent, ""))
	// Never closed: gVisor's link may be written while it is being closed, which the race detector minds.
	g.t.Cleanup(c.leave)
	config := fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=127.0.0.1:%d\nallowed_ip=0.0.0.0/0\n",
		hex.EncodeToString(private[:]), hex.EncodeToString(g.publicKey[:]), g.port)
	if err := c.device.IpcSet(config); err != nil {
		g.t.Fatal(err)
	}
	if err := c.device.Up(); err != nil {
		g.t.Fatal(err)
	}
	return c
}

// bind is a client's UDP socket.
func (g *running) bind() conn.Bind {
	g.t.Helper()
	if !g.setup.host {
		return conn.NewDefaultBind()
	}
	// The default bind opens its socket on any thread, and only this one is in the gateway's namespace.
	socket, err := listenUDP(0)
	if err != nil {
		g.t.Fatal(err)
	}
	bind, err := newSocketBind(socket)
	if err != nil {
		g.t.Fatal(err)
	}
	return bind
}

// leave takes the tunnel down.
func (c *client) leave() {
	if err := c.device.Down(); err != nil {
		c.t.Error(err)
	}
}

// up proves the tunnel: an echo of the gateway comes back.
func (c *client) up() *client {
	c.t.Helper()
	if !c.ping("10.96.0.1", patience) {
		c.t.Fatalf("%s has no tunnel", c.id)
	}
	return c
}

func (c *client) ping(to string, within time.Duration) bool {
	c.t.Helper()
	until := time.Now().Add(within)
	for time.Now().Before(until) {
		if c.echo(netip.MustParseAddr(to), 250*time.Millisecond) {
			return true
		}
	}
	return false
}

// echo asks once, with a socket of its own: its Read takes no notice of a reply that is there before it, nor of any
// that comes after that one. So it reads while it writes, and where the reply was faster the next socket asks.
func (c *client) echo(to netip.Addr, within time.Duration) bool {
	c.t.Helper()
	echo, err := c.net.DialPingAddr(c.address, to)
	if err != nil {
		c.t.Fatal(err)
	}
	defer echo.Close()
	_ = echo.SetReadDeadline(time.Now().Add(within))
	answered := make(chan bool, 1)
	go func() {
		n, err := echo.Read(make([]byte, 64))
		answered <- err == nil && n > 0
	}()
	if _, err := echo.Write([]byte{8, 0, 0, 0, 0, 1, 0, 1, 'l', 'a'}); err != nil {
		return false
	}
	return <-answered
}

func (c *client) dial(to *client, port uint16, within time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return c.net.DialContextTCPAddrPort(ctx, netip.AddrPortFrom(to.address, port))
}

// serve accepts on a port and lets handle have every connection.
func (c *client) serve(port uint16, handle func(net.Conn)) {
	c.t.Helper()
	listener, err := c.net.ListenTCPAddrPort(netip.AddrPortFrom(c.address, port))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			accepted, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { defer accepted.Close(); handle(accepted) }()
		}
	}()
}

// hello tells the other end who it is seen as.
func hello(c net.Conn) { fmt.Fprintf(c, "hello %s\n", strings.Split(c.RemoteAddr().String(), ":")[0]) }

// stamped sends the time again and again.
func stamped(c net.Conn) {
	for {
		if _, err := fmt.Fprintln(c, time.Now().UnixNano()); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stamp is the time that was sent, or none where the text is none.
func stamp(text string) time.Time {
	sent, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(0, sent)
}

// endless sends until the connection breaks, and no more than the queues on the way have room for where a process waits
// for its turn: netstack takes seconds to recover from a burst that was lost.
func endless(c net.Conn) {
	block := make([]byte, 1<<10)
	for {
		if _, err := c.Write(block); err != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

const (
	patience = 30 * time.Second // for what must happen
	silence  = 3 * time.Second  // of a stream that has stopped
)

// download reads an endless stream. It reports when that has broken, and whether it goes on within a time.
func (c *client) download(from *client, port uint16) (broken <-chan error, progress func(within time.Duration) bool) {
	c.t.Helper()
	stream, err := c.dial(from, port, patience)
	if err != nil {
		c.t.Fatalf("download: %v", err)
	}
	c.t.Cleanup(func() { stream.Close() })
	ended := make(chan error, 1)
	got := make(chan struct{})
	go func() {
		buffer := make([]byte, 32<<10)
		for {
			if _, err := stream.Read(buffer); err != nil {
				ended <- err
				return
			}
			select {
			case got <- struct{}{}:
			default:
			}
		}
	}()
	return ended, func(within time.Duration) bool {
		// The second block has certainly come after the call.
		for range 2 {
			select {
			case <-got:
			case err := <-ended:
				ended <- err
				return false
			case <-time.After(within):
				return false
			}
		}
		return true
	}
}
