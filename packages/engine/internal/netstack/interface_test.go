package netstack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/keeper"
)

// ownNetwork is set in a copy of this test binary that has a network namespace to itself, where an interface harms
// nobody.
const ownNetwork = "LATTICE_TEST_OWN_NETWORK"

func inOwnNetwork() bool { return os.Getenv(ownNetwork) != "" }

// rerun runs tests of this binary in a network namespace of their own, and in a user namespace where the tests do not
// run as root.
func rerun(t *testing.T, tests string) {
	t.Helper()
	command := exec.Command("/proc/self/exe", "-test.run=^("+tests+")$", "-test.count=1", fmt.Sprintf("-test.v=%v", testing.Verbose()))
	command.Env = append(os.Environ(), ownNetwork+"=yes", goRace)
	command.SysProcAttr = &syscall.SysProcAttr{}
	if os.Getuid() != 0 {
		command.SysProcAttr = newUserNamespace()
	}
	command.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	out, err := command.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
	if testing.Verbose() {
		t.Logf("in a network namespace of their own:\n%s", out) // also what the copy has left out
	}
}

// newUserNamespace is one in which this user is root.
func newUserNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
}

// alone is for a test of an interface: it runs in the copy, and its original runs the copy.
func alone(t *testing.T) bool {
	t.Helper()
	if inOwnNetwork() {
		return true
	}
	rerun(t, t.Name())
	return false
}

// setLoopback sets lo up, in a namespace that is new.
func setLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func TestAnInterfaceServesAsTheOtherNetworksDo(t *testing.T) {
	rerun(t, strings.Join([]string{
		"TestHTTPThroughTheTunnelComesFromTheOverlayAddress", "TestSOCKSCarriesALargeTransferWithHalfClose",
		"TestWhatPolicyDoesNotHoldIsRefusedWithASentence", "TestDatagramsThroughAnAssociation", "TestForwardTellsTheTargetWhoCalls",
		"TestExpiryEndsARunningConnection", "TestDeletedTunnelLeavesNoGoroutineAndNoDescriptor", "TestSOCKSRefusalsHaveTheirReplies",
		"TestProbeOfARunningTunnelKeepsItsConnections", "TestDatagramForward",
	}, "|"))
}

func links(t *testing.T) []string {
	t.Helper()
	text, err := listLinks(nil)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(text, "\n")
}

func routeTable(t *testing.T) []string {
	t.Helper()
	all, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, route := range all {
		iface, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, fmt.Sprintf("%s %s", route.Dst, iface.Attrs().Name))
	}
	return texts
}

func TestAnInterfaceHasTheAddressAndTheConfigurationsRoutesAlone(t *testing.T) {
	if !alone(t) {
		return
	}
	eachKind(t, func(t *testing.T, w *world) {
		w.serveHTTP(t, 80, func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, r.RemoteAddr) })
		before := links(t)
		status, answer := w.call(t, "PUT", "/v1/tunnels/p1", w.spec)
		if status != http.StatusCreated {
			t.Fatal(status, answer)
		}
		network := answer["network"].(map[string]any)
		if network["device"] != w.spec["network"].(map[string]any)["device"] || network["interface"] != "lattice0" || network["namespace"] != nil {
			t.Error(network)
		}
		if !slices.Contains(links(t), "lattice0 [10.96.2.5/32] 1420") {
			t.Error(links(t))
		}
		if all := routeTable(t); !slices.Equal(all, []string{"10.96.0.0/16 lattice0"}) {
			t.Error(all)
		}
		// Any program of the namespace, without a proxy.
		answered, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + gatewayIP + "/")
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(answered.Body); !strings.HasPrefix(string(body), agentIP+":") {
			t.Errorf("%s", body)
		}
		w.echoTCP(t, 81)
		connection, err := net.Dial("tcp", gatewayIP+":81")
		if err != nil {
			t.Fatal(err)
		}
		defer connection.Close()
		if status, answer := w.call(t, "DELETE", "/v1/tunnels/p1", nil); status != http.StatusNoContent {
			t.Fatal(status, answer)
		}
		_ = connection.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := connection.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Error("a program's connection goes on: ", err)
		}
		if after := links(t); !slices.Equal(after, before) {
			t.Errorf("%v", after)
		}
	})
}

func TestTwoInterfacesInOneNamespaceAreTwoIdentities(t *testing.T) {
	if !alone(t) {
		return
	}
	eachKind(t, func(t *testing.T, one *world) {
		two := newWorld(t)
		for i, w := range []*world{one, two} {
			w.spec["network"] = map[string]any{"kind": kindInterface, "device": one.spec["network"].(map[string]any)["device"], "interface": fmt.Sprintf("lattice%d", i)}
			w.serveHTTP(t, 80, func(rw http.ResponseWriter, r *http.Request) { _, _ = fmt.Fprintf(rw, "%d %s", i, r.RemoteAddr) })
		}
		addresses := []string{one.put(t), two.put(t)}
		if all := routeTable(t); !slices.Contains(all, "10.96.0.0/16 lattice0") || !slices.Contains(all, "10.96.0.0/16 lattice1") {
			t.Error(all)
		}
		for i, address := range addresses {
			answer, err := throughProxy(address, "agent:s3cret").Get("http://tools.lattice/")
			if err != nil {
				t.Fatal(err)
			}
			if body, _ := io.ReadAll(answer.Body); !strings.HasPrefix(string(body), fmt.Sprintf("%d %s:", i, agentIP)) {
				t.Errorf("%d: %s", i, body)
			}
		}
	})
}

