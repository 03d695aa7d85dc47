package link

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const packetBatch = 64

// socketBuffer is what both of the socket's buffers ask for: 1,400-byte packets at 1 Gbit/s fill it in about 30 ms.
const socketBuffer = 4 << 20

// Packet is a tun.Device without /dev/net/tun: one end of a veth pair is the interface, the other end is read and
// written here as IP packets through an AF_PACKET socket.
type Packet struct {
	name   string
	mtu    int
	remove func()
	file   *os.File
	raw    syscall.RawConn
	to     unix.SockaddrLinklayer
	events chan tun.Event
	once   sync.Once
	closed atomic.Bool
	down   atomic.Bool // the link was, and the reader has not seen it up since
}

// End is the engine's end of a veth pair.
type End struct {
	Socket int              // as OpenEnd opens it
	Index  int              // of the link that the socket reads, in the socket's network namespace
	Kernel net.HardwareAddr // of the interface, the other end
}

// NewPacket makes the pair in this network namespace.
func NewPacket(name string, mtu int) (*Packet, error) {
	kernel, ours, err := makePair(name, name+"p", mtu)
	if err != nil {
		if link, e := netlink.LinkByName(name + "p"); e == nil && kernel != nil {
			_ = netlink.LinkDel(link)
		}
		return nil, err
	}
	remove := func() { _ = netlink.LinkDel(kernel) }
	socket, err := OpenEnd(ours)
	if err != nil {
		remove()
		return nil, err
	}
	return JoinPacket(End{socket, ours.Attrs().Index, kernel.Attrs().HardwareAddr}, name, mtu, remove)
}

// JoinPacket is the device over an end that has been opened already, possibly in another network namespace. remove is
// called by Close.
func JoinPacket(end End, name string, mtu int, remove func()) (*Packet, error) {
	file := os.NewFile(uintptr(end.Socket), "packet")
	raw, err := file.SyscallConn()
	if err != nil {
		remove()
		return nil, err
	}
	d := &Packet{name: name, mtu: mtu, remove: remove, file: file, raw: raw, events: make(chan tun.Event, 1)}
	d.to = unix.SockaddrLinklayer{Protocol: protocolIPv4, Ifindex: end.Index, Halen: 6}
	copy(d.to.Addr[:], end.Kernel)
	d.events <- tun.EventUp
	return d, nil
}

const protocolIPv4 = uint16(unix.ETH_P_IP>>8 | unix.ETH_P_IP<<8&0xff00) // in network order

// OpenEnd opens the packet socket (a descriptor that does not block) that reads and writes a link of this network namespace.
func OpenEnd(ours netlink.Link) (int, error) {
	// Protocol 0 until it is bound: else packets of other interfaces would be queued.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	for option, force := range map[int]int{unix.SO_RCVBUF: unix.SO_RCVBUFFORCE, unix.SO_SNDBUF: unix.SO_SNDBUFFORCE} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocolIPv4, Ifindex: ours.Attrs().Index}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	return fd, nil
}

// Read waits for one packet and takes along what else is there.
func (d *Packet) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	var failure error
	take := func(fd uintptr) bool {
		for n < len(bufs) && n < packetBatch {
			size, err := unix.Read(int(fd), bufs[n][offset:])
			switch {
			case err == nil:
				sizes[n] = size
				n++
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.ENETDOWN):
				d.down.Store(true) // it is told before what is queued is read, and once
			case errors.Is(err, unix.EAGAIN) && n == 0 && d.down.Load():
				if failure = d.awaitUp(fd); failure != nil {
					return true
				}
			case errors.Is(err, unix.EAGAIN):
				return n > 0
			default:
				failure = err
				return true
			}
		}
		return true
	}
	err := d.raw.Read(take)
	for errors.Is(err, os.ErrDeadlineExceeded) { // which the writer sets
		_ = d.file.SetReadDeadline(time.Time{})
		err = d.raw.Read(take)
	}
	if err != nil || d.closed.Load() {
		return 0, os.ErrClosed
	}
	return n, failure
}

// awaitUp waits until a link that is down is up again or there is something to read, and fails once the link has been
// removed. The kernel does not tell of that: the socket is not bound to the link any more, and nothing more is heard of
// it. Nor is a packet a sign that the link is up: it may have been on its way when the link went down.
func (d *Packet) awaitUp(fd uintptr) error {
	for wait := 1; !d.closed.Load(); wait = min(2*wait, 256) { // ms
		d.down.Store(false) // before it looks: the writer may be told of more meanwhile
		up := isUp(fd, d.to.Ifindex)
		address, err := unix.Getsockname(int(fd))
		if bound, ok := address.(*unix.SockaddrLinklayer); err == nil && ok && bound.Ifindex < 1 {
			return unix.ENETDOWN
		}
		if up {
			return nil
		}
		d.down.Store(true)
		if ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, wait); err == nil && ready > 0 {
			return nil
		}
	}
	return os.ErrClosed
}

// isUp tells whether a link is up, in the network namespace of the socket.
func isUp(socket uintptr, index int) bool {
	var request unix.Ifreq
	request.SetUint32(uint32(index))
	for _, what := range []uintptr{unix.SIOCGIFNAME, unix.SIOCGIFFLAGS} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, socket, what, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return false
		}
	}
	return request.Uint16()&unix.IFF_UP != 0
}

// Write hands packets to the kernel as if they had arrived on the interface.
func (d *Packet) Write(bufs [][]byte, offset int) (int, error) {
	n := 0
	var failure error
	err := d.raw.Write(func(fd uintptr) bool {
		for n < len(bufs) {
			packet := bufs[n][offset:]
			if len(packet) == 0 || packet[0]>>4 != 4 {
				n++ // there is no IPv6 in the overlay
				continue
			}
			err := unix.Sendto(int(fd), packet, 0, &d.to)
			switch {
			case err == nil:
				n++
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return false
			default:
				// ENOBUFS and the like lose one packet, as any link may.
				failure = err
				n++
				if (errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENXIO)) && !d.down.Swap(true) {
					// The kernel tells either the reader or the writer. The reader is woken to look for itself.
					_ = d.file.SetReadDeadline(time.Now())
				}
			}
		}
		return true
	})
	if err != nil {
		return n, os.ErrClosed
	}
	return n, failure
}

// What follows completes tun.Device.

func (d *Packet) File() *os.File           { return d.file }
func (d *Packet) MTU() (int, error)        { return d.mtu, nil }
func (d *Packet) Name() (string, error)    { return d.name, nil }
func (d *Packet) Events() <-chan tun.Event { return d.events }
func (d *Packet) BatchSize() int           { return packetBatch }

// Close ends the device and removes its pair.
func (d *Packet) Close() error {
	d.once.Do(func() {
		d.closed.Store(true) // awaitUp holds the descriptor
		d.file.Close()
		close(d.events)
		d.remove()
	})
	return nil
}
