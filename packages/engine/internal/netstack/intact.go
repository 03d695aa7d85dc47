package netstack

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// intact tells whether a packet is as its sender made it, by its checksums. The stack relies on it: of packets that were
// joined nobody could tell any more. An ICMP message is looked at by the stack itself.
func intact(packet []byte) bool {
	var from, to tcpip.Address
	var payload []byte
	var protocol tcpip.TransportProtocolNumber
	if header.IPVersion(packet) == header.IPv4Version {
		ip := header.IPv4(packet)
		if !ip.IsValid(len(packet)) || !ip.IsChecksumValid() {
			return false
		}
		if ip.More() || ip.FragmentOffset() != 0 {
			return true // a checksum is of the whole
		}
		from, to, payload, protocol = ip.SourceAddress(), ip.DestinationAddress(), ip.Payload(), ip.TransportProtocol()
	} else {
		ip := header.IPv6(packet)
		if !ip.IsValid(len(packet)) {
			return false
		}
		from, to, payload, protocol = ip.SourceAddress(), ip.DestinationAddress(), ip.Payload(), ip.TransportProtocol()
	}
	switch protocol {
	case header.TCPProtocolNumber:
		if len(payload) < header.TCPMinimumSize {
			return false
		}
	case header.UDPProtocolNumber:
		if len(payload) < header.UDPMinimumSize {
			return false
		}
		if header.UDP(payload).Checksum() == 0 { // the sender has made none (RFC 768)
			return true
		}
	default:
		return true
	}
	return checksum.Checksum(payload, header.PseudoHeaderChecksum(protocol, from, to, uint16(len(payload)))) == 0xffff
}
