package netstack

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// namesOf answers like the control plane, and remembers who was asked for what.
type namesOf struct {
	mu    sync.Mutex
	asked []string
	auth  []string
}

func (n *namesOf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Name string `json:"name"`
	}
	_ = json.NewDecoder(r.Body).Decode(&body)
	n.mu.Lock()
	n.asked = append(n.asked, body.Name)
	n.auth = append(n.auth, r.Header.Get("Authorization"))
	n.mu.Unlock()
	if body.Name == "no.example.org" {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"code": "destination_not_permitted", "detail": "the identity has names enough"}`)
		return
	}
	_, _ = io.WriteString(w, `{"name": "`+body.Name+`", "address": "`+gatewayIP+`"}`)
}

func (n *namesOf) questions() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string{}, n.asked...)
}

func TestANameOfAPatternIsAskedForOnceWhenItIsFirstUsed(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP(t, 80, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "hello "+r.Host) })
	names := &namesOf{}
	server := httptest.NewServer(names)
	t.Cleanup(server.Close)
	w.spec["names"] = map[string]any{"patterns": []string{"*.example.org"}, "url": server.URL + "/names",
		"headers": map[string]string{"Authorization": "Bearer lt-secret"}}
	client := throughProxy(w.put(t), "agent:s3cret")
	for range 2 {
		answer, err := client.Get("http://Files.example.org/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != 200 || !strings.HasPrefix(string(body), "hello ") {
			t.Fatalf("%d %s", answer.StatusCode, body)
		}
	}
	if asked := names.questions(); len(asked) != 1 || asked[0] != "files.example.org" {
		t.Errorf("asked for %v", asked)
	}
	if names.auth[0] != "Bearer lt-secret" {
		t.Error("the request had no token")
	}
	for _, host := range []string{"example.org", "evilexample.org", "other.example"} {
		answer, err := client.Get("http://" + host + "/")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %d", host, answer.StatusCode)
		}
	}
	if asked := names.questions(); len(asked) != 1 {
		t.Errorf("asked for names of no pattern: %v", asked)
	}
}

func TestARefusedNameIsARefusalAndNotAskedForAgainAtOnce(t *testing.T) {
	w := newWorld(t)
	names := &namesOf{}
	server := httptest.NewServer(names)
	t.Cleanup(server.Close)
	w.spec["names"] = map[string]any{"patterns": []string{"*.example.org"}, "url": server.URL + "/names"}
	client := throughProxy(w.put(t), "agent:s3cret")
	began := time.Now()
	for range 3 {
		answer, err := client.Get("http://no.example.org/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != http.StatusForbidden || !strings.Contains(string(body), "names enough") {
			t.Errorf("%d %s", answer.StatusCode, body)
		}
	}
	if asked := names.questions(); len(asked) < 1 || len(asked) > 1+int(time.Since(began)/askAgain) {
		t.Errorf("asked %d times", len(asked))
	}
	server.Close()
	answer, err := client.Get("http://gone.example.org/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusBadGateway {
		t.Errorf("without a control plane: %d", answer.StatusCode)
	}
}

func TestPatternsThatCoverEverythingAreNone(t *testing.T) {
	for _, pattern := range []string{"*", "*.", "example.org", ""} {
		source := &NameSource{Patterns: []string{pattern}, URL: "http://127.0.0.1/"}
		if source.check() == nil {
			t.Errorf("%q was taken", pattern)
		}
	}
}
