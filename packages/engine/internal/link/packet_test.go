package link

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
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

// down is a device whose own end has been down for longer than a removal takes, with its reader waiting.
func down(t *testing.T) (device *Packet, ours netlink.Link, ended <-chan error) {
	t.Helper()
	device, err := NewPacket("lattice0", 1420)
	if err != nil {
		t.Fatal(err)
	}
	if ours, err = netlink.LinkByName("lattice0p"); err != nil {
		t.Fatal(err)
	}
	reading := make(chan error, 1)
	go func() {
		bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
		for {
			if _, err := device.Read(bufs, sizes, 0); err != nil {
				reading <- err
				return
			}
		}
	}()
	if err := netlink.LinkSetDown(ours); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-reading:
		t.Fatalf("a link that is down may come up again: %v", err)
	case <-time.After(2 * time.Second):
	}
	return device, ours, reading
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
