package gateway

import (
	"context"
	"encoding/json"
	"io"
	"sync"
	"time"
)

// eventLimit bounds what waits for a reader.
const eventLimit = 8192

// event is a line of GET /v1/events.
type event struct {
	Type        string   `json:"type"`
	ID          string   `json:"id,omitempty"`
	Address     string   `json:"address,omitempty"`
	LateBy      *float64 `json:"lateBy,omitempty"`
	Source      string   `json:"source,omitempty"`
	Destination *string  `json:"destination,omitempty"` // empty, as the protocol: of all flows for which there was no room
	Protocol    *string  `json:"protocol,omitempty"`
	Port        *uint16  `json:"port,omitempty"`
	Packets     uint64   `json:"packets,omitempty"`
	Events      uint64   `json:"events,omitempty"`
}

func expired(p *peer, at instant) event {
	late := time.Duration(at - p.deadline).Seconds()
	return event{Type: "expired", ID: p.id, Address: p.address.String(), LateBy: &late}
}

// events is the queue between what happens and the one who reads it. A second reader takes over from the first.
type events struct {
	mu      sync.Mutex
	waiting []event
	dropped uint64
	more    chan struct{}
	reader  context.CancelFunc
	reading sync.Mutex
	end     chan struct{}
}

func newEvents() *events {
	return &events{more: make(chan struct{}, 1), end: make(chan struct{})}
}

func (e *events) add(what event) {
	e.mu.Lock()
	if len(e.waiting) >= eventLimit {
		e.dropped++
	} else {
		e.waiting = append(e.waiting, what)
	}
	e.mu.Unlock()
	select {
	case e.more <- struct{}{}:
	default:
	}
}

// take gives what waits without removing it, and how much of the drop count it includes.
func (e *events) take() ([]event, uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	batch := append([]event(nil), e.waiting...)
	if e.dropped > 0 {
		batch = append(batch, event{Type: "dropped", Events: e.dropped})
	}
	return batch, e.dropped
}

// done removes what was written.
func (e *events) done(n int, dropped uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if dropped > 0 {
		n--
		e.dropped -= dropped
	}
	e.waiting = append([]event(nil), e.waiting[n:]...)
}

// stream writes events as JSON lines until ctx is done, the writer fails or another reader comes.
func (e *events) stream(ctx context.Context, w io.Writer, flush func() error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.mu.Lock()
	if e.reader != nil {
		e.reader()
	}
	e.reader = cancel
	e.mu.Unlock()
	e.reading.Lock()
	defer e.reading.Unlock()
	encoder := json.NewEncoder(w)
	for ctx.Err() == nil {
		batch, dropped := e.take()
		for _, what := range batch {
			if encoder.Encode(what) != nil {
				return
			}
		}
		if flush() != nil {
			return
		}
		e.done(len(batch), dropped)
		select {
		case <-e.more:
		case <-ctx.Done():
		case <-e.end:
			return
		}
	}
}

// close ends the stream, so that the server can shut down.
func (e *events) close() { close(e.end) }
