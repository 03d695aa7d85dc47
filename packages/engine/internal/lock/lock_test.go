package lock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// try is set in a copy of this test binary that only dials, and prints what came of it within a time.
	try    = "LATTICE_TEST_TRY"
	within = "LATTICE_TEST_WITHIN"
	inner  = "LATTICE_TEST_OWN_NETWORK"
	keeper = 64206
)

func TestMain(m *testing.M) {
	if target := os.Getenv(try); target != "" {
		network, address, _ := strings.Cut(target, "/")
		limit, err := time.ParseDuration(os.Getenv(within))
		if err != nil {
			panic(err)
		}
		connection, err := net.DialTimeout(network, address, limit)
		if err == nil && network == "udp" { // a refusal comes with a later call
			for until := time.Now().Add(limit); err == nil && time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
				_, err = connection.Write([]byte("x"))
			}
		}
		var number syscall.Errno
		if errors.As(err, &number) {
			fmt.Print(unix.ErrnoName(number))
		} else if err != nil {
			fmt.Print("timeout")
		} else {
			fmt.Print("connected")
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inOwnNetwork runs the test in a network namespace of its own, where rules harm nobody.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inner) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Log("as an ordinary user this is tested by root's run: groups cannot be taken on")
		return false
	}
	command := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.count=1")
	command.Env = append(os.Environ(), inner+"=yes")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if out, err := command.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// dial tries from a process of a group.
func dial(t *testing.T, target string, group uint32, limit time.Duration) string {
	t.Helper()
	command := exec.Command("/proc/self/exe")
	command.Env = append(os.Environ(), try+"="+target, within+"="+limit.String())
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Gid: group}}
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func addInterface(t *testing.T, name, address string) {
	t.Helper()
	device := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-far"}
	if err := netlink.LinkAdd(device); err != nil {
		t.Fatal(err)
	}
	parsed, err := netlink.ParseAddr(address)
	if err == nil {
		far := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name + "-far"}}
		err = errors.Join(netlink.AddrAdd(device, parsed), netlink.LinkSetUp(device), netlink.LinkSetUp(far))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestOnlyTheTunnelAndWhatIsNamedPasses(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		t.Fatal(err)
	}
	addInterface(t, "eth0", "10.1.0.1/16")
	addInterface(t, "lattice0", "10.96.0.5/16")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()

	// There is nobody at the other end of these interfaces: what passes gets no answer, what does not is refused.
	const passed = "timeout"
	before := dial(t, "tcp/10.1.0.2:80", 1000, time.Second)
	if before == "ECONNREFUSED" {
		t.Fatal("it is refused without rules: ", before)
	}
	for range 2 { // the second time takes the place of the first
		if code := Main([]string{"--group", fmt.Sprint(keeper), "--allow", "10.1.9.0/24"}); code != 0 {
			t.Fatal("exit code ", code)
		}
	}
	for _, attempt := range []struct {
		target string
		group  uint32
		want   string
	}{
		{"tcp/10.1.0.2:80", 1000, "ECONNREFUSED"},
		{"tcp/10.1.0.2:80", 0, "ECONNREFUSED"},
		{"tcp/10.1.0.2:80", keeper, passed},
		{"tcp/10.1.9.7:80", 1000, passed},
		{"tcp/10.96.0.7:80", 1000, passed},
		{"tcp/" + listener.Addr().String(), 1000, "connected"},
		{"udp/10.1.0.2:53", 1000, "EPERM EACCES ECONNREFUSED EHOSTUNREACH"},
	} {
		limit := 30 * time.Second
		if attempt.want == passed {
			limit = time.Second
		}
		got := dial(t, attempt.target, attempt.group, limit)
		if attempt.want == passed && (got == passed || got == "EHOSTUNREACH") {
			continue
		}
		if !strings.Contains(attempt.want, got) {
			t.Errorf("%s as group %d: %s, not %s", attempt.target, attempt.group, got, attempt.want)
		}
	}
}

func TestBadArgumentsAreRefused(t *testing.T) {
	for _, arguments := range [][]string{
		{}, {"--group", "0"}, {"--group", "5", "x"}, {"--group", "5", "--allow", "10.0.0.0/40"},
		{"--group", "5", "--probe-ports", "0"}, {"--group", "5", "--probes-from", "node"},
	} {
		if _, err := parse(arguments); err == nil {
			t.Errorf("%q was taken", arguments)
		}
	}
	read, err := parse([]string{"--group", "5", "--allow", "10.1.2.3, fd00::/8", "--probe-ports", "80,443"})
	if err != nil || len(read.allowed) != 2 || read.allowed[0].Bits() != 32 || len(read.probePorts) != 2 {
		t.Fatal(read, err)
	}
}
