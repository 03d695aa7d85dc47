package link

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const ownNetwork = "LATTICE_TEST_OWN_NETWORK"

// inOwnNetwork tells whether this is the copy of the test in a network namespace of its own. If not, it runs that copy.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownNetwork) != "" {
		return true
	}
	command := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.count=1")
	command.Env = append(os.Environ(), ownNetwork+"=yes")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		command.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if out, err := command.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// open is a device, its own end, and what sends a packet through the interface to it.
func open(t *testing.T) (device *Packet, ours netlink.Link, send func()) {
	t.Helper()
	device, err := NewPacket("lattice0", 1420)
	if err != nil {
		t.Fatal(err)
	}
	if ours, err = netlink.LinkByName("lattice0p"); err != nil {
		t.Fatal(err)
	}
	kernel, err := netlink.LinkByName("lattice0")
	if err != nil {
		t.Fatal(err)
	}
	address, err := netlink.ParseAddr("10.96.2.5/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(kernel, address); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(kernel); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Dial("udp4", "10.96.2.1:9")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return device, ours, func() { _, _ = socket.Write(make([]byte, 1000)) } // which may find no way any more
}

// read reads until the device ends.
func read(device *Packet) (packets *atomic.Int64, ended <-chan error) {
	packets = &atomic.Int64{}
	reading := make(chan error, 1)
	go func() {
		bufs, sizes := make([][]byte, device.BatchSize()), make([]int, device.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		for {
			n, err := device.Read(bufs, sizes, 0)
			packets.Add(int64(n))
			if err != nil {
				reading <- err
				return
			}
		}
	}()
	return packets, reading
}

// down is a device whose own end has been down for longer than a removal takes, with its reader waiting.
func down(t *testing.T) (device *Packet, ours netlink.Link, ended <-chan error) {
	t.Helper()
	device, ours, _ = open(t)
	_, ended = read(device)
	if err := netlink.LinkSetDown(ours); err != nil {
		t.Fatal(err)
	}
	goesOn(t, ended)
	return device, ours, ended
}

func goesOn(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		t.Fatalf("a link that is down may come up again: %v", err)
	case <-time.After(2 * time.Second):
	}
}

func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no sign of " + what)
		}
	}
}

func ends(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		t.Log(err)
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
	}
}

// The kernel tells a socket of a link's removal only where the link is up.
func TestALinkThatIsRemovedWhileItIsDownEndsItsDevice(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	_, ours, ended := down(t)
	if err := netlink.LinkDel(ours); err != nil {
		t.Fatal(err)
	}
	ends(t, ended)
}

// The socket says that its link is down before it gives what is queued, which is no sign that the link is up again.
func TestALinkThatIsRemovedWhileItIsDownWithPacketsQueuedEndsItsDevice(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	device, ours, send := open(t)
	const queued = 2*packetBatch + 1
	for range queued {
		send()
	}
	if err := netlink.LinkSetDown(ours); err != nil {
		t.Fatal(err)
	}
	packets, ended := read(device)
	waitFor(t, "what was queued", func() bool { return packets.Load() == queued })
	goesOn(t, ended)
	if err := netlink.LinkDel(ours); err != nil {
		t.Fatal(err)
	}
	ends(t, ended)
}

func TestALinkThatIsRemovedUnderTrafficEndsItsDevice(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	for range 20 {
		device, ours, send := open(t)
		packets, ended := read(device)
		stop := make(chan struct{})
		var traffic sync.WaitGroup
		until := func(do func()) {
			traffic.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						do()
					}
				}
			})
		}
		until(send)
		arriving := [][]byte{make([]byte, 1000)}
		arriving[0][0] = 4 << 4
		until(func() { _, _ = device.Write(arriving, 0) })
		waitFor(t, "traffic", func() bool { return packets.Load() > 10*packetBatch })
		if err := netlink.LinkDel(ours); err != nil {
			t.Fatal(err)
		}
		ends(t, ended)
		close(stop)
		traffic.Wait()
		_ = device.Close()
	}
}

// Whichever of the two the kernel tells, the socket's error is told once.
func TestARemovalThatOnlyTheWriterWasToldOfEndsTheReader(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	device, ours, _ := open(t)
	if err := netlink.LinkDel(ours); err != nil {
		t.Fatal(err)
	}
	if told, err := unix.GetsockoptInt(device.descriptor(t), unix.SOL_SOCKET, unix.SO_ERROR); err != nil || unix.Errno(told) != unix.ENETDOWN {
		t.Fatal(told, err)
	}
	_, ended := read(device)
	arriving := [][]byte{make([]byte, 1000)}
	arriving[0][0] = 4 << 4
	if _, err := device.Write(arriving, 0); err == nil {
		t.Error("a packet went to a link that is gone")
	}
	ends(t, ended)
}

func (d *Packet) descriptor(t *testing.T) (fd int) {
	t.Helper()
	if err := d.raw.Control(func(raw uintptr) { fd = int(raw) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestALinkThatComesUpAgainServesAndItsRemovalEndsItsDevice(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	device, ours, send := open(t)
	packets, ended := read(device)
	for range 3 {
		if err := netlink.LinkSetDown(ours); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(ours); err != nil {
			t.Fatal(err)
		}
		before := packets.Load()
		waitFor(t, "a packet", func() bool {
			send()
			return packets.Load() > before
		})
	}
	if err := netlink.LinkDel(ours); err != nil {
		t.Fatal(err)
	}
	ends(t, ended)
}

func TestADeviceIsClosedWhileItsLinkIsDown(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	device, _, ended := down(t)
	closed := make(chan error, 1)
	go func() { closed <- device.Close() }()
	ends(t, closed)
	ends(t, ended)
	if _, err := netlink.LinkByName("lattice0"); err == nil {
		t.Error("the pair is left")
	}
}
