package netstack

import (
	"errors"
	"net/http"
	"net/netip"
	"os"
	"time"

	"lattice.dev/engine/internal/control"
	"lattice.dev/engine/internal/wg"
)

func (s *service) routes(server *control.Server) {
	server.Handle("GET /v1/status", s.getStatus)
	server.Handle("GET /v1/events", s.getEvents)
	server.Handle("GET /v1/networks", s.getNetworks)
	server.Handle("POST /v1/keeper", s.postKeeper)
	server.Handle("POST /v1/enroll", s.postEnroll)
	server.Handle("GET /v1/tunnels", s.getTunnels)
	server.Handle("PUT /v1/tunnels/{id}", s.putTunnel)
	server.Handle("GET /v1/tunnels/{id}", s.getTunnel)
	server.Handle("PATCH /v1/tunnels/{id}", s.patchTunnel)
	server.Handle("DELETE /v1/tunnels/{id}", s.deleteTunnel)
	server.Handle("POST /v1/tunnels/{id}/forwards", s.postForward)
	server.Handle("DELETE /v1/tunnels/{id}/forwards/{forward}", s.deleteForward)
	server.Handle("PUT /v1/tunnels/{id}/routes", s.putRoutes)
	server.Handle("GET /v1/tunnels/{id}/refusals", s.getRefusals)
	server.Handle("POST /v1/tunnels/{id}/probe", s.postProbe)
}

func answerError(w http.ResponseWriter, err error) {
	var known *problem
	if errors.As(err, &known) {
		control.WriteProblem(w, known.status, known.code, known.detail)
		return
	}
	if errors.Is(err, wg.ErrRefused) {
		control.WriteProblem(w, http.StatusBadRequest, "invalid_tunnel", err.Error())
		return
	}
	if errors.Is(err, errDown) || errors.Is(err, wg.ErrClosed) {
		control.WriteProblem(w, http.StatusConflict, "tunnel_expired", err.Error())
		return
	}
	if errors.Is(err, errLost) {
		control.WriteProblem(w, http.StatusConflict, "tunnel_lost", err.Error())
		return
	}
	control.WriteProblem(w, http.StatusInternalServerError, "internal_error", err.Error())
}

func (s *service) getStatus(w http.ResponseWriter, _ *http.Request) {
	control.WriteJSON(w, http.StatusOK, map[string]any{
		"version": s.version, "mode": "netstack", "pid": os.Getpid(),
		"uptime": time.Since(s.started).Seconds(), "tunnels": len(s.list()),
	})
}

func (s *service) getTunnels(w http.ResponseWriter, _ *http.Request) {
	statuses := []Status{}
	for _, t := range s.list() {
		statuses = append(statuses, t.status())
	}
	control.WriteJSON(w, http.StatusOK, map[string]any{"tunnels": statuses})
}

func (s *service) putTunnel(w http.ResponseWriter, r *http.Request) {
	var spec Spec
	if !control.ReadJSON(w, r, &spec) {
		return
	}
	answer, err := s.open(r.Context(), r.PathValue("id"), &spec)
	if err != nil {
		answerError(w, err)
		return
	}
	control.WriteJSON(w, http.StatusCreated, answer)
}

func (s *service) getTunnel(w http.ResponseWriter, r *http.Request) {
	t, err := s.find(r.PathValue("id"))
	if err != nil {
		answerError(w, err)
		return
	}
	control.WriteJSON(w, http.StatusOK, t.status())
}

func (s *service) patchTunnel(w http.ResponseWriter, r *http.Request) {
	t, err := s.find(r.PathValue("id"))
	if err != nil {
		answerError(w, err)
		return
	}
	var change Change
	if !control.ReadJSON(w, r, &change) {
		return
	}
	if err := t.update(&change); err != nil {
		answerError(w, err)
		return
	}
	control.WriteJSON(w, http.StatusOK, t.status())
}

func (s *service) deleteTunnel(w http.ResponseWriter, r *http.Request) {
	if err := s.delete(r.PathValue("id"), r.URL.Query().Get("revoke") == "true"); err != nil {
		answerError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *service) postForward(w http.ResponseWriter, r *http.Request) {
	t, err := s.find(r.PathValue("id"))
	if err != nil {
		answerError(w, err)
		return
	}
	var spec ForwardSpec
	if !control.ReadJSON(w, r, &spec) {
		return
	}
	f, err := t.addForward(spec)
	if err != nil {
		answerError(w, err)
		return
	}
	control.WriteJSON(w, http.StatusCreated, f.view())
}

func (s *service) deleteForward(w http.ResponseWriter, r *http.Request) {
	if t, err := s.find(r.PathValue("id")); err == nil {
		t.removeForward(r.PathValue("forward"))
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *service) putRoutes(w http.ResponseWriter, r *http.Request) {
	t, err := s.find(r.PathValue("id"))
	if err != nil {
		answerError(w, err)
		return
	}
	var spec RoutesSpec
	if !control.ReadJSON(w, r, &spec) {
		return
	}
	served, err := t.setRoutes(&spec)
	if err != nil {
		answerError(w, err)
		return
	}
	control.WriteJSON(w, http.StatusOK, map[string]any{"destinations": served})
}

// getRefusals hands out what the connector did not carry since the last call.
func (s *service) getRefusals(w http.ResponseWriter, r *http.Request) {
	t, err := s.find(r.PathValue("id"))
	if err != nil {
		answerError(w, err)
		return
	}
	control.WriteJSON(w, http.StatusOK, map[string]any{"refusals": t.refusedFlows()})
}

func (s *service) postProbe(w http.ResponseWriter, r *http.Request) {
	t, err := s.find(r.PathValue("id"))
	if err != nil {
		answerError(w, err)
		return
	}
	spec := ProbeSpec{Timeout: defaultProbeTimeout}
	if !control.ReadJSON(w, r, &spec) {
		return
	}
	address, err := netip.ParseAddr(spec.Address)
	if err != nil || spec.Timeout <= 0 {
		control.WriteProblem(w, http.StatusBadRequest, "invalid_probe", "a probe needs an address and a timeout in seconds above 0")
		return
	}
	echo, err := t.reprove(r.Context(), address, seconds(spec.Timeout))
	if err != nil {
		answerError(w, err)
		return
	}
	control.WriteJSON(w, http.StatusOK, map[string]any{"rtt": echo.Seconds()})
}
