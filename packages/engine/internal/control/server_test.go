package control

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// serve serves until the returned function is called.
func serve(t *testing.T, s *Server) (*http.Client, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socketPath())
		}}}, end
}

func TestSocketAndDirectoryAreOfTheUserAloneAndGoWithTheServer(t *testing.T) {
	s, err := New("netstack", "", "test")
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{s.RuntimeDir(): 0o700, s.socketPath(): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Fatal(path, info, err)
		}
	}
	s.Handle("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	client, end := serve(t, s)
	for path, status := range map[string]int{"/v1/status": http.StatusOK, "/v1/nothing": http.StatusNotFound} {
		answer, err := client.Get("http://engine" + path)
		if err != nil || answer.StatusCode != status {
			t.Fatal(path, answer, err)
		}
		_ = answer.Body.Close()
	}
	end()
	if _, err := os.Stat(s.RuntimeDir()); !os.IsNotExist(err) {
		t.Fatal("the directory is left: ", err)
	}
}

func TestLongTempDirIsNotUsedForTheSocket(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	s, err := New("netstack", "", "test")
	if err != nil {
		t.Fatal(err)
	}
	_, end := serve(t, s)
	end()
	if strings.HasPrefix(s.RuntimeDir(), long) {
		t.Fatal(s.RuntimeDir())
	}
	if _, err := New("netstack", long, "test"); err == nil || !strings.Contains(err.Error(), "--runtime-dir") {
		t.Fatal(err)
	}
}

func TestSecondServerInADirectoryIsRefusedAndADeadOnesSocketIsNot(t *testing.T) {
	directory, err := os.MkdirTemp("", "engine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	first, err := New("gateway", directory, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New("gateway", directory, "test"); err == nil || !strings.Contains(err.Error(), "another engine") {
		t.Fatal(err)
	}
	_, end := serve(t, first)
	end()
	if err := os.WriteFile(filepath.Join(directory, "control.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	second, err := New("gateway", directory, "test")
	if err != nil {
		t.Fatal(err)
	}
	_, end = serve(t, second)
	end()
}
