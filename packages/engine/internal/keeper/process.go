package keeper

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fdEngine is the descriptor of the socket pair that the keeper inherits.
const fdEngine = 3

func init() {
	if len(os.Args) == 2 && os.Args[1] == Mode {
		// A thread that is in a tunnel's namespace must end with it, and the first one of a process never ends: it
		// belongs to Main alone.
		runtime.LockOSThread()
	}
}

// process is the running keeper.
type process struct {
	conn *net.UnixConn

	write      sync.Mutex
	mu         sync.Mutex
	namespaces map[int64]*namespace
}

// Main is the keeper. It ends when the engine, which holds the other end of the socket pair, ends.
func Main() int {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	debug.SetGCPercent(20) // it mostly waits
	// The engine ends it; a terminal's signals are for the programs in the namespaces.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM) // also when the engine's thread that started it is gone
	confined := confine()
	unix.CloseOnExec(fdEngine)
	conn, err := unixConn(fdEngine)
	if err != nil {
		fmt.Fprintln(os.Stderr, Mode+" is for the engine's own use")
		return 2
	}
	p := &process{conn: conn, namespaces: map[int64]*namespace{}}
	if confined != nil {
		p.say(answer{Code: "keeper_failed", Detail: "the keeper of the network namespaces cannot give up what it does not need: " + confined.Error()}, -1)
		return 1
	}
	p.say(answer{}, -1)
	go func() {
		<-told
		_ = conn.CloseRead()
	}()
	for {
		var r request
		fd, err := readMessage(conn, &r)
		closeFD(fd)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				slog.Error("the engine is not understood", "error", err.Error())
			}
			p.end()
			return 0
		}
		go p.serve(&r)
	}
}

// end takes every interface away. A namespace is gone with the last program in it.
func (p *process) end() {
	time.AfterFunc(endTimeout, func() { os.Exit(1) })
	p.mu.Lock()
	left := p.namespaces
	p.namespaces = nil // what is still being opened finds no place
	p.mu.Unlock()
	var all sync.WaitGroup
	for _, n := range left {
		all.Go(n.close)
	}
	all.Wait()
}

// say sends an answer and hands over the descriptor, where it is not negative.
func (p *process) say(a answer, fd int) {
	defer closeFD(fd)
	p.write.Lock()
	defer p.write.Unlock()
	if err := writeMessage(p.conn, a, fd); err != nil && !errors.Is(err, unix.EPIPE) {
		slog.Error("the engine cannot be answered", "error", err.Error())
	}
}

func (p *process) serve(r *request) {
	a, fd, err := p.carryOut(r)
	a.ID = r.ID
	if err != nil {
		a.Code, a.Detail = "keeper_failed", err.Error()
		if known := (*Error)(nil); errors.As(err, &known) {
			a.Code = known.Code
		}
	}
	p.say(a, fd)
}

func (p *process) carryOut(r *request) (answer, int, error) {
	if r.Op == opOpen {
		n, fd, err := open(r.ID, r.Spec)
		if err != nil {
			return answer{}, -1, err
		}
		p.mu.Lock()
		ending := p.namespaces == nil
		if !ending {
			p.namespaces[r.ID] = n
		}
		p.mu.Unlock()
		if ending {
			closeFD(fd)
			n.close()
			return answer{}, -1, ErrLost
		}
		return answer{Opened: &n.opened}, fd, nil
	}
	p.mu.Lock()
	n := p.namespaces[r.Namespace]
	if r.Op == opClose {
		delete(p.namespaces, r.Namespace)
	}
	p.mu.Unlock()
	if n == nil {
		return answer{}, -1, &Error{"namespace_gone", "there is no such namespace any more"}
	}
	switch r.Op {
	case opSocket:
		fd, err := n.socket(r.Family, r.Type)
		return answer{}, fd, err
	case opClose:
		n.close()
		return answer{}, -1, nil
	default:
		return answer{}, -1, fmt.Errorf("%q is not a request", r.Op)
	}
}
