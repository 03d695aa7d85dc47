package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"lattice.dev/engine/internal/wg"
)

const (
	dialTimeout = 20 * time.Second
	// exchangeTimeout is how long a change of the key waits for its handshake.
	exchangeTimeout = 5 * time.Second
)

// Tunnel is one identity's way into the overlay.
type Tunnel struct {
	ID string

	spec   *settings
	device wg.Device
	net    network
	view   networkView
	proxy  *proxy
	ctx    context.Context // ends with the tunnel
	end    context.CancelFunc

	refused atomic.Int64
	flows   atomic.Int64 // connections and associations through the tunnel

	mu       sync.Mutex
	down     bool
	state    string        // what the tunnel is
	closed   chan struct{} // once all of it is down
	hosts    map[string]netip.Addr
	policy   *Policy
	revoke   *Revoke
	names    *NameSource
	peer     wg.Peer
	endpoint string // of the gateway as it was given, perhaps by name
	key      wg.Key // its private one
	deadline *deadline
	open     map[io.Closer]struct{}
	forwards map[string]*forward
	asked    asked
	router   *router // of a connector that serves more than its own address
	lastID   int

	vigil     *vigil // nil until the tunnel is proven
	recovered int    // how often it was silent and came back
	mending   sync.Mutex
	events    *events
	outside   *outside
}

// States of a tunnel.
const (
	stateUp      = "up"
	stateSilent  = "silent" // up, but its gateway answers no handshake
	stateExpired = "expired"
	stateLost    = "lost" // its interface or namespace went by itself, or it was silent for too long; the identity may live on
)

var (
	errDown = errors.New("the tunnel is down: its identity has ended")
	errLost = errors.New("the tunnel is lost: its interface or the process that keeps its network namespace is gone, or its gateway has not answered for too long. Delete it and make it again")
)

// openTunnel brings up the device and nothing else; prove says whether packets flow.
func (s *service) openTunnel(id string, spec *Spec) (*Tunnel, error) {
	read, err := spec.read()
	if err != nil {
		return nil, &problem{400, "invalid_tunnel", err.Error()}
	}
	reached, view, err := s.openNetwork(read)
	if err != nil {
		return nil, err
	}
	t := &Tunnel{
		ID: id, spec: read, net: reached, view: view, hosts: read.hosts, policy: spec.Policy, revoke: spec.Revoke, names: spec.Names,
		peer: read.peer, endpoint: spec.Peer.Endpoint, events: s.events, outside: s.outside, key: read.privateKey, state: stateUp, closed: make(chan struct{}), open: map[io.Closer]struct{}{}, forwards: map[string]*forward{},
	}
	t.ctx, t.end = context.WithCancel(context.Background())
	if stack, ok := reached.(*overlay); ok && spec.Router {
		t.router, err = newRouter(t, stack)
	}
	if err == nil {
		t.device, err = reached.begin(read)
	}
	if err != nil {
		t.end()
		reached.close()
		return nil, err
	}
	if spec.Proxy != nil {
		if t.proxy, err = openProxy(t, *spec.Proxy); err != nil {
			t.close()
			return nil, err
		}
	}
	if spec.ExpiresIn != nil {
		t.expireIn(seconds(*spec.ExpiresIn))
	}
	go t.watch()
	return t, nil
}

// watch takes the tunnel down when its network has gone by itself.
func (t *Tunnel) watch() {
	select {
	case <-t.ctx.Done():
		return
	case <-t.net.lost():
	case <-t.device.Gone():
	}
	t.lose("its network has gone")
}

// lose takes the tunnel down, of which the identity may live on.
func (t *Tunnel) lose(why string) {
	if t.closeAs(stateLost) {
		slog.Error("a tunnel is lost", "tunnel", t.ID, "why", why)
		t.events.tell(event{Type: stateLost, ID: t.ID, Why: why})
	}
}

func (t *Tunnel) current() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state
}

