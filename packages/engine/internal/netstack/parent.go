package netstack

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// watchParent calls gone when the process that started this one has ended. The pipe is the portable sign;
// the pidfd also tells when a child that the parent forked still holds the pipe open.
func watchParent(pipe bool, gone func()) {
	if pipe {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			gone()
		}()
	}
	parent := os.Getppid()
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil { // a kernel before 5.3, or a parent outside the process namespace
		return
	}
	if os.Getppid() != parent {
		_ = unix.Close(fd)
		gone()
		return
	}
	go func() {
		defer func() { _ = unix.Close(fd) }()
		for {
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && ready > 0 {
				gone()
			}
			return
		}
	}()
}
