package gateway

import (
	"container/heap"
	"encoding/binary"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// retryAfter is when a removal that the kernel refused is tried again.
const retryAfter = 100 * time.Millisecond

// expiry knows which peer ends next. It waits on a timer of CLOCK_BOOTTIME, so that a machine that slept through a
// deadline acts when it wakes.
type expiry struct {
	mu    sync.Mutex
	queue deadlines
	timer *os.File
	fd    int
}

type deadlineOf struct {
	at   instant
	peer *peer
}

type deadlines []deadlineOf

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at < d[j].at }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)        { *d = append(*d, x.(deadlineOf)) }
func (d *deadlines) Pop() any {
	old := *d
	last := old[len(old)-1]
	old[len(old)-1] = deadlineOf{}
	*d = old[:len(old)-1]
	return last
}

func newExpiry() (*expiry, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, startFailure("timer_failed", "the kernel gives no timer: %w", err)
	}
	return &expiry{timer: os.NewFile(uintptr(fd), "timer"), fd: fd}, nil
}

// update takes in what a plan has put. Peers that have left or changed stay in the queue until their time and are
// told apart by identity; the queue is rebuilt when most of it is such.
func (e *expiry) update(p *plan) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, who := range p.put {
		if who.deadline != 0 {
			heap.Push(&e.queue, deadlineOf{who.deadline, who})
		}
	}
	e.arm()
}

// compact drops what alive does not know when the queue has grown far beyond it.
func (e *expiry) compact(alive map[string]*peer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) < 1024 || len(e.queue) < 4*len(alive) {
		return
	}
	kept := e.queue[:0]
	for _, d := range e.queue {
		if alive[d.peer.id] == d.peer {
			kept = append(kept, d)
		}
	}
	clear(e.queue[len(kept):])
	e.queue = kept
	heap.Init(&e.queue)
}

// due takes out what has reached its deadline.
func (e *expiry) due(at instant) []*peer {
	e.mu.Lock()
	defer e.mu.Unlock()
	var due []*peer
	for len(e.queue) > 0 && e.queue[0].at <= at {
		due = append(due, heap.Pop(&e.queue).(deadlineOf).peer)
	}
	e.arm()
	return due
}

func (e *expiry) retry(peers []*peer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, who := range peers {
		heap.Push(&e.queue, deadlineOf{now() + instant(retryAfter), who})
	}
	e.arm()
}

// arm sets the timer to the first deadline. e.mu is held.
func (e *expiry) arm() {
	spec := unix.ItimerSpec{}
	if len(e.queue) > 0 {
		spec.Value = unix.NsecToTimespec(int64(max(1, e.queue[0].at)))
	}
	_ = unix.TimerfdSettime(e.fd, unix.TFD_TIMER_ABSTIME, &spec, nil)
}

// wait returns when a deadline has come, or false when the expiry is closed.
func (e *expiry) wait() bool {
	var ticks [8]byte
	n, err := e.timer.Read(ticks[:])
	return err == nil && n == len(ticks) && binary.NativeEndian.Uint64(ticks[:]) > 0
}

func (e *expiry) close() { e.timer.Close() }

func (g *gateway) expireLoop() {
	defer g.loops.Done()
	for g.expiry.wait() {
		g.expire()
	}
}
