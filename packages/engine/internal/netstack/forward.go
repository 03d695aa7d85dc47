package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	targetTimeout = 10 * time.Second
	sessionIdle   = 2 * time.Minute // RFC 4787 REQ-5: a UDP mapping lives at least two minutes
	// unixTarget is what the target of a listener in the same user's process begins with: a path that nobody else gets
	// to, where a port of loopback serves every process of the machine.
	unixTarget = "unix:"
)

// ForwardSpec is the body of POST /v1/tunnels/{id}/forwards.
type ForwardSpec struct {
	ListenPort int    `json:"listenPort"`
	Protocol   string `json:"protocol"`
	Target     string `json:"target"`
	// ProxyProtocol "v1" sends the target a line that says which overlay address calls
	// (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt, §2.1).
	ProxyProtocol string `json:"proxyProtocol"`
}

type forwardView struct {
	ID         string `json:"id"`
	ListenPort int    `json:"listenPort"`
	Protocol   string `json:"protocol"`
	Target     string `json:"target"`
}

// forward listens on the overlay address and hands on to a target in the host's network.
type forward struct {
	id     string
	spec   ForwardSpec
	tunnel *Tunnel
	shares *shares

	mu     sync.Mutex
	closed bool
	open   map[io.Closer]struct{}
}

func (f *forward) view() forwardView {
	return forwardView{f.id, f.spec.ListenPort, f.spec.Protocol, f.spec.Target}
}

func (s *ForwardSpec) check() error {
	if s.Protocol == "" {
		s.Protocol = "tcp"
	}
	if s.Protocol != "tcp" && s.Protocol != "udp" {
		return fmt.Errorf("protocol: %q is neither tcp nor udp", s.Protocol)
	}
	if s.ListenPort < 1 || s.ListenPort > 65535 {
		return fmt.Errorf("listenPort: %d is not a port", s.ListenPort)
	}
	if s.ProxyProtocol != "" && (s.ProxyProtocol != "v1" || s.Protocol != "tcp") {
		return fmt.Errorf("proxyProtocol: %q is not v1 on tcp", s.ProxyProtocol)
	}
	if path, local := strings.CutPrefix(s.Target, unixTarget); local {
		if !filepath.IsAbs(path) || s.Protocol != "tcp" {
			return fmt.Errorf("target: %q is not an absolute path, or not on tcp", s.Target)
		}
		return nil
	}
	host, port, err := net.SplitHostPort(s.Target)
	if err != nil || host == "" {
		return fmt.Errorf("target: %q is not host:port", s.Target)
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return fmt.Errorf("target: %q is not a port", port)
	}
	return nil
}

func (t *Tunnel) addForward(spec ForwardSpec) (*forward, error) {
	if err := spec.check(); err != nil {
		return nil, &problem{400, "invalid_forward", err.Error()}
	}
	if t.ctx.Err() != nil {
		return nil, t.why()
	}
	f := &forward{spec: spec, tunnel: t, shares: newShares(streamsMaximum), open: map[io.Closer]struct{}{}}
	if spec.Protocol == "udp" {
		f.shares = newShares(sessionsMaximum)
	}
	var starts []func()
	for _, address := range t.spec.addresses {
		at := netip.AddrPortFrom(address, uint16(spec.ListenPort))
		start, err := f.listen(at)
		if err != nil {
			f.Close()
			return nil, &problem{409, "port_in_use", err.Error()}
		}
		starts = append(starts, start)
	}
	t.mu.Lock()
	if t.down {
		t.mu.Unlock()
		f.Close()
		return nil, t.why()
	}
	t.lastID++
	f.id = fmt.Sprintf("f%d", t.lastID)
	t.forwards[f.id] = f
	t.open[f] = struct{}{}
	t.mu.Unlock()
	for _, start := range starts {
		go start()
	}
	return f, nil
}

func (t *Tunnel) removeForward(id string) bool {
	t.mu.Lock()
	f, ok := t.forwards[id]
	delete(t.forwards, id)
	delete(t.open, f)
	t.mu.Unlock()
	if ok {
		_ = f.Close()
	}
	return ok
}

func (f *forward) listen(at netip.AddrPort) (func(), error) {
	if f.spec.Protocol == "udp" {
		socket, err := f.tunnel.net.openUDP(at, nil)
		if err != nil {
			return nil, err
		}
		_, err = f.track(socket)
		return func() { f.serveUDP(at, socket) }, err
	}
	listener, err := f.tunnel.net.listenTCP(at)
	if err != nil {
		return nil, err
	}
	_, err = f.track(listener)
	return func() { f.serveTCP(listener) }, err
}

func (f *forward) track(c io.Closer) (func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	f.open[c] = struct{}{}
	return func() {
		f.mu.Lock()
		delete(f.open, c)
		f.mu.Unlock()
		_ = c.Close()
	}, nil
}

