package netstack

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lattice.dev/engine/internal/keeper"
)

const engineRole = "LATTICE_TEST_ENGINE"

// TestMain turns the test binary into the engine, or into an engine's parent, where a test asks for it.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == keeper.Mode {
		os.Exit(keeper.Main())
	}
	if inOwnNetwork() {
		if err := setLoopback(); err != nil {
			fmt.Fprintln(os.Stderr, "loopback:", err)
			os.Exit(1)
		}
	}
	if role, ok := roles[os.Getenv(engineRole)]; ok {
		os.Exit(role())
	}
	code := m.Run()
	if programs != "" {
		_ = os.RemoveAll(programs)
	}
	os.Exit(code)
}

// roles are what this binary can be instead of a test.
var roles = map[string]func() int{
	"engine": becomeEngine, "parent": beParent, "open-tun": beOpenTUN, "inside": beInside,
}

func becomeEngine() int { return Main(os.Args[1:], "test") }

// beParent starts an engine, hands its ready line on and waits to be killed. A second process holds the
// engine's pipe open, as a child forked by the agent would.
func beParent() int {
	executable, _ := os.Executable()
	read, write, err := os.Pipe()
	if err != nil {
		return 1
	}
	holder := exec.Command("sleep", "600")
	holder.ExtraFiles = []*os.File{write}
	if err := holder.Start(); err != nil {
		return 1
	}
	engine := exec.Command(executable, "--parent-pipe")
	engine.Env = append(os.Environ(), engineRole+"=engine")
	engine.Stdin, engine.Stdout, engine.Stderr = read, os.Stdout, os.Stderr
	if err := engine.Start(); err != nil {
		return 1
	}
	fmt.Printf("{\"holder\": %d}\n", holder.Process.Pid)
	_ = engine.Wait() // not before this process is killed
	return 1
}

type process struct {
	command *exec.Cmd
	stdin   io.Closer
	lines   *bufio.Reader
	said    map[string]any // by the lines so far; two processes write them, in either order
	control string
	client  *http.Client
}

func startProcess(t *testing.T, role string, arguments ...string) *process {
	t.Helper()
	executable, _ := os.Executable()
	command := exec.Command(executable, arguments...)
	// Not t.TempDir(): with the test's name in it, a socket's path would be longer than 107 bytes.
	directory, err := os.MkdirTemp("", "engine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	command.Env = append(os.Environ(), engineRole+"="+role, "TMPDIR="+directory)
	command.Stderr = os.Stderr
	return launch(t, command)
}

func launch(t *testing.T, command *exec.Cmd) *process {
	t.Helper()
	p := &process{command: command, said: map[string]any{}}
	p.stdin, _ = p.command.StdinPipe()
	out, _ := p.command.StdoutPipe()
	p.lines = bufio.NewReader(out)
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.command.Process.Kill(); _, _ = p.command.Process.Wait() })
	return p
}

func (p *process) line(t *testing.T, key string) any {
	t.Helper()
	for p.said[key] == nil {
		text, err := p.lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		_ = json.Unmarshal([]byte(text), &p.said) // adds to what is there
	}
	return p.said[key]
}

func expectRevocation(t *testing.T, calls <-chan string) {
	t.Helper()
	select {
	case call := <-calls:
		if call != "DELETE Bearer t" {
			t.Fatal(call)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was revoked")
	}
}

func (p *process) dial(t *testing.T, socket string) {
	t.Helper()
	p.control = socket
	p.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
}

func (p *process) put(t *testing.T, id string, spec map[string]any) {
	t.Helper()
	raw, _ := json.Marshal(spec)
	request, _ := http.NewRequest("PUT", "http://engine/v1/tunnels/"+id, strings.NewReader(string(raw)))
	answer, err := p.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(answer.Body)
		t.Fatalf("%d %s", answer.StatusCode, body)
	}
}

// revocations is a control plane that fails once and then tells what was revoked.
func revocations(t *testing.T, spec map[string]any) <-chan string {
	t.Helper()
	calls := make(chan string, 8)
	failed := false
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !failed {
			failed = true
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		calls <- r.Method + " " + r.Header.Get("Authorization")
		rw.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(server.Close)
	spec["revoke"] = map[string]any{"url": server.URL + "/p1", "method": "DELETE", "headers": map[string]string{"Authorization": "Bearer t"}}
	return calls
}

func TestEndOfTheParentPipeRevokesAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	calls := revocations(t, w.spec)
	p := startProcess(t, "engine", "--parent-pipe")
	p.dial(t, p.line(t, "control").(string))
	p.put(t, "p1", w.spec)
	_ = p.stdin.Close()
	expectRevocation(t, calls)
	if err := p.command.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(p.control)); !os.IsNotExist(err) {
		t.Fatal("the runtime directory is left: ", err)
	}
}

func TestSIGKILLOfTheParentRevokesThoughAForkedChildHoldsThePipe(t *testing.T) {
	w := newWorld(t)
	calls := revocations(t, w.spec)
	p := startProcess(t, "parent")
	holder := int(p.line(t, "holder").(float64))
	t.Cleanup(func() { _ = syscall.Kill(holder, syscall.SIGKILL) })
	p.dial(t, p.line(t, "control").(string))
	p.put(t, "p1", w.spec)
	_ = p.command.Process.Kill()
	expectRevocation(t, calls)
	waitFor(t, "the engine's directory to go", func() bool {
		_, err := os.Stat(filepath.Dir(p.control))
		return os.IsNotExist(err)
	})
}

func TestSIGTERMEndsTheEngine(t *testing.T) {
	p := startProcess(t, "engine", "--parent-pipe")
	socket := p.line(t, "control").(string)
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}
	if info, err = os.Stat(filepath.Dir(socket)); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatal(info.Mode(), err)
	}
	_ = p.command.Process.Signal(syscall.SIGTERM)
	if err := p.command.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Fatal("the socket is left: ", err)
	}
}
