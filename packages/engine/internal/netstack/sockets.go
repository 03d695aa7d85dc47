package netstack

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/control"
	"lattice.dev/engine/internal/keeper"
)

const (
	socketsTimeout = 10 * time.Second
	socketsRequest = 1024 // bytes; a request is one short line
)

// socketServer hands out sockets of one tunnel's namespace, one for each connection.
type socketServer struct {
	path     string
	listener net.Listener
	open     func(family, kind string) (int, error)
}

func serveSockets(path string, open func(family, kind string) (int, error)) (*socketServer, error) {
	listener, err := control.Listen(path, control.NotBelow)
	if err != nil {
		return nil, err
	}
	s := &socketServer{path: path, listener: listener, open: open}
	go s.accept()
	return s, nil
}

func (s *socketServer) close() {
	_ = s.listener.Close()
	_ = os.Remove(s.path)
}

func (s *socketServer) accept() {
	for {
		connection, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors: others are being closed meanwhile
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go s.serve(connection.(*net.UnixConn))
	}
}

type socketRequest struct {
	Family string `json:"family"`
	Type   string `json:"type"`
}

type socketAnswer struct {
	OK     bool   `json:"ok"`
	Code   string `json:"code,omitempty"`
	Detail string `json:"detail,omitempty"`
}

func (s *socketServer) serve(connection *net.UnixConn) {
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(socketsTimeout))
	line, err := bufio.NewReader(io.LimitReader(connection, socketsRequest)).ReadBytes('\n')
	if err != nil {
		return
	}
	answer, fd := s.answer(line)
	var rights []byte
	if fd >= 0 {
		defer unix.Close(fd)
		rights = unix.UnixRights(fd)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return
	}
	_, _, _ = connection.WriteMsgUnix(append(text, '\n'), rights, nil)
}

func (s *socketServer) answer(line []byte) (socketAnswer, int) {
	var request socketRequest
	if err := json.Unmarshal(line, &request); err != nil || (request.Type != keeper.Stream && request.Type != keeper.Dgram) {
		return socketAnswer{Code: "invalid_socket", Detail: `a request is a line {"family": "inet" or "inet6", "type": "stream" or "dgram"}`}, -1
	}
	fd, err := s.open(request.Family, request.Type)
	if err == nil {
		return socketAnswer{OK: true}, fd
	}
	known := &keeper.Error{Code: "socket_failed", Detail: err.Error()}
	_ = errors.As(err, &known)
	return socketAnswer{Code: known.Code, Detail: known.Detail}, -1
}
