package netstack

import (
	"encoding/binary"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is the clock of deadlines: it goes on while the machine sleeps, unlike Go's monotonic clock, and
// nobody can set it.
func bootTime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Since(processStart)
	}
	return time.Duration(now.Nano())
}

var processStart = time.Now()

// deadline calls a function once its time has come.
type deadline struct {
	at    time.Duration
	timer *os.File
	plain *time.Timer
}

func newDeadline(life time.Duration, over func()) *deadline {
	d := &deadline{at: bootTime() + life}
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err == nil {
		when := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d.at, 1)))}
		if err = unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &when, nil); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil { // out of descriptors: a deadline that sleeps with the machine is better than none
		d.plain = time.AfterFunc(life, over)
		return d
	}
	d.timer = os.NewFile(uintptr(fd), "deadline")
	go func() {
		var expirations [8]byte
		if _, err := d.timer.Read(expirations[:]); err == nil && binary.NativeEndian.Uint64(expirations[:]) > 0 {
			over()
		}
		_ = d.timer.Close()
	}()
	return d
}

// left is the time until then, never negative.
func (d *deadline) left() time.Duration { return max(0, d.at-bootTime()) }

func (d *deadline) stop() {
	if d.plain != nil {
		d.plain.Stop()
		return
	}
	_ = d.timer.Close()
}
