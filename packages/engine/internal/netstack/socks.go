package netstack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Numbers of RFC 1928 (SOCKS5) and RFC 1929 (user name and password).
const (
	methodPassword   = 0x02
	methodNone       = 0xff
	passwordVersion  = 0x01
	commandConnect   = 0x01
	commandAssociate = 0x03
	addressIPv4      = 0x01
	addressName      = 0x03
	addressIPv6      = 0x04
	replySucceeded   = 0x00
	replyFailed      = 0x01
	replyNotAllowed  = 0x02
	replyUnreachable = 0x04
	replyRefused     = 0x05
	replyExpired     = 0x06
	replyBadCommand  = 0x07
	replyBadAddress  = 0x08
)

const lingerTime = time.Second

type socksSession struct {
	proxy      *proxy
	connection net.Conn
	reader     *bufio.Reader
}

var errSocks = errors.New("not the SOCKS5 that this proxy speaks")

func (s *socksSession) serve() {
	if !s.authenticate() {
		return
	}
	var head [3]byte
	if _, err := io.ReadFull(s.reader, head[:]); err != nil || head[0] != socksVersion {
		return
	}
	host, port, err := readSocksAddress(s.reader)
	if err != nil {
		s.refuse(replyBadAddress)
		return
	}
	switch head[1] {
	case commandConnect:
		s.connect(host, port)
	case commandAssociate:
		s.associate(port)
	default:
		s.refuse(replyBadCommand)
	}
}

func (s *socksSession) authenticate() bool {
	var head [2]byte
	if _, err := io.ReadFull(s.reader, head[:]); err != nil {
		return false
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(s.reader, methods); err != nil {
		return false
	}
	if bytes.IndexByte(methods, methodPassword) < 0 {
		_, _ = s.connection.Write([]byte{socksVersion, methodNone})
		return false
	}
	if _, err := s.connection.Write([]byte{socksVersion, methodPassword}); err != nil {
		return false
	}
	version, err := s.reader.ReadByte()
	if err != nil || version != passwordVersion {
		return false
	}
	username, err := readShort(s.reader)
	if err != nil {
		return false
	}
	password, err := readShort(s.reader)
	if err != nil {
		return false
	}
	authentic := s.proxy.authentic(username, password)
	status := byte(0)
	if !authentic {
		status = 1
	}
	_, err = s.connection.Write([]byte{passwordVersion, status})
	return err == nil && authentic
}

func readShort(reader *bufio.Reader) (string, error) {
	length, err := reader.ReadByte()
	if err != nil {
		return "", err
	}
	text := make([]byte, length)
	_, err = io.ReadFull(reader, text)
	return string(text), err
}

func readSocksAddress(reader *bufio.Reader) (host string, port uint16, err error) {
	kind, err := reader.ReadByte()
	if err != nil {
		return "", 0, err
	}
	switch kind {
	case addressName:
		if host, err = readShort(reader); err != nil {
			return "", 0, err
		}
	case addressIPv4, addressIPv6:
		raw := make([]byte, map[byte]int{addressIPv4: 4, addressIPv6: 16}[kind])
		if _, err = io.ReadFull(reader, raw); err != nil {
			return "", 0, err
		}
		address, _ := netip.AddrFromSlice(raw)
		host = address.Unmap().String()
	default:
		return "", 0, errSocks
	}
	var raw [2]byte
	_, err = io.ReadFull(reader, raw[:])
	return host, binary.BigEndian.Uint16(raw[:]), err
}

func appendSocksAddress(packet []byte, address netip.AddrPort) []byte {
	kind := byte(addressIPv4)
	if address.Addr().Is6() {
		kind = addressIPv6
	}
	if !address.IsValid() {
		address = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	packet = append(append(packet, kind), address.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(packet, address.Port())
}

func (s *socksSession) reply(code byte, bound netip.AddrPort) {
	_, _ = s.connection.Write(appendSocksAddress([]byte{socksVersion, code, 0}, bound))
}

// refuse replies and lets the client read it: closing with unread bytes would reset the connection and
// take the reply with it.
func (s *socksSession) refuse(code byte) {
	s.reply(code, netip.AddrPort{})
	if half, ok := s.connection.(halfCloser); ok && half.CloseWrite() == nil {
		_ = s.connection.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, s.reader)
	}
}

func (s *socksSession) connect(host string, port uint16) {
	remote, forget, err := s.proxy.dialContext(context.Background(), host, port)
	if err != nil {
		s.refuse(replyFor(err))
		return
	}
	defer forget()
	_ = s.connection.SetReadDeadline(time.Time{})
	s.reply(replySucceeded, netip.AddrPort{})
	relay(&buffered{s.connection, s.reader}, remote)
}

func replyFor(err error) byte {
	var refusal *Refusal
	var timeout net.Error
	switch {
	case errors.As(err, &refusal):
		return replyNotAllowed
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return replyExpired
	case strings.Contains(err.Error(), "refused"): // gVisor's errors have texts and no numbers
		return replyRefused
	default:
		return replyUnreachable
	}
}
