// Package control serves the engine's HTTP/JSON control API on a Unix socket of the engine's own.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Server is the control API of one engine process.
type Server struct {
	mode       string
	version    string
	runtimeDir string
	ownDir     bool
	listener   net.Listener
	mux        *http.ServeMux
}

// New makes the runtime directory (0700) and listens on control.sock (0600) in it.
// An empty runtimeDir means a new directory of the engine's own, which is removed at the end.
func New(mode, runtimeDir, version string) (*Server, error) {
	s := &Server{mode: mode, version: version, runtimeDir: runtimeDir, mux: http.NewServeMux()}
	if runtimeDir == "" {
		dir, err := makeOwnDir(shortTempDir())
		if err != nil {
			return nil, fmt.Errorf("cannot make a runtime directory: %w; give one with --runtime-dir", err)
		}
		s.runtimeDir, s.ownDir = dir, true
	} else if err := os.MkdirAll(runtimeDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the runtime directory: %w", err)
	} else if err := os.Chmod(runtimeDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot close the runtime directory to others: %w", err)
	}
	who := Anywhere
	if mode == "netstack" {
		who = NotBelow
	}
	listener, err := Listen(s.socketPath(), who)
	if err != nil {
		s.removeDir()
		return nil, err
	}
	s.listener = listener
	return s, nil
}

// longestSocketPath is what sockaddr_un of Linux takes beside the closing zero byte (unix(7)).
const longestSocketPath = 107

// longestSocketName is of all sockets that an engine makes in its directory: one for each network, and control.sock.
const longestSocketName = "sockets-0123456789.sock"

// shortTempDir is the directory for temporary files, or /tmp where a socket in that would have too long a path.
func shortTempDir() string {
	if len(filepath.Join(sharedDir(os.TempDir()), "engine-0123456789", longestSocketName)) > longestSocketPath {
		return "/tmp"
	}
	return ""
}

// Admission is who may connect, beside being the engine's own user or root.
type Admission int

const (
	// Anywhere admits processes in whatever container.
	Anywhere Admission = iota
	// NotBelow keeps processes out that are in a PID namespace below the engine's: sandboxed programs run as the
	// engine's own user, and the agent itself does not run there.
	NotBelow
)

// Listen listens on a Unix socket (0600).
func Listen(path string, who Admission) (net.Listener, error) {
	if len(path) > longestSocketPath {
		return nil, fmt.Errorf("%s is too long for a socket (%d bytes, at most %d); give a shorter --runtime-dir",
			path, len(path), longestSocketPath)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("another engine serves %s; end it or use another --runtime-dir", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot remove the socket of a former engine: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("cannot close the control socket to others: %w", err)
	}
	return admitting{listener, who}, nil
}

func (s *Server) socketPath() string { return filepath.Join(s.runtimeDir, "control.sock") }

// RuntimeDir is the directory that holds the control socket.
func (s *Server) RuntimeDir() string { return s.runtimeDir }

// Handle registers a handler for a net/http pattern such as "PUT /v1/state".
func (s *Server) Handle(pattern string, h http.HandlerFunc) { s.mux.HandleFunc(pattern, h) }

// Ready prints the ready line on standard output and closes it.
func (s *Server) Ready() error {
	line := map[string]any{
		"ready": true, "mode": s.mode, "pid": os.Getpid(), "control": s.socketPath(), "version": s.version,
	}
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		return fmt.Errorf("cannot print the ready line: %w", err)
	}
	return os.Stdout.Close()
}

// Serve answers until ctx is done, then removes the socket and the directory it made.
func (s *Server) Serve(ctx context.Context) error {
	server := &http.Server{Handler: http.HandlerFunc(s.serveHTTP), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(s.listener) }()
	var err error
	select {
	case <-ctx.Done():
		// Streams end with ctx; what still runs after that gets a moment to answer.
		bound, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(bound) != nil {
			_ = server.Close()
		}
	case err = <-failed:
	}
	// This unlinks the socket, and only once: net/http may close it late, when another engine has its own there.
	_ = s.listener.Close()
	s.removeDir()
	return err
}

func (s *Server) removeDir() {
	if s.ownDir {
		removeOwnDir(s.runtimeDir)
	}
}

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if _, pattern := s.mux.Handler(r); pattern == "" {
		WriteProblem(w, http.StatusNotFound, "not_found", r.Method+" "+r.URL.Path+" is not part of the control API")
		return
	}
	s.mux.ServeHTTP(w, r)
}

// FailStart prints why the engine did not start, in place of the ready line.
func FailStart(code string, err error) {
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"ready": false, "code": code, "error": err.Error()})
}
