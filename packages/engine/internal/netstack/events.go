package netstack

import (
	"encoding/json"
	"net/http"
	"sync"
)

// eventQueue is how many events wait for one reader. Who is that slow asks for the tunnels' states.
const eventQueue = 1024

// eventBack is the type of the event that ends a silence.
const eventBack = "recovered"

// event is a line of GET /v1/events: what a tunnel has become by itself.
type event struct {
	Type          string  `json:"type"`
	ID            string  `json:"id"`
	LastHandshake float64 `json:"lastHandshake,omitempty"` // seconds ago
	Silent        float64 `json:"silent,omitempty"`        // seconds
	Why           string  `json:"why,omitempty"`
}

// events tells what happens to whoever reads.
type events struct {
	mu      sync.Mutex
	readers map[chan event]struct{}
}

func (e *events) tell(what event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for reader := range e.readers {
		select {
		case reader <- what:
		default:
		}
	}
}

func (e *events) join() (<-chan event, func()) {
	reader := make(chan event, eventQueue)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.readers == nil {
		e.readers = map[chan event]struct{}{}
	}
	e.readers[reader] = struct{}{}
	return reader, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.readers, reader)
	}
}

// getEvents streams events until the reader or the engine ends, beginning with what has happened to tunnels that are
// there.
func (s *service) getEvents(w http.ResponseWriter, r *http.Request) {
	happened, leave := s.events.join()
	defer leave()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	encoder, control := json.NewEncoder(w), http.NewResponseController(w)
	for _, t := range s.list() {
		if state := t.current(); state == stateSilent || state == stateLost {
			_ = encoder.Encode(event{Type: state, ID: t.ID})
		}
	}
	for {
		if control.Flush() != nil {
			return
		}
		select {
		case what := <-happened:
			if encoder.Encode(what) != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-s.ending:
			return
		}
	}
}
