package gateway

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// endOf returns how to wait for the end of a process, whoever has its number then.
func endOf(t *testing.T, pid int) (gone func()) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func() {
		t.Helper()
		waitFor(t, fmt.Sprintf("the end of process %d", pid), func() bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return err == nil && n == 1
		})
	}
}

func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("not in time: ", what)
		}
	}
}

// socketsAt are the inodes of the UDP sockets that are bound to a port of all addresses.
func socketsAt(t *testing.T, port int) (inodes []string) {
	t.Helper()
	for _, path := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		text, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) { // a machine without IPv6
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			// See proc(5): local address and port in hexadecimal, and the inode.
			fields := strings.Fields(line)
			if address, at, _ := strings.Cut(fields[1], ":"); at == fmt.Sprintf("%04X", port) && strings.Trim(address, "0") == "" {
				inodes = append(inodes, fields[9])
			}
		}
	}
	return inodes
}

func TestEndOfEitherProcessLeavesNothing(t *testing.T) {
	for _, s := range setups(t) {
		for name, end := range map[string]func(g *running) (pid int, signal syscall.Signal){
			"SIGTERM to the started one": func(g *running) (int, syscall.Signal) { return g.cmd.Process.Pid, syscall.SIGTERM },
			"SIGINT to the started one":  func(g *running) (int, syscall.Signal) { return g.cmd.Process.Pid, syscall.SIGINT },
			"SIGTERM to the named one":   func(g *running) (int, syscall.Signal) { return g.inner, syscall.SIGTERM },
			"SIGKILL of the started one": func(g *running) (int, syscall.Signal) { return g.cmd.Process.Pid, syscall.SIGKILL },
			"SIGKILL of the named one":   func(g *running) (int, syscall.Signal) { return g.inner, syscall.SIGKILL },
		} {
			t.Run(s.name+"/"+name, func(t *testing.T) {
				g := startGateway(t, s)
				g.events()
				gone, sockets := endOf(t, g.inner), []string{}
				// The kernel leaves a line out where another socket is closed between two reads.
				waitFor(t, "the UDP socket to be shown", func() bool {
					sockets = socketsAt(t, g.port)
					return len(sockets) > 0
				})
				pid, signal := end(g)
				if err := syscall.Kill(pid, signal); err != nil {
					t.Fatal(err)
				}
				select {
				case <-g.ended:
				case <-time.After(time.Minute):
					t.Fatal("the started process does not end")
				}
				gone()
				if code := g.cmd.ProcessState.ExitCode(); signal != syscall.SIGKILL && code != 0 {
					t.Errorf("exit code %d", code)
				}
				if _, err := os.Stat(filepath.Join(g.dir, "run", "control.sock")); !os.IsNotExist(err) {
					t.Errorf("the socket is left: %v", err)
				}
				// The port itself may be another process's by now.
				waitFor(t, "the UDP socket to go", func() bool {
					return !slices.ContainsFunc(socketsAt(t, g.port), func(inode string) bool { return slices.Contains(sockets, inode) })
				})
			})
		}
	}
}

func TestAFailedStartSaysWhatAndWhy(t *testing.T) {
	taken, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := strconv.Itoa(taken.LocalAddr().(*net.UDPAddr).Port)
	dir := tempDir(t)
	key, bad := filepath.Join(dir, "key"), filepath.Join(dir, "bad")
	private, _ := newKey(t)
	for path, content := range map[string]string{key: base64.StdEncoding.EncodeToString(private[:]), bad: "hunter2"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	address := "10.96.0.1/16"
	for name, c := range map[string]struct {
		code string
		args []string
	}{
		"no arguments":     {"invalid_arguments", nil},
		"unknown argument": {"invalid_arguments", []string{"--colour", "red"}},
		"no prefix":        {"invalid_arguments", []string{"--private-key-file", key, "--address", "10.96.0.1"}},
		"bad namespace":    {"invalid_arguments", []string{"--private-key-file", key, "--address", address, "--namespace", "moon"}},
		"long interface":   {"invalid_arguments", []string{"--private-key-file", key, "--address", address, "--interface", "a-very-long-name"}},
		"port taken":       {"listen_failed", []string{"--private-key-file", key, "--address", address, "--listen-port", port, "--namespace", "own"}},
		"no key file":      {"key_unreadable", []string{"--private-key-file", key + "x", "--address", address, "--namespace", "own"}},
		"no key in it":     {"key_invalid", []string{"--private-key-file", bad, "--address", address, "--namespace", "own"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := gatewayCommand(t, setup{}, tempDir(t), c.args...)
			output, err := cmd.Output()
			var answer struct {
				Ready       bool
				Code, Error string
			}
			if e := (*exec.ExitError)(nil); !errors.As(err, &e) || e.ExitCode() != 1 {
				t.Errorf("exit: %v", err)
			}
			if json.Unmarshal(output, &answer) != nil || answer.Ready || answer.Code != c.code || answer.Error == "" {
				t.Errorf("%s, want %s", output, c.code)
			}
			if strings.Contains(string(output), "hunter2") {
				t.Error("the key file's content is in the message")
			}
		})
	}
}
