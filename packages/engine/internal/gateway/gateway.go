package gateway

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// largeChange is how many upserts make a change that leaves much garbage behind.
const largeChange = 1000

// gateway is the running data plane.
type gateway struct {
	opts    *options
	version string
	started time.Time
	device  string

	hostRoutes *hostRoutes // nil in a namespace of its own
	tunnel     *tunnel
	firewall   *firewall
	elements   *elements
	events     *events
	failed     chan struct{}

	mu       sync.Mutex // one change of the state at a time
	table    *table
	revision int64
	// dirty is set when the kernel may differ from the table: the next change writes everything anew.
	dirty   bool
	expiry  *expiry
	former  map[netip.Addr]former
	closing chan struct{}
	loops   sync.WaitGroup
}

// start makes everything that must be there before the first packet.
func start(opts *options, socket *os.File) (_ *gateway, err error) {
	private, public, err := readKey(opts.keyFile)
	if err != nil {
		return nil, err
	}
	bind, err := newSocketBind(socket)
	if err != nil {
		return nil, err
	}
	g := &gateway{
		opts: opts, started: time.Now(), table: newTable(), events: newEvents(),
		former: map[netip.Addr]former{}, failed: make(chan struct{}), closing: make(chan struct{}),
	}
	dev, kind, err := openDevice(opts)
	if err != nil {
		return nil, err
	}
	g.device = kind
	defer func() {
		if err != nil {
			dev.Close()
		}
	}()
	// The rules come before the interface is up: nothing passes unjudged.
	if g.firewall, err = newFirewall(opts.iface, opts.address.Addr(), opts.namespace == namespaceHost); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = g.firewall.remove()
		}
	}()
	if g.elements, err = newElements(g.firewall.table.Name); err != nil {
		return nil, startFailure("nftables_failed", "elements of the nftables table cannot be written: %w", err)
	}
	if err = configureLink(opts); err != nil {
		return nil, err
	}
	if opts.namespace == namespaceHost {
		if g.hostRoutes, err = newHostRoutes(opts.iface); err != nil {
			return nil, err
		}
	}
	if g.tunnel, err = newTunnel(dev, bind, private, public); err != nil {
		return nil, err
	}
	if g.expiry, err = newExpiry(); err != nil {
		return nil, err
	}
	g.loops.Add(3)
	go g.watchDevice()
	go g.expireLoop()
	go g.deniedLoop()
	return g, nil
}

func (g *gateway) watchDevice() {
	defer g.loops.Done()
	select {
	case <-g.tunnel.device.Wait():
		select {
		case <-g.closing:
		default:
			close(g.failed)
		}
	case <-g.closing:
	}
}

// close takes everything away again.
func (g *gateway) close() {
	close(g.closing)
	g.expiry.close()
	g.loops.Wait()
	g.tunnel.close()
	g.hostRoutes.close()
	if err := g.firewall.remove(); err != nil {
		slog.Warn("the nftables table could not be removed", "error", err.Error())
	}
}

// summary is the answer to a change of the state.
type summary struct {
	Revision int64   `json:"revision"`
	Peers    int     `json:"peers"`
	Grants   int     `json:"grants"`
	Seconds  float64 `json:"seconds"`
}

