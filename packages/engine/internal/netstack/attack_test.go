package netstack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/link"
)

func init() {
	actions["attack"] = attack
	actions["knock"] = knock
}

// attack tries one thing and prints "done" or the error number that kept it from being done.
func attack(arguments []string) (string, error) {
	runtime.LockOSThread() // what is traced is traced by a thread
	var err error
	target := arguments[len(arguments)-1]
	switch arguments[0] {
	case "trace":
		pid, _ := strconv.Atoi(target)
		err = unix.PtraceSeize(pid)
	case "read":
		_, err = os.ReadFile(target)
	case "open":
		_, err = os.Open(target)
	case "list":
		_, err = os.ReadDir(target)
	case "enter":
		var fd int
		if fd, err = unix.Open(target, unix.O_RDONLY, 0); err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
		}
	case "unshare":
		err = unix.Unshare(unix.CLONE_NEWNET)
	case "address":
		err = onLink(func(l netlink.Link) error { return link.SetAddress(l, netip.MustParsePrefix(target)) })
	case "route":
		err = onLink(func(l netlink.Link) error { return link.Route(l, netip.MustParsePrefix(target)) })
	case "rule":
		rule := netlink.NewRule()
		rule.Table, rule.Priority = 100, 100
		err = netlink.RuleAdd(rule)
	case "down":
		err = onLink(netlink.LinkSetDown)
	case "delete":
		err = onLink(netlink.LinkDel)
	case "veth":
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "x"}, PeerName: "y", PeerNamespace: netlink.NsPid(os.Getppid())})
	case "tun":
		_, err = link.OpenTUN(target)
	case "raw":
		_, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	case "packet":
		_, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	case "spoof":
		err = spoof(target)
	case "sysctl":
		err = os.WriteFile(target, []byte("1"), 0)
	default:
		return "", fmt.Errorf("no attack %q", arguments[0])
	}
	if err == nil {
		return "done", nil
	}
	errno := syscall.Errno(0)
	if !errors.As(err, &errno) {
		return "", err
	}
	return unix.ErrnoName(errno), nil
}

func onLink(do func(netlink.Link) error) error {
	l, err := netlink.LinkByName(defaultInterface)
	if err != nil {
		return err
	}
	return do(l)
}

// spoof sends a datagram to the gateway from an address that is not the tunnel's.
func spoof(source string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(source).As4()}); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("spoofed"), 0, &unix.SockaddrInet4{Port: 53, Addr: netip.MustParseAddr(gatewayIP).As4()})
}

// outside makes the same attempt as the engine's user in the host's namespaces.
func (p *place) outside(t *testing.T, arguments ...string) string {
	t.Helper()
	command := exec.Command(p.program, arguments...)
	command.Env = []string{engineRole + "=inside", goRace, "DROPPED=no"}
	command.Dir, command.Stderr = "/", os.Stderr
	if p.runner.user != os.Getuid() {
		command.SysProcAttr = p.runner.credential()
	}
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %v", arguments, err)
	}
	return strings.TrimSpace(string(out))
}

func TestFromInsideNeitherKeeperNorEngineIsTouched(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		keeper := fmt.Sprintf("/proc/%v/", p.namespace()["pid"])
		engine := fmt.Sprintf("/proc/%d/", p.engine.command.Process.Pid)
		thread := p.namespace()["net"].(string)
		status, err := os.ReadFile(keeper + "status")
		if err != nil {
			t.Fatal(err)
		}
		// CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW: root in the user namespace could read every file of root's.
		for _, set := range []string{"CapPrm", "CapEff"} {
			if !strings.Contains(string(status), set+":\t0000000000203000\n") {
				t.Errorf("the keeper has more than it needs, or less: %s", status)
			}
		}
		// Of a process that can be dumped they would be its user's.
		if info, err := os.Stat(keeper + "mem"); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Error("the keeper can be dumped", err)
		}
		// What the owner of the user namespace can do, and a program inside cannot: the attempt is a good one.
		for _, attempt := range [][]string{
			{"open", thread}, {"open", keeper + "ns/user"}, {"open", keeper + "ns/net"}, {"read", engine + "environ"}, {"list", engine + "fd"},
		} {
			if said := p.outside(t, append([]string{"attack"}, attempt...)...); said != "done" {
				t.Errorf("outside, %v: %s", attempt, said)
			}
		}
		for _, pid := range []string{fmt.Sprint(p.namespace()["pid"]), strconv.Itoa(p.engine.command.Process.Pid)} {
			if said := p.does(t, "attack", "trace", pid); said != "EPERM" {
				t.Errorf("trace %s: %s", pid, said)
			}
		}
		for attempt, target := range map[string]string{"mem": "open", "environ": "read", "maps": "read", "fd/2": "open",
			"ns/net": "open", "ns/user": "open", "ns/mnt": "open", "root/": "open", "cwd/": "open", "exe": "open"} {
			for _, process := range []string{keeper, engine} {
				if said := p.does(t, "attack", target, process+attempt); said != "EPERM" && said != "EACCES" {
					t.Errorf("%s %s%s: %s", target, process, attempt, said)
				}
			}
		}
		if said := p.does(t, "attack", "enter", thread); said != "EACCES" && said != "EPERM" {
			t.Errorf("enter: %s", said)
		}
	})
}