func (t *Tunnel) expireIn(life time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down {
		return
	}
	if t.deadline != nil {
		t.deadline.stop()
	}
	var mine *deadline
	mine = newDeadline(life, func() {
		t.mu.Lock()
		current := t.deadline == mine
		t.mu.Unlock()
		if current {
			t.close()
		}
	})
	t.deadline = mine
}

// close takes the tunnel down with every connection, listener and packet of it. It may be called again, and returns
// when the tunnel is down.
func (t *Tunnel) close() { t.closeAs(stateExpired) }

// closeAs tells whether the tunnel was up until now.
func (t *Tunnel) closeAs(state string) bool {
	t.mu.Lock()
	if t.down {
		t.mu.Unlock()
		<-t.closed
		return false
	}
	defer close(t.closed)
	t.down, t.state = true, state
	if t.deadline != nil {
		t.deadline.stop()
	}
	open := t.open
	t.open = map[io.Closer]struct{}{}
	t.forwards = map[string]*forward{}
	t.mu.Unlock()
	t.end()
	if t.proxy != nil {
		t.proxy.close()
	}
	for closer := range open {
		_ = closer.Close()
	}
	t.device.Close()
	t.net.close()
	return true
}

// why is the error of what is asked of a tunnel that is down.
func (t *Tunnel) why() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == stateLost {
		return errLost
	}
	return errDown
}

// track closes c when the tunnel goes down; the returned function closes it before and forgets it.
func (t *Tunnel) track(c io.Closer) (func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.down {
		_ = c.Close()
		return nil, errDown // of a connection, which nobody asks for its reason
	}
	t.open[c] = struct{}{}
	return func() {
		t.mu.Lock()
		delete(t.open, c)
		t.mu.Unlock()
		_ = c.Close()
	}, nil
}

// resolve finds the address of a name or literal, from the tunnel's own list and nowhere else.
func (t *Tunnel) resolve(protocol, host string, port uint16) (netip.AddrPort, error) {
	t.mu.Lock()
	hosts, policy, source := t.hosts, t.policy, t.names
	t.mu.Unlock()
	address, err := netip.ParseAddr(host)
	if err != nil {
		known, ok := hosts[canonicalName(host)]
		if !ok && source.covers(canonicalName(host)) {
			if known, err = t.ask(protocol, canonicalName(host), port); err != nil {
				return netip.AddrPort{}, err
			}
			ok = true
		}
		if !ok {
			t.refused.Add(1)
			return netip.AddrPort{}, policy.refuse(protocol, fmt.Sprintf("%s:%d (a name that is not on its list; there is no DNS in the tunnel)", host, port), hosts)
		}
		address = known
	}
	to := netip.AddrPortFrom(address.Unmap(), port)
	for _, route := range t.spec.routes {
		if route.Contains(to.Addr()) {
			return to, nil
		}
	}
	t.refused.Add(1)
	return netip.AddrPort{}, policy.refuse(protocol, to.String()+" (outside the overlay)", hosts)
}

// dial connects through the tunnel. The attempt is always made: the gateway decides, the policy only
// explains why it did not succeed.
func (t *Tunnel) dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	to, err := t.resolve("tcp", host, port)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	connection, err := t.net.dialTCP(ctx, to)
	if err == nil {
		return connection, nil
	}
	t.mu.Lock()
	hosts, policy, down := t.hosts, t.policy, t.down
	t.mu.Unlock()
	if down {
		return nil, t.why()
	}
	if !policy.grants("tcp", to) {
		t.refused.Add(1)
		return nil, policy.refuse("tcp", to.String(), hosts)
	}
	return nil, err
}

func (t *Tunnel) revocation() *Revoke {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.revoke
}

