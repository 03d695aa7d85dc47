package gateway

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// rotationTime is how long a key that was exchanged works on where the new one is not used. It covers an answer that was
// lost on its way to the agent and is asked for again. Shorter in tests.
var rotationTime = 30 * time.Second

const rotationPoll = time.Millisecond

// rotation is an identity between two keys. WireGuard gives an address to one key at a time: the former one keeps it
// until a packet has come under the new one, so that nothing is lost that is under way.
type rotation struct {
	who    *peer // as it is to be, with its new key
	former publicKey
	until  time.Time
	failed bool
}

// exchange is what a change does to the device's keys.
type exchange struct {
	gone  []publicKey          // at once
	begun map[string]*rotation // by identity
	base  map[string]*peer     // by identity: as its address is held now, where that is known
}

// exchange works out what the change does to keys, and ends the rotations of all that it touches. t.mu is held.
func (t *tunnel) exchange(remove, put []*peer) exchange {
	x := exchange{begun: map[string]*rotation{}, base: make(map[string]*peer, len(put))}
	next, had, has := make(map[string]*peer, len(put)), make(map[publicKey]*peer, len(remove)), make(map[publicKey]bool, len(put))
	for _, old := range remove {
		had[old.key] = old
	}
	for _, p := range put {
		next[p.id], has[p.key] = p, true
		if t.rotations[p.id] == nil {
			x.base[p.id] = had[p.key]
		}
	}
	for _, old := range remove {
		p, holding := next[old.id], &rotation{former: old.key, until: time.Now().Add(rotationTime)}
		if r := t.rotations[old.id]; r != nil {
			// However often keys are exchanged meanwhile, the one that was in use ends when it was to end.
			holding = r
			delete(t.rotations, old.id)
		}
		free := !has[holding.former]
		switch {
		case p != nil && p.key == holding.former: // the key stays, or comes back
			x.base[p.id] = old
		case p != nil && free && p.address == old.address && (had[p.key] == nil || had[p.key] == old) && t.inUse(holding.former):
			x.begun[p.id] = &rotation{who: p, former: holding.former, until: holding.until}
			x.base[p.id] = old
		case free:
			x.gone = append(x.gone, holding.former)
		}
		if old.key != holding.former && !has[old.key] {
			x.gone = append(x.gone, old.key)
		}
	}
	return x
}

// begin has rotations ended in time. t.mu is held.
func (t *tunnel) begin(begun map[string]*rotation) {
	for id, r := range begun {
		t.rotations[id] = r
	}
	if len(t.rotations) > 0 && !t.settling {
		t.settling = true
		go t.settle()
	}
}

// settle ends each rotation whose new key is in use, or whose time is over.
func (t *tunnel) settle() {
	poll := time.NewTicker(rotationPoll)
	defer poll.Stop()
	for range poll.C {
		if t.settled() {
			return
		}
	}
}

func (t *tunnel) settled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.rotations {
		if t.inUse(r.who.key) || time.Now().After(r.until) {
			if err := t.finish(r); err != nil && !r.failed {
				r.failed = true
				slog.Error("an exchanged key could not be removed, trying again", "peer", r.who.id, "error", err.Error())
			}
		}
	}
	t.settling = len(t.rotations) > 0
	return !t.settling
}

// settleBefore ends the rotations of others whose former keys somebody gets now. t.mu is held.
func (t *tunnel) settleBefore(remove, put []*peer) error {
	if len(t.rotations) == 0 {
		return nil
	}
	touched, has := make(map[string]bool, len(remove)), make(map[publicKey]bool, len(put))
	for _, old := range remove {
		touched[old.id] = true
	}
	for _, p := range put {
		has[p.key] = true
	}
	for id, r := range t.rotations {
		if has[r.former] && !touched[id] {
			if err := t.finish(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish gives the address to the new key and forgets the former one. t.mu is held.
func (t *tunnel) finish(r *rotation) error {
	var b strings.Builder
	allow(&b, r.who.key, nil, r.who)
	fmt.Fprintf(&b, "public_key=%s\nremove=true\n", hex.EncodeToString(r.former[:]))
	if err := t.device.IpcSet(b.String()); err != nil {
		return err
	}
	delete(t.rotations, r.who.id)
	t.guard.know(t.device, nil, []*peer{r.who}, t.holds)
	return nil
}

// inUse tells whether a session was ever made with a key.
func (t *tunnel) inUse(key publicKey) bool {
	known := t.device.LookupPeer(device.NoisePublicKey(key))
	return known != nil && t.guard.lastHandshake(known) != 0
}

// holds is the key that has the peer's address now. t.mu is held.
func (t *tunnel) holds(p *peer) publicKey {
	if r := t.rotations[p.id]; r != nil {
		return r.former
	}
	return p.key
}

// keyInUse is the key that the peer is reached by now.
func (t *tunnel) keyInUse(p *peer) publicKey {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.holds(p)
}
