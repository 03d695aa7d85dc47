package netstack

import (
	"bufio"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	greetingTimeout = 15 * time.Second // from accept to a complete, authenticated request
	socksVersion    = 0x05
)

type proxyAddress struct {
	Host string `json:"host"`
	Port int    `json:"port"`
}

// proxy is a loopback port of one tunnel that speaks SOCKS5 and HTTP, told apart by the first byte.
type proxy struct {
	tunnel      *Tunnel
	credentials Credentials
	listener    net.Listener
	http        *http.Server
	web         *handedOver
}

func openProxy(t *Tunnel, credentials Credentials) (*proxy, error) {
	listener, err := listenOnLoopback(credentials.Port)
	if err != nil {
		return nil, err
	}
	p := &proxy{tunnel: t, credentials: credentials, listener: listener}
	p.web = &handedOver{address: listener.Addr(), connections: make(chan net.Conn), closed: make(chan struct{})}
	p.http = &http.Server{Handler: newHTTPProxy(p), ReadHeaderTimeout: greetingTimeout, IdleTimeout: 2 * time.Minute}
	go func() { _ = p.http.Serve(p.web) }()
	go p.accept()
	return p, nil
}

// listenOnLoopback takes a port that was named also while a tunnel of the same user still has it: a tunnel is
// replaced by making its successor first, and whoever uses the proxy knows it by that one port.
func listenOnLoopback(port int) (net.Listener, error) {
	var config net.ListenConfig
	if port != 0 {
		config.Control = func(_, _ string, socket syscall.RawConn) error {
			var failure error
			err := socket.Control(func(fd uintptr) {
				failure = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			})
			return errors.Join(err, failure)
		}
	}
	listener, err := config.Listen(context.Background(), "tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &problem{409, "port_in_use", fmt.Sprintf("the proxy's port %d on loopback is taken by another program: end that, or choose another port", port)}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on loopback for the proxy: %w", err)
	}
	return listener, nil
}

func (p *proxy) address() proxyAddress {
	address := p.listener.Addr().(*net.TCPAddr)
	return proxyAddress{address.IP.String(), address.Port}
}

func (p *proxy) close() {
	_ = p.listener.Close()
	_ = p.web.Close()
	_ = p.http.Close()
}

func (p *proxy) accept() {
	for {
		connection, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: others are being closed meanwhile
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go p.serve(connection)
	}
}

func (p *proxy) serve(connection net.Conn) {
	forget, err := p.tunnel.track(connection)
	if err != nil {
		return
	}
	_ = connection.SetReadDeadline(time.Now().Add(greetingTimeout))
	reader := bufio.NewReader(connection)
	first, err := reader.Peek(1)
	if err != nil {
		forget()
		return
	}
	if first[0] == socksVersion {
		defer forget()
		(&socksSession{proxy: p, connection: connection, reader: reader}).serve()
		return
	}
	_ = connection.SetReadDeadline(time.Time{})
	p.web.hand(&handed{buffered{connection, reader}, forget})
}

func (p *proxy) authentic(username, password string) bool {
	user := subtle.ConstantTimeCompare([]byte(username), []byte(p.credentials.Username))
	secret := subtle.ConstantTimeCompare([]byte(password), []byte(p.credentials.Password))
	return user&secret == 1
}

func (p *proxy) dialContext(ctx context.Context, host string, port uint16) (net.Conn, func(), error) {
	connection, err := p.tunnel.dial(ctx, host, port)
	if err != nil {
		return nil, nil, err
	}
	forget, err := p.tunnel.track(connection)
	if err != nil {
		return nil, nil, err
	}
	p.tunnel.flows.Add(1)
	return connection, sync.OnceFunc(func() {
		forget()
		p.tunnel.flows.Add(-1)
	}), nil
}

// handed is a connection that the HTTP server owns; closing it also ends its tracking.
type handed struct {
	buffered
	forget func()
}

func (h *handed) Close() error {
	h.forget()
	return nil
}

// handedOver is the listener of connections that turned out to be HTTP.
type handedOver struct {
	address     net.Addr
	connections chan net.Conn
	closed      chan struct{}
	once        sync.Once
}

func (l *handedOver) hand(connection net.Conn) {
	select {
	case l.connections <- connection:
	case <-l.closed:
		_ = connection.Close()
	}
}

func (l *handedOver) Accept() (net.Conn, error) {
	select {
	case connection := <-l.connections:
		return connection, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *handedOver) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *handedOver) Addr() net.Addr { return l.address }
