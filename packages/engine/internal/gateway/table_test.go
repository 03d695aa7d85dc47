package gateway

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// kernelOf carries out changes on a map in the kernel's place.
func kernelOf(kernel map[elementKey]time.Duration, changes []change) error {
	for _, c := range changes {
		if c.remove {
			delete(kernel, c.key)
		}
	}
	for _, c := range changes {
		if c.add {
			if _, there := kernel[c.key]; there {
				return fmt.Errorf("%v is added while it is there", c.key)
			}
			kernel[c.key] = c.timeout
		}
	}
	return nil
}

// wanted works out all elements of a state, from nothing.
func wanted(peers map[string]*peer) map[elementKey]instant {
	byAddress := map[netip.Addr]*peer{}
	server := func(g grant) *peer {
		for _, p := range peers {
			for _, network := range p.networks {
				if within(g.network(), network) {
					return p
				}
			}
		}
		return nil
	}
	for _, p := range peers {
		for _, address := range p.addresses() {
			byAddress[address] = p
		}
	}
	all := map[elementKey]instant{}
	for _, p := range peers {
		for _, address := range p.addresses() {
			all[liveElement(address)] = p.deadline
		}
		if p.line.IsValid() {
			all[lineElement(p)] = p.deadline
		}
		for g := range p.grants {
			to := byAddress[g.to]
			if g.bits != 0 {
				to = server(g)
			}
			if to != nil {
				all[g.elementOf(p)] = earlier(p.deadline, to.deadline)
			}
		}
	}
	return all
}

func notGrants(all map[elementKey]instant) []elementKey {
	var keys []elementKey
	for key := range all {
		if key.set == inLive || key.set == inLines {
			keys = append(keys, key)
		}
	}
	return keys
}

func TestEveryWayOfChangesLeadsToTheElementsOfTheState(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		table, kernel := newTable(), map[elementKey]time.Duration{}
		want := map[string]*peer{}
		for step := range 30 {
			upsert, removed := map[string]*peer{}, map[string]bool{}
			for range random.IntN(5) {
				p := &peer{id: fmt.Sprint(random.IntN(6)), address: netip.AddrFrom4([4]byte{10, 96, 0, byte(2 + random.IntN(7))}), grants: map[grant]struct{}{}}
				p.key[0] = byte(1 + random.IntN(8))
				if random.IntN(3) > 0 {
					p.deadline = instant(random.IntN(5)+1) * instant(time.Hour)
				}
				if random.IntN(3) == 0 {
					p.line = netip.AddrFrom4([4]byte{10, 96, 0, byte(2 + random.IntN(7))})
				}
				if random.IntN(3) == 0 {
					p.routes = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 9, byte(random.IntN(3))})}
				}
				if random.IntN(4) == 0 {
					p.networks = []netip.Prefix{netip.MustParsePrefix([]string{"10.0.7.0/24", "10.0.7.0/25", "10.0.8.0/24"}[random.IntN(3)])}
				}
				for range random.IntN(4) {
					g := grant{to: netip.AddrFrom4([4]byte{10, 96, 0, byte(2 + random.IntN(7))})}
					if random.IntN(3) == 0 {
						g.to = netip.AddrFrom4([4]byte{10, 96, 9, byte(random.IntN(3))})
					}
					if random.IntN(2) == 0 {
						g.protocol, g.port = 6, uint16(80+random.IntN(2))
						if random.IntN(3) == 0 {
							network := netip.MustParsePrefix([]string{"10.0.7.0/24", "10.0.7.5/32", "10.0.7.128/25"}[random.IntN(3)])
							g.to, g.bits = network.Addr(), uint8(network.Bits())
						}
					}
					p.grants[g] = struct{}{}
				}
				upsert[p.id] = p
			}
			for range random.IntN(3) {
				if id := fmt.Sprint(random.IntN(6)); upsert[id] == nil {
					removed[id] = true
				}
			}
			next := maps.Clone(want)
			var plan *plan
			var bad *problem
			if random.IntN(3) == 0 {
				next = maps.Clone(upsert)
				plan, bad = table.replace(upsert, 1)
			} else {
				maps.Copy(next, upsert)
				for id := range removed {
					delete(next, id)
				}
				plan, bad = table.update(upsert, removed, 1)
			}
			keys, addresses := map[publicKey]bool{}, map[netip.Addr]bool{}
			held, overlap, networks := 0, false, []netip.Prefix{}
			for _, p := range next {
				keys[p.key] = true
				for _, network := range p.networks {
					overlap = overlap || slices.ContainsFunc(networks, network.Overlaps)
					networks = append(networks, network)
				}
				for _, address := range p.addresses() {
					addresses[address] = true
					held++
				}
			}
			if clash := overlap || len(keys) < len(next) || len(addresses) < held; clash != (bad != nil) {
				t.Fatalf("seed %d step %d: clash %v, answer %v", seed, step, clash, bad)
			}
			if bad != nil {
				continue
			}
			if err := kernelOf(kernel, plan.changes); err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			table.commit(plan)
			want = next
			all := wanted(want)
			if !maps.Equal(all, table.elements) {
				t.Fatalf("seed %d step %d: %v, want %v", seed, step, table.elements, all)
			}
			if len(kernel) != len(all) || len(table.peers) != len(want) || len(table.byKey) != len(want) || len(table.byAddress) != held || len(table.byNetwork) != len(networks) {
				t.Fatalf("seed %d step %d: sizes differ", seed, step)
			}
			if n := len(all) - len(notGrants(all)); table.grants() != n {
				t.Fatalf("seed %d step %d: %d grants, want %d", seed, step, table.grants(), n)
			}
			for key, deadline := range all {
				timeout, there := kernel[key]
				if !there || (deadline == 0) != (timeout == 0) || (deadline != 0 && timeout != time.Duration(deadline-1)) {
					t.Fatalf("seed %d step %d: %v has %v, want %v", seed, step, key, timeout, deadline)
				}
			}
		}
	}
}

func TestADeadlineHeardLateIsTheSameDeadline(t *testing.T) {
	second := instant(time.Second)
	for name, c := range map[string]struct{ old, heard, want instant }{
		"a little later": {10 * second, 10*second + second/10, 10 * second},
		"renewed":        {10 * second, 20 * second, 20 * second},
		"shortened":      {10 * second, 5 * second, 5 * second},
		"ended":          {0, 5 * second, 5 * second},
		"unlimited":      {10 * second, 0, 0},
	} {
		if got := settle(c.old, c.heard); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