func TestFromInsideTheNetworkIsNotChanged(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		before := p.does(t, "links")
		for _, attempt := range [][]string{
			{"address", "10.96.2.6/32"}, {"route", "192.0.2.0/24"}, {"rule"}, {"down"}, {"delete"}, {"veth"}, {"unshare"},
			{"raw"}, {"packet"}, {"tun", "lattice0"}, {"tun", "mine0"}, {"spoof", "10.96.2.6"},
			{"sysctl", "/proc/sys/net/ipv4/ip_forward"},
		} {
			switch said := p.does(t, append([]string{"attack"}, attempt...)...); said {
			case "EPERM", "EACCES", "EINVAL", "ENETUNREACH": // the last two: of a source that is not an address here
			case "EBUSY": // the tunnel's own TUN, which the engine has
				if p.runner.device != "tun" || attempt[0] != "tun" {
					t.Errorf("%v: %s", attempt, said)
				}
			default:
				t.Errorf("%v: %s", attempt, said)
			}
		}
		if after := p.does(t, "links"); after != before {
			t.Errorf("%s", after)
		}
	})
}

func TestFromInsideAnotherTunnelsNamespaceIsNotEntered(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		other := newWorld(t)
		other.spec["network"] = p.spec["network"]
		other.spec["proxy"] = map[string]any{"username": "other", "password": "another"}
		theirs := p.open(t, "p2", other.spec)["namespace"].(map[string]any)
		if theirs["pid"] != p.namespace()["pid"] || theirs["cookie"] == p.namespace()["cookie"] {
			t.Fatal(theirs, p.namespace())
		}
		if said := p.does(t, "attack", "enter", theirs["net"].(string)); said != "EACCES" && said != "EPERM" {
			t.Error(said)
		}
	})
}

func TestFromInsideTheTargetOfAForwardIsNotReachedByTheOwnAddress(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		target, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer target.Close()
		go func() {
			for {
				connection, err := target.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(connection, "the host's")
				_ = connection.Close()
			}
		}()
		status, answer := p.engine.call(t, "POST", "/v1/tunnels/p1/forwards", map[string]any{"listenPort": 443, "target": target.Addr().String()})
		if status != http.StatusCreated {
			t.Fatal(status, answer)
		}
		connection, err := p.world.net.DialTCPAddrPort(netip.MustParseAddrPort(agentIP + ":443"))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(connection); string(text) != "the host's" {
			t.Fatal(text, err)
		}
		for _, destination := range []string{agentIP + ":443", "127.0.0.1:443", target.Addr().String()} {
			if said := p.does(t, "connect", destination); !strings.Contains(said, "refused") && !strings.Contains(said, "reset") {
				t.Errorf("%s: %s", destination, said)
			}
		}
	})
}

// knock connects to a Unix socket, sends a line and prints what comes back.
func knock(arguments []string) (string, error) {
	connection, err := net.Dial("unix", arguments[0])
	if err != nil {
		return "", err
	}
	_, _ = io.WriteString(connection, arguments[1]+"\n")
	answer, _ := io.ReadAll(connection)
	return fmt.Sprintf("%d bytes", len(answer)), nil
}

func TestFromAPIDNamespaceBelowTheEnginesSocketsAnswerNothing(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		sockets := p.network["sockets"].(string)
		requests := map[string]string{
			sockets:          `{"family": "inet", "type": "stream"}`,
			p.engine.control: "GET /v1/status HTTP/1.0\r\n\r\n",
		}
		if filepath.Dir(sockets) != filepath.Dir(p.engine.control) {
			t.Fatal(sockets)
		}
		for socket, request := range requests {
			if said := p.outside(t, "knock", socket, request); said == "0 bytes" || strings.HasPrefix(said, "error") {
				t.Errorf("outside, %s: %s", socket, said)
			}
			// In the sandbox's user namespace, the engine's user, with the file system of the host.
			command := exec.Command("unshare", "--user", "--pid", "--fork", "--kill-child", p.program, "knock", socket, request)
			command.Args = append([]string{"nsenter", "--preserve-credentials", "--user=" + p.namespace()["user"].(string)}, command.Args...)
			command.Path, _ = exec.LookPath("nsenter")
			command.Env, command.Dir, command.Stderr = []string{engineRole + "=inside", goRace}, "/", os.Stderr
			if p.runner.user != os.Getuid() {
				command.SysProcAttr = p.runner.credential()
			}
			out, err := command.Output()
			if said := strings.TrimSpace(string(out)); err != nil || said != "0 bytes" {
				t.Errorf("%s: %s %v", socket, said, err)
			}
		}
	})
}
