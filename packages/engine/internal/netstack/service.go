package netstack

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lattice.dev/engine/internal/keeper"
)

// problem is an error that the control API answers as it is.
type problem struct {
	status int
	code   string
	detail string
}

func (p *problem) Error() string { return p.detail }

var errClosing = &problem{503, "engine_closing", "the engine is ending: its parent is gone or has told it to end"}

// service holds the tunnels of one process.
type service struct {
	version    string
	runtimeDir string
	log        *slog.Logger
	started    time.Time

	mu       sync.Mutex
	closing  bool
	tunnels  map[string]*Tunnel // nil while one is being made
	revoking sync.WaitGroup     // revokes whose tunnel is not in the map any more
	pending  map[string]*Revoke // of identities that the engine has enrolled, and that have no tunnel yet
	making   map[string]*Revoke // of identities whose tunnel is being made

	watchdog *watchdog
	watching sync.Once
	ending   chan struct{} // closed when the engine ends
	events   *events
	outside  *outside
	alive    liveness // of connections that agents open to a tunnel of the kind netstack

	networks atomic.Int64 // how many there have been that hand out sockets
	keeping  sync.Mutex
	keeper   *keeper.Keeper // nil until the first tunnel wants a namespace

	newKeeper     func() (*keeper.Keeper, error)
	unkept        time.Time // when the last attempt to start one failed
	keeperFailure error
}

func newService(version, runtimeDir string, log *slog.Logger) *service {
	return &service{version: version, runtimeDir: runtimeDir, log: log, started: time.Now(),
		watchdog: newWatchdog(rejectAfter), ending: make(chan struct{}), events: &events{}, outside: newOutside(), alive: usualLiveness,
		tunnels: map[string]*Tunnel{}, pending: map[string]*Revoke{}, making: map[string]*Revoke{}, newKeeper: keeper.Start}
}

type phases struct {
	Device    float64 `json:"device"`
	Handshake float64 `json:"handshake"`
	Probe     float64 `json:"probe"`
}

type made struct {
	ID      string        `json:"id"`
	Proxy   *proxyAddress `json:"proxy"`
	Network networkView   `json:"network"`
	Phases  phases        `json:"phases"`
}

// open makes a tunnel and proves it. ctx ends when whoever asked for it is gone.
func (s *service) open(ctx context.Context, id string, spec *Spec) (*made, error) {
	if err := s.reserve(id, spec.Revoke); err != nil {
		return nil, err
	}
	began := time.Now()
	t, err := s.openTunnel(id, spec)
	if err != nil {
		s.giveUp(ctx, id, nil, spec.Revoke)
		return nil, err
	}
	if err := s.settle(t); err != nil {
		t.close()
		s.remove(t)
		return nil, err
	}
	answer := &made{ID: id, Network: t.view, Phases: phases{Device: time.Since(began).Seconds()}}
	handshake, echo, err := t.prove(ctx, time.Time{}, t.spec.probe, t.spec.timeout)
	if err != nil {
		t.close()
		s.giveUp(ctx, id, t, spec.Revoke)
		return nil, err
	}
	answer.Phases.Handshake, answer.Phases.Probe = handshake.Seconds(), echo.Seconds()
	s.watchOver(t)
	if t.proxy != nil {
		address := t.proxy.address()
		answer.Proxy = &address
	}
	s.log.Info("tunnel up", "tunnel", id, "handshake", answer.Phases.Handshake, "probe", answer.Phases.Probe)
	return answer, nil
}

// reserve keeps a place for a tunnel. To make it may take long; where the engine ends meanwhile, its revoke is at hand.
func (s *service) reserve(id string, revoke *Revoke) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errClosing
	}
	if _, exists := s.tunnels[id]; exists {
		return &problem{409, "tunnel_exists", fmt.Sprintf("there is a tunnel %q already: change it with PATCH or delete it first", id)}
	}
	s.tunnels[id] = nil
	if revoke != nil && revoke.check() == nil {
		s.making[id] = revoke
	}
	return nil
}

