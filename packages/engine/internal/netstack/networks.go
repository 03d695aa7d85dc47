package netstack

import (
	"errors"
	"net/http"
	"net/netip"

	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/control"
	"lattice.dev/engine/internal/keeper"
	"lattice.dev/engine/internal/userns"
)

// ability is whether this machine has a kind of network for this engine, and why not.
type ability struct {
	Able   bool   `json:"able"`
	Device string `json:"device,omitempty"`
	Why    string `json:"why,omitempty"` // the device is not a better one
	Code   string `json:"code,omitempty"`
	Detail string `json:"detail,omitempty"`
}

func unable(err error) ability {
	var known *problem
	if errors.As(err, &known) {
		return ability{Code: known.code, Detail: known.detail}
	}
	return ability{Code: "internal_error", Detail: err.Error()}
}

// getNetworks finds out by trying what a tunnel can end in here.
func (s *service) getNetworks(w http.ResponseWriter, _ *http.Request) {
	control.WriteJSON(w, http.StatusOK, map[string]ability{
		kindNetstack: {Able: true, Device: kindNetstack}, kindNamespace: s.tryNamespace(), kindInterface: tryInterface(),
	})
}

// postKeeper starts the namespaces' keeper, if it does not run: before the first of them is needed.
func (s *service) postKeeper(w http.ResponseWriter, _ *http.Request) {
	if _, err := s.startKeeper(); err != nil {
		answerError(w, keeperProblem(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *service) tryNamespace() ability {
	kept, err := s.startKeeper()
	if err != nil {
		return unable(keeperProblem(err))
	}
	namespace, err := kept.Open(keeper.Spec{
		Interface: defaultInterface, MTU: defaultMTU, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})}, // RFC 5737
	})
	if err != nil {
		return unable(keeperProblem(err))
	}
	defer namespace.Close()
	return ability{Able: true, Device: namespace.Device, Why: namespace.Why}
}

// tryInterface asks for the capability alone: an interface, made to try, would be seen by others.
func tryInterface() ability {
	if !userns.Has(unix.CAP_NET_ADMIN) {
		return unable(errNetAdmin)
	}
	return ability{Able: true}
}
