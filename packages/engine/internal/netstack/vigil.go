package netstack

import (
	"time"

	"lattice.dev/engine/internal/wg"
)

const (
	// rejectAfter is REJECT_AFTER_TIME of the WireGuard paper, §6.1: an older session carries nothing any more.
	rejectAfter = 180 * time.Second
	// longestVigilGap is between looks at the tunnels, and between the first attempts to bring a silent one back.
	longestVigilGap = 10 * time.Second
	// asleep is how much of a gap the machine must have slept through for its addresses, and what a NAT on the way
	// knows of them, to be in doubt.
	asleep = 10 * time.Second
	// longestRetryGap is between later attempts. The device itself goes on initiating every 5 s meanwhile.
	longestRetryGap = 60 * time.Second
)

// limits say when a tunnel is silent, and when it is lost.
type limits struct {
	silent time.Duration // the last handshake is older
	lost   time.Duration // after it has been found silent, whatever was tried
	gap    time.Duration // between looks
}

// limitsOf are the limits for an age of the last handshake.
func limitsOf(silent time.Duration) limits {
	return limits{silent: silent, lost: 3 * silent, gap: min(longestVigilGap, silent/6)}
}

// vigil is what is known of one tunnel's handshakes. Times are those of bootTime.
type vigil struct {
	limits
	keepalive bool // it always has something to send

	shaken time.Time     // the last handshake, by the device's clock, which somebody may set
	at     time.Duration // when that was
	looked time.Duration

	sent   uint64 // when the last handshake had become too old
	tooOld bool
	asked  bool // for a handshake, quietly

	silent   bool
	since    time.Duration
	attempts int
	next     time.Duration
}

// finding is what a look at a tunnel has found, and what is to be done.
type finding int

const (
	nothing   finding = iota
	askFirst          // the session is too old; a handshake tells whether the gateway is there
	fellQuiet         // silent from now on; bring it back
	tryAgain          // still silent
	refresh           // not silent, but the machine has slept
	cameBack
	givenUp // silent for too long
)

// due tells whether a look could find anything.
func (v *vigil) due(now time.Duration) bool { return v.silent || now > v.at+v.limits.silent }

// look judges by what the device counts. wall is the clock that the device takes its times from; woke says that the
// machine has slept since the last look.
func (v *vigil) look(now time.Duration, wall time.Time, counters wg.Counters, woke bool) finding {
	before := v.looked
	v.looked = now
	if !counters.LastHandshake.IsZero() && !counters.LastHandshake.Equal(v.shaken) {
		back := v.silent
		v.shaken = counters.LastHandshake
		v.at = now - min(max(0, wall.Sub(v.shaken)), now-before)
		v.tooOld, v.asked, v.silent, v.attempts = false, false, false, 0
		if back {
			return cameBack
		}
	}
	if !v.silent && woke {
		return refresh
	}
	if !v.due(now) {
		return nothing
	}
	if !v.asked {
		// Who has nothing to send needs no session. What counts is an initiation at least, after the session's end.
		if v.keepalive || (v.tooOld && counters.Sent > v.sent) {
			v.asked = true
			return askFirst
		}
		if !v.tooOld {
			v.tooOld, v.sent = true, counters.Sent
		}
		return nothing
	}
	if !v.silent {
		v.silent, v.since = true, now
		v.planNext(now)
		return fellQuiet
	}
	if now-v.since >= v.lost {
		return givenUp
	}
	if now < v.next && !woke {
		return nothing
	}
	v.planNext(now)
	return tryAgain
}

func (v *vigil) planNext(now time.Duration) {
	v.next = now + min(v.gap<<min(v.attempts, 16), max(v.gap, longestRetryGap))
	v.attempts++
}
