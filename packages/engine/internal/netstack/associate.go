package netstack

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"
)

const maxDatagram = 65535

// association is a UDP ASSOCIATE (RFC 1928 §7): datagrams of one client socket, each with its destination
// in front. It lives as long as the TCP connection that asked for it.
type association struct {
	tunnel *Tunnel
	local  *net.UDPConn
	remote net.PacketConn
	ended  chan struct{}
	client netip.AddrPort // who may use it; the port is that of the first datagram where the request left it open
}

func (s *socksSession) associate(clientPort uint16) {
	local, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		s.refuse(replyFailed)
		return
	}
	t := s.proxy.tunnel
	forgetLocal, err := t.track(local)
	if err != nil {
		return
	}
	defer forgetLocal()
	remote, err := t.net.openUDP(netip.AddrPortFrom(t.spec.addresses[0], 0), func() { t.refused.Add(1) })
	if err != nil {
		s.refuse(replyFailed)
		return
	}
	forgetRemote, err := t.track(remote)
	if err != nil {
		return
	}
	defer forgetRemote()
	t.flows.Add(1)
	defer t.flows.Add(-1)
	from := s.connection.RemoteAddr().(*net.TCPAddr).AddrPort()
	a := &association{tunnel: t, local: local, remote: remote, ended: make(chan struct{}), client: netip.AddrPortFrom(from.Addr().Unmap(), clientPort)}
	_ = s.connection.SetReadDeadline(time.Time{})
	defer close(a.ended)
	go a.outbound()
	s.reply(replySucceeded, local.LocalAddr().(*net.UDPAddr).AddrPort())
	_, _ = io.Copy(io.Discard, s.reader)
}

func (a *association) outbound() {
	packet := make([]byte, maxDatagram)
	started := false
	for {
		size, from, err := a.local.ReadFromUDPAddrPort(packet)
		if err != nil {
			return
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if from.Addr() != a.client.Addr() || (a.client.Port() != 0 && from.Port() != a.client.Port()) {
			continue
		}
		if !started {
			started = true
			a.client = from
			go a.inbound(from)
		}
		to, payload, err := a.parse(packet[:size])
		if err != nil {
			continue // RFC 1928: what cannot be relayed is dropped silently
		}
		if _, err := a.remote.WriteTo(payload, net.UDPAddrFromAddrPort(to)); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

func (a *association) parse(packet []byte) (netip.AddrPort, []byte, error) {
	// two reserved bytes and the fragment number; fragments are optional (RFC 1928) and not relayed
	if len(packet) < 4 || packet[2] != 0 {
		return netip.AddrPort{}, nil, errSocks
	}
	body := bytes.NewReader(packet[3:])
	reader := bufio.NewReaderSize(body, len(packet))
	host, port, err := readSocksAddress(reader)
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	payload := packet[len(packet)-body.Len()-reader.Buffered():]
	to, err := a.tunnel.resolve("udp", host, port)
	return to, payload, err
}

func (a *association) inbound(client netip.AddrPort) {
	packet := make([]byte, maxDatagram)
	for {
		size, from, err := a.remote.ReadFrom(packet)
		if err != nil {
			select {
			case <-a.ended:
				return
			default:
				continue // an ICMP error for an earlier datagram
			}
		}
		source, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		origin := source.AddrPort()
		head := appendSocksAddress([]byte{0, 0, 0}, netip.AddrPortFrom(origin.Addr().Unmap(), origin.Port()))
		if _, err := a.local.WriteToUDPAddrPort(append(head, packet[:size]...), client); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}