// Close ends the listener and all that goes through it.
func (f *forward) Close() error {
	f.mu.Lock()
	f.closed = true
	open := f.open
	f.open = map[io.Closer]struct{}{}
	f.mu.Unlock()
	for closer := range open {
		_ = closer.Close()
	}
	return nil
}

func (f *forward) serveTCP(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		source := sourceOf(connection.RemoteAddr())
		if !f.shares.take(source) {
			reset(connection)
			continue
		}
		go func() {
			defer f.shares.leave(source)
			f.carry(connection)
		}()
	}
}

func sourceOf(address net.Addr) netip.Addr {
	var known netip.AddrPort
	switch a := address.(type) {
	case *net.TCPAddr:
		known = a.AddrPort()
	case *net.UDPAddr:
		known = a.AddrPort()
	}
	return known.Addr().Unmap()
}

// reset tells the other end that it is refused.
func reset(connection net.Conn) {
	switch c := connection.(type) {
	case *accepted:
		c.endpoint.Abort()
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0)
	}
	_ = connection.Close()
}

func (f *forward) carry(client net.Conn) {
	forgetClient, err := f.track(client)
	if err != nil {
		return
	}
	defer forgetClient()
	f.tunnel.flows.Add(1)
	defer f.tunnel.flows.Add(-1)
	ctx, cancel := context.WithTimeout(f.tunnel.ctx, targetTimeout)
	target, err := f.dial(ctx, client)
	cancel()
	if err != nil {
		slog.Warn("the target of a forward was not reached", "tunnel", f.tunnel.ID, "forward", f.id,
			"target", f.spec.Target, "error", err.Error())
		return
	}
	forgetTarget, err := f.track(target)
	if err != nil {
		return
	}
	defer forgetTarget()
	if f.spec.ProxyProtocol != "" {
		if _, err := io.WriteString(target, proxyLine(client)); err != nil {
			return
		}
	}
	relay(client, target)
}

// dial connects to the target. A Unix socket's other end is bound to an abstract name that ends in who calls: the
// listener learns it without a byte in the stream.
func (f *forward) dial(ctx context.Context, client net.Conn) (net.Conn, error) {
	path, local := strings.CutPrefix(f.spec.Target, unixTarget)
	if !local {
		return (&net.Dialer{}).DialContext(ctx, "tcp", f.spec.Target)
	}
	dialer := net.Dialer{}
	if runtime.GOOS == "linux" {
		dialer.LocalAddr = &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@lattice/%d/%s/%s", os.Getpid(), f.id, client.RemoteAddr())}
	}
	return dialer.DialContext(ctx, "unix", path)
}

func proxyLine(client net.Conn) string {
	source, sourceKnown := client.RemoteAddr().(*net.TCPAddr)
	at, atKnown := client.LocalAddr().(*net.TCPAddr)
	if !sourceKnown || !atKnown {
		return "PROXY UNKNOWN\r\n"
	}
	family := "TCP4"
	if source.AddrPort().Addr().Unmap().Is6() {
		family = "TCP6"
	}
	return fmt.Sprintf("PROXY %s %s %s %d %d\r\n", family, source.IP, at.IP, source.Port, at.Port)
}

// serveUDP keeps one socket towards the target for each source, so that answers find their way back.
func (f *forward) serveUDP(at netip.AddrPort, socket net.PacketConn) {
	var mu sync.Mutex
	sessions := map[string]net.Conn{}
	packet := make([]byte, maxDatagram)
	for {
		size, source, err := socket.ReadFrom(packet)
		if err != nil {
			if f.ended() {
				return
			}
			continue
		}
		key := source.String()
		mu.Lock()
		target, known := sessions[key]
		mu.Unlock()
		if !known {
			from := sourceOf(source)
			if !f.shares.take(from) {
				if o, own := f.tunnel.net.(*overlay); own {
					o.refuseUDP(at, source)
				}
				continue
			}
			if target, err = net.Dial("udp", f.spec.Target); err != nil {
				f.shares.leave(from)
				continue
			}
			forget, err := f.track(target)
			if err != nil {
				f.shares.leave(from)
				return
			}
			mu.Lock()
			sessions[key] = target
			mu.Unlock()
			f.tunnel.flows.Add(1)
			go func() {
				f.answers(socket, source, target)
				mu.Lock()
				delete(sessions, key)
				mu.Unlock()
				forget()
				f.shares.leave(from)
				f.tunnel.flows.Add(-1)
			}()
		}
		_ = target.SetReadDeadline(time.Now().Add(sessionIdle))
		_, _ = target.Write(packet[:size])
	}
}

func (f *forward) answers(socket net.PacketConn, source net.Addr, target net.Conn) {
	packet := make([]byte, maxDatagram)
	for {
		size, err := target.Read(packet)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded) {
			return
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return
		}
		if err != nil { // the target's port is closed for now; a later datagram may find it open
			continue
		}
		_ = target.SetReadDeadline(time.Now().Add(sessionIdle))
		if _, err := socket.WriteTo(packet[:size], source); err != nil && f.ended() {
			return
		}
	}
}

func (f *forward) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}
