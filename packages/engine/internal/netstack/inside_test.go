package netstack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/keeper"
)

// goRace leaves out the second that the race detector waits for at a program's end.
const goRace = "GORACE=halt_on_error=1 atexit_sleep_ms=0"

// ordinaryUser is who the engine is run by where the tests run as root.
const ordinaryUser = 65534

// runner is one way to run the engine.
type runner struct {
	name, device string
	user         int
}

// runners are both devices, and both kinds of user where the tests run as root.
func runners() []runner {
	if me := os.Getuid(); me != 0 {
		return []runner{{"user/packet", keeper.DevicePacket, me}}
	}
	return []runner{
		{"root/tun", keeper.DeviceTUN, 0}, {"root/packet", keeper.DevicePacket, 0},
		{"user/tun", keeper.DeviceTUN, ordinaryUser}, {"user/packet", keeper.DevicePacket, ordinaryUser},
	}
}

// place is an engine in a process of its own with a tunnel in a network namespace, and the world at its other end.
type place struct {
	*world
	runner  runner
	engine  *process
	network map[string]any // as the engine answered
	program string         // this test's binary, where every user may execute it
}

// eachPlace runs a test with every runner.
func eachPlace(t *testing.T, test func(t *testing.T, p *place)) {
	t.Helper()
	inPlaces(t, runners(), test)
}

func inPlaces(t *testing.T, runners []runner, test func(t *testing.T, p *place)) {
	t.Helper()
	for _, r := range runners {
		t.Run(r.name, func(t *testing.T) {
			p := &place{world: newWorld(t), runner: r}
			p.spec["network"] = map[string]any{"kind": kindNamespace, "device": r.device}
			p.start(t)
			p.network = p.open(t, "p1", p.spec)
			test(t, p)
		})
	}
}

// inTwoPlaces runs a test with each user and each device, and not with all pairs of them: for what depends on one or
// the other and takes its time.
func inTwoPlaces(t *testing.T, test func(t *testing.T, p *place)) {
	t.Helper()
	all := runners()
	inPlaces(t, slices.Compact([]runner{all[0], all[len(all)-1]}), test)
}

// inOnePlace runs a test with one runner: for what depends neither on the device nor on the user.
func inOnePlace(t *testing.T, test func(t *testing.T, p *place)) {
	t.Helper()
	inPlaces(t, runners()[len(runners())-1:], test)
}

func (p *place) start(t *testing.T) {
	t.Helper()
	directory, err := os.MkdirTemp("/tmp", "engine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	if err := os.Chmod(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(directory, p.runner.user, p.runner.user); err != nil {
		t.Fatal(err)
	}
	if p.program, err = program(); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(p.program, "--parent-pipe", "--runtime-dir", filepath.Join(directory, "run"))
	command.Env = []string{engineRole + "=engine", goRace}
	command.Dir, command.Stderr = "/", os.Stderr
	if p.runner.user != os.Getuid() {
		if p.runner.device == keeper.DeviceTUN { // /dev/net/tun is root's alone on many machines
			command.Env[0] = engineRole + "=open-tun"
			command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		} else {
			command.SysProcAttr = p.runner.credential()
		}
	}
	p.engine = launch(t, command)
	p.engine.dial(t, p.engine.line(t, "control").(string))
}

// program is a copy of this binary that everybody may execute: the directory of `go test` is closed to other users.
var program = sync.OnceValues(func() (string, error) {
	directory, err := os.MkdirTemp("/tmp", "engine-program-")
	if err != nil {
		return "", err
	}
	programs = directory
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	path := filepath.Join(directory, "lattice-engine")
	if err := os.WriteFile(path, self, 0o755); err != nil {
		return "", err
	}
	return path, os.Chmod(directory, 0o755)
})

// programs is the directory of the copy, which TestMain removes.
var programs string

func (r runner) credential() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(r.user), Gid: uint32(r.user)}}
}

// beOpenTUN becomes the ordinary user on a machine where everybody may open /dev/net/tun: in a mount namespace of its
// own there is another node for it.
func beOpenTUN() int {
	node := filepath.Join(filepath.Dir(os.Args[len(os.Args)-1]), "tun") // beside the runtime directory
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))),
		unix.Chmod(node, 0o666),
		unix.Mount(node, "/dev/net/tun", "", unix.MS_BIND, ""),
		syscall.Setgroups(nil), syscall.Setresgid(ordinaryUser, ordinaryUser, ordinaryUser), syscall.Setresuid(ordinaryUser, ordinaryUser, ordinaryUser),
		os.Setenv(engineRole, "engine"),
		syscall.Exec("/proc/self/exe", os.Args, os.Environ()),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "open-tun:", err)
		}
	}
	return 1
}

// open makes a tunnel and returns its network.
func (p *place) open(t *testing.T, id string, spec map[string]any) map[string]any {
	t.Helper()
	status, answer := p.engine.call(t, "PUT", "/v1/tunnels/"+id, spec)
	if status != http.StatusCreated {
		t.Fatalf("PUT: %d %v", status, answer)
	}
	return answer["network"].(map[string]any)
}