func (t *Tunnel) update(change *Change) error {
	if change.ExpiresIn != nil && *change.ExpiresIn <= 0 {
		return &problem{400, "invalid_tunnel", "expiresIn: the new deadline is over already"}
	}
	if err := errors.Join(change.Revoke.check(), change.Names.check()); err != nil {
		return &problem{400, "invalid_tunnel", err.Error()}
	}
	hosts, err := readHosts(change.Hosts)
	if err != nil {
		return &problem{400, "invalid_tunnel", err.Error()}
	}
	var key wg.Key
	if change.Interface != nil {
		if key, err = wg.ParseKey(change.Interface.PrivateKey); err != nil {
			return &problem{400, "invalid_tunnel", "interface.privateKey: " + err.Error()}
		}
	}
	t.mu.Lock()
	address, former := t.peer.Endpoint, t.key
	t.mu.Unlock()
	if change.Peer != nil {
		if err = t.moveToNamed(change.Peer.Endpoint, address); err != nil {
			return err
		}
	}
	if err == nil && key != "" && key != former {
		err = t.exchangeKey(key)
	}
	if err != nil {
		return fmt.Errorf("the device refuses the change: %w", err)
	}
	t.mu.Lock()
	if change.Hosts != nil {
		t.hosts = hosts
	}
	if change.Policy != nil {
		t.policy = change.Policy
	}
	if change.Revoke != nil {
		t.revoke = change.Revoke
	}
	if change.Names != nil {
		t.names = change.Names
	}
	t.mu.Unlock()
	if change.ExpiresIn != nil {
		t.expireIn(seconds(*change.ExpiresIn))
	}
	return nil
}

// exchangeKey takes another key into use, with a handshake: who only receives would send nothing that makes one, and the
// gateway keeps the former key for a while and not for ever. Connections go on.
func (t *Tunnel) exchangeKey(key wg.Key) error {
	counters, err := t.device.Counters()
	if err == nil {
		err = t.device.SetPrivateKey(key)
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.key = key
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.ctx, exchangeTimeout)
	defer cancel()
	// The device may have begun already, for a packet that goes out now.
	if err := t.shakeHands(ctx, counters.LastHandshake, false); err != nil && t.ctx.Err() == nil {
		// The device goes on trying, as it does whenever its peer is out of reach.
		slog.Warn("no handshake under the new key yet", "tunnel", t.ID, "error", err.Error())
	}
	return nil
}

// Status is the answer of GET /v1/tunnels/{id}.
type Status struct {
	ID            string        `json:"id"`
	State         string        `json:"state"`
	ExpiresIn     *float64      `json:"expiresIn"`
	LastHandshake *float64      `json:"lastHandshake"`
	RxBytes       uint64        `json:"rxBytes"`
	TxBytes       uint64        `json:"txBytes"`
	Proxy         *proxyAddress `json:"proxy"`
	Network       networkView   `json:"network"`
	Connections   int           `json:"connections"`
	Refused       int64         `json:"refused"`
	Recovered     int           `json:"recovered"`
	Forwards      []forwardView `json:"forwards"`
}

func (t *Tunnel) status() Status {
	status := Status{ID: t.ID, Network: t.view, Refused: t.refused.Load(), Forwards: []forwardView{}}
	t.mu.Lock()
	status.State, status.Recovered = t.state, t.recovered
	if t.deadline != nil {
		left := t.deadline.left().Seconds()
		status.ExpiresIn = &left
	}
	status.Connections = int(t.flows.Load())
	forwards := maps.Clone(t.forwards)
	down := t.down
	t.mu.Unlock()
	for _, forward := range forwards {
		status.Forwards = append(status.Forwards, forward.view())
	}
	if t.proxy != nil && !down {
		address := t.proxy.address()
		status.Proxy = &address
	}
	if down {
		return status
	}
	if counters, err := t.device.Counters(); err == nil {
		status.RxBytes, status.TxBytes = counters.Received, counters.Sent
		if !counters.LastHandshake.IsZero() {
			ago := time.Since(counters.LastHandshake).Seconds()
			status.LastHandshake = &ago
		}
	}
	return status
}
