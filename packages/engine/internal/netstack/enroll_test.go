package netstack

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
)

// plane is a control plane that answers enrollments as it is told, and notes what is deleted.
type plane struct {
	*httptest.Server
	mu      sync.Mutex
	status  int
	body    string
	asked   []map[string]any
	bearers []string
	deleted []string
	hold    chan struct{} // enrollments are answered when it is closed
}

// RFC 7748, 6.1: Alice's.
const (
	private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
	public  = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
)

const granted = `{"peerId": "p1", "enrollmentToken": "lt-own", "wireguardConfig": "[Interface]"}`

func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{status: http.StatusCreated, body: granted, hold: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/agent-enroll", func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		p.mu.Lock()
		p.asked, p.bearers = append(p.asked, body), append(p.bearers, r.Header.Get("Authorization"))
		status, text := p.status, p.body
		p.mu.Unlock()
		<-p.hold
		w.Header().Set("Lattice-Time", "2026-05-06T10:00:00Z")
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	})
	mux.HandleFunc("DELETE /api/v1/peers/{id}", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if r.Header.Get("Authorization") == "Bearer lt-own" {
			p.deleted = append(p.deleted, r.PathValue("id"))
		}
		w.WriteHeader(http.StatusNoContent)
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

func (p *plane) spec() map[string]any {
	return map[string]any{"url": p.URL + "/api/v1/agent-enroll", "peersUrl": p.URL + "/api/v1/peers/", "timeout": 20,
		"headers": map[string]string{"Authorization": "Bearer lt-workspace"}, "body": map[string]any{"agentName": "x"},
		"privateKey": private}
}

func (p *plane) gone() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.deleted)
}

func (p *plane) enrollments() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.asked)
}

func TestAnEnrollmentIsAskedForWithThePublicHalfOfItsKey(t *testing.T) {
	w, p := newWorld(t), newPlane(t)
	close(p.hold)
	status, answer := w.call(t, "POST", "/v1/enroll", p.spec())
	if status != http.StatusOK || answer["status"] != 201.0 || answer["body"] != granted {
		t.Fatal(status, answer)
	}
	if headers := answer["headers"].(map[string]any); headers["Lattice-Time"] != "2026-05-06T10:00:00Z" {
		t.Fatal(headers)
	}
	if p.asked[0]["publicKey"] != public {
		t.Fatal(p.asked)
	}
	if p.asked[0]["agentName"] != "x" || p.bearers[0] != "Bearer lt-workspace" {
		t.Fatal(p.asked, p.bearers)
	}
}

func TestAnEnrollmentThatIsRefusedIsToldAsItIs(t *testing.T) {
	w, p := newWorld(t), newPlane(t)
	close(p.hold)
	for _, status := range []int{http.StatusUnauthorized, http.StatusFound, http.StatusServiceUnavailable} {
		p.status, p.body = status, `{"code": "invalid_token"}`
		_, answer := w.call(t, "POST", "/v1/enroll", p.spec())
		if answer["status"] != float64(status) || answer["body"] != p.body {
			t.Fatal(status, answer)
		}
	}
	w.service.end()
	if len(p.gone()) != 0 {
		t.Fatal("there was nothing to revoke")
	}
}

func TestAControlPlaneThatIsNotThereIsAProblem(t *testing.T) {
	w, p := newWorld(t), newPlane(t)
	spec := p.spec()
	p.Close()
	if status, answer := w.call(t, "POST", "/v1/enroll", spec); status != http.StatusBadGateway || answer["code"] != "server_unreachable" {
		t.Fatal(status, answer)
	}
	for field, wrong := range map[string]string{"url": "ftp://x/", "privateKey": "AAAA"} {
		spec := p.spec()
		spec[field] = wrong
		if status, answer := w.call(t, "POST", "/v1/enroll", spec); status != http.StatusBadRequest || answer["code"] != "invalid_enrollment" {
			t.Fatal(field, status, answer)
		}
	}
}

func TestAnIdentityWithoutATunnelIsRevokedAtTheEnd(t *testing.T) {
	w, p := newWorld(t), newPlane(t)
	close(p.hold)
	w.call(t, "POST", "/v1/enroll", p.spec())
	w.service.end()
	if gone := p.gone(); !slices.Equal(gone, []string{"p1"}) {
		t.Fatal(gone)
	}
}

func TestAnIdentityWithATunnelIsTheTunnelsToRevoke(t *testing.T) {
	w, p := newWorld(t), newPlane(t)
	close(p.hold)
	w.call(t, "POST", "/v1/enroll", p.spec())
	w.put(t) // without a revoke, as of an identity that shall outlive its agent
	w.service.end()
	if gone := p.gone(); len(gone) != 0 {
		t.Fatal(gone)
	}
}

func TestAnIdentityOfWhichNobodyHasHeardIsRevokedAtOnce(t *testing.T) {
	w, p := newWorld(t), newPlane(t)
	text, _ := json.Marshal(p.spec())
	var spec EnrollSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := w.service.enroll(ctx, &spec)
		done <- err
	}()
	waitForOrDump(t, "the enrollment to be asked for", func() bool { return p.enrollments() == 1 })
	leave()
	close(p.hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if gone := p.gone(); !slices.Equal(gone, []string{"p1"}) {
		t.Fatal(gone)
	}
}

func TestTheEndWaitsForAnEnrollmentToBeRevoked(t *testing.T) {
	w, p := newWorld(t), newPlane(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.call(t, "POST", "/v1/enroll", p.spec())
	}()
	waitForOrDump(t, "the enrollment to be asked for", func() bool { return p.enrollments() == 1 })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.service.end()
	}()
	waitForOrDump(t, "the engine to be ending", func() bool {
		w.service.mu.Lock()
		defer w.service.mu.Unlock()
		return w.service.closing
	})
	close(p.hold)
	<-ended
	<-done
	if gone := p.gone(); !slices.Equal(gone, []string{"p1"}) {
		t.Fatal(gone)
	}
}
