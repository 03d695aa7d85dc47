package gateway

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// table is the desired state with its indexes, and the elements that follow from it. It is pure memory: the
// gateway asks it for a plan, carries the plan out, and only then commits it.
type table struct {
	peers     map[string]*peer
	byKey     map[publicKey]*peer
	byAddress map[netip.Addr]*peer              // also by the routes of a peer
	granting  map[netip.Addr]map[*peer]struct{} // who grants itself a way to this address
	byNetwork map[netip.Prefix]*peer
	ranging   map[*peer]struct{}     // who grants itself a way to some network
	elements  map[elementKey]instant // what the kernel has, with deadlines
	granted   int                    // those of them that are grants
}

func newTable() *table {
	return &table{
		peers:     map[string]*peer{},
		byKey:     map[publicKey]*peer{},
		byAddress: map[netip.Addr]*peer{},
		granting:  map[netip.Addr]map[*peer]struct{}{},
		byNetwork: map[netip.Prefix]*peer{},
		ranging:   map[*peer]struct{}{},
		elements:  map[elementKey]instant{},
	}
}

// plan is the way from the state in force to the next one.
type plan struct {
	remove   []*peer // out of the state, or replaced by one of put
	put      []*peer // into the state; those without any difference are left out
	deadline map[elementKey]instant
	changes  []change
	// gone are addresses that have lost their identity, lost are networks that have lost their connector; cut are the
	// grants that no longer pass.
	gone map[netip.Addr]struct{}
	lost []netip.Prefix
	cut  []elementKey
}

// replace plans the whole state to be exactly next.
func (t *table) replace(next map[string]*peer, at instant) (*plan, *problem) {
	removed := map[string]bool{}
	for id := range t.peers {
		if next[id] == nil {
			removed[id] = true
		}
	}
	return t.update(next, removed, at)
}

// update plans the upserts and removals of a patch. An id in both is refused by the caller.
func (t *table) update(upsert map[string]*peer, removed map[string]bool, at instant) (*plan, *problem) {
	p := &plan{deadline: map[elementKey]instant{}, gone: map[netip.Addr]struct{}{}}
	for id := range removed {
		if old := t.peers[id]; old != nil {
			p.remove = append(p.remove, old)
		}
	}
	for id, next := range upsert {
		old := t.peers[id]
		if old != nil {
			next.deadline = settle(old.deadline, next.deadline)
			if same(old, next) {
				continue
			}
			p.remove = append(p.remove, old)
		}
		p.put = append(p.put, next)
	}
	if bad := t.conflict(p); bad != nil {
		return nil, bad
	}
	t.diff(p, at)
	return p, nil
}

func same(a, b *peer) bool {
	return a.key == b.key && a.address == b.address && a.line == b.line && a.deadline == b.deadline &&
		slices.Equal(a.routes, b.routes) && slices.Equal(a.networks, b.networks) && maps.Equal(a.grants, b.grants)
}

// conflict finds keys and addresses that two identities would have at once.
func (t *table) conflict(p *plan) *problem {
	leaving := make(map[*peer]bool, len(p.remove))
	for _, old := range p.remove {
		leaving[old] = true
	}
	networks := map[netip.Prefix]*peer{}
	for network, staying := range t.byNetwork {
		if !leaving[staying] {
			networks[network] = staying
		}
	}
	keys, addresses := make(map[publicKey]*peer, len(p.put)), make(map[netip.Addr]*peer, len(p.put))
	for _, next := range p.put {
		other := keys[next.key]
		if staying := t.byKey[next.key]; staying != nil && !leaving[staying] {
			other = staying
		}
		if other != nil {
			return &problem{409, "duplicate_key", "peers " + other.id + " and " + next.id + " have the same public key: a key is one identity"}
		}
		keys[next.key] = next
		for _, address := range next.addresses() {
			other = addresses[address]
			if staying := t.byAddress[address]; staying != nil && !leaving[staying] {
				other = staying
			}
			if other != nil {
				return &problem{409, "duplicate_address", "peers " + other.id + " and " + next.id + " have the same address " + address.String()}
			}
			addresses[address] = next
		}
		for _, network := range next.networks {
			for known, other := range networks {
				if known.Overlaps(network) {
					return &problem{409, "duplicate_address", "peers " + other.id + " and " + next.id + " have the networks " + known.String() + " and " + network.String() + ", which overlap"}
				}
			}
		}
		for _, network := range next.networks {
			networks[network] = next
		}
	}
	return nil
}

