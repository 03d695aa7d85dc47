package gateway

import (
	"errors"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"lattice.dev/engine/internal/control"
)

// readerPatience is how long a reader of events may leave its socket full.
const readerPatience = 5 * time.Second

func (g *gateway) routes(server *control.Server) {
	server.Handle("PUT /v1/state", func(w http.ResponseWriter, r *http.Request) { g.putState(w, r, true) })
	server.Handle("PATCH /v1/state", func(w http.ResponseWriter, r *http.Request) { g.putState(w, r, false) })
	server.Handle("GET /v1/status", g.getStatus)
	server.Handle("GET /v1/peers", g.getPeers)
	server.Handle("GET /v1/events", g.getEvents)
}

func (g *gateway) putState(w http.ResponseWriter, r *http.Request, whole bool) {
	var body stateBody
	if !control.ReadJSON(w, r, &body) {
		return
	}
	done, err := g.change(&body, whole)
	if bad := (*problem)(nil); errors.As(err, &bad) {
		control.WriteProblem(w, bad.status, bad.code, bad.detail)
		return
	}
	if err != nil {
		slog.Error("the state could not be changed", "error", err.Error())
		control.WriteProblem(w, http.StatusInternalServerError, "apply_failed", err.Error())
		return
	}
	control.WriteJSON(w, http.StatusOK, done)
}

func (g *gateway) getStatus(w http.ResponseWriter, _ *http.Request) {
	g.mu.Lock()
	revision, peers, grants := g.revision, len(g.table.peers), g.table.grants()
	g.mu.Unlock()
	control.WriteJSON(w, http.StatusOK, map[string]any{
		"version": g.version, "mode": "gateway", "pid": os.Getpid(), "uptime": time.Since(g.started).Seconds(),
		"publicKey": g.tunnel.publicKey.String(), "listenPort": g.tunnel.bind.port, "interface": g.opts.iface,
		"address": g.opts.address.String(), "namespace": g.opts.namespace, "device": g.device,
		"revision": revision, "peers": peers, "grants": grants,
		"connections": map[string]uint32{"agent": g.firewall.flows, "line": g.firewall.lineFlows},
	})
}

type peerStatus struct {
	ID            string   `json:"id"`
	PublicKey     string   `json:"publicKey"`
	Address       string   `json:"address"`
	ExpiresIn     *float64 `json:"expiresIn"`
	LastHandshake *float64 `json:"lastHandshake"`
	RxBytes       uint64   `json:"rxBytes"`
	TxBytes       uint64   `json:"txBytes"`
	Endpoint      string   `json:"endpoint"`
	Exchanging    bool     `json:"exchanging"` // the former key is still in use
}

func (g *gateway) getPeers(w http.ResponseWriter, _ *http.Request) {
	stats, err := g.tunnel.stats()
	if err != nil {
		control.WriteProblem(w, http.StatusInternalServerError, "wireguard_failed", err.Error())
		return
	}
	at, clock := now(), float64(time.Now().UnixNano())/1e9
	g.mu.Lock()
	list := make([]peerStatus, 0, len(g.table.peers))
	for _, p := range g.table.peers {
		s := peerStatus{ID: p.id, PublicKey: p.key.String(), Address: p.address.String()}
		if p.deadline != 0 {
			left := time.Duration(p.deadline - at).Seconds()
			s.ExpiresIn = &left
		}
		key := g.tunnel.keyInUse(p)
		s.Exchanging = key != p.key
		if known := stats[key]; known != nil {
			s.RxBytes, s.TxBytes, s.Endpoint = known.rx, known.tx, known.endpoint
			if known.lastHandshake > 0 {
				ago := max(0, clock-known.lastHandshake)
				s.LastHandshake = &ago
			}
		}
		list = append(list, s)
	}
	g.mu.Unlock()
	slices.SortFunc(list, func(a, b peerStatus) int { return strings.Compare(a.ID, b.ID) })
	control.WriteJSON(w, http.StatusOK, map[string]any{"peers": list})
}

func (g *gateway) getEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	control := http.NewResponseController(w)
	g.events.stream(r.Context(), boundedWriter{w, control}, control.Flush)
}

// boundedWriter gives up on a reader that has stopped reading, so that the next one gets its turn.
type boundedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (w boundedWriter) Write(b []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(readerPatience))
	return w.ResponseWriter.Write(b)
}
