package keeper

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary a keeper that hangs where it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == Mode {
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

func TestAKeeperThatHangsAtItsStartIsGivenUpWithAReason(t *testing.T) {
	_, err := start(100 * time.Millisecond)
	var known *Error
	if !errors.As(err, &known) {
		t.Fatal(err)
	}
	if known.Code == "userns_forbidden" {
		t.Skip(known.Detail)
	}
	if known.Code != "keeper_failed" || !strings.Contains(known.Detail, "within 100ms") {
		t.Error(known.Code, known.Detail)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil); errors.Is(err, unix.ECHILD) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it was not killed")
		}
	}
}

// Whoever gives up first does not learn the reason, and an engine whose caller is gone revokes the identity.
func TestAKeeperIsGivenUpBeforeItsCallersGiveUp(t *testing.T) {
	const (
		put  = 35 * time.Second // the SDK's timeout for a tunnel in a namespace
		open = 30 * time.Second // and for all of its opening, another backend's tunnel included
	)
	if startTimeout > min(put, open)-8*time.Second {
		t.Error("a tunnel that needs a keeper is given up after", put, "an agent after", open, "and a keeper after", startTimeout)
	}
}
