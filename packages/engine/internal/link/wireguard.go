package link

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// owner begins the alias of an interface that outlives its engine, followed by the engine's process number and the
// time of its start.
const owner = "lattice-engine"

// AddWireGuard makes an interface of the kernel's own WireGuard in this network namespace. It outlives the engine: one
// that a killed engine has left is taken away first.
func AddWireGuard(name string, mtu int) (netlink.Link, error) {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU = name, mtu
	made := &netlink.Wireguard{LinkAttrs: attributes}
	err := netlink.LinkAdd(made)
	if errors.Is(err, unix.EEXIST) && removeOrphan(name) {
		err = netlink.LinkAdd(made)
	}
	if err != nil {
		return nil, err
	}
	iface, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetAlias(iface, alias(os.Getpid()))
	}
	if err != nil {
		_ = netlink.LinkDel(made)
		return nil, err
	}
	return iface, nil
}

func alias(pid int) string { return fmt.Sprintf("%s %d %s", owner, pid, started(pid)) }

// started is when a process has begun, in clock ticks since the machine's start (proc_pid_stat(5), field 22).
func started(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	if fields := strings.Fields(after); len(fields) > 19 {
		return fields[19]
	}
	return ""
}

// removeOrphan removes an interface of an engine that is gone.
func removeOrphan(name string) bool {
	iface, err := netlink.LinkByName(name)
	if err != nil {
		return false
	}
	words := strings.Fields(iface.Attrs().Alias)
	if len(words) != 3 || words[0] != owner {
		return false
	}
	pid, err := strconv.Atoi(words[1])
	if err != nil || started(pid) == words[2] {
		return false
	}
	return netlink.LinkDel(iface) == nil
}

// Gone returns a channel that is closed when the interface has been removed, and what ends the watch.
func Gone(iface netlink.Link) (<-chan struct{}, func(), error) {
	updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	stop := sync.OnceFunc(func() { close(done) })
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return nil, nil, err
	}
	gone := make(chan struct{})
	go func() {
		for update := range updates {
			if update.Header.Type == unix.RTM_DELLINK && update.Link.Attrs().Index == iface.Attrs().Index {
				close(gone)
				stop()
				break
			}
		}
		for range updates { // until the subscription has ended
		}
	}()
	return gone, stop, nil
}