// change brings the kernel and the device to what body asks for, all or nothing. whole means that what body does not
// name is removed.
func (g *gateway) change(body *stateBody, whole bool) (*summary, error) {
	began := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	at := now()
	upsert := make(map[string]*peer, len(body.Upsert))
	removed := map[string]bool{}
	for _, id := range body.Remove {
		removed[id] = true
	}
	var late []event
	for i := range body.Upsert {
		next, bad := body.Upsert[i].parse(g.opts.address, at)
		if bad != nil {
			return nil, bad
		}
		if upsert[next.id] != nil {
			return nil, invalid("duplicate_id", "peer %s is in upsert twice", next.id)
		}
		if removed[next.id] {
			return nil, invalid("duplicate_id", "peer %s is in upsert and in remove", next.id)
		}
		upsert[next.id] = next
	}
	for id, next := range upsert {
		// What has ended on the way here is not let in, and reported as if it had ended here.
		if next.deadline != 0 && next.deadline <= at {
			delete(upsert, id)
			removed[id] = true
			late = append(late, expired(next, at))
		}
	}
	var p *plan
	var bad *problem
	if whole {
		p, bad = g.table.replace(upsert, at)
	} else {
		p, bad = g.table.update(upsert, removed, at)
	}
	if bad != nil {
		return nil, bad
	}
	if err := g.carryOut(p); err != nil {
		return nil, err
	}
	g.revision = body.Revision
	for _, e := range late {
		g.events.add(e)
	}
	if len(body.Upsert) >= largeChange {
		// What a full sync leaves as garbage is several times what the state takes.
		go debug.FreeOSMemory()
	}
	return &summary{
		Revision: g.revision, Peers: len(g.table.peers), Grants: g.table.grants(),
		Seconds: time.Since(began).Seconds(),
	}, nil
}

// carryOut makes a plan true, kernel first: what is revoked stops there at once. g.mu is held.
func (g *gateway) carryOut(p *plan) error {
	if g.dirty {
		if err := g.resync(); err != nil {
			return err
		}
	}
	for _, who := range p.put {
		if err := g.hostRoutes.lead(who.networks); err != nil {
			return fmt.Errorf("nothing was changed: %w", err)
		}
	}
	if err := g.elements.apply(append(slices.Clip(p.changes), p.ended()...)); err != nil {
		g.dirty = true
		return fmt.Errorf("nothing was changed, and the next change writes everything anew: %w", err)
	}
	if err := g.tunnel.configure(p.remove, p.put); err != nil {
		g.dirty = true
		return fmt.Errorf("the WireGuard device refused the change, and the next one writes everything anew: %w", err)
	}
	g.table.commit(p)
	for _, network := range p.lost {
		if g.table.byNetwork[network] == nil {
			g.hostRoutes.drop(network)
		}
	}
	g.remember(p)
	g.expiry.update(p)
	g.expiry.compact(g.table.peers)
	if err := forget(p); err != nil {
		// What passes is decided by the elements alone; a tracked connection that stays behind carries replies only
		// while both ends live.
		slog.Warn("tracked connections could not be deleted", "error", err.Error())
	}
	return nil
}

// resync makes kernel and device what the table says.
func (g *gateway) resync() error {
	if err := g.elements.flush(); err != nil {
		return fmt.Errorf("the kernel's sets could not be emptied for a resync: %w", err)
	}
	if err := g.elements.apply(g.table.all(now())); err != nil {
		return fmt.Errorf("the kernel's sets could not be filled for a resync: %w", err)
	}
	if err := g.tunnel.reset(g.table.peers); err != nil {
		return fmt.Errorf("the WireGuard device could not be resynced: %w", err)
	}
	g.dirty = false
	return nil
}

// restore brings the table back when somebody else has removed it: without it the kernel would forward everything.
func (g *gateway) restore() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	slog.Error("the nftables table was removed by somebody else and is made anew: leave it alone when you reload the host's rules", "table", g.firewall.table.Name)
	if err := g.firewall.write(); err != nil {
		return err
	}
	g.dirty = true
	return g.resync()
}

// expire removes what has reached its deadline.
func (g *gateway) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := now()
	due := map[string]bool{}
	for _, p := range g.expiry.due(at) {
		if g.table.peers[p.id] == p {
			due[p.id] = true
		}
	}
	if len(due) == 0 {
		return
	}
	p, bad := g.table.update(nil, due, at)
	if bad != nil {
		return
	}
	if err := g.carryOut(p); err != nil {
		slog.Error("expired peers could not be removed, trying again", "error", err.Error())
		g.expiry.retry(p.remove)
		return
	}
	gone := now()
	for _, who := range p.remove {
		g.events.add(expired(who, gone))
	}
}
