package gateway

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const packetBatch = 64

// packetDevice is a tun.Device without /dev/net/tun: one end of a veth pair is the gateway's interface, the other end
// is read and written here as IP packets through an AF_PACKET socket.
type packetDevice struct {
	name   string
	mtu    int
	kernel netlink.Link
	file   *os.File
	raw    syscall.RawConn
	to     unix.SockaddrLinklayer
	events chan tun.Event
	once   sync.Once
}

func newPacketDevice(name string, mtu int) (*packetDevice, error) {
	kernel, ours, err := makePair(name, name+"p", mtu)
	if err != nil {
		if link, e := netlink.LinkByName(name + "p"); e == nil && kernel != nil {
			_ = netlink.LinkDel(link)
		}
		return nil, err
	}
	d := &packetDevice{name: name, mtu: mtu, kernel: kernel, events: make(chan tun.Event, 1)}
	if err := d.open(ours.Attrs().Index); err != nil {
		_ = netlink.LinkDel(kernel)
		return nil, err
	}
	d.events <- tun.EventUp
	return d, nil
}

func (d *packetDevice) open(index int) error {
	// Protocol 0 until it is bound: else packets of other interfaces would be queued.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	for option, force := range map[int]int{unix.SO_RCVBUF: unix.SO_RCVBUFFORCE, unix.SO_SNDBUF: unix.SO_SNDBUFFORCE} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, udpBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, udpBuffer)
		}
	}
	ipv4 := uint16(unix.ETH_P_IP>>8 | unix.ETH_P_IP<<8&0xff00)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: index}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("packet socket: %w", err)
	}
	d.to = unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: index, Halen: 6}
	copy(d.to.Addr[:], d.kernel.Attrs().HardwareAddr)
	d.file = os.NewFile(uintptr(fd), "packet")
	d.raw, err = d.file.SyscallConn()
	return err
}

// Read waits for one packet and takes along what else is there.
func (d *packetDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	var failure error
	err := d.raw.Read(func(fd uintptr) bool {
		for n < len(bufs) && n < packetBatch {
			size, err := unix.Read(int(fd), bufs[n][offset:])
			switch {
			case err == nil:
				sizes[n] = size
				n++
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return n > 0
			case errors.Is(err, unix.ENETDOWN):
				// The interface was set down for a moment; when it is gone for good, Close follows.
			default:
				failure = err
				return true
			}
		}
		return true
	})
	if err != nil {
		return 0, os.ErrClosed
	}
	if n > 0 {
		return n, nil
	}
	return 0, failure
}

// Write hands packets to the kernel as if they had arrived on the interface.
func (d *packetDevice) Write(bufs [][]byte, offset int) (int, error) {
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
			}
		}
		return true
	})
	if err != nil {
		return n, os.ErrClosed
	}
	return n, failure
}

func (d *packetDevice) File() *os.File           { return d.file }
func (d *packetDevice) MTU() (int, error)        { return d.mtu, nil }
func (d *packetDevice) Name() (string, error)    { return d.name, nil }
func (d *packetDevice) Events() <-chan tun.Event { return d.events }
func (d *packetDevice) BatchSize() int           { return packetBatch }

// Close removes the pair.
func (d *packetDevice) Close() error {
	d.once.Do(func() {
		d.file.Close()
		close(d.events)
		_ = netlink.LinkDel(d.kernel)
	})
	return nil
}
