package netstack

import (
	"net/netip"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// datagram is an IP packet with its checksums.
func datagram(protocol tcpip.TransportProtocolNumber, source, target string, port uint16, data string) []byte {
	from, to := tcpip.AddrFromSlice(netip.MustParseAddr(source).AsSlice()), tcpip.AddrFromSlice(netip.MustParseAddr(target).AsSlice())
	var payload []byte
	if protocol == header.TCPProtocolNumber {
		tcp := header.TCP(make([]byte, header.TCPMinimumSize+len(data)))
		tcp.Encode(&header.TCPFields{SrcPort: port, DstPort: 2, SeqNum: 3, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck})
		copy(tcp[header.TCPMinimumSize:], data)
		tcp.SetChecksum(^checksum.Checksum(tcp, header.PseudoHeaderChecksum(protocol, from, to, uint16(len(tcp)))))
		payload = tcp
	} else {
		udp := header.UDP(make([]byte, header.UDPMinimumSize+len(data)))
		udp.Encode(&header.UDPFields{SrcPort: port, DstPort: 2, Length: uint16(len(udp))})
		copy(udp[header.UDPMinimumSize:], data)
		udp.SetChecksum(^checksum.Checksum(udp, header.PseudoHeaderChecksum(protocol, from, to, uint16(len(udp)))))
		payload = udp
	}
	if from.Len() == header.IPv4AddressSize {
		ip := header.IPv4(make([]byte, header.IPv4MinimumSize))
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip) + len(payload)), TTL: 64, Protocol: uint8(protocol), SrcAddr: from, DstAddr: to})
		ip.SetChecksum(^ip.CalculateChecksum())
		return slices.Concat(ip, payload)
	}
	ip := header.IPv6(make([]byte, header.IPv6MinimumSize))
	ip.Encode(&header.IPv6Fields{PayloadLength: uint16(len(payload)), TransportProtocol: protocol, HopLimit: 64, SrcAddr: from, DstAddr: to})
	return slices.Concat(ip, payload)
}

func TestAPacketWithAnyByteChangedIsNotIntact(t *testing.T) {
	for _, c := range []struct {
		protocol     tcpip.TransportProtocolNumber
		source, name string
		target       string
		uncovered    []int // bytes that no checksum covers: IPv6's class, flow label, next header and hop limit
	}{
		{header.TCPProtocolNumber, "10.96.0.2", "TCP over IPv4", "10.96.0.3", nil},
		{header.UDPProtocolNumber, "10.96.0.2", "UDP over IPv4", "10.96.0.3", nil},
		{header.TCPProtocolNumber, "fd00::2", "TCP over IPv6", "fd00::3", []int{0, 1, 2, 3, 6, 7}},
		{header.UDPProtocolNumber, "fd00::2", "UDP over IPv6", "fd00::3", []int{0, 1, 2, 3, 6, 7}},
	} {
		t.Run(c.name, func(t *testing.T) {
			packet := datagram(c.protocol, c.source, c.target, 1, "what it says")
			if !intact(packet) {
				t.Fatal("it was not before")
			}
			for n := range packet {
				changed := slices.Clone(packet)
				changed[n] ^= 0x04
				if intact(changed) && !slices.Contains(c.uncovered, n) {
					t.Errorf("byte %d of %d", n, len(packet))
				}
			}
			for n := range packet {
				if intact(packet[:n]) {
					t.Errorf("the first %d bytes of %d", n, len(packet))
				}
			}
		})
	}
}

func TestAPacketWithoutAChecksumAndAFragmentAreTaken(t *testing.T) {
	packet := datagram(header.UDPProtocolNumber, "10.96.0.2", "10.96.0.3", 1, "what it says")
	header.UDP(packet[header.IPv4MinimumSize:]).SetChecksum(0)
	if !intact(packet) {
		t.Error("without a checksum")
	}
	ip := header.IPv4(datagram(header.TCPProtocolNumber, "10.96.0.2", "10.96.0.3", 1, "what it says"))
	ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	ip[len(ip)-1]++
	if !intact(ip) {
		t.Error("a fragment")
	}
}

func TestNoPacketOfManyConnectionsWaitsForOthersToCome(t *testing.T) {
	stack, err := newOverlay([]netip.Addr{netip.MustParseAddr("10.96.0.3")}, 1420, false)
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	const flows = packetBatch
	var packets [][]byte
	for n := range flows {
		// All in one bucket, of which the sum of addresses and ports decides.
		packets = append(packets, datagram(header.TCPProtocolNumber, "10.96.0.2", "10.96.0.3", uint16(1000+8*n), "what it says"))
	}
	if _, err := stack.Write(packets, 0); err != nil {
		t.Fatal(err)
	}
	// Nobody listens, so that each is answered by a reset.
	if answers := stack.link.NumQueued(); answers != flows {
		t.Errorf("%d of %d were answered", answers, flows)
	}
}
