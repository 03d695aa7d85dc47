package netstack

import (
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segments is a TCP packet of the network stack that is larger than the link takes, on its way out in pieces: the stack
// does its work once for many of them. Of the last piece nothing is left.
type segments struct {
	view       *buffer.View
	head       []byte // IP and TCP header, as of the whole
	rest       []byte // payload that has not left yet
	size       int    // of a piece's payload
	network    int    // length of the IP header
	identifier uint16 // of the next piece, in IPv4
	sequence   uint32 // of the next piece
	flags      header.TCPFlags
}

// newSegments takes a packet whose checksum the stack has left to the link; none for others.
func newSegments(packet *stack.PacketBuffer) *segments {
	if !packet.GSOOptions.NeedsCsum {
		return nil
	}
	s := &segments{view: packet.ToView(), network: len(packet.NetworkHeader().Slice()), size: int(packet.GSOOptions.MSS)}
	whole := s.view.AsSlice()
	tcp := header.TCP(whole[s.network:])
	end := s.network + int(tcp.DataOffset())
	s.head, s.rest = whole[:end], whole[end:]
	s.sequence, s.flags = tcp.SequenceNumber(), tcp.Flags()
	if header.IPVersion(whole) == header.IPv4Version {
		s.identifier = header.IPv4(whole).ID()
	}
	return s
}

// next writes one piece and returns its size. It is the last one where done tells so.
func (s *segments) next(to []byte) (size int, done bool) {
	payload := s.rest[:min(s.size, len(s.rest))]
	if s.size == 0 {
		payload = s.rest
	}
	s.rest = s.rest[len(payload):]
	size = copy(to, s.head)
	size += copy(to[size:], payload)
	packet := to[:size]
	tcp := header.TCP(packet[s.network:])
	tcp.SetSequenceNumber(s.sequence)
	if len(s.rest) > 0 {
		tcp.SetFlags(uint8(s.flags &^ (header.TCPFlagFin | header.TCPFlagPsh)))
	}
	tcp.SetChecksum(0)
	var pseudo uint16
	length := uint16(size - s.network)
	if header.IPVersion(packet) == header.IPv4Version {
		ip := header.IPv4(packet)
		ip.SetTotalLength(uint16(size))
		ip.SetID(s.identifier)
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
		pseudo = header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), length)
	} else {
		ip := header.IPv6(packet)
		ip.SetPayloadLength(uint16(size - header.IPv6MinimumSize))
		pseudo = header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), length)
	}
	tcp.SetChecksum(^checksum.Checksum(tcp, pseudo))
	s.sequence += uint32(len(payload))
	s.identifier++
	if done = len(s.rest) == 0; done {
		s.view.Release()
	}
	return size, done
}
