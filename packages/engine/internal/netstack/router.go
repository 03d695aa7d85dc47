package netstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const refusalsMaximum = 512 // kinds of refusals kept until somebody asks

// RoutesSpec is the body of PUT /v1/tunnels/{id}/routes: all that a connector serves beside its own address.
type RoutesSpec struct {
	Names []NameRoute `json:"names"`
	// Networks are reached as they are: what arrives for one of their addresses goes to that address and port.
	Networks []string `json:"networks"`
	// PrivateTargets are networks that names may lead to although they are not of the Internet.
	PrivateTargets []string `json:"privateTargets"`
}

// NameRoute gives a host name an overlay address: what arrives there on one of the ports goes to exactly that name.
type NameRoute struct {
	Address string      `json:"address"`
	Name    string      `json:"name"`
	Ports   []RoutePort `json:"ports"`
}

// RoutePort is a port of a name.
type RoutePort struct {
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
}

// destination is where agents' flows arrive.
type destination struct {
	at       netip.AddrPort
	protocol string
}

// routes is a RoutesSpec that has been read.
type routes struct {
	names    map[destination]string
	networks []netip.Prefix
	private  []netip.Prefix
}

// target is where a flow goes: a name, or the destination itself.
type target struct {
	name string
	to   netip.Addr
}

func (r *routes) target(at destination) (target, bool) {
	if name, served := r.names[at]; served {
		return target{name: name}, true
	}
	for _, network := range r.networks {
		if network.Contains(at.at.Addr()) {
			return target{to: at.at.Addr()}, true
		}
	}
	return target{}, false
}

