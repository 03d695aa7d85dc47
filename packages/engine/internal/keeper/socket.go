package keeper

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// socket opens a socket of the namespace, unbound and unconnected.
func (n *namespace) socket(family, kind string) (int, error) {
	domain := unix.AF_INET
	echo := unix.IPPROTO_ICMP
	switch family {
	case Inet:
	case Inet6:
		domain, echo = unix.AF_INET6, unix.IPPROTO_ICMPV6
	default:
		return -1, &Error{"invalid_socket", fmt.Sprintf("family %q is neither inet nor inet6", family)}
	}
	fd := -1
	err := n.do(func() (err error) {
		switch kind {
		case Stream:
			fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		case Dgram:
			fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		case Ping:
			fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, echo)
			if err != nil { // /proc/sys may not be written, and the host's setting lets nobody
				fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, echo)
			}
		default:
			return &Error{"invalid_socket", fmt.Sprintf("type %q is neither stream nor dgram", kind)}
		}
		return err
	})
	return fd, err
}
