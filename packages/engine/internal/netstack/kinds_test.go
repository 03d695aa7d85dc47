package netstack

import (
	"os"
	"testing"

	"lattice.dev/engine/internal/keeper"
)

// kinds are all networks that a tunnel can end in, as far as this user may have them.
func kinds() map[string]map[string]any {
	all, kind := map[string]map[string]any{}, kindInterface
	if !inOwnNetwork() {
		all["netstack"], kind = map[string]any{"kind": kindNetstack}, kindNamespace
	}
	all[kind+"/packet"] = map[string]any{"kind": kind, "device": keeper.DevicePacket}
	if file, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err == nil {
		_ = file.Close()
		all[kind+"/tun"] = map[string]any{"kind": kind, "device": keeper.DeviceTUN}
	}
	return all
}

// eachKind runs a test with a tunnel of each kind: what an agent sees is the same.
func eachKind(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	for name, network := range kinds() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.spec["network"] = network
			test(t, w)
		})
	}
}
