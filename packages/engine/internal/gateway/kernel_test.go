package gateway

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

func init() {
	if os.Getenv(testMode) == "" {
		// A thread in a namespace of its own must end with it, and the first one of a process never ends: its
		// namespace, which is what /proc/net and /proc/self show, stays the caller's. It belongs to TestMain alone.
		runtime.LockOSThread()
	}
}

// inNamespace runs a test on a thread with a network namespace of its own, which ends with the thread.
func inNamespace(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for a namespace in this process; the gateway's own tests cover ordinary users")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("namespace: %v", err)
			return
		}
		test(t)
	}()
	<-done
}

func count(t *testing.T, f *firewall, set string) int {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Error(err)
		return -1
	}
	all, err := conn.GetSetElements(f.sets[set])
	if err != nil {
		t.Error(err)
	}
	return len(all)
}

func TestElementsAreWrittenRenewedAndRemovedOnEveryKernel(t *testing.T) {
	for name, destroy := range map[string]bool{"with destroy": true, "without destroy, as before Linux 6.3": false} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				f, err := newFirewall("lattice0", netip.MustParseAddr("10.96.0.1"), false)
				if err != nil {
					t.Error(err)
					return
				}
				e, err := newElements(tableName)
				if err != nil {
					t.Error(err)
					return
				}
				e.destroy = e.destroy && destroy
				who := &peer{address: netip.MustParseAddr("10.96.2.5")}
				grant := grant{to: netip.MustParseAddr("10.96.0.7"), protocol: 6, port: 443}
				live, granted := liveElement(who.address), grant.elementOf(who)
				apply := func(changes ...change) {
					if err := e.apply(changes); err != nil {
						t.Error(err)
					}
				}
				apply(change{key: live, add: true, timeout: 200 * time.Millisecond}, change{key: granted, add: true})
				if n := count(t, f, setGrants); n != 1 {
					t.Errorf("%d grants", n)
				}
				for until := time.Now().Add(5 * time.Second); count(t, f, setLive) != 0; {
					if time.Now().After(until) {
						t.Error("the element does not time out")
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				// Renewal and removal of what has timed out meanwhile.
				apply(change{key: live, remove: true, add: true, timeout: time.Hour}, change{key: granted, remove: true, add: true, timeout: time.Hour})
				if live, grants := count(t, f, setLive), count(t, f, setGrants); live != 1 || grants != 1 {
					t.Errorf("after the renewal: %d live, %d grants", live, grants)
				}
				apply(change{key: live, remove: true}, change{key: granted, remove: true})
				apply(change{key: live, remove: true}, change{key: granted, remove: true})
				if live, grants := count(t, f, setLive), count(t, f, setGrants); live != 0 || grants != 0 {
					t.Errorf("after the removal: %d live, %d grants", live, grants)
				}
				many := make([]change, 0, 20000)
				for i := range 20000 {
					grant.port = uint16(1 + i)
					many = append(many, change{key: grant.elementOf(who), add: true, timeout: time.Hour})
				}
				apply(many...)
				if n := count(t, f, setGrants); n != len(many) {
					t.Errorf("%d of %d grants", n, len(many))
				}
				if err := e.flush(); err != nil || count(t, f, setGrants) != 0 {
					t.Errorf("flush: %v", err)
				}
			})
		})
	}
}