// RefusedFlow counts flows that a connector did not carry.
type RefusedFlow struct {
	Source   string `json:"source"`
	Name     string `json:"name"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Reason   string `json:"reason"`
	Resolved string `json:"resolved"`
	Times    int    `json:"times"`
}

// router carries flows that arrive for a connector's routes to their targets in the host's network. A connection is
// accepted once its target is reached, so that an agent is not told of a success that is none.
type router struct {
	tunnel    *Tunnel
	alive     liveness
	streams   *shares // from a connection's first packet on
	datagrams *shares

	mu       sync.Mutex
	routes   routes
	open     map[io.Closer]destination
	refusals map[RefusedFlow]int // by a flow without Times
}

func (s *RoutesSpec) read() (routes, error) {
	read := routes{names: map[destination]string{}}
	for _, route := range s.Names {
		address, err := netip.ParseAddr(route.Address)
		if err != nil {
			return read, fmt.Errorf("names: %w", err)
		}
		name := canonicalName(route.Name)
		if name == "" {
			return read, fmt.Errorf("names: %s has no name", address)
		}
		for _, port := range route.Ports {
			if port.Port == 0 || (port.Protocol != "tcp" && port.Protocol != "udp") {
				return read, fmt.Errorf("names: %s: a port is 1 to 65535, tcp or udp", name)
			}
			at := destination{netip.AddrPortFrom(address, port.Port), port.Protocol}
			if other, known := read.names[at]; known && other != name {
				return read, fmt.Errorf("names: %s and %s have the same address and port", other, name)
			}
			read.names[at] = name
		}
	}
	for _, text := range s.Networks {
		prefix, err := parsePrefix(text)
		if err != nil {
			return read, fmt.Errorf("networks: %w", err)
		}
		read.networks = append(read.networks, prefix.Masked())
	}
	for _, text := range s.PrivateTargets {
		prefix, err := parsePrefix(text)
		if err != nil {
			return read, fmt.Errorf("privateTargets: %w", err)
		}
		read.private = append(read.private, prefix.Masked())
	}
	return read, nil
}

// setRoutes makes the connector serve exactly these. Flows of routes that are no more end.
func (t *Tunnel) setRoutes(spec *RoutesSpec) (int, error) {
	read, err := spec.read()
	if err != nil {
		return 0, &problem{400, "invalid_routes", err.Error()}
	}
	r := t.router
	if r == nil {
		return 0, &problem{409, "not_a_router", "the tunnel was not made as a connector's: say \"router\": true when it is made"}
	}
	r.mu.Lock()
	if r.open == nil {
		r.mu.Unlock()
		return 0, errDown
	}
	before := r.routes
	r.routes = read
	var ended []io.Closer
	for flow, at := range r.open {
		was, _ := before.target(at)
		if is, served := read.target(at); !served || is != was {
			ended = append(ended, flow)
		}
	}
	r.mu.Unlock()
	for _, flow := range ended {
		_ = flow.Close()
	}
	return len(read.names) + len(read.networks), nil
}

// refusedFlows hands out what was not carried since the last call.
func (t *Tunnel) refusedFlows() []RefusedFlow {
	flows := []RefusedFlow{}
	r := t.router
	if r == nil {
		return flows
	}
	r.mu.Lock()
	refusals := r.refusals
	r.refusals = map[RefusedFlow]int{}
	r.mu.Unlock()
	for flow, times := range refusals {
		flow.Times = times
		flows = append(flows, flow)
	}
	slices.SortFunc(flows, func(a, b RefusedFlow) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port))
	})
	return flows
}

// newRouter makes the stack hand over flows for addresses that are not its own. Before the first packet: gVisor reads
// its handlers without a lock.
func newRouter(t *Tunnel, o *overlay) (*router, error) {
	r := &router{tunnel: t, alive: o.alive, streams: newShares(streamsMaximum), datagrams: newShares(sessionsMaximum), open: map[io.Closer]destination{}, refusals: map[RefusedFlow]int{}}
	if problem := o.stack.SetPromiscuousMode(nicID, true); problem != nil {
		return nil, fmt.Errorf("the network stack takes no foreign addresses: %s", problem)
	}
	if problem := o.stack.SetSpoofing(nicID, true); problem != nil {
		return nil, fmt.Errorf("the network stack answers for no foreign addresses: %s", problem)
	}
	// Beyond its limit the forwarder drops without a word, for all alike: takeTCP refuses long before.
	connections := tcp.NewForwarder(o.stack, 0, 2*streamsMaximum, r.takeTCP)
	o.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, packet *stack.PacketBuffer) bool {
		_, served := r.target(arrival("tcp", id))
		return served && connections.HandlePacket(id, packet)
	})
	datagrams := udp.NewForwarder(o.stack, r.takeUDP)
	o.stack.SetTransportProtocolHandler(udp.ProtocolNumber, func(id stack.TransportEndpointID, packet *stack.PacketBuffer) bool {
		_, served := r.target(arrival("udp", id))
		return served && r.datagrams.take(addressOf(id.RemoteAddress)) && datagrams.HandlePacket(id, packet)
	})
	t.open[r] = struct{}{}
	return r, nil
}

func arrival(protocol string, id stack.TransportEndpointID) destination {
	return destination{netip.AddrPortFrom(addressOf(id.LocalAddress), id.LocalPort), protocol}
}

func addressOf(address tcpip.Address) netip.Addr {
	known, _ := netip.AddrFromSlice(address.AsSlice())
	return known.Unmap()
}

func (r *router) target(at destination) (target, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.routes.target(at)
}

// dial reaches the target of a flow, or notes why it was not allowed to.
func (r *router) dial(id stack.TransportEndpointID, at destination) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(r.tunnel.ctx, targetTimeout)
	defer cancel()
	r.mu.Lock()
	to, served := r.routes.target(at)
	private := r.routes.private
	r.mu.Unlock()
	if !served {
		return nil, net.ErrClosed
	}
	name := to.name
	var connection net.Conn
	var err error
	if name != "" {
		connection, err = r.tunnel.outside.dialName(ctx, at.protocol, name, at.at.Port(), private)
	} else {
		name = to.to.String()
		connection, err = r.tunnel.outside.dialer.DialContext(ctx, at.protocol, at.at.String())
	}
	if err == nil {
		return connection, nil
	}
	refused := RefusedFlow{Source: addressOf(id.RemoteAddress).String(), Name: name, Port: at.at.Port(), Protocol: at.protocol}
	var no *forbidden
	var unknown *net.DNSError
	switch {
	case errors.As(err, &no):
		refused.Reason, refused.Resolved = no.reason, no.resolved[0].String()
		r.note(refused)
	case errors.As(err, &unknown):
		refused.Reason = "unresolved"
		r.note(refused)
	}
	slog.Warn("the target of a route was not reached", "tunnel", r.tunnel.ID, "name", name,
		"port", at.at.Port(), "source", refused.Source, "error", err.Error())
	return nil, err
}

func (r *router) note(refused RefusedFlow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.refusals[refused]; known || len(r.refusals) < refusalsMaximum {
		r.refusals[refused]++
	}
}

func (r *router) takeTCP(request *tcp.ForwarderRequest) {
	id := request.ID()
	at := arrival("tcp", id)
	source := addressOf(id.RemoteAddress)
	if !r.streams.take(source) {
		request.Complete(true)
		return
	}
	defer r.streams.leave(source)
	target, err := r.dial(id, at)
	if err != nil {
		request.Complete(true)
		return
	}
	queue := &waiter.Queue{}
	endpoint, problem := request.CreateEndpoint(queue)
	request.Complete(problem != nil)
	if problem != nil {
		_ = target.Close()
		return
	}
	r.alive.watch(endpoint)
	client := gonet.NewTCPConn(queue, endpoint)
	r.carry(at, client, target, func() { relay(client, target) })
}

// takeUDP has a place for the flow already: without one its first datagram is answered by "port unreachable".
func (r *router) takeUDP(request *udp.ForwarderRequest) {
	id := request.ID()
	at := arrival("udp", id)
	source := addressOf(id.RemoteAddress)
	queue := &waiter.Queue{}
	endpoint, problem := request.CreateEndpoint(queue)
	if problem != nil {
		r.datagrams.leave(source)
		return
	}
	client := gonet.NewUDPConn(queue, endpoint)
	go func() {
		defer r.datagrams.leave(source)
		target, err := r.dial(id, at)
		if err != nil {
			_ = client.Close()
			return
		}
		r.carry(at, client, target, func() { relayDatagrams(client, target) })
	}()
}

// carry copies until one end is done, the route is gone or the tunnel is down.
func (r *router) carry(at destination, client, target net.Conn, copying func()) {
	forget, err := r.track(at, client, target)
	if err != nil {
		return
	}
	defer forget()
	r.tunnel.flows.Add(1)
	defer r.tunnel.flows.Add(-1)
	copying()
}

// both closes the two ends of a flow.
type both struct{ client, target net.Conn }

func (b *both) Close() error { return errors.Join(b.client.Close(), b.target.Close()) }

// track ends a flow with its route.
func (r *router) track(at destination, client, target net.Conn) (func(), error) {
	flow := &both{client, target}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, served := r.routes.target(at); r.open == nil || !served {
		_ = flow.Close()
		return nil, net.ErrClosed
	}
	r.open[flow] = at
	return func() {
		r.mu.Lock()
		delete(r.open, flow)
		r.mu.Unlock()
		_ = flow.Close()
	}, nil
}

// Close ends all flows.
func (r *router) Close() error {
	r.mu.Lock()
	open := slices.Collect(maps.Keys(r.open))
	r.open = nil
	r.mu.Unlock()
	for _, flow := range open {
		_ = flow.Close()
	}
	return nil
}

// relayDatagrams copies both ways until there was silence for as long as a mapping lives.
func relayDatagrams(a, b net.Conn) {
	var wait sync.WaitGroup
	oneWay := func(to, from net.Conn) {
		defer func() { _, _ = a.Close(), b.Close() }()
		packet := make([]byte, maxDatagram)
		for {
			size, err := from.Read(packet)
			if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, context.DeadlineExceeded) {
				return
			}
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return
			}
			if err != nil {
				continue // the other's port is closed for now
			}
			until := time.Now().Add(sessionIdle)
			_, _ = a.SetReadDeadline(until), b.SetReadDeadline(until)
			_, _ = to.Write(packet[:size])
		}
	}
	until := time.Now().Add(sessionIdle)
	_, _ = a.SetReadDeadline(until), b.SetReadDeadline(until)
	wait.Go(func() { oneWay(a, b) })
	wait.Go(func() { oneWay(b, a) })
	wait.Wait()
}
