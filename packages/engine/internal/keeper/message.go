// Package keeper is a process inside a user namespace of its own that keeps one network namespace for each tunnel that
// wants one. The engine, outside, keeps the keys and moves the packets; it asks the keeper for namespaces and for
// sockets in them over a socket pair that nobody else holds. A program in such a namespace shares the user namespace
// with the keeper, so the keeper holds no secret and cannot be traced from there.
package keeper

import "net/netip"

// Mode is the argument that makes this program a keeper.
const Mode = "netns-keeper"

// Kinds of devices.
const (
	DeviceAuto   = "auto"
	DeviceTUN    = "tun"
	DevicePacket = "packet"
)

// Families and types of sockets.
const (
	Inet   = "inet"
	Inet6  = "inet6"
	Stream = "stream"
	Dgram  = "dgram"
	Ping   = "ping" // ICMP echo
)

const (
	opOpen   = "open"
	opSocket = "socket"
	opClose  = "close"
)

// maxMessage is larger than any message of this protocol.
const maxMessage = 16 << 10

// Spec is what a namespace is to hold.
type Spec struct {
	Interface string       `json:"interface"`
	Addresses []netip.Addr `json:"addresses"`
	MTU       int          `json:"mtu"`
	Device    string       `json:"device"` // DeviceAuto, DeviceTUN or DevicePacket
}

// request is one message to the keeper. A descriptor comes with no request.
type request struct {
	ID        int64  `json:"id"`
	Op        string `json:"op"`
	Namespace int64  `json:"namespace"` // of opSocket and opClose: the ID of the request that opened it
	Spec      *Spec  `json:"spec,omitempty"`
	Family    string `json:"family,omitempty"`
	Type      string `json:"type,omitempty"`
}

// answer is one message from the keeper; the device and a socket come along as a descriptor. The first one, with ID 0
// and unasked, says that the keeper is ready.
type answer struct {
	ID     int64   `json:"id"`
	Code   string  `json:"code,omitempty"` // empty: done
	Detail string  `json:"detail,omitempty"`
	Opened *opened `json:"opened,omitempty"`
}

// opened is what the engine must know of a namespace.
type opened struct {
	Device string `json:"device"`
	Why    string `json:"why,omitempty"` // it is not a better one
	Thread int    `json:"thread"`        // it is in the namespace as long as the tunnel lives
	Cookie uint64 `json:"cookie"`        // SO_NETNS_COOKIE: never given twice, 0 before Linux 5.14
	Index  int    `json:"index"`         // DevicePacket: of the engine's end
	Kernel []byte `json:"kernel"`        // DevicePacket: link-layer address of the interface
}

// Error is a refusal with a stable code.
type Error struct{ Code, Detail string }

func (e *Error) Error() string { return e.Detail }