// settle puts the tunnel in its reserved place, where the engine's end finds it and its revoke. An end that has come
// before has the revoke already.
func (s *service) settle(t *Tunnel) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tunnels[t.ID] = t
	if s.closing {
		return errClosing
	}
	delete(s.pending, t.ID)
	delete(s.making, t.ID)
	return nil
}

// remove forgets the tunnel and tells whether it was there.
func (s *service) remove(t *Tunnel) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnels[t.ID] != t {
		return false
	}
	delete(s.tunnels, t.ID)
	return true
}

// giveUp forgets a tunnel that was not made, nil where it did not come to one. It revokes where nobody is left to hear of
// that: the caller would have deleted the identity, but it has ended in the middle of the call.
func (s *service) giveUp(ctx context.Context, id string, t *Tunnel, revoke *Revoke) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnels[id] != t || (t == nil && s.closing) {
		return // the revoke is in the hands of who has removed it, or of the end
	}
	delete(s.tunnels, id)
	delete(s.making, id)
	if revoke == nil || revoke.check() != nil || (ctx.Err() == nil && !s.closing) {
		return
	}
	s.revoking.Add(1)
	go func() {
		defer s.revoking.Done()
		_ = s.carryOut(id, revoke)
	}()
}

func (s *service) carryOut(id string, revoke *Revoke) error {
	ctx, cancel := context.WithTimeout(context.Background(), revokeLimit)
	defer cancel()
	err := revoke.carryOut(ctx)
	if err != nil {
		s.log.Error("the identity was not revoked; it ends by itself at its deadline", "tunnel", id, "error", err.Error())
		return err
	}
	s.log.Info("identity revoked", "tunnel", id)
	return nil
}

func (s *service) find(id string) (*Tunnel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tunnels[id]; t != nil {
		return t, nil
	}
	return nil, &problem{404, "tunnel_not_found", fmt.Sprintf("there is no tunnel %q", id)}
}

func (s *service) list() []*Tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	tunnels := make([]*Tunnel, 0, len(s.tunnels))
	for _, t := range s.tunnels {
		if t != nil {
			tunnels = append(tunnels, t)
		}
	}
	slices.SortFunc(tunnels, func(a, b *Tunnel) int { return strings.Compare(a.ID, b.ID) })
	return tunnels
}

// delete takes a tunnel down; it comes down also where its revoke fails.
func (s *service) delete(id string, revoke bool) error {
	t, err := s.find(id)
	if err != nil {
		return nil
	}
	if request := t.revocation(); revoke && request != nil {
		err = s.carryOut(id, request)
	}
	t.close()
	if s.remove(t) {
		s.log.Info("tunnel down", "tunnel", id)
	}
	if err != nil {
		return &problem{502, "revoke_failed", "the tunnel is down, but the identity was not revoked: " + err.Error()}
	}
	return nil
}

// end takes every tunnel down and carries out every revoke. It waits for nothing else before that: a keeper that hangs
// must not keep an identity alive.
func (s *service) end() {
	s.mu.Lock()
	if !s.closing {
		close(s.ending)
	}
	s.closing = true
	without := s.pending // a tunnel
	maps.Copy(without, s.making)
	s.pending, s.making = map[string]*Revoke{}, map[string]*Revoke{}
	s.mu.Unlock()
	var all sync.WaitGroup
	for id, revoke := range without {
		all.Go(func() { _ = s.carryOut(id, revoke) })
	}
	for _, t := range s.list() {
		all.Go(func() {
			t.close()
			s.remove(t)
		})
		if revoke := t.revocation(); revoke != nil && without[t.ID] == nil {
			all.Go(func() { _ = s.carryOut(t.ID, revoke) })
		}
	}
	all.Wait()
	s.revoking.Wait()
	s.endKeeper()
}
