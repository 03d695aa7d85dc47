package keeper

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"lattice.dev/engine/internal/userns"
)

const (
	// Below what the callers wait that may be the first to need a keeper, so that they hear of it: the SDK gives such a
	// tunnel 35 s (patience in its enginebody.py), and an agent 30 s for this and for another backend.
	startTimeout = 20 * time.Second
	callTimeout  = 20 * time.Second
	// The kernel takes interfaces away under a lock that every namespace on its way out holds. Until then no program
	// learns that its connections have ended.
	endTimeout = 10 * time.Second
)

// Keeper is the engine's end.
type Keeper struct {
	PID int

	conn *net.UnixConn
	done chan struct{}
	kill func()

	write   sync.Mutex
	mu      sync.Mutex
	last    int64
	waiting map[int64]chan reply
}

type reply struct {
	answer
	fd int
}

// ErrLost means that the keeper is gone, and every namespace of it.
var ErrLost = &Error{"keeper_lost", "the process that keeps the network namespaces has ended: delete the tunnel and make it again"}

// Start runs this program again as a keeper. The keeper ends with Close, and with this process however that ends.
func Start() (*Keeper, error) { return start(startTimeout) }

func start(timeout time.Duration) (*Keeper, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("socket pair to the namespace keeper: %w", err)
	}
	attributes, err := attributes()
	if err != nil {
		_ = ours.Close()
		_ = theirs.Close()
		return nil, err
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{os.Args[0], Mode}, Dir: "/",
		Env: environment(), Stderr: os.Stderr, ExtraFiles: []*os.File{theirs}, SysProcAttr: attributes,
	}
	k := &Keeper{conn: ours, done: make(chan struct{}), waiting: map[int64]chan reply{}}
	ready := make(chan reply, 1)
	k.waiting[0] = ready
	started := make(chan error, 1)
	go func() {
		// PR_SET_PDEATHSIG is tied to the thread that forks: it must live as long as the keeper.
		runtime.LockOSThread()
		err := cmd.Start()
		_ = theirs.Close()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait()
		_ = k.conn.Close()
	}()
	if err := <-started; err != nil {
		_ = k.conn.Close()
		return nil, &Error{"userns_forbidden", userns.Forbidden("a network namespace for an agent", err).Error()}
	}
	k.PID = cmd.Process.Pid
	k.kill = func() { _ = cmd.Process.Kill() }
	go k.receive()
	select {
	case answer := <-ready:
		if answer.Code != "" {
			k.Close()
			return nil, &Error{answer.Code, answer.Detail}
		}
		return k, nil
	case <-k.done:
		return nil, &Error{"keeper_failed", "the process that keeps the network namespaces ended before it was ready: the engine's log says why"}
	case <-time.After(timeout):
		k.kill()
		return nil, &Error{"keeper_failed", fmt.Sprintf("the process that keeps the network namespaces was not ready within %s", timeout)}
	}
}

// environment is the knobs of the Go runtime and nothing else.
func environment() []string {
	kept := []string{}
	for _, name := range []string{"GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GORACE", "GOTRACEBACK"} {
		if value, ok := os.LookupEnv(name); ok {
			kept = append(kept, name+"="+value)
		}
	}
	return kept
}

// Done is closed once the keeper is gone.
func (k *Keeper) Done() <-chan struct{} { return k.done }

// Close ends the keeper and every namespace that no program is in, and waits for the keeper's end.
func (k *Keeper) Close() {
	_ = k.conn.CloseWrite()
	select {
	case <-k.done:
	case <-time.After(endTimeout):
		k.kill()
		<-k.done
	}
}

func (k *Keeper) receive() {
	defer func() {
		_ = k.conn.Close()
		close(k.done)
	}()
	for {
		var a answer
		fd, err := readMessage(k.conn, &a)
		if err != nil {
			return
		}
		k.mu.Lock()
		waiting := k.waiting[a.ID]
		delete(k.waiting, a.ID)
		k.mu.Unlock()
		if waiting == nil { // who has asked has given up
			closeFD(fd)
			continue
		}
		waiting <- reply{a, fd}
	}
}

// call asks and waits for the answer.
func (k *Keeper) call(r *request) (reply, error) {
	waiting := make(chan reply, 1)
	k.mu.Lock()
	k.last++
	r.ID = k.last
	k.waiting[r.ID] = waiting
	k.mu.Unlock()
	k.write.Lock()
	err := writeMessage(k.conn, r, -1)
	k.write.Unlock()
	if err != nil {
		return reply{}, ErrLost
	}
	timer := time.NewTimer(callTimeout)
	defer timer.Stop()
	select {
	case got := <-waiting:
		if got.Code != "" {
			return got, &Error{got.Code, got.Detail}
		}
		return got, nil
	case <-k.done:
		return reply{}, ErrLost
	case <-timer.C:
		k.mu.Lock()
		delete(k.waiting, r.ID)
		k.mu.Unlock()
		return reply{}, &Error{"keeper_timeout", fmt.Sprintf("the process that keeps the network namespaces did not answer within %s", callTimeout)}
	}
}

// attributes ask for a user namespace in which everybody is who they are outside, and a network namespace in it.
func attributes() (*syscall.SysProcAttr, error) {
	uids, gids, setgroups, err := userns.Identity()
	if err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: uids, GidMappings: gids, GidMappingsEnableSetgroups: setgroups,
		AmbientCaps: needed, // an ordinary user's would be lost by the exec
		Pdeathsig:   syscall.SIGTERM,
	}, nil
}