// diff works out the elements of everything that the plan touches.
func (t *table) diff(p *plan, at instant) {
	touched := map[elementKey]struct{}{}
	next := make(map[netip.Addr]*peer, len(p.put))
	leaving := make(map[*peer]bool, len(p.remove))
	note := func(who *peer) {
		for g := range who.grants {
			touched[g.elementOf(who)] = struct{}{}
		}
		if who.line.IsValid() {
			touched[lineElement(who)] = struct{}{}
		}
		for _, address := range who.addresses() {
			touched[liveElement(address)] = struct{}{}
			for from := range t.granting[address] {
				for g := range from.grants {
					if g.to == address {
						touched[g.elementOf(from)] = struct{}{}
					}
				}
			}
		}
	}
	noteNetworks := func(who *peer) {
		for _, network := range who.networks {
			for from := range t.ranging {
				for g := range from.grants {
					if g.bits != 0 && within(g.network(), network) {
						touched[g.elementOf(from)] = struct{}{}
					}
				}
			}
		}
	}
	for _, old := range p.remove {
		leaving[old] = true
		note(old)
		noteNetworks(old)
	}
	for _, who := range p.put {
		for _, address := range who.addresses() {
			next[address] = who
		}
		note(who)
		noteNetworks(who)
	}
	holder := func(address netip.Addr) *peer {
		if who := next[address]; who != nil {
			return who
		}
		if who := t.byAddress[address]; who != nil && !leaving[who] {
			return who
		}
		return nil
	}
	server := func(network netip.Prefix) *peer {
		for _, who := range p.put {
			if slices.ContainsFunc(who.networks, func(n netip.Prefix) bool { return within(network, n) }) {
				return who
			}
		}
		for n, who := range t.byNetwork {
			if !leaving[who] && within(network, n) {
				return who
			}
		}
		return nil
	}
	for _, old := range p.remove {
		for _, network := range old.networks {
			if who := server(network); who == nil || who.id != old.id {
				p.lost = append(p.lost, network)
			}
		}
		for _, address := range old.addresses() {
			if who := holder(address); who == nil || who.id != old.id {
				p.gone[address] = struct{}{}
			}
		}
	}
	for key := range touched {
		deadline, wanted := wants(key, holder, server)
		has, there := t.elements[key]
		switch {
		case wanted && there && has == deadline:
			continue
		case wanted:
			c := change{key: key, remove: there, add: true}
			if deadline != 0 {
				c.timeout = max(time.Duration(deadline-at), time.Millisecond)
			}
			p.changes = append(p.changes, c)
			p.deadline[key] = deadline
		case there:
			p.changes = append(p.changes, change{key: key, remove: true})
			if key.grants() {
				p.cut = append(p.cut, key)
			}
		}
	}
}

// wants tells whether an element belongs into the kernel, and until when.
func wants(key elementKey, holder func(netip.Addr) *peer, server func(netip.Prefix) *peer) (instant, bool) {
	from := holder(netip.AddrFrom4([4]byte(key.key[0:4])))
	if from == nil {
		return 0, false
	}
	switch key.set {
	case inLive:
		return from.deadline, true
	case inLines:
		return from.deadline, from.line.IsValid() && key == lineElement(from)
	}
	g := grant{to: netip.AddrFrom4([4]byte(key.key[4:8])), bits: key.bits}
	if key.set != inPairs {
		g.protocol, g.port = key.key[8], uint16(key.key[12])<<8|uint16(key.key[13])
	}
	// A route is somewhere to go to; what comes from there has no grants of its own.
	if _, granted := from.grants[g]; !granted || from.address.As4() != [4]byte(key.key[0:4]) {
		return 0, false
	}
	to := holder(g.to)
	if key.set == inRanges {
		to = server(g.network())
	}
	if to == nil {
		return 0, false
	}
	return earlier(from.deadline, to.deadline), true
}

// commit makes the plan the state.
func (t *table) commit(p *plan) {
	for _, old := range p.remove {
		delete(t.peers, old.id)
		delete(t.byKey, old.key)
		for _, address := range old.addresses() {
			delete(t.byAddress, address)
		}
		for _, network := range old.networks {
			delete(t.byNetwork, network)
		}
		delete(t.ranging, old)
		for g := range old.grants {
			delete(t.granting[g.to], old)
			if len(t.granting[g.to]) == 0 {
				delete(t.granting, g.to)
			}
		}
	}
	for _, next := range p.put {
		t.peers[next.id], t.byKey[next.key] = next, next
		for _, address := range next.addresses() {
			t.byAddress[address] = next
		}
		for _, network := range next.networks {
			t.byNetwork[network] = next
		}
		for g := range next.grants {
			if t.granting[g.to] == nil {
				t.granting[g.to] = map[*peer]struct{}{}
			}
			t.granting[g.to][next] = struct{}{}
			if g.bits != 0 {
				t.ranging[next] = struct{}{}
			}
		}
	}
	for _, c := range p.changes {
		_, had := t.elements[c.key]
		if c.add {
			t.elements[c.key] = p.deadline[c.key]
		} else {
			delete(t.elements, c.key)
		}
		switch {
		case !c.key.grants() || had == c.add:
		case c.add:
			t.granted++
		default:
			t.granted--
		}
	}
}

// ended marks the addresses that have lost their identity. It is no part of the state: it passes by itself.
func (p *plan) ended() []change {
	marks := make([]change, 0, len(p.gone))
	for address := range p.gone {
		marks = append(marks, change{key: endedElement(address), remove: true, add: true, timeout: endedTimeout})
	}
	return marks
}

// grants counts the grants in force.
func (t *table) grants() int { return t.granted }

// all is every element anew, for a kernel whose state is not known.
func (t *table) all(at instant) []change {
	changes := make([]change, 0, len(t.elements))
	for key, deadline := range t.elements {
		c := change{key: key, add: true}
		if deadline != 0 {
			c.timeout = max(time.Duration(deadline-at), time.Millisecond)
		}
		changes = append(changes, c)
	}
	return changes
}
