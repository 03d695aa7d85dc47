package netstack

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"lattice.dev/engine/internal/wg"
)

// watchdog looks after the tunnels of a process: one timer for all of them, and no look at a tunnel before the session
// that it had can have ended.
type watchdog struct {
	limits
	boot    func() time.Duration // goes on while the machine sleeps
	awake   func() time.Duration // does not
	resolve func(ctx context.Context, endpoint string) (string, error)
}

func newWatchdog(silent time.Duration) *watchdog {
	return &watchdog{limits: limitsOf(silent), boot: bootTime, resolve: wg.ResolveEndpoint,
		awake: func() time.Duration { return time.Since(processStart) }}
}

// watchOver has the tunnel looked after from now on, when it has been proven.
func (s *service) watchOver(t *Tunnel) {
	now := s.watchdog.boot()
	t.mu.Lock()
	t.vigil = &vigil{limits: s.watchdog.limits, keepalive: t.spec.peer.Keepalive > 0, at: now, looked: now}
	t.mu.Unlock()
	s.watching.Do(func() { go s.watch() })
}

func (s *service) watch() {
	ticker := time.NewTicker(s.watchdog.gap)
	defer ticker.Stop()
	slept := s.watchdog.boot() - s.watchdog.awake()
	for {
		select {
		case <-s.ending:
			return
		case <-ticker.C:
		}
		now := s.watchdog.boot()
		former := slept
		slept = now - s.watchdog.awake()
		for _, t := range s.list() {
			s.look(t, now, slept-former >= asleep)
		}
	}
}

func (s *service) look(t *Tunnel, now time.Duration, woke bool) {
	t.mu.Lock()
	v, down := t.vigil, t.down
	t.mu.Unlock()
	if v == nil || down || !(woke || v.due(now)) {
		return
	}
	counters, err := t.device.Counters()
	if err != nil {
		return // it is closed, or about to be
	}
	t.mu.Lock()
	if t.down { // it has ended meanwhile, and its state says how
		t.mu.Unlock()
		return
	}
	found := v.look(now, time.Now(), counters, woke)
	age, attempts := (now - v.at).Seconds(), v.attempts
	if found == fellQuiet {
		t.state = stateSilent
	}
	if found == cameBack {
		t.state = stateUp
		t.recovered++
		age = (now - v.since).Seconds()
	}
	t.mu.Unlock()
	switch found {
	case askFirst:
		go t.shake()
	case fellQuiet:
		slog.Warn("a tunnel is silent", "tunnel", t.ID, "lastHandshake", age)
		s.events.tell(event{Type: stateSilent, ID: t.ID, LastHandshake: age})
		go s.bringBack(t, false)
	case tryAgain:
		go s.bringBack(t, attempts > 2)
	case refresh:
		slog.Info("the machine has slept; a tunnel shakes hands again", "tunnel", t.ID)
		go s.bringBack(t, true)
	case cameBack:
		slog.Info("a tunnel is back", "tunnel", t.ID, "silent", age)
		s.events.tell(event{Type: eventBack, ID: t.ID, Silent: age})
	case givenUp:
		slog.Error("a tunnel stays silent and is given up", "tunnel", t.ID, "lastHandshake", age, "attempts", attempts)
		go t.lose("its gateway has answered no handshake for too long")
	case nothing:
	}
}

// bringBack looks the gateway up again and begins a handshake; rebind leaves by a new UDP socket, which a NAT on the
// way knows nothing of. Nobody waits for the answer here: the next look finds it.
func (s *service) bringBack(t *Tunnel, rebind bool) {
	if !t.mending.TryLock() {
		return // the resolver is slow
	}
	defer t.mending.Unlock()
	t.mu.Lock()
	name := t.endpoint
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.ctx, resolveTimeout)
	defer cancel()
	address, err := s.watchdog.resolve(ctx, name)
	if err == nil {
		err = t.moveTo(address)
	}
	if err != nil && t.ctx.Err() == nil {
		slog.Warn("a tunnel's gateway cannot be looked up", "tunnel", t.ID, "error", err.Error())
	}
	if t.ctx.Err() != nil {
		return
	}
	if rebind {
		if err := t.device.Rebind(); err != nil {
			slog.Warn("a tunnel gets no new socket", "tunnel", t.ID, "error", err.Error())
		}
	}
	t.shake()
}

func (t *Tunnel) shake() {
	if err := t.device.Initiate(true); err != nil && t.ctx.Err() == nil {
		slog.Warn("a tunnel cannot shake hands", "tunnel", t.ID, "error", err.Error())
	}
}

// moveTo has the tunnel's packets sent to an address of its gateway.
func (t *Tunnel) moveTo(address string) error {
	if t.spec.network.Kind == kindInterface && leadsInto(address, t.spec.routes) {
		return errLoop(address)
	}
	if err := t.device.SetEndpoint(address); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.peer.Endpoint != address {
		slog.Info("a tunnel's gateway has moved", "tunnel", t.ID, "from", t.peer.Endpoint, "to", address)
	}
	t.peer.Endpoint = address
	return nil
}

// moveToNamed is moveTo for an endpoint that may be a name; from is the address until now.
func (t *Tunnel) moveToNamed(endpoint, from string) error {
	ctx, cancel := context.WithTimeout(t.ctx, resolveTimeout)
	defer cancel()
	address, err := wg.ResolveEndpoint(ctx, endpoint)
	if err == nil && t.spec.network.Kind == kindInterface && leadsInto(address, t.spec.routes) {
		err = errLoop(address)
	}
	if err != nil {
		return &problem{http.StatusBadRequest, "invalid_tunnel", err.Error()}
	}
	if err := t.moveTo(address); err != nil {
		return fmt.Errorf("the device refuses the change: %w", err)
	}
	t.mu.Lock()
	t.endpoint = endpoint
	t.mu.Unlock()
	if address == from {
		return nil
	}
	// Who is there may not know the session; a handshake tells at once. The device goes on trying.
	return t.device.Initiate(true)
}

func errLoop(endpoint string) error {
	return fmt.Errorf("peer.endpoint: %s is within peer.allowedIPs, so the tunnel's own packets would be routed into the tunnel", endpoint)
}

// leadsInto tells whether packets to the gateway would be routed into the tunnel that needs them.
func leadsInto(endpoint string, routes []netip.Prefix) bool {
	address, err := netip.ParseAddrPort(endpoint)
	if err != nil {
		return false
	}
	for _, route := range routes {
		if route.Contains(address.Addr().Unmap()) {
			return true
		}
	}
	return false
}
