package control

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// sameUser accepts connections of the engine's own user and of root; the socket's mode says the same,
// but a directory that was opened up by mistake does not open the engine.
type sameUser struct{ net.Listener }

func (l sameUser) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if permitted(conn) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

func permitted(conn net.Conn) bool {
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
	if err := raw.Control(func(fd uintptr) {
		peer, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || failure != nil {
		return false
	}
	return int(peer.Uid) == os.Getuid() || peer.Uid == 0
}
