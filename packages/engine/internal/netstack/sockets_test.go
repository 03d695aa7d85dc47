package netstack

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ask sends one line to a `sockets` socket and returns the answer and the descriptor that came along, or -1.
func ask(t *testing.T, path, line string) (map[string]any, int) {
	t.Helper()
	connection, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if _, err := io.WriteString(connection, line+"\n"); err != nil {
		t.Fatal(err)
	}
	text, rights := make([]byte, 4096), make([]byte, 128)
	size, rightsSize, _, _, err := connection.(*net.UnixConn).ReadMsgUnix(text, rights)
	if err != nil {
		t.Fatal(err)
	}
	answer := map[string]any{}
	if err := json.Unmarshal(text[:size], &answer); err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rightsSize])
	if err != nil {
		t.Fatal(err)
	}
	if len(messages) == 0 {
		return answer, -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	return answer, fds[0]
}

func TestASocketOfTheNamespaceIsHandedToWhoIsNotInIt(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		p.echoTCP(t, 80)
		path := p.network["sockets"].(string)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatal(info, err)
		}
		answer, fd := ask(t, path, `{"family": "inet", "type": "stream"}`)
		if answer["ok"] != true || fd < 0 {
			t.Fatal(answer, fd)
		}
		defer unix.Close(fd)
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil || float64(cookie) != p.namespace()["cookie"] {
			t.Fatal(cookie, err, p.namespace())
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 96, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		socket, err := connection(fd)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		_, _ = io.WriteString(socket, "hello\n")
		if line, err := bufio.NewReader(socket).ReadString('\n'); line != "hello\n" || !strings.HasPrefix(socket.LocalAddr().String(), agentIP+":") {
			t.Fatal(line, err, socket.LocalAddr())
		}
	})
}

func TestOnlyTCPAndUDPSocketsAreHandedOut(t *testing.T) {
	inOnePlace(t, func(t *testing.T, p *place) {
		for _, line := range []string{`{"family": "inet", "type": "ping"}`, `{"family": "unix", "type": "stream"}`, `{"family": "inet", "type": "raw"}`, `{}`, `?`, `[]`} {
			if answer, fd := ask(t, p.network["sockets"].(string), line); answer["ok"] != false || answer["code"] != "invalid_socket" || fd >= 0 {
				t.Fatal(line, answer, fd)
			}
		}
		for _, line := range []string{`{"family": "inet", "type": "dgram"}`, `{"family": "inet6", "type": "stream"}`} {
			answer, fd := ask(t, p.network["sockets"].(string), line)
			if answer["ok"] != true || fd < 0 {
				t.Fatal(line, answer, fd)
			}
			_ = unix.Close(fd)
		}
	})
}
