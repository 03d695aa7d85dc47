package netstack

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"lattice.dev/engine/internal/control"
)

const (
	largestAnswer = 8 << 20
	// What the caller needs to understand an answer, whatever it is.
	toldHeaders = "Lattice-Time Date Content-Type Retry-After Location"
)

// EnrollSpec asks for an identity, once. It saves a program that is in a hurry loading an HTTP client, TLS and X25519,
// makes a keeper ready meanwhile, and leaves no moment in which an identity is nobody's to revoke. What the request is
// made of and what an answer means is the caller's business, who also asks again. Headers and key are secret.
type EnrollSpec struct {
	URL        string                     `json:"url"`
	PeersURL   string                     `json:"peersUrl"` // what a peer's id is appended to, to delete it
	Headers    map[string]string          `json:"headers"`
	CAFile     string                     `json:"caFile"`
	Timeout    float64                    `json:"timeout"` // seconds
	PrivateKey string                     `json:"privateKey"`
	Body       map[string]json.RawMessage `json:"body"`    // the public half of the key is added to it
	Network    string                     `json:"network"` // kind of the tunnel that will follow
}

// enrolled is the control plane's answer, whatever it says.
type enrolled struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	Age     float64           `json:"age"` // seconds since the answer's headers came
}

func (s *service) postEnroll(w http.ResponseWriter, r *http.Request) {
	var spec EnrollSpec
	if !control.ReadJSON(w, r, &spec) {
		return
	}
	answer, err := s.enroll(r.Context(), &spec)
	if err != nil {
		answerError(w, err)
		return
	}
	control.WriteJSON(w, http.StatusOK, answer)
}

// enroll asks, and sees to it that an identity of which nobody has heard is revoked: until its tunnel is made, it is
// the engine's to revoke at its end, as a tunnel's is.
func (s *service) enroll(ctx context.Context, spec *EnrollSpec) (*enrolled, error) {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return nil, errClosing
	}
	s.revoking.Add(1)
	s.mu.Unlock()
	defer s.revoking.Done()
	if spec.Network == kindNamespace {
		go func() { _, _ = s.startKeeper() }() // what fails is told when the tunnel is made
	}
	if err := spec.addKey(); err != nil {
		return nil, &problem{http.StatusBadRequest, "invalid_enrollment", err.Error()}
	}
	// To the end also when the caller has gone: only the answer tells what is to be revoked.
	answer, received, err := spec.ask(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	s.keepRevocable(ctx, spec, answer)
	answer.Age = time.Since(received).Seconds()
	return answer, nil
}

// addKey puts the public half of the key into the request.
func (spec *EnrollSpec) addKey() error {
	raw, err := base64.StdEncoding.DecodeString(spec.PrivateKey)
	if err != nil {
		return errors.New("privateKey: not base64")
	}
	key, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return fmt.Errorf("privateKey: %w", err)
	}
	if spec.Body == nil {
		spec.Body = map[string]json.RawMessage{}
	}
	spec.Body["publicKey"], err = json.Marshal(base64.StdEncoding.EncodeToString(key.PublicKey().Bytes()))
	return err
}

func (spec *EnrollSpec) ask(ctx context.Context) (*enrolled, time.Time, error) {
	var none time.Time
	for _, text := range []string{spec.URL, spec.PeersURL} {
		target, err := url.Parse(text)
		if err != nil || target.Host == "" || (target.Scheme != "http" && target.Scheme != "https") {
			return nil, none, &problem{http.StatusBadRequest, "invalid_enrollment", "url and peersUrl: not absolute http or https URLs"}
		}
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if spec.CAFile != "" {
		roots, err := readRoots(spec.CAFile)
		if err != nil {
			return nil, none, &problem{http.StatusBadRequest, "invalid_enrollment", err.Error()}
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	client := &http.Client{Transport: transport, Timeout: seconds(spec.Timeout),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	body, err := json.Marshal(spec.Body)
	if err != nil {
		return nil, none, &problem{http.StatusBadRequest, "invalid_enrollment", "body: not JSON"}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, spec.URL, bytes.NewReader(body))
	if err != nil {
		return nil, none, &problem{http.StatusBadRequest, "invalid_enrollment", "url: not one that can be asked"}
	}
	request.Header.Set("Content-Type", "application/json")
	for name, value := range spec.Headers {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, none, unreached(err)
	}
	received := time.Now()
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, largestAnswer+1))
	if err != nil || len(text) > largestAnswer {
		return nil, none, unreached(errors.Join(err, errors.New("the answer is broken off or too large")))
	}
	answer := &enrolled{Status: response.StatusCode, Headers: map[string]string{}, Body: string(text)}
	for name := range strings.FieldsSeq(toldHeaders) {
		if value := response.Header.Get(name); value != "" {
			answer.Headers[name] = value
		}
	}
	return answer, received, nil
}

func unreached(err error) error {
	return &problem{http.StatusBadGateway, "server_unreachable", "the control plane was not reached: " + err.Error()}
}

// keepRevocable takes an identity that was granted into care.
func (s *service) keepRevocable(ctx context.Context, spec *EnrollSpec, answer *enrolled) {
	var granted struct {
		PeerID          string `json:"peerId"`
		EnrollmentToken string `json:"enrollmentToken"`
	}
	if answer.Status != http.StatusCreated || json.Unmarshal([]byte(answer.Body), &granted) != nil || granted.PeerID == "" {
		return
	}
	revoke := &Revoke{URL: spec.PeersURL + url.PathEscape(granted.PeerID), CAFile: spec.CAFile,
		Headers: map[string]string{"Authorization": "Bearer " + granted.EnrollmentToken}}
	s.mu.Lock()
	abandoned := s.closing || ctx.Err() != nil
	if !abandoned {
		s.pending[granted.PeerID] = revoke
	}
	s.mu.Unlock()
	if abandoned {
		_ = s.carryOut(granted.PeerID, revoke)
	}
}
