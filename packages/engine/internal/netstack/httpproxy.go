package netstack

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"

	"lattice.dev/engine/internal/control"
)

const refusalHeader = "Lattice-Refusal"

// httpProxy serves CONNECT and absolute-form requests (RFC 9110 §9.3.6, RFC 9112 §3.2.2).
type httpProxy struct {
	proxy   *proxy
	forward *httputil.ReverseProxy
}

func newHTTPProxy(p *proxy) *httpProxy {
	h := &httpProxy{proxy: p}
	h.forward = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.Host = r.In.Host
			// Who sends its last request leaves nothing at the service either.
			r.Out.Close = r.In.Close
			// ReverseProxy takes these away; they are the client's own words and pass as they are.
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values, ok := r.In.Header[name]; ok {
					r.Out.Header[name] = values
				}
			}
			if _, ok := r.In.Header["User-Agent"]; !ok {
				r.Out.Header["User-Agent"] = nil
			}
		},
		Transport: &http.Transport{
			DialContext:           h.dial,
			DisableCompression:    true,
			MaxIdleConnsPerHost:   4,
			IdleConnTimeout:       30 * time.Second,
			ResponseHeaderTimeout: 0,
		},
		ModifyResponse: func(answer *http.Response) error {
			answer.Header.Del(refusalHeader) // only the proxy says so, not the tool behind it
			return nil
		},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, err error) { writeFailure(w, err) },
	}
	return h
}

func (h *httpProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.authentic(r) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="lattice"`)
		control.WriteProblem(w, http.StatusProxyAuthRequired, "proxy_authentication_required",
			"this proxy belongs to one agent and needs its credentials")
		return
	}
	if r.Method == http.MethodConnect {
		h.connect(w, r)
		return
	}
	if r.URL.Scheme != "http" || r.URL.Host == "" {
		control.WriteProblem(w, http.StatusBadRequest, "not_a_proxy_request",
			"this is a proxy: it takes CONNECT, and requests whose target is an absolute http URL")
		return
	}
	h.forward.ServeHTTP(w, r)
}

func (h *httpProxy) authentic(r *http.Request) bool {
	scheme, encoded, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
	if !strings.EqualFold(scheme, "Basic") {
		return false
	}
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return false
	}
	username, password, _ := strings.Cut(string(plain), ":")
	return h.proxy.authentic(username, password)
}

func (h *httpProxy) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := splitHostPort(r.Host)
	if err != nil {
		control.WriteProblem(w, http.StatusBadRequest, "bad_destination", err.Error())
		return
	}
	remote, forget, err := h.proxy.dialContext(r.Context(), host, port)
	if err != nil {
		writeFailure(w, err)
		return
	}
	defer forget()
	client, early, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	if _, err := client.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		return
	}
	relay(&buffered{client, early}, remote)
}

func (h *httpProxy) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := splitHostPort(address)
	if err != nil {
		return nil, err
	}
	connection, forget, err := h.proxy.dialContext(ctx, host, port)
	if err != nil {
		return nil, err
	}
	return &handed{buffered{connection, connection}, forget}, nil
}

func splitHostPort(address string) (string, uint16, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return "", 0, errors.New(text + " is not a port")
	}
	return host, uint16(port), nil
}

func writeFailure(w http.ResponseWriter, err error) {
	var refusal *Refusal
	var timeout net.Error
	switch {
	case errors.As(err, &refusal):
		w.Header().Set(refusalHeader, "policy")
		control.WriteProblem(w, http.StatusForbidden, "policy_refused", refusal.sentence)
	case errors.Is(err, errDown), errors.Is(err, errLost):
		control.WriteProblem(w, http.StatusBadGateway, "tunnel_down", err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		control.WriteProblem(w, http.StatusGatewayTimeout, "destination_timeout",
			"the destination is allowed and does not answer")
	default:
		control.WriteProblem(w, http.StatusBadGateway, "destination_unreachable",
			"the destination is allowed and cannot be reached: "+err.Error())
	}
}
