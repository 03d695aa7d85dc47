package control

import (
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// admitting accepts connections of the engine's own user and of root; the socket's mode says the same,
// but a directory that was opened up by mistake does not open the engine.
type admitting struct {
	net.Listener
	who Admission
}

func (l admitting) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if permitted(conn, l.who) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

func permitted(conn net.Conn, who Admission) bool {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	var failure error
	process := -1
	if err := raw.Control(func(fd uintptr) {
		peer, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if pidfd, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil { // since Linux 6.5
			process = pidfd
		}
	}); err != nil || failure != nil {
		return false
	}
	if process >= 0 {
		defer unix.Close(process)
	}
	if int(peer.Uid) != os.Getuid() && peer.Uid != 0 {
		return false
	}
	return who == Anywhere || !below(int(peer.Pid), process)
}

// below tells whether a process is in a PID namespace below this one's, or has ended before that could be told. The
// count of its process numbers cannot be hidden by the process, as what /proc has of its namespaces can.
func below(pid, pidfd int) bool {
	if pid == 0 { // not in a namespace that this one sees: beside or above it
		return false
	}
	ours, err := depth("/proc/self/status")
	if err != nil { // without /proc there are no sandboxes, either
		return false
	}
	theirs, err := depth(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	// Had it ended, and given its number to another, the status could be that one's.
	if pidfd >= 0 && ended(pidfd) {
		return true
	}
	return theirs > ours
}

// depth is how many process numbers a process has, one for each PID namespace that it is in (proc_pid_status(5)).
func depth(status string) (int, error) {
	text, err := os.ReadFile(status)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(numbers)), nil
		}
	}
	return 0, fmt.Errorf("%s has no NSpid", status)
}

func ended(pidfd int) bool {
	ready, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return err != nil || ready > 0
}
