package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/curve25519"
)

// testMode makes the test binary the gateway: the tests start it as anyone starts the engine.
const testMode = "LATTICE_TEST_GATEWAY"

// shorterRotation is how long keys that were exchanged work on in tests.
const shorterRotation = 20 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(testMode) == "1" && len(os.Args) > 1 && os.Args[1] == "gateway" {
		rotationTime = shorterRotation
		os.Exit(Main(os.Args[2:], "test"))
	}
	os.Exit(m.Run())
}

// ordinaryUser is who the tests become where they run as root.
const ordinaryUser = 65534

// setup is one way to run the gateway.
type setup struct {
	name   string
	device string
	root   bool
	host   bool // in the caller's network namespace
}

// setups are both devices, and both kinds of user where the tests run as root.
func setups(t *testing.T) []setup {
	t.Helper()
	all := []setup{{"user/packet", devicePacket, false, false}}
	if file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		file.Close()
		name, root := "user/tun", os.Getuid() == 0
		if root {
			name = "root/tun"
		}
		all = append(all, setup{name, deviceTUN, root, false})
	} else if os.Getenv("LATTICE_TEST_NO_SKIPS") != "" {
		t.Errorf("gateways on a TUN may not be left out here: %v", err)
	}
	return all
}

func each(t *testing.T, test func(t *testing.T, g *running)) {
	t.Helper()
	for _, s := range setups(t) {
		t.Run(s.name, func(t *testing.T) { test(t, startGateway(t, s)) })
	}
}

// inOne runs a test in one setup: for what does not depend on the device.
func inOne(t *testing.T, test func(t *testing.T, g *running)) {
	t.Helper()
	test(t, startGateway(t, setups(t)[0]))
}

// running is a gateway process.
type running struct {
	t         *testing.T
	setup     setup
	cmd       *exec.Cmd
	dir       string
	publicKey publicKey
	port      int
	inner     int
	http      *http.Client
	ended     chan struct{}
}

func newKey(t testing.TB) (private [32]byte, public publicKey) {
	t.Helper()
	if _, err := rand.Read(private[:]); err != nil {
		t.Fatal(err)
	}
	shared, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		t.Fatal(err)
	}
	copy(public[:], shared)
	return private, public
}

func gatewayCommand(t testing.TB, s setup, dir string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	// The directory of `go test` is closed to other users.
	program := filepath.Join(dir, "lattice-engine")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{"gateway"}, args...)...)
	cmd.Env = []string{testMode + "=1", "GORACE=halt_on_error=1 atexit_sleep_ms=0"}
	cmd.Dir = "/"
	if os.Getuid() == 0 && !s.root {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinaryUser, Gid: ordinaryUser}}
		if err := os.Chown(dir, ordinaryUser, ordinaryUser); err != nil {
			t.Fatal(err)
		}
	}
	return cmd
}

// tempDir is a directory that another user can get into, which t.TempDir is not.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lattice-gateway-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func startGateway(t *testing.T, s setup) *running {
	t.Helper()
	dir := tempDir(t)
	private, public := newKey(t)
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(base64.StdEncoding.EncodeToString(private[:])+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 && !s.root {
		if err := os.Chown(key, ordinaryUser, ordinaryUser); err != nil {
			t.Fatal(err)
		}
	}
	namespace := namespaceOwn
	if s.host {
		namespace = namespaceHost
	}
	cmd := gatewayCommand(t, s, dir, "--private-key-file", key, "--listen-port", "0", "--address", "10.96.0.1/16",
		"--namespace", namespace, "--device", s.device, "--runtime-dir", filepath.Join(dir, "run"))
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g := &running{t: t, setup: s, cmd: cmd, dir: dir, publicKey: public, ended: make(chan struct{})}
	output, err := io.ReadAll(stdout)
	go func() { _ = cmd.Wait(); close(g.ended) }()
	t.Cleanup(g.stop)
	var ready struct {
		Ready   bool
		PID     int
		Control string
		Error   string
	}
	if err != nil || json.Unmarshal(output, &ready) != nil || !ready.Ready {
		t.Fatalf("the gateway did not start: %s %v", output, err)
	}
	g.inner = ready.PID
	g.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialAs(ctx, cmd.SysProcAttr, ready.Control)
	}}}
	status := g.get("/v1/status")
	if status["device"] != s.device {
		t.Fatalf("device %v, want %s", status["device"], s.device)
	}
	g.port = int(status["listenPort"].(float64))
	return g
}

