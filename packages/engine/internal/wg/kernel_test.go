package wg

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

// Kernel is tested against wireguard-go, which wgctrl configures by the same calls as the kernel's WireGuard, and
// which like that sends a keepalive once keepalives are switched on. Its configuration socket has its place in
// /var/run: this binary runs again where /run is its own.
const ownRun = "LATTICE_TEST_OWN_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(ownRun) == "" {
		command := exec.Command("/proc/self/exe", os.Args[1:]...)
		command.Env = append(os.Environ(), ownRun+"=yes")
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if os.Getuid() != 0 {
			command.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		if err := command.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "/run:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func newKey(t *testing.T) (private, public Key) {
	t.Helper()
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	raw[0], raw[31] = raw[0]&248, raw[31]&127|64 // as `wg genkey` does; devices store it so
	shared, err := curve25519.X25519(raw, curve25519.Basepoint)
	if err != nil {
		t.Fatal(err)
	}
	return Key(hex.EncodeToString(raw)), Key(hex.EncodeToString(shared))
}

// newDevice is wireguard-go with nobody at its packets.
func newDevice(t *testing.T, config string) *device.Device {
	t.Helper()
	dev := device.NewDevice(tuntest.NewChannelTUN().TUN(), NewBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(dev.Close)
	if err := dev.IpcSet(config); err != nil {
		t.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}
	return dev
}

// field is a line of a device's state.
func field(t *testing.T, dev *device.Device, name string) string {
	t.Helper()
	text, err := dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			return value
		}
	}
	return ""
}

// pair is a device that wgctrl finds by its name, as it would the kernel's, and its other end.
func pair(t *testing.T, keepalive int) (ours *device.Device, k *Kernel) {
	t.Helper()
	private, public := newKey(t)
	theirPrivate, theirPublic := newKey(t)
	shared, _ := newKey(t)
	other := newDevice(t, fmt.Sprintf("private_key=%s\npublic_key=%s\npreshared_key=%s\nallowed_ip=10.96.2.5/32\n", theirPrivate, public, shared))
	ours = newDevice(t, "")
	file, err := ipc.UAPIOpen("lattice0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := ipc.UAPIListen("lattice0", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go ours.IpcHandle(connection)
		}
	}()
	removed := 0
	k, err = NewKernel("lattice0", private, Peer{
		PublicKey: theirPublic, PresharedKey: shared, Endpoint: net.JoinHostPort("127.0.0.1", field(t, other, "listen_port")),
		AllowedIPs: []string{"10.96.0.0/16", "10.97.0.0/16"}, Keepalive: keepalive,
	}, nil, func() { removed++ })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.Close()
		k.Close()
		if removed != 1 {
			t.Errorf("the interface was removed %d times", removed)
		}
	})
	return ours, k
}

// shaken begins handshakes until one is completed, as the engine does: the other end may take the first for a flood.
func (k *Kernel) shaken(t *testing.T, since time.Time, anew bool) Counters {
	t.Helper()
	var next time.Time
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if now := time.Now(); now.After(next) {
			if err := k.Initiate(anew || !next.IsZero()); err != nil {
				t.Fatal(err)
			}
			next = now.Add(400 * time.Millisecond)
		}
		counters, err := k.Counters()
		if err != nil {
			t.Fatal(err)
		}
		if counters.LastHandshake.After(since) {
			return counters
		}
	}
	t.Fatal("no handshake")
	return Counters{}
}

func TestTheKernelsWireGuardShakesHandsWhenTold(t *testing.T) {
	for _, keepalive := range []int{0, 25} {
		t.Run(fmt.Sprint(keepalive), func(t *testing.T) {
			ours, k := pair(t, keepalive)
			first := k.shaken(t, time.Time{}, false)
			if first.Sent == 0 || first.Received == 0 {
				t.Error(first)
			}
			second := k.shaken(t, first.LastHandshake, true)
			if second.Sent <= first.Sent || second.Received <= first.Received {
				t.Errorf("the counters have gone back: %v, %v before", second, first)
			}
			if now := field(t, ours, "persistent_keepalive_interval"); now != fmt.Sprint(keepalive) {
				t.Errorf("keepalive %s", now)
			}
		})
	}
}

func TestTheKernelsWireGuardIsConfiguredWhole(t *testing.T) {
	ours, k := pair(t, 0) // no handshake, which would have the peer tell where it is
	text, err := ours.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"allowed_ip=10.96.0.0/16\n", "allowed_ip=10.97.0.0/16\n", "preshared_key=" + string(k.peer.PresharedKey), "public_key=" + string(k.peer.PublicKey), "endpoint=" + k.peer.Endpoint} {
		if !strings.Contains(text, line) {
			t.Errorf("no %s", line)
		}
	}
	if err := k.SetEndpoint("127.0.0.1:9"); err != nil {
		t.Fatal(err)
	}
	port := field(t, ours, "listen_port")
	now := port
	for tries := 0; now == port && tries < 3; tries++ { // the kernel may choose the same
		if err := k.Rebind(); err != nil {
			t.Fatal(err)
		}
		now = field(t, ours, "listen_port")
	}
	if now == port || now == "0" {
		t.Errorf("port %s, %s before", now, port)
	}
	private, _ := newKey(t)
	if err := k.SetPrivateKey(private); err != nil {
		t.Fatal(err)
	}
	if field(t, ours, "endpoint") != "127.0.0.1:9" || field(t, ours, "private_key") != string(private) || field(t, ours, "allowed_ip") == "" {
		t.Error("the change is not there")
	}
}
