package netstack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	askLimit = 8 * time.Second
	// A name that was refused is not asked for again at once: a program that retries would flood the control plane.
	askAgain      = 2 * time.Second
	answerMaximum = 64 << 10
)

// NameSource gives host names of patterns their overlay addresses, one at a time, when they are first used. It is the
// control plane; its headers are secret.
type NameSource struct {
	Patterns []string          `json:"patterns"` // *.example.org: what is below example.org
	URL      string            `json:"url"`
	Headers  map[string]string `json:"headers"`
	CAFile   string            `json:"caFile"`
}

func (s *NameSource) check() error {
	if s == nil {
		return nil
	}
	if err := (&Revoke{URL: s.URL}).check(); err != nil {
		return errors.New("names.url: not an absolute http or https URL")
	}
	for _, pattern := range s.Patterns {
		if !strings.HasPrefix(pattern, "*.") || len(pattern) < 3 {
			return fmt.Errorf("names.patterns: %q is not like *.example.org", pattern)
		}
	}
	return nil
}

// covers tells whether a name, in its canonical form, is below one of the patterns.
func (s *NameSource) covers(name string) bool {
	if s == nil {
		return false
	}
	for _, pattern := range s.Patterns {
		if strings.HasSuffix(name, strings.ToLower(pattern[1:])) {
			return true
		}
	}
	return false
}

// asked remembers names that were asked for in vain.
type asked struct {
	mu      sync.Mutex // one question at a time: the answers of others may hold what one is about to ask
	refused map[string]refusedName
}

type refusedName struct {
	err error
	at  time.Time
}

// ask has a name of a pattern served, and takes it over into the tunnel's list.
func (t *Tunnel) ask(protocol, name string, port uint16) (netip.Addr, error) {
	t.asked.mu.Lock()
	defer t.asked.mu.Unlock()
	t.mu.Lock()
	known, there := t.hosts[name]
	source := t.names
	t.mu.Unlock()
	if there {
		return known, nil
	}
	if before, was := t.asked.refused[name]; was && time.Since(before.at) < askAgain {
		return netip.Addr{}, before.err
	}
	ctx, cancel := context.WithTimeout(t.ctx, askLimit)
	defer cancel()
	address, err := source.address(ctx, name)
	if err != nil {
		var no *namesRefusal
		if errors.As(err, &no) {
			t.refused.Add(1)
			err = &Refusal{fmt.Sprintf("%s to %s:%d: %s", protocol, name, port, no.detail)}
		}
		if t.asked.refused == nil || len(t.asked.refused) > 1000 {
			t.asked.refused = map[string]refusedName{}
		}
		t.asked.refused[name] = refusedName{err, time.Now()}
		return netip.Addr{}, err
	}
	t.mu.Lock()
	hosts := maps.Clone(t.hosts)
	if hosts == nil {
		hosts = map[string]netip.Addr{}
	}
	hosts[name] = address
	t.hosts = hosts
	if t.policy != nil {
		grants := append([]Grant{}, t.policy.Grants...)
		t.policy = &Policy{Preset: t.policy.Preset, Grants: append(grants, Grant{To: address.String(), Port: port, Protocol: protocol})}
	}
	t.mu.Unlock()
	return address, nil
}

// namesRefusal is what the control plane said instead of an address.
type namesRefusal struct{ detail string }

func (n *namesRefusal) Error() string { return n.detail }

func (s *NameSource) address(ctx context.Context, name string) (netip.Addr, error) {
	client, err := secretClient(s.CAFile, askLimit)
	if err != nil {
		return netip.Addr{}, err
	}
	body, _ := json.Marshal(map[string]string{"name": name})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return netip.Addr{}, errors.New("names: not a request that can be sent")
	}
	request.Header.Set("Content-Type", "application/json")
	for key, value := range s.Headers {
		request.Header.Set(key, value)
	}
	answer, err := client.Do(request)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the control plane was not reached for the name %s: %w", name, err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(answer.Body, answerMaximum))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the control plane's answer for the name %s broke off: %w", name, err)
	}
	var found struct {
		Address netip.Addr `json:"address"`
		Detail  string     `json:"detail"`
	}
	_ = json.Unmarshal(raw, &found)
	if answer.StatusCode/100 == 2 && found.Address.IsValid() {
		return found.Address, nil
	}
	if answer.StatusCode/100 == 4 && found.Detail != "" {
		return netip.Addr{}, &namesRefusal{found.Detail}
	}
	return netip.Addr{}, fmt.Errorf("the control plane answered %s for the name %s: %s", answer.Status, name, found.Detail)
}
