package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/stack/gro"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"lattice.dev/engine/internal/wg"
)

const (
	nicID         = 1
	packetQueue   = 1024
	listenBacklog = 512
	// packetBatch is how many packets go to and from WireGuard by one call. A device holds as many buffers of 64 KiB in
	// each direction for as long as it lives, though of an agent that waits hardly a page of each is ever touched.
	packetBatch = 16
)

// Buffers of one TCP connection: what it starts with and what it may grow to. gVisor starts with 1 MiB and
// goes to 4 MiB, which one slow reader among many agents would fill.
const (
	bufferMinimum = 4 << 10
	bufferStart   = 256 << 10
	bufferMaximum = 1 << 20
)

// overlay is gVisor's network stack, whose only link is the WireGuard device. It is not the one that comes with
// wireguard-go: that one closes a channel which connections may still be sending on.
type overlay struct {
	link   *channel.Endpoint
	stack  *stack.Stack
	mtu    int
	alive  liveness // of what it accepts
	events chan tun.Event
	ended  context.Context
	end    context.CancelFunc
	once   sync.Once
	cut    *segments // on their way out; of the one who reads
	join   gro.GRO   // of the one who writes
}

func newOverlay(addresses []netip.Addr, mtu int, router bool) (*overlay, error) {
	ended, end := context.WithCancel(context.Background())
	o := &overlay{
		link: channel.New(packetQueue, uint32(mtu), ""),
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
			// To a stack that takes every address for its own, each packet that arrives seems to be sent by itself.
			HandleLocal: !router,
		}),
		mtu: mtu, alive: usualLiveness, events: make(chan tun.Event, 1), ended: ended, end: end,
	}
	o.link.SupportedGSOKind = stack.HostGSOSupported              // what it hands over too large is cut in Read
	o.link.LinkEPCapabilities = stack.CapabilityRXChecksumOffload // Write looks at them
	o.join.Init(true)
	o.join.Dispatcher = inbound{o.link}
	if err := o.configure(addresses); err != nil {
		_ = o.Close()
		return nil, err
	}
	o.events <- tun.EventUp
	return o, nil
}

func (o *overlay) begin(read *settings) (wg.Device, error) {
	return wg.NewUserspace(o, read.privateKey, read.peer)
}

func (o *overlay) lost() <-chan struct{} { return nil }
func (o *overlay) close()                { _ = o.Close() }

func (o *overlay) configure(addresses []netip.Addr) error {
	// gVisor's RACK, its default, stalls for many seconds once a burst has overrun the socket's buffer;
	// recovery by SACK alone goes on at once.
	recovery := tcpip.TCPRecovery(0)
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: bufferMinimum, Default: bufferStart, Max: bufferMaximum}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: bufferMinimum, Default: bufferStart, Max: bufferMaximum}
	for _, option := range []tcpip.SettableTransportProtocolOption{&recovery, &sack, &moderate, &receive, &send} {
		if err := o.stack.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fmt.Errorf("the network stack refuses a TCP option: %s", err)
		}
	}
	if err := o.stack.CreateNIC(nicID, o.link); err != nil {
		return fmt.Errorf("the network stack refuses its link: %s", err)
	}
	for _, address := range addresses {
		full := tcpip.ProtocolAddress{Protocol: protocolOf(address), AddressWithPrefix: tcpip.AddrFromSlice(address.AsSlice()).WithPrefix()}
		if err := o.stack.AddProtocolAddress(nicID, full, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("the network stack refuses the address %s: %s", address, err)
		}
	}
	o.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID}, {Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	return nil
}

func protocolOf(address netip.Addr) tcpip.NetworkProtocolNumber {
	if address.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func full(address netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(address.Addr().AsSlice()), Port: address.Port()}
}

func (o *overlay) dialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	connection, err := gonet.DialContextTCP(ctx, o.stack, full(to), protocolOf(to.Addr()))
	if err != nil {
		return nil, err // not the nil *TCPConn, which would be an interface that is not nil
	}
	return connection, nil
}

