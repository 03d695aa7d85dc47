package netstack

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"lattice.dev/engine/internal/keeper"
)

func init() { roles["limited"] = beLimited }

// beLimited becomes the engine in a user namespace where a sysctl sets a limit, as an administrator does. It is
// "PATH VALUE" in the environment.
func beLimited() int {
	path, value, _ := strings.Cut(os.Getenv("LIMIT"), " ")
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		fmt.Fprintln(os.Stderr, "limited:", err)
		return 1
	}
	_ = os.Setenv(engineRole, "engine")
	return becomeEngine()
}

func limited(t *testing.T, limit string) *process {
	t.Helper()
	directory, err := os.MkdirTemp("", "engine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	command := exec.Command("/proc/self/exe", "--parent-pipe")
	command.Env = append(os.Environ(), engineRole+"=limited", "LIMIT="+limit, "TMPDIR="+directory, goRace)
	command.Stderr = os.Stderr
	command.SysProcAttr = newUserNamespace()
	p := launch(t, command)
	p.dial(t, p.line(t, "control").(string))
	return p
}

func TestWhereUserNamespacesAreForbiddenTheSettingIsNamed(t *testing.T) {
	p := limited(t, "/proc/sys/user/max_user_namespaces 0")
	w := newWorld(t)
	w.spec["network"] = map[string]any{"kind": kindNamespace}
	status, answer := p.call(t, "PUT", "/v1/tunnels/p1", w.spec)
	if status != http.StatusServiceUnavailable || answer["code"] != "userns_forbidden" || !strings.Contains(fmt.Sprint(answer["detail"]), "sysctl -w user.max_user_namespaces") {
		t.Error(status, answer)
	}
	status, answer = p.call(t, "GET", "/v1/networks", nil)
	namespace := answer["namespace"].(map[string]any)
	if status != http.StatusOK || namespace["able"] != false || namespace["code"] != "userns_forbidden" {
		t.Error(status, answer)
	}
	if status, answer := p.call(t, "POST", "/v1/keeper", nil); status != http.StatusServiceUnavailable || answer["code"] != "userns_forbidden" {
		t.Error(status, answer)
	}
	// What works, works.
	w.spec["network"] = map[string]any{"kind": kindNetstack}
	if status, answer := p.call(t, "PUT", "/v1/tunnels/p1", w.spec); status != http.StatusCreated {
		t.Error(status, answer)
	}
}

func TestWhereNetworkNamespacesHaveALimitItIsNamed(t *testing.T) {
	p := limited(t, "/proc/sys/user/max_net_namespaces 2") // the keeper's own and one more
	w := newWorld(t)
	w.spec["network"] = map[string]any{"kind": kindNamespace, "device": keeper.DevicePacket}
	if status, answer := p.call(t, "PUT", "/v1/tunnels/p1", w.spec); status != http.StatusCreated {
		t.Fatal(status, answer)
	}
	status, answer := p.call(t, "PUT", "/v1/tunnels/p2", w.spec)
	if status != http.StatusServiceUnavailable || answer["code"] != "namespaces_exhausted" || !strings.Contains(fmt.Sprint(answer["detail"]), "user.max_net_namespaces") {
		t.Error(status, answer)
	}
	if status, answer := p.call(t, "GET", "/v1/tunnels/p1", nil); status != http.StatusOK || answer["state"] != stateUp {
		t.Error(status, answer)
	}
}

func TestWhatAMachineCanDoIsFoundByTrying(t *testing.T) {
	eachPlace(t, func(t *testing.T, p *place) {
		status, answer := p.engine.call(t, "GET", "/v1/networks", nil)
		if status != http.StatusOK {
			t.Fatal(status, answer)
		}
		namespace, iface := answer["namespace"].(map[string]any), answer["interface"].(map[string]any)
		best := p.runner.device
		if p.runner.user == 0 {
			best = keeper.DeviceTUN // which root may open
		}
		if namespace["able"] != true || namespace["device"] != best || (best == keeper.DevicePacket) != (namespace["why"] != nil) {
			t.Error(namespace)
		}
		if iface["able"] != (p.runner.user == 0) || (iface["code"] != nil) != (p.runner.user != 0) {
			t.Error(iface)
		}
	})
}
