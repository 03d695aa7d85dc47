package keeper

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// socket opens a socket of the namespace, unbound and unconnected.
func (n *namespace) socket(family, kind string) (int, error) {
	fd := -1
	err := n.do(func() (err error) {
		fd, err = OpenSocket(family, kind)
		return err
	})
	return fd, err
}

// OpenSocket opens a socket in the network namespace of this thread.
func OpenSocket(family, kind string) (int, error) {
	domain, echo := unix.AF_INET, unix.IPPROTO_ICMP
	switch family {
	case Inet:
	case Inet6:
		domain, echo = unix.AF_INET6, unix.IPPROTO_ICMPV6
	default:
		return -1, &Error{"invalid_socket", fmt.Sprintf("family %q is neither inet nor inet6", family)}
	}
	switch kind {
	case Stream:
		return unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	case Dgram:
		return unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	case Ping:
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, echo)
		if err != nil { // net.ipv4.ping_group_range lets nobody
			return unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, echo)
		}
		return fd, nil
	default:
		return -1, &Error{"invalid_socket", fmt.Sprintf("type %q is neither stream nor dgram", kind)}
	}
}