func (o *overlay) listenTCP(at netip.AddrPort) (net.Listener, error) {
	queue := &waiter.Queue{}
	endpoint, problem := o.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(at.Addr()), queue)
	if problem == nil {
		// A port is free again at once, whatever waits for the last packets of its former connections; of two
		// listeners the second is refused all the same.
		endpoint.SocketOptions().SetReuseAddress(true)
		if problem = endpoint.Bind(full(at)); problem == nil {
			problem = endpoint.Listen(listenBacklog)
		}
		if problem == nil {
			return &listener{gonet.NewTCPListener(o.stack, queue, endpoint), endpoint, queue, o.alive}, nil
		}
		endpoint.Close()
	}
	return nil, fmt.Errorf("cannot listen on tcp %s: %s", at, problem)
}

// listener is gonet's, but that it keeps watch on what it accepts.
type listener struct {
	*gonet.TCPListener
	endpoint tcpip.Endpoint
	queue    *waiter.Queue
	alive    liveness
}

// accepted is a connection that can be reset.
type accepted struct {
	*gonet.TCPConn
	endpoint tcpip.Endpoint
}

func (l *listener) Accept() (net.Conn, error) {
	entry, more := waiter.NewChannelEntry(waiter.ReadableEvents)
	l.queue.EventRegister(&entry)
	defer l.queue.EventUnregister(&entry)
	for {
		endpoint, queue, problem := l.endpoint.Accept(nil)
		if _, none := problem.(*tcpip.ErrWouldBlock); none {
			<-more
			continue
		}
		if problem != nil {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: errors.New(problem.String())}
		}
		l.alive.watch(endpoint)
		return &accepted{gonet.NewTCPConn(queue, endpoint), endpoint}, nil
	}
}

// liveness is how long a connector keeps the connection of an agent that says nothing any more: it may have been revoked.
type liveness struct {
	idle, interval time.Duration
	count          int
	unanswered     time.Duration
}

var usualLiveness = liveness{idle: 30 * time.Second, interval: 10 * time.Second, count: 3, unanswered: time.Minute}

func (alive liveness) watch(endpoint tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(alive.idle), tcpip.KeepaliveIntervalOption(alive.interval)
	limit := tcpip.TCPUserTimeoutOption(alive.unanswered)
	_ = endpoint.SetSockOpt(&idle)
	_ = endpoint.SetSockOpt(&interval)
	_ = endpoint.SetSockOpt(&limit)
	_ = endpoint.SetSockOptInt(tcpip.KeepaliveCountOption, alive.count)
	endpoint.SocketOptions().SetKeepAlive(true)
}

// refuseUDP answers a datagram for a socket by "port unreachable" (RFC 1122, 4.1.3.1), as if nobody had the port. Of the
// datagram it says what the sender goes by: addresses and ports.
func (o *overlay) refuseUDP(at netip.AddrPort, from net.Addr) {
	sender, udp := from.(*net.UDPAddr)
	if !udp || !at.Addr().Is4() || !o.stack.AllowICMPMessage() {
		return
	}
	source := netip.AddrPortFrom(sender.AddrPort().Addr().Unmap(), uint16(sender.Port))
	const aboutSize = header.IPv4MinimumSize + header.UDPMinimumSize
	packet := make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize+aboutSize)
	message := packet[header.IPv4MinimumSize:]
	about := message[header.ICMPv4MinimumSize:]
	putIPv4(packet, header.ICMPv4ProtocolNumber, at.Addr(), source.Addr())
	putIPv4(about, header.UDPProtocolNumber, source.Addr(), at.Addr())
	header.UDP(about[header.IPv4MinimumSize:]).Encode(&header.UDPFields{SrcPort: source.Port(), DstPort: at.Port(), Length: header.UDPMinimumSize})
	unreachable := header.ICMPv4(message)
	unreachable.SetType(header.ICMPv4DstUnreachable)
	unreachable.SetCode(header.ICMPv4PortUnreachable)
	unreachable.SetChecksum(header.ICMPv4Checksum(unreachable, 0))
	_ = o.stack.WriteRawPacket(nicID, ipv4.ProtocolNumber, buffer.MakeWithData(packet))
}

