package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/keeper"
	"lattice.dev/engine/internal/wg"
)

// kernelNetwork is the kernel's own network stack in some network namespace.
type kernelNetwork struct {
	start func() (wg.Device, error)
	// socket opens a socket in the namespace, unbound and unconnected.
	socket func(family, kind string) (int, error)
	gone   <-chan struct{} // closed when the namespace is gone with its keeper
	shared bool            // with the host's programs: there is nobody to keep from what is forwarded
	end    func()
	once   sync.Once
}

func (k *kernelNetwork) begin(*settings) (wg.Device, error) { return k.start() }
func (k *kernelNetwork) lost() <-chan struct{}              { return k.gone }
func (k *kernelNetwork) close()                             { k.once.Do(k.end) }

func (k *kernelNetwork) dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	dialer := net.Dialer{Control: k.control(keeper.Stream)}
	return dialer.DialContext(ctx, "tcp", to.String())
}

func (k *kernelNetwork) listenTCP(at netip.AddrPort) (net.Listener, error) {
	listen := net.ListenConfig{Control: k.control(keeper.Stream, reuseAddress)}
	listener, err := listen.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("cannot listen on tcp %s: %w", at, err)
	}
	if k.shared {
		return listener, nil
	}
	return &foreignListener{listener}, nil
}

func (k *kernelNetwork) openUDP(at netip.AddrPort, refused func()) (net.PacketConn, error) {
	var options []func(int) error
	if refused != nil {
		options = append(options, receiveErrors)
	}
	listen := net.ListenConfig{Control: k.control(keeper.Dgram, options...)}
	socket, err := listen.ListenPacket(context.Background(), "udp", at.String())
	if err != nil {
		return nil, fmt.Errorf("cannot open udp %s: %w", at, err)
	}
	udp := &foreignUDP{socket.(*net.UDPConn), at.Addr()}
	if k.shared {
		udp.own = netip.Addr{}
	}
	if refused == nil {
		return udp, nil
	}
	return &counted{udp, refused}, nil
}

func (k *kernelNetwork) dialPing(to netip.Addr) (net.Conn, error) {
	family, address := keeper.Inet, unix.Sockaddr(&unix.SockaddrInet4{Addr: to.Unmap().As4()})
	if to.Is6() {
		family, address = keeper.Inet6, &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := k.socket(family, keeper.Ping)
	if err == nil {
		defer unix.Close(fd)
		if err = unix.Connect(fd, address); err == nil {
			return connection(fd)
		}
	}
	return nil, fmt.Errorf("cannot open an echo socket to %s: %w", to, err)
}

// control puts a socket of the namespace in the place of the one that net has just made, before net binds or connects
// it: so all of net serves a socket that only another process can open.
func (k *kernelNetwork) control(kind string, options ...func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(network, _ string, made syscall.RawConn) error {
		family := keeper.Inet
		if network == "tcp6" || network == "udp6" {
			family = keeper.Inet6
		}
		fd, err := k.socket(family, kind)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		for _, set := range options {
			if err := set(fd); err != nil {
				return err
			}
		}
		failed := made.Control(func(place uintptr) { err = unix.Dup3(fd, int(place), unix.O_CLOEXEC) })
		return errors.Join(failed, err)
	}
}

func reuseAddress(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }

func receiveErrors(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1) }

// connection is a net.Conn over a copy of the descriptor.
func connection(fd int) (net.Conn, error) {
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(copied), "socket")
	defer file.Close()
	return net.FileConn(file)
}

// foreignListener takes no connections of the namespace's own programs: by the tunnel's address they would reach the
// target of a forward, which is in the host's network. SO_BINDTODEVICE would let them, because Linux counts what goes
// to an own address as received on the interface that has it. A program cannot have another source address here: it is
// the tunnel's or the loopback's.
type foreignListener struct{ net.Listener }

func (l *foreignListener) Accept() (net.Conn, error) {
	for {
		connection, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if !local(connection.RemoteAddr(), address(connection.LocalAddr())) {
			return connection, nil
		}
		_ = connection.(*net.TCPConn).SetLinger(0) // a reset, as where nobody listens
		_ = connection.Close()
	}
}

// Close ends the listening at once, also where the keeper is still closing its copy of the socket.
func (l *foreignListener) Close() error {
	if raw, err := l.Listener.(*net.TCPListener).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	return l.Listener.Close()
}

// foreignUDP does the same for datagrams.
type foreignUDP struct {
	*net.UDPConn
	own netip.Addr
}

func (u *foreignUDP) ReadFrom(packet []byte) (int, net.Addr, error) {
	for {
		size, from, err := u.UDPConn.ReadFrom(packet)
		if err != nil || !local(from, u.own) {
			return size, from, err
		}
	}
}

func local(from net.Addr, own netip.Addr) bool {
	source := address(from)
	return own.IsValid() && (source == own || source.IsLoopback())
}

// address is that of a TCP or UDP end.
func address(of net.Addr) netip.Addr {
	end, err := netip.ParseAddrPort(of.String())
	if err != nil {
		return netip.Addr{}
	}
	return end.Addr().Unmap()
}

// counted is a UDP socket that tells of each datagram that was sent back.
type counted struct {
	*foreignUDP
	refused func()
}

func (c *counted) ReadFrom(packet []byte) (int, net.Addr, error) {
	size, from, err := c.foreignUDP.ReadFrom(packet)
	c.count(err)
	return size, from, err
}

func (c *counted) WriteTo(packet []byte, to net.Addr) (int, error) {
	size, err := c.foreignUDP.WriteTo(packet, to)
	if c.count(err) { // it was an earlier datagram's error that kept this one from being sent
		size, err = c.foreignUDP.WriteTo(packet, to)
	}
	return size, err
}

// count takes the socket's errors off its queue, after a call that has reported one.
func (c *counted) count(failure error) bool {
	var errno syscall.Errno
	if !errors.As(failure, &errno) {
		return false
	}
	raw, err := c.UDPConn.SyscallConn()
	if err != nil {
		return false
	}
	sentBack := false
	_ = raw.Control(func(fd uintptr) {
		buffer, ancillary := make([]byte, 64), make([]byte, 512)
		for {
			_, size, _, _, err := unix.Recvmsg(int(fd), buffer, ancillary, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			if byICMP(ancillary[:size]) {
				sentBack = true
				c.refused()
			}
		}
	})
	return sentBack
}

// byICMP tells whether an error of the queue came from the network (struct sock_extended_err, ip(7)).
func byICMP(ancillary []byte) bool {
	messages, err := unix.ParseSocketControlMessage(ancillary)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(messages, func(m unix.SocketControlMessage) bool {
		return m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR &&
			len(m.Data) > 4 && m.Data[4] == unix.SO_EE_ORIGIN_ICMP
	})
}