func (p *process) call(t *testing.T, method, path string, body any) (int, map[string]any) {
	t.Helper()
	raw, _ := json.Marshal(body)
	request, _ := http.NewRequest(method, "http://engine"+path, bytes.NewReader(raw))
	answer, err := p.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	decoded := map[string]any{}
	_ = json.NewDecoder(answer.Body).Decode(&decoded)
	return answer.StatusCode, decoded
}

func (p *place) namespace() map[string]any { return p.network["namespace"].(map[string]any) }

// inside is a program in the tunnel's namespaces: entered by the paths that the engine gives, as the engine's user and
// without capabilities, but with nothing else that a sandbox would take from it.
func (p *place) inside(t *testing.T, arguments ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	command := exec.CommandContext(ctx, "nsenter", append([]string{"--preserve-credentials",
		"--user=" + p.namespace()["user"].(string), "--net=" + p.namespace()["net"].(string), p.program}, arguments...)...)
	command.Env = []string{engineRole + "=inside", goRace}
	command.Dir, command.Stderr = "/", os.Stderr
	if p.runner.user != os.Getuid() {
		command.SysProcAttr = p.runner.credential()
	}
	return command
}

// does runs one of the actions inside and returns what it prints.
func (p *place) does(t *testing.T, arguments ...string) string {
	t.Helper()
	out, err := p.inside(t, arguments...).Output()
	if err != nil {
		t.Fatalf("%v: %v", arguments, err)
	}
	return strings.TrimSpace(string(out))
}

// actions are what a program inside does; each prints what came of it.
var actions = map[string]func(arguments []string) (string, error){
	"links":   listLinks,
	"tcp":     talkTCP,
	"udp":     talkUDP,
	"serve":   serveTCP,
	"connect": connectTCP,
}

// beInside gives up every capability and acts.
func beInside() int {
	if err := dropCapabilities(); err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		return 1
	}
	said, err := actions[os.Args[1]](os.Args[2:])
	if err != nil {
		said = "error: " + err.Error()
	}
	fmt.Println(said)
	return 0
}

// dropCapabilities leaves none by an exec, because capabilities are each thread's own; no_new_privs, as in a sandbox.
func dropCapabilities() error {
	switch os.Getenv("DROPPED") {
	case "no":
		return nil
	case "yes":
		if status, err := os.ReadFile("/proc/self/status"); err != nil || !strings.Contains(string(status), "CapEff:\t0000000000000000\n") {
			return fmt.Errorf("it has capabilities (%v)", err)
		}
		return nil
	}
	runtime.LockOSThread()
	for capability := range 64 {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0); err != nil {
			break // the last one, or it may not: then an ordinary user, whose exec has left none
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	_ = os.Setenv("DROPPED", "yes")
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

func listLinks([]string) (string, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	var all []string
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			return "", err
		}
		all = append(all, fmt.Sprintf("%s %v %d", i.Name, addresses, i.MTU))
	}
	return strings.Join(all, "\n"), nil
}

// talkTCP sends a number of bytes and tells how many came back unharmed.
func talkTCP(arguments []string) (string, error) {
	connection, err := net.DialTimeout("tcp", arguments[0], 10*time.Second)
	if err != nil {
		return "", err
	}
	sent := pattern(2 << 20)
	go func() {
		_, _ = connection.Write(sent)
		_ = connection.(*net.TCPConn).CloseWrite()
	}()
	received, err := io.ReadAll(connection)
	if err == nil && !bytes.Equal(sent, received) {
		err = fmt.Errorf("%d bytes came back, and not those", len(received))
	}
	return fmt.Sprintf("%s unharmed", connection.LocalAddr().(*net.TCPAddr).IP), err
}

func pattern(size int) []byte {
	bytes := make([]byte, size)
	state := uint32(1)
	for i := range bytes {
		state = state*1664525 + 1013904223
		bytes[i] = byte(state >> 24)
	}
	return bytes
}

func talkUDP(arguments []string) (string, error) {
	connection, err := net.Dial("udp", arguments[0])
	if err != nil {
		return "", err
	}
	answer := make([]byte, 64)
	for range 50 {
		if _, err = connection.Write([]byte("hello")); err != nil {
			continue
		}
		_ = connection.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		var size int
		if size, err = connection.Read(answer); err == nil {
			return string(answer[:size]), nil
		}
	}
	return "", err
}

// serveTCP answers one connection with the address of who called, once it has said that it listens.
func serveTCP(arguments []string) (string, error) {
	listener, err := net.Listen("tcp", arguments[0])
	if err != nil {
		return "", err
	}
	fmt.Println("listening")
	connection, err := listener.Accept()
	if err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(connection, "%s\n", connection.RemoteAddr())
	_ = connection.Close()
	return "served", err
}

func connectTCP(arguments []string) (string, error) {
	connection, err := net.DialTimeout("tcp", arguments[0], 5*time.Second)
	if err != nil {
		return "", err
	}
	_ = connection.SetReadDeadline(time.Now().Add(10 * time.Second))
	received, err := io.ReadAll(connection)
	return "connected " + string(received), err
}