// dialAs connects as the user that the gateway runs as: it refuses others, and in a user namespace of its own cannot
// tell root from them.
func dialAs(ctx context.Context, attributes *syscall.SysProcAttr, path string) (net.Conn, error) {
	if attributes != nil && attributes.Credential != nil {
		// Of this thread alone, and back before it serves another goroutine.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		keep := ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(attributes.Credential.Uid), keep); errno != 0 {
			return nil, errno
		}
		defer syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep)
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

func (g *running) stop() {
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.ended:
	case <-time.After(time.Minute): // the kernel takes namespaces of all tests away one after the other
		_ = g.cmd.Process.Kill()
		g.t.Error("the gateway did not end within a minute of SIGTERM")
	}
}

type m = map[string]any

func (g *running) request(method, path string, body any) (int, m) {
	g.t.Helper()
	encoded, err := json.Marshal(body)
	if err != nil {
		g.t.Fatal(err)
	}
	if raw, ok := body.(string); ok {
		encoded = []byte(raw)
	}
	request, err := http.NewRequest(method, "http://engine"+path, bytes.NewReader(encoded))
	if err != nil {
		g.t.Fatal(err)
	}
	response, err := g.http.Do(request)
	if err != nil {
		g.t.Fatal(err)
	}
	defer response.Body.Close()
	answer := m{}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		g.t.Fatalf("%s %s: %v", method, path, err)
	}
	return response.StatusCode, answer
}

func (g *running) get(path string) m {
	g.t.Helper()
	code, answer := g.request(http.MethodGet, path, nil)
	if code != http.StatusOK {
		g.t.Fatalf("GET %s: %d %v", path, code, answer)
	}
	return answer
}

func (g *running) state(method string, body m) m {
	g.t.Helper()
	code, answer := g.request(method, "/v1/state", body)
	if code != http.StatusOK {
		g.t.Fatalf("%s /v1/state: %d %v", method, code, answer)
	}
	return answer
}

func (g *running) put(peers ...m) m {
	g.t.Helper()
	return g.state(http.MethodPut, m{"revision": 1, "upsert": peers})
}

func (g *running) patch(peers ...m) m {
	g.t.Helper()
	return g.state(http.MethodPatch, m{"revision": 2, "upsert": peers})
}

func (g *running) remove(ids ...string) m {
	g.t.Helper()
	return g.state(http.MethodPatch, m{"revision": 3, "upsert": []m{}, "remove": ids})
}

// events reads the event stream until the test ends.
func (g *running) events() <-chan m {
	g.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g.t.Cleanup(cancel)
	request, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/v1/events", nil)
	response, err := g.http.Do(request)
	if err != nil {
		g.t.Fatal(err)
	}
	lines := make(chan m, 1<<17) // more than any test makes: the gateway ends a stream that is not read
	go func() {
		defer response.Body.Close()
		defer close(lines)
		scanner := bufio.NewScanner(response.Body)
		for scanner.Scan() {
			line := m{}
			if json.Unmarshal(scanner.Bytes(), &line) == nil {
				lines <- line
			}
		}
	}()
	return lines
}

// await waits for an event that has all of these fields.
func await(t *testing.T, lines <-chan m, want m) m {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("the event stream ended before %v", want)
			}
			fits := true
			for k, v := range want {
				fits = fits && fmt.Sprint(line[k]) == fmt.Sprint(v)
			}
			if fits {
				return line
			}
		case <-limit:
			t.Fatalf("no event %v", want)
		}
	}
}
