package netstack

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	// streamsMaximum and sessionsMaximum bound what a route or a forward carries at once, by connections and by
	// datagrams: about 100 KiB each.
	streamsMaximum  = 4096
	sessionsMaximum = 1024
	// shareOfFree is the part of the places that are free which one source may hold: an eighth at most, and the less the
	// more there are who take all they get. So nobody fills it, not with many addresses either, and a source that
	// comes gets as much as those that are there (Choudhury and Hahne, Dynamic Queue Length Thresholds, 1998).
	shareOfFree = 8
	// shareWarning is how often refusals are logged.
	shareWarning = time.Minute
)

// shares are the places that sources have.
type shares struct {
	most int

	mu     sync.Mutex
	taken  int
	held   map[netip.Addr]int
	warned time.Time
}

func newShares(most int) *shares { return &shares{most: most, held: map[netip.Addr]int{}} }

// take gives a source one more place, or refuses it.
func (s *shares) take(source netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[source]*shareOfFree >= s.most-s.taken {
		if now := time.Now(); now.Sub(s.warned) > shareWarning {
			s.warned = now
			slog.Warn("an agent is refused more connections through this connector", "source", source.String(),
				"has", s.held[source], "all", s.taken, "most", s.most)
		}
		return false
	}
	s.taken++
	s.held[source]++
	return true
}

// leave gives it back.
func (s *shares) leave(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.held[source]--; s.held[source] == 0 {
		delete(s.held, source)
	}
}
