package netstack

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/keeper"
	"lattice.dev/engine/internal/wg"
)

// Kinds of network that a tunnel can end in.
const (
	kindNetstack  = "netstack"  // gVisor's stack in this process
	kindNamespace = "namespace" // a network namespace of its own, for programs
	kindInterface = "interface" // an interface in the engine's own network namespace
)

const defaultInterface = "lattice0"

// NetworkSpec says where the tunnel ends.
type NetworkSpec struct {
	Kind      string `json:"kind"`
	Interface string `json:"interface"`
	Device    string `json:"device"`
}

// networkView is what the answers tell of the network.
type networkView struct {
	Kind      string         `json:"kind"`
	Device    string         `json:"device"`
	Why       string         `json:"why,omitempty"`
	Interface *string        `json:"interface"`
	Namespace *namespaceView `json:"namespace"`
	Sockets   *string        `json:"sockets"`
}

// namespaceView is where the namespace is found by the user that runs the engine.
type namespaceView struct {
	PID    int    `json:"pid"`
	User   string `json:"user"`
	Net    string `json:"net"`
	Cookie uint64 `json:"cookie"`
}

func (s *Spec) readNetwork(read *settings) error {
	n := s.Network
	if n.Kind == "" {
		n.Kind = kindNetstack
	}
	if n.Interface == "" {
		n.Interface = defaultInterface
	}
	if n.Device == "" {
		n.Device = keeper.DeviceAuto
	}
	// One byte short of IFNAMSIZ, because the packet device's other end may be called <name>p.
	if len(n.Interface) > unix.IFNAMSIZ-2 || strings.ContainsAny(n.Interface, "/ \t\n%:") || n.Interface == "." || n.Interface == ".." || n.Interface == "lo" {
		return fmt.Errorf("network.interface: %q is not an interface name of at most %d characters", n.Interface, unix.IFNAMSIZ-2)
	}
	switch n.Device {
	case keeper.DeviceAuto, keeper.DeviceTUN, keeper.DevicePacket:
	case deviceKernel:
		if n.Kind != kindInterface { // a program in the namespace would be one step from the key
			return fmt.Errorf("network.device: kernel is for network.kind interface alone")
		}
	default:
		return fmt.Errorf("network.device: %q is none of auto, kernel, tun and packet", n.Device)
	}
	read.network = n
	if read.router && n.Kind != kindNetstack {
		return fmt.Errorf("router: only a tunnel of the kind netstack can serve addresses beyond its own, not one of the kind %s", n.Kind)
	}
	if n.Kind == kindNamespace || n.Kind == kindInterface {
		for _, address := range read.addresses {
			if !address.Is4() {
				return fmt.Errorf("interface.addresses: %s is not IPv4, which is all that an interface gets", address)
			}
		}
	}
	switch n.Kind {
	case kindNetstack:
		return nil
	case kindInterface:
		if leadsInto(read.peer.Endpoint, read.routes) {
			return errLoop(read.peer.Endpoint)
		}
		return nil
	case kindNamespace:
		// Nothing else is in the namespace: what leads past the overlay meets the gateway's refusal, and its record.
		read.peer.AllowedIPs = []string{netip.PrefixFrom(netip.IPv4Unspecified(), 0).String()}
		return nil
	default:
		return fmt.Errorf("network.kind: %q is none of netstack, namespace and interface", n.Kind)
	}
}

// openNetwork makes what the tunnel ends in.
func (s *service) openNetwork(read *settings) (network, networkView, error) {
	switch read.network.Kind {
	case kindNamespace:
		return s.openNamespace(read)
	case kindInterface:
		return s.openInterface(read)
	}
	overlay, err := newOverlay(read.addresses, read.mtu, read.router)
	if err != nil {
		return nil, networkView{}, fmt.Errorf("cannot make the network stack: %w", err)
	}
	overlay.alive = s.alive
	return overlay, networkView{Kind: kindNetstack, Device: kindNetstack}, nil
}

func (s *service) openNamespace(read *settings) (network, networkView, error) {
	kept, err := s.startKeeper()
	if err != nil {
		return nil, networkView{}, keeperProblem(err)
	}
	namespace, err := kept.Open(keeper.Spec{
		Interface: read.network.Interface, Addresses: read.addresses, MTU: read.mtu, Device: read.network.Device,
	})
	if err != nil {
		return nil, networkView{}, keeperProblem(err)
	}
	packets, err := namespace.Join()
	if err != nil {
		namespace.Close()
		return nil, networkView{}, err
	}
	path := filepath.Join(s.runtimeDir, fmt.Sprintf("sockets-%d.sock", s.number()))
	sockets, err := serveSockets(path, namespace.Socket)
	if err != nil {
		_ = packets.Close()
		namespace.Close()
		return nil, networkView{}, err
	}
	k := &kernelNetwork{start: func() (wg.Device, error) { return wg.NewUserspace(packets, read.privateKey, read.peer) }, socket: namespace.Socket, gone: namespace.Lost()}
	k.end = func() {
		sockets.close()
		namespace.Close()
	}
	view := networkView{
		Kind: kindNamespace, Device: namespace.Device, Why: namespace.Why, Interface: &read.network.Interface, Sockets: &path,
		Namespace: &namespaceView{namespace.PID(), namespace.UserPath(), namespace.NetPath(), namespace.Cookie},
	}
	return k, view, nil
}

// number is a new one for a network.
func (s *service) number() int64 { return s.networks.Add(1) }

// startKeeper returns the engine's one keeper, a new one where there is none. Who has waited for an attempt that failed
// hears of it, rather than wait for another: both together are longer than its caller waits.
func (s *service) startKeeper() (*keeper.Keeper, error) {
	asked := time.Now()
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if s.keeper != nil {
		select {
		case <-s.keeper.Done():
			s.keeper = nil
		default:
		}
	}
	if s.keeper == nil {
		if asked.Before(s.unkept) {
			return nil, s.keeperFailure
		}
		started, err := s.newKeeper()
		if err != nil {
			s.unkept, s.keeperFailure = time.Now(), err
			return nil, err
		}
		s.log.Info("namespace keeper started", "pid", started.PID)
		s.keeper = started
	}
	return s.keeper, nil
}

func (s *service) endKeeper() {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	if s.keeper != nil {
		s.keeper.Close()
		s.keeper = nil
	}
}

// keeperProblem gives a refusal of the keeper its place in the control API.
func keeperProblem(err error) error {
	var known *keeper.Error
	if !errors.As(err, &known) {
		return err
	}
	return &problem{http.StatusServiceUnavailable, known.Code, known.Detail}
}
