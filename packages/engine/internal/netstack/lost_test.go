package netstack

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() { actions["outlive"] = outlive }

// outlive holds a connection until it breaks, and then tells what has become of the network.
func outlive(arguments []string) (string, error) {
	connection, err := net.DialTimeout("tcp", arguments[0], 10*time.Second)
	if err != nil {
		return "", err
	}
	if _, err := connection.Write([]byte("x")); err != nil {
		return "", err
	}
	for one := make([]byte, 1); ; {
		if _, err = connection.Read(one); err != nil {
			break
		}
		fmt.Println("connected")
	}
	errno := syscall.Errno(0)
	errors.As(err, &errno)
	_, again := net.DialTimeout("tcp", arguments[0], 10*time.Second)
	links, listed := listLinks(nil)
	if listed != nil {
		return "", listed
	}
	return fmt.Sprintf("%s; %v; %s", unix.ErrnoName(errno), again, links), nil
}

// survivor is a program inside that has a connection through the tunnel.
type survivor struct {
	command *exec.Cmd
	lines   *bufio.Reader
}

func (p *place) survivor(t *testing.T) *survivor {
	t.Helper()
	s := &survivor{command: p.inside(t, "outlive", gatewayIP+":80")}
	out, err := s.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.lines = bufio.NewReader(out)
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := s.lines.ReadString('\n'); line != "connected\n" {
		t.Fatal(line, err)
	}
	return s
}

// cutOff waits for the program to find its connection broken, no way to make another, and no interface but loopback.
func (s *survivor) cutOff(t *testing.T) {
	t.Helper()
	line, err := s.lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	const expected = "ECONNABORTED; dial tcp 10.96.0.1:80: connect: network is unreachable; lo [127.0.0.1/8 ::1/128] 65536\n"
	if line != expected {
		t.Fatalf("%q", line)
	}
	if err := s.command.Wait(); err != nil {
		t.Fatal(err)
	}
}

// endOf returns what tells whether a process has ended, whoever has its number then.
func endOf(t *testing.T, pid int) (gone func() bool) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	}
}

func TestTheEndOfATunnelLeavesItsProgramsWithoutANetwork(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, p *place){
		"expiry": func(t *testing.T, p *place) {
			if status, answer := p.engine.call(t, "PATCH", "/v1/tunnels/p1", map[string]any{"expiresIn": 0.2}); status != http.StatusOK {
				t.Fatal(status, answer)
			}
		},
		"deletion": func(t *testing.T, p *place) {
			if status, answer := p.engine.call(t, "DELETE", "/v1/tunnels/p1", nil); status != http.StatusNoContent {
				t.Fatal(status, answer)
			}
		},
		"SIGTERM of the engine": func(t *testing.T, p *place) { _ = p.engine.command.Process.Signal(syscall.SIGTERM) },
		"SIGKILL of the engine": func(t *testing.T, p *place) { _ = p.engine.command.Process.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			inTwoPlaces(t, func(t *testing.T, p *place) {
				p.echoTCP(t, 80)
				program := p.survivor(t)
				gone := endOf(t, int(p.namespace()["pid"].(float64)))
				end(t, p)
				program.cutOff(t)
				if strings.HasPrefix(name, "SIG") {
					waitFor(t, "the keeper to end", gone)
				}
				if left, err := filepath.Glob(filepath.Dir(p.engine.control) + "/sockets-*"); name != "SIGKILL of the engine" && (err != nil || len(left) > 0) {
					t.Error(left, err)
				}
			})
		})
	}
}

func TestTheDeathOfTheKeeperIsTheLossOfItsTunnelsAndOfNoOther(t *testing.T) {
	inTwoPlaces(t, func(t *testing.T, p *place) {
		p.echoTCP(t, 80)
		other := newWorld(t)
		if status, answer := p.engine.call(t, "PUT", "/v1/tunnels/other", other.spec); status != http.StatusCreated {
			t.Fatal(status, answer)
		}
		_ = syscall.Kill(int(p.namespace()["pid"].(float64)), syscall.SIGKILL)
		waitFor(t, "the tunnel to be lost", func() bool {
			_, view := p.engine.call(t, "GET", "/v1/tunnels/p1", nil)
			return view["state"] == "lost" && view["proxy"] == nil
		})
		if status, answer := p.engine.call(t, "POST", "/v1/tunnels/p1/forwards", map[string]any{"listenPort": 1, "target": "127.0.0.1:1"}); status != http.StatusConflict || answer["code"] != "tunnel_lost" {
			t.Error(status, answer)
		}
		waitFor(t, "the sockets to go", func() bool {
			_, err := os.Stat(p.network["sockets"].(string))
			return os.IsNotExist(err)
		})
		if status, answer := p.engine.call(t, "POST", "/v1/tunnels/other/probe", map[string]any{"address": gatewayIP, "timeout": 20}); status != http.StatusOK {
			t.Error(status, answer)
		}
		if status, _ := p.engine.call(t, "DELETE", "/v1/tunnels/p1", nil); status != http.StatusNoContent {
			t.Error(status)
		}
		before := p.namespace()["pid"]
		p.network = p.open(t, "p1", p.spec)
		if p.namespace()["pid"] == before {
			t.Error("the dead keeper is named")
		}
		if said := p.does(t, "tcp", gatewayIP+":80"); said != "10.96.2.5 unharmed" {
			t.Error(said)
		}
	})
}

func TestAnInterfaceThatIsTakenAwayIsALostTunnel(t *testing.T) {
	if os.Getuid() != 0 {
		return // it takes a capability, which an ordinary user's programs lose by their exec
	}
	eachPlace(t, func(t *testing.T, p *place) {
		command := exec.Command("nsenter", "--net="+p.namespace()["net"].(string), p.program, "attack", "delete", "-")
		command.Env, command.Stderr = []string{engineRole + "=inside", goRace, "DROPPED=no"}, os.Stderr
		if out, err := command.Output(); err != nil || strings.TrimSpace(string(out)) != "done" {
			t.Fatalf("%s %v", out, err)
		}
		waitFor(t, "the tunnel to be lost", func() bool {
			_, view := p.engine.call(t, "GET", "/v1/tunnels/p1", nil)
			return view["state"] == stateLost
		})
	})
}

func TestTunnelsComeAndGoAndLeaveNothingInTheKeeper(t *testing.T) {
	inTwoPlaces(t, func(t *testing.T, p *place) {
		keeper := fmt.Sprintf("/proc/%v/", p.namespace()["pid"])
		count := func(what string) int {
			entries, err := os.ReadDir(keeper + what)
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		}
		cycle := func() {
			if status, answer := p.engine.call(t, "DELETE", "/v1/tunnels/p1", nil); status != http.StatusNoContent {
				t.Fatal(status, answer)
			}
			p.network = p.open(t, "p1", p.spec)
		}
		cycle() // what is made once and stays
		threads, namespace := count("task"), p.namespace()
		for range 10 {
			cycle()
		}
		if p.namespace()["pid"] != namespace["pid"] || p.namespace()["cookie"] == namespace["cookie"] {
			t.Error(p.namespace(), namespace)
		}
		if _, err := os.Stat(namespace["net"].(string)); !os.IsNotExist(err) {
			t.Error("the path of a tunnel that is down leads somewhere: ", err)
		}
		// The last one's thread and descriptor may still be ending, and the Go runtime may start threads of its own.
		waitFor(t, fmt.Sprintf("the threads to be about %d again", threads), func() bool { return count("task") <= threads+5 })
		if os.Getuid() == 0 {
			waitFor(t, "the descriptors to be few again", func() bool { return count("fd") <= 12 })
		}
	})
}
