package netstack

import (
	"testing"
	"time"

	"lattice.dev/engine/internal/wg"
)

// life is a device that is looked at every ten seconds; its handshakes and what it sends are the test's.
type life struct {
	*vigil
	now      time.Duration
	counters wg.Counters
}

var epoch = time.Unix(1_800_000_000, 0)

func newLife(keepalive bool) *life {
	l := &life{vigil: &vigil{limits: limitsOf(rejectAfter), keepalive: keepalive}}
	l.shakes()
	return l
}

func (l *life) wall() time.Time { return epoch.Add(l.now) }
func (l *life) shakes()         { l.counters.LastHandshake = l.wall() }

// until passes the time, and is what is found, or nothing by then.
func (l *life) until(end time.Duration, each func()) (finding, time.Duration) {
	for l.now < end {
		l.now += 10 * time.Second
		if each != nil {
			each()
		}
		if found := l.look(l.now, l.wall(), l.counters, false); found != nothing && found != askFirst {
			return found, l.now
		}
	}
	return nothing, l.now
}

func TestATunnelThatHasNothingToSendMayBeSilentForEver(t *testing.T) {
	l := newLife(false)
	if found, at := l.until(time.Hour, nil); found != nothing {
		t.Fatal(found, at)
	}
	l.counters.Sent += 148 // an initiation, and nobody answers
	if found, at := l.until(2*time.Hour, nil); found != fellQuiet || at > time.Hour+30*time.Second {
		t.Fatal(found, at)
	}
}

func TestATunnelThatShakesHandsIsNotSilent(t *testing.T) {
	for gap, keepalive := range map[time.Duration]bool{120 * time.Second: true, 170 * time.Second: false} {
		l := newLife(keepalive)
		next := gap
		if found, at := l.until(time.Hour, func() {
			l.counters.Sent += 32
			if l.now >= next {
				l.shakes()
				next += gap
			}
		}); found != nothing {
			t.Errorf("every %s: %v at %s", gap, found, at)
		}
	}
}

func TestASilentTunnelIsTriedLessAndLessOftenAndGivenUp(t *testing.T) {
	l := newLife(true)
	found, began := l.until(time.Hour, func() { l.counters.Sent += 148 })
	if found != fellQuiet || began > rejectAfter+30*time.Second {
		t.Fatal(found, began)
	}
	var tries []time.Duration
	for found = tryAgain; found == tryAgain; {
		if found, _ = l.until(time.Hour, nil); found == tryAgain {
			tries = append(tries, (l.now-began)/time.Second)
		}
	}
	if found != givenUp || l.now-began != 3*rejectAfter {
		t.Fatal(found, l.now-began)
	}
	expected := []time.Duration{10, 30, 70, 130, 190, 250, 310, 370, 430, 490}
	if len(tries) != len(expected) {
		t.Fatal(tries)
	}
	for i := range tries {
		if tries[i] != expected[i] {
			t.Fatal(tries)
		}
	}
}

func TestASessionThatIsTooOldIsAskedForAHandshakeBeforeItIsCalledSilent(t *testing.T) {
	l := newLife(true)
	for asked := 0; l.now < time.Hour; {
		l.now += 10 * time.Second
		switch found := l.look(l.now, l.wall(), l.counters, false); found {
		case askFirst:
			asked++
			l.shakes()
		case nothing:
		default:
			t.Fatal(found, l.now, asked)
		}
	}
}

func TestAHandshakeEndsTheSilence(t *testing.T) {
	l := newLife(true)
	l.until(time.Hour, nil)
	l.now += 5 * time.Second
	l.shakes()
	if found, _ := l.until(time.Hour, nil); found != cameBack {
		t.Fatal(found)
	}
	if found, at := l.until(l.now+rejectAfter-20*time.Second, nil); found != nothing {
		t.Fatal(found, at)
	}
}

func TestAClockThatIsSetIsNoSilence(t *testing.T) {
	for _, jump := range []time.Duration{-48 * time.Hour, 48 * time.Hour} {
		l := newLife(true)
		next := 120 * time.Second
		shift := time.Duration(0)
		for l.now < time.Hour {
			l.now += 10 * time.Second
			if l.now > 20*time.Minute {
				shift = jump
			}
			if l.now >= next {
				l.counters.LastHandshake, next = l.wall().Add(shift), next+120*time.Second
			}
			if found := l.look(l.now, l.wall().Add(shift), l.counters, false); found != nothing {
				t.Fatal(jump, found, l.now)
			}
		}
	}
}

func TestAMachineThatHasSleptShakesHandsAgain(t *testing.T) {
	l := newLife(false)
	l.until(time.Minute, nil)
	if found := l.look(l.now+time.Second, l.wall(), l.counters, true); found != refresh {
		t.Fatal(found)
	}
}
