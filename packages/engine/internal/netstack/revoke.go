package netstack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"time"
)

const (
	revokeLimit    = 10 * time.Second // in all, whoever waits for the engine's end waits this long
	revokeAttempt  = 4 * time.Second
	revokeFirstGap = 100 * time.Millisecond
	revokeLongGap  = 2 * time.Second
)

// Revoke is the request that ends the identity at the control plane. Its headers are secret.
type Revoke struct {
	URL     string            `json:"url"`
	Method  string            `json:"method"`
	Headers map[string]string `json:"headers"`
	CAFile  string            `json:"caFile"`
}

func (r *Revoke) check() error {
	if r == nil {
		return nil
	}
	target, err := url.Parse(r.URL)
	if err != nil || target.Host == "" || (target.Scheme != "http" && target.Scheme != "https") {
		return errors.New("revoke.url: not an absolute http or https URL")
	}
	if _, err := http.NewRequest(r.method(), r.URL, nil); err != nil {
		return errors.New("revoke.method: not an HTTP method")
	}
	return nil
}

func (r *Revoke) method() string {
	if r.Method == "" {
		return http.MethodDelete
	}
	return r.Method
}

// carryOut sends the request until the control plane has taken it, or has said that it never will.
func (r *Revoke) carryOut(ctx context.Context) error {
	client, err := secretClient(r.CAFile, revokeAttempt)
	if err != nil {
		return err
	}
	for gap := revokeFirstGap; ; gap = min(2*gap, revokeLongGap) {
		final, err := r.attempt(ctx, client)
		if final || err == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(gap/2 + rand.N(gap/2)):
		}
	}
}

// secretClient is for requests to the control plane whose headers hold a token.
func secretClient(caFile string, timeout time.Duration) (*http.Client, error) {
	transport := &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment}
	if caFile != "" {
		roots, err := readRoots(caFile)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	return &http.Client{Transport: transport, Timeout: timeout,
		// A redirect must not carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("caFile: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("caFile: no certificate in %s", path)
	}
	return roots, nil
}

func (r *Revoke) attempt(ctx context.Context, client *http.Client) (final bool, err error) {
	request, err := http.NewRequestWithContext(ctx, r.method(), r.URL, nil)
	if err != nil {
		return true, errors.New("revoke: not a request that can be sent")
	}
	for name, value := range r.Headers {
		request.Header.Set(name, value)
	}
	answer, err := client.Do(request)
	if err != nil {
		return false, fmt.Errorf("the control plane was not reached: %w", err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 64<<10))
	_ = answer.Body.Close()
	switch status := answer.StatusCode; {
	case status/100 == 2, status == http.StatusNotFound, status == http.StatusGone:
		return true, nil
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return false, fmt.Errorf("the control plane answered %s", answer.Status)
	default:
		return true, fmt.Errorf("the control plane refused to revoke: %s", answer.Status)
	}
}
