package gateway

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func gone(t *testing.T, pid int) {
	t.Helper()
	for range 500 {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		// A process that init has yet to reap is gone too.
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil {
			if at := strings.LastIndexByte(string(stat), ')'); at > 0 && strings.HasPrefix(string(stat)[at:], ") Z") {
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("process %d is still there", pid)
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
				pid, signal := end(g)
				if err := syscall.Kill(pid, signal); err != nil {
					t.Fatal(err)
				}
				select {
				case <-g.ended:
				case <-time.After(10 * time.Second):
					t.Fatal("the started process does not end")
				}
				gone(t, g.inner)
				if code := g.cmd.ProcessState.ExitCode(); signal != syscall.SIGKILL && code != 0 {
					t.Errorf("exit code %d", code)
				}
				if _, err := os.Stat(filepath.Join(g.dir, "run", "control.sock")); !os.IsNotExist(err) {
					t.Errorf("the socket is left: %v", err)
				}
				// The port is free again: nobody holds the socket.
				socket, err := net.ListenPacket("udp", ":"+strconv.Itoa(g.port))
				if err != nil {
					t.Errorf("the UDP socket is left: %v", err)
				} else {
					socket.Close()
				}
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
