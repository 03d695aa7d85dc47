package netstack

import (
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"lattice.dev/engine/internal/keeper"
)

// noSkips is set where everything that tests need is there: what is left out has failed.
const noSkips = "LATTICE_TEST_NO_SKIPS"

// kinds are all networks that a tunnel can end in, as far as this user may have them.
func kinds(t *testing.T) map[string]map[string]any {
	t.Helper()
	all, kind := map[string]map[string]any{}, kindInterface
	if !inOwnNetwork() {
		all["netstack"], kind = map[string]any{"kind": kindNetstack}, kindNamespace
	}
	all[kind+"/packet"] = map[string]any{"kind": kind, "device": keeper.DevicePacket}
	if file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		_ = file.Close()
		all[kind+"/tun"] = map[string]any{"kind": kind, "device": keeper.DeviceTUN}
	} else if os.Getenv(noSkips) != "" {
		t.Errorf("tunnels that end in a TUN may not be left out here: %v", err)
	}
	if inOwnNetwork() {
		if hasKernelWireGuard() {
			all[kind+"/kernel"] = map[string]any{"kind": kind, "device": deviceKernel}
		} else { // no failure anywhere: a module of the kernel is not for the tests to bring
			t.Logf("left out: %s/kernel, as this kernel makes no WireGuard interface for this user", kind)
		}
	}
	return all
}

// hasKernelWireGuard tells whether the kernel makes WireGuard interfaces, for this user in this network namespace.
func hasKernelWireGuard() bool {
	probe := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}}
	return netlink.LinkAdd(probe) == nil && netlink.LinkDel(probe) == nil
}

// eachKind runs a test with a tunnel of each kind: what an agent sees is the same.
func eachKind(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	for name, network := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.spec["network"] = network
			test(t, w)
		})
	}
}