func TestAnInterfaceIsRefusedWithItsReason(t *testing.T) {
	if !alone(t) {
		return
	}
	w := newWorld(t)
	for name, c := range map[string]struct {
		network map[string]any
		change  func()
		code    string
	}{
		"its name is taken":              {map[string]any{"interface": "taken0"}, func() {}, "interface_exists"},
		"a TUN of that name":             {map[string]any{"interface": "taken0", "device": keeper.DeviceTUN}, func() {}, "interface_exists"},
		"it would lead into itself":      {nil, func() { w.spec["peer"].(map[string]any)["allowedIPs"] = []string{"0.0.0.0/0"} }, "invalid_tunnel"},
		"no name":                        {map[string]any{"interface": "a/b"}, func() {}, "invalid_tunnel"},
		"no kind":                        {map[string]any{"kind": "moon"}, func() {}, "invalid_tunnel"},
		"no device":                      {map[string]any{"device": "moon"}, func() {}, "invalid_tunnel"},
		"the kernel's in a namespace":    {map[string]any{"kind": kindNamespace, "device": deviceKernel}, func() {}, "invalid_tunnel"},
		"an address of the next version": {nil, func() { w.spec["interface"].(map[string]any)["addresses"] = []string{"fd00::5"} }, "invalid_tunnel"},
	} {
		if _, err := netlink.LinkByName("taken0"); err != nil {
			attributes := netlink.NewLinkAttrs()
			attributes.Name = "taken0"
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "other0"}); err != nil {
				t.Fatal(err)
			}
		}
		fresh := newWorld(t)
		w = fresh
		network := map[string]any{"kind": kindInterface}
		for key, value := range c.network {
			network[key] = value
		}
		w.spec["network"] = network
		c.change()
		status, answer := w.call(t, "PUT", "/v1/tunnels/p1", w.spec)
		if status/100 != 4 || answer["code"] != c.code || answer["detail"] == "" {
			t.Errorf("%s: %d %v", name, status, answer)
		}
		if _, err := netlink.LinkByName("lattice0"); err == nil {
			t.Errorf("%s: an interface is left", name)
		}
	}
}

func TestTheBestDeviceIsTakenAndTheOthersReasonsAreTold(t *testing.T) {
	if !alone(t) {
		return
	}
	w := newWorld(t)
	w.spec["network"] = map[string]any{"kind": kindInterface}
	status, answer := w.call(t, "PUT", "/v1/tunnels/p1", w.spec)
	if status != http.StatusCreated {
		t.Fatal(status, answer)
	}
	network := answer["network"].(map[string]any)
	switch network["device"] {
	case deviceKernel:
		if network["why"] != nil {
			t.Error(network)
		}
	default: // a kernel without the module
		if !strings.Contains(fmt.Sprint(network["why"]), "the kernel's WireGuard is not to be had") {
			t.Error(network)
		}
	}
}

func TestAnInterfaceNeedsItsCapability(t *testing.T) {
	p := &place{world: newWorld(t), runner: runner{device: keeper.DevicePacket, user: ordinaryUser}}
	if os.Getuid() != 0 {
		p.runner.user = os.Getuid()
	}
	p.spec["network"] = map[string]any{"kind": kindInterface}
	p.start(t)
	status, answer := p.engine.call(t, "PUT", "/v1/tunnels/p1", p.spec)
	if status != http.StatusForbidden || answer["code"] != "net_admin_missing" {
		t.Fatal(status, answer)
	}
}

func TestSocketsOfAnInterfaceSendThroughItAlone(t *testing.T) {
	if !alone(t) {
		return
	}
	eachKind(t, func(t *testing.T, w *world) {
		w.echoTCP(t, 80)
		status, answer := w.call(t, "PUT", "/v1/tunnels/p1", w.spec)
		if status != http.StatusCreated {
			t.Fatal(status, answer)
		}
		said, fd := ask(t, answer["network"].(map[string]any)["sockets"].(string), `{"family": "inet", "type": "stream"}`)
		if said["ok"] != true {
			t.Fatal(said)
		}
		if bound, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil || bound != "lattice0" {
			t.Fatal(bound, err)
		}
		if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: 80, Addr: netip.MustParseAddr(gatewayIP).As4()}); err != nil {
			t.Fatal(err)
		}
		socket, err := connection(fd)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(socket.LocalAddr().String(), agentIP+":") {
			t.Error(socket.LocalAddr())
		}
		_ = socket.Close()
		_ = syscall.Close(fd)
	})
}