func putIPv4(packet []byte, protocol tcpip.TransportProtocolNumber, from, to netip.Addr) {
	ip := header.IPv4(packet)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(protocol),
		SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(to.As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
}

func (o *overlay) openUDP(at netip.AddrPort, refused func()) (net.PacketConn, error) {
	queue := &waiter.Queue{}
	endpoint, problem := o.stack.NewEndpoint(udp.ProtocolNumber, protocolOf(at.Addr()), queue)
	if problem == nil {
		if problem = endpoint.Bind(full(at)); problem == nil {
			if refused != nil {
				options := endpoint.SocketOptions()
				options.SetIPv4RecvError(true)
				options.SetIPv6RecvError(true)
				entry := waiter.NewFunctionEntry(waiter.EventErr, func(waiter.EventMask) {
					for options.DequeueErr() != nil {
						refused()
					}
				})
				queue.EventRegister(&entry)
			}
			return gonet.NewUDPConn(queue, endpoint), nil
		}
		endpoint.Close()
	}
	return nil, fmt.Errorf("cannot open udp %s: %s", at, problem)
}

func (o *overlay) dialPing(to netip.Addr) (net.Conn, error) {
	protocol := icmp.ProtocolNumber4
	if to.Is6() {
		protocol = icmp.ProtocolNumber6
	}
	queue := &waiter.Queue{}
	endpoint, problem := o.stack.NewEndpoint(protocol, protocolOf(to), queue)
	if problem == nil {
		if problem = endpoint.Connect(full(netip.AddrPortFrom(to, 0))); problem == nil {
			return gonet.NewUDPConn(queue, endpoint), nil
		}
		endpoint.Close()
	}
	return nil, fmt.Errorf("cannot open an echo socket to %s: %s", to, problem)
}

// What follows is tun.Device, the side of wireguard-go.

// Read waits for one packet that leaves, and takes along what else is there.
func (o *overlay) Read(packets [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for n < len(packets) {
		if o.cut != nil {
			var done bool
			if sizes[n], done = o.cut.next(packets[n][offset:]); done {
				o.cut = nil
			}
			n++
			continue
		}
		var packet *stack.PacketBuffer
		if n > 0 {
			packet = o.link.Read()
		} else if packet = o.link.ReadContext(o.ended); packet == nil {
			return 0, os.ErrClosed
		}
		if packet == nil {
			break
		}
		if o.cut = newSegments(packet); o.cut == nil {
			view := packet.ToView()
			sizes[n], _ = view.Read(packets[n][offset:]) // of a view that is not empty it reads something
			view.Release()
			n++
		}
		packet.DecRef()
	}
	return n, nil
}

// Write takes packets that arrived. Those that follow one another in a connection go up the stack as one.
func (o *overlay) Write(packets [][]byte, offset int) (int, error) {
	if o.ended.Err() != nil {
		return 0, os.ErrClosed
	}
	for _, raw := range packets {
		raw = raw[offset:]
		if len(raw) == 0 || !intact(raw) {
			continue
		}
		packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(raw)})
		packet.RXChecksumValidated = true
		packet.NetworkProtocolNumber = ipv4.ProtocolNumber
		if header.IPVersion(raw) == header.IPv6Version {
			packet.NetworkProtocolNumber = ipv6.ProtocolNumber
		}
		o.join.Enqueue(packet)
		packet.DecRef()
	}
	// One call lets go of one packet of each of its eight buckets, which hold up to eight.
	for range min(len(packets), joinedInBucket) {
		o.join.Flush()
	}
	return len(packets), nil
}

const joinedInBucket = 8

// inbound is where joined packets go.
type inbound struct{ link *channel.Endpoint }

func (i inbound) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, packet *stack.PacketBuffer) {
	i.link.InjectInbound(protocol, packet)
}

// DeliverLinkPacket is for packets with a link-layer header, of which there are none.
func (i inbound) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// Close ends the link and every connection of the stack.
func (o *overlay) Close() error {
	o.once.Do(func() {
		o.end()
		o.stack.Close()
		o.stack.RemoveNIC(nicID)
		o.link.Close()
		close(o.events)
	})
	return nil
}

func (o *overlay) File() *os.File           { return nil }
func (o *overlay) MTU() (int, error)        { return o.mtu, nil }
func (o *overlay) Name() (string, error)    { return "netstack", nil }
func (o *overlay) Events() <-chan tun.Event { return o.events }
func (o *overlay) BatchSize() int           { return packetBatch }
