package gateway

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxIDLength = 256
	// maxLife is far beyond any identity's, and far below what overflows a kernel timeout.
	maxLife = 10 * 365 * 24 * time.Hour
	// Two deadlines of one identity differ by how long their messages took. Later by less than lateSlack is the same
	// deadline heard late, so that a full resync moves none.
	lateSlack  = 250 * time.Millisecond
	earlySlack = 20 * time.Millisecond
)

// stateBody is the body of PUT and PATCH /v1/state.
type stateBody struct {
	Revision int64      `json:"revision"`
	Upsert   []peerBody `json:"upsert"`
	Remove   []string   `json:"remove"`
}

type peerBody struct {
	ID        string      `json:"id"`
	PublicKey string      `json:"publicKey"`
	Address   string      `json:"address"`
	Line      string      `json:"line"`
	Routes    []string    `json:"routes"`
	ExpiresIn *float64    `json:"expiresIn"`
	Grants    []grantBody `json:"grants"`
}

type grantBody struct {
	To       string `json:"to"`
	Protocol string `json:"protocol"`
	Port     int    `json:"port"`
}

// publicKey is a Curve25519 key.
type publicKey [32]byte

func (k publicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// grant is one destination that a peer may open flows to. Protocol 0 is any; bits is the length of a network outside
// the overlay, and 0 for an address inside.
type grant struct {
	to       netip.Addr
	bits     uint8
	protocol uint8
	port     uint16
}

// peer is one identity as the gateway enforces it. It is never changed once it is in the state: an update makes another.
type peer struct {
	id       string
	key      publicKey
	address  netip.Addr
	line     netip.Addr     // of the agent that it comes from in the end by delegation, where it does
	routes   []netip.Addr   // further overlay addresses that it serves, sorted
	networks []netip.Prefix // networks outside the overlay that it serves, sorted
	deadline instant        // 0 for none
	grants   map[grant]struct{}
}

// addresses are all that belong to the peer, its own first.
func (p *peer) addresses() []netip.Addr {
	return append([]netip.Addr{p.address}, p.routes...)
}

// allowedIPs are the peer's addresses and networks, as WireGuard knows them.
func (p *peer) allowedIPs() []netip.Prefix {
	all := make([]netip.Prefix, 0, 1+len(p.routes)+len(p.networks))
	for _, address := range p.addresses() {
		all = append(all, netip.PrefixFrom(address, address.BitLen()))
	}
	return append(all, p.networks...)
}

// instant is a time on CLOCK_BOOTTIME, in nanoseconds: it neither jumps nor stops while the machine sleeps.
type instant int64

func now() instant {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return instant(t.Nano())
}

// earlier is the first of two deadlines, of which 0 is none.
func earlier(a, b instant) instant {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	default:
		return min(a, b)
	}
}

// settle chooses between the deadline that is in force and one that was just heard.
func settle(old, heard instant) instant {
	if old == 0 || heard == 0 {
		return heard
	}
	late := time.Duration(heard - old)
	if late < lateSlack && late > -earlySlack {
		return old
	}
	return heard
}

// problem is a refused request.
type problem struct {
	status int
	code   string
	detail string
}

func (p *problem) Error() string { return p.detail }

func invalid(code, format string, args ...any) *problem {
	return &problem{status: 422, code: code, detail: fmt.Sprintf(format, args...)}
}

// parse checks one peer of a request. overlay is the gateway's address with the overlay's prefix.
func (b *peerBody) parse(overlay netip.Prefix, at instant) (*peer, *problem) {
	if b.ID == "" || len(b.ID) > maxIDLength {
		return nil, invalid("invalid_id", "a peer's id has 1 to %d bytes, this one has %d", maxIDLength, len(b.ID))
	}
	p := &peer{id: b.ID, grants: make(map[grant]struct{}, len(b.Grants))}
	raw, err := base64.StdEncoding.Strict().DecodeString(b.PublicKey)
	if err != nil || len(raw) != len(p.key) {
		return nil, invalid("invalid_public_key", "peer %s: publicKey is not 32 bytes in base64, as `wg pubkey` prints them", b.ID)
	}
	copy(p.key[:], raw)
	if p.key == (publicKey{}) {
		return nil, invalid("invalid_public_key", "peer %s: the all-zero key belongs to nobody", b.ID)
	}
	if p.address, err = overlayAddress(b.Address, overlay); err != nil {
		return nil, invalid("invalid_address", "peer %s: %v", b.ID, err)
	}
	if p.address == overlay.Addr() {
		return nil, invalid("invalid_address", "peer %s: %s is the gateway's own address", b.ID, p.address)
	}
	if b.Line != "" {
		if p.line, err = overlayAddress(b.Line, overlay); err != nil || p.line == overlay.Addr() || p.line == p.address {
			return nil, invalid("invalid_line", "peer %s: line %q is not the overlay address of another agent", b.ID, b.Line)
		}
	}
	if bad := b.parseRoutes(p, overlay); bad != nil {
		return nil, bad
	}
	if b.ExpiresIn != nil {
		if math.IsNaN(*b.ExpiresIn) || math.IsInf(*b.ExpiresIn, 0) || *b.ExpiresIn > maxLife.Seconds() {
			return nil, invalid("invalid_expires_in", "peer %s: expiresIn is a number of seconds of at most %.0f, or null for none", b.ID, maxLife.Seconds())
		}
		p.deadline = max(1, at+instant(max(*b.ExpiresIn, -1)*float64(time.Second)))
	}
	for _, g := range b.Grants {
		parsed, err := g.parse(overlay)
		if err != nil {
			return nil, invalid("invalid_grant", "peer %s: %v", b.ID, err)
		}
		p.grants[parsed] = struct{}{}
	}
	return p, nil
}

func (b *peerBody) parseRoutes(p *peer, overlay netip.Prefix) *problem {
	for _, text := range b.Routes {
		if network, err := parseNetwork(text, overlay); err == nil {
			p.networks = append(p.networks, network)
			continue
		} else if strings.Contains(text, "/") {
			return invalid("invalid_route", "peer %s: route %v", b.ID, err)
		}
		route, err := overlayAddress(text, overlay)
		if err != nil {
			return invalid("invalid_route", "peer %s: route %v", b.ID, err)
		}
		if route == overlay.Addr() || route == p.address {
			return invalid("invalid_route", "peer %s: route %s is the gateway's address or the peer's own", b.ID, route)
		}
		p.routes = append(p.routes, route)
	}
	slices.SortFunc(p.routes, netip.Addr.Compare)
	p.routes = slices.Compact(p.routes)
	slices.SortFunc(p.networks, comparePrefixes)
	for i := 1; i < len(p.networks); i++ {
		if p.networks[i-1].Overlaps(p.networks[i]) {
			return invalid("invalid_route", "peer %s: the networks %s and %s overlap", b.ID, p.networks[i-1], p.networks[i])
		}
	}
	return nil
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func (b *grantBody) parse(overlay netip.Prefix) (grant, error) {
	var bits uint8
	to, err := overlayAddress(b.To, overlay)
	if err != nil {
		network, outside := parseNetwork(b.To, overlay)
		if outside != nil {
			return grant{}, fmt.Errorf("grant to %w", err)
		}
		to, bits = network.Addr(), uint8(network.Bits())
		if b.Protocol == "any" {
			return grant{}, fmt.Errorf("grant to %s: a network is granted by protocol and port, not with protocol any", network)
		}
	}
	switch b.Protocol {
	case "any":
		if b.Port != 0 {
			return grant{}, fmt.Errorf("grant to %s: protocol any goes with port 0, not %d", to, b.Port)
		}
		return grant{to: to}, nil
	case "tcp", "udp":
		if b.Port < 1 || b.Port > 65535 {
			return grant{}, fmt.Errorf("grant to %s: port %d is not 1 to 65535", to, b.Port)
		}
		protocol := uint8(unix.IPPROTO_TCP)
		if b.Protocol == "udp" {
			protocol = unix.IPPROTO_UDP
		}
		return grant{to: to, bits: bits, protocol: protocol, port: uint16(b.Port)}, nil
	}
	return grant{}, fmt.Errorf("grant to %s: protocol %q is not tcp, udp or any", to, b.Protocol)
}

func overlayAddress(s string, overlay netip.Prefix) (netip.Addr, error) {
	address, err := netip.ParseAddr(s)
	if err != nil || !address.Is4() {
		return netip.Addr{}, fmt.Errorf("%q is not an IPv4 address such as 10.96.2.5", s)
	}
	if !overlay.Contains(address) {
		return netip.Addr{}, fmt.Errorf("%s is outside the overlay %s", address, overlay.Masked())
	}
	if address == overlay.Masked().Addr() || address == lastOf(overlay) {
		return netip.Addr{}, fmt.Errorf("%s is the network's or the broadcast address of the overlay %s", address, overlay.Masked())
	}
	return address, nil
}

// lastOf is the broadcast address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	last := binary.BigEndian.Uint32(a[:]) | ^uint32(0)>>p.Bits()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, last)))
}

// network is what the grant leads to, where that is outside the overlay.
func (g grant) network() netip.Prefix { return netip.PrefixFrom(g.to, int(g.bits)) }

// elementOf is the element that lets p's grant pass.
func (g grant) elementOf(p *peer) elementKey {
	from, to := p.address.As4(), g.to.As4()
	k := elementKey{set: inPairs, size: 8, bits: g.bits}
	copy(k.key[0:], from[:])
	copy(k.key[4:], to[:])
	if g.protocol != 0 {
		k.set, k.size = inGrants, 16
		if g.bits != 0 {
			k.set = inRanges
		}
		k.key[8] = g.protocol
		k.key[12], k.key[13] = byte(g.port>>8), byte(g.port)
	}
	return k
}

func liveElement(address netip.Addr) elementKey { return addressElement(inLive, address) }

func endedElement(address netip.Addr) elementKey { return addressElement(inEnded, address) }

// lineElement has p's connections count for its line.
func lineElement(p *peer) elementKey {
	k := addressElement(inLines, p.address)
	line := p.line.As4()
	copy(k.key[4:], line[:])
	return k
}

func addressElement(set uint8, address netip.Addr) elementKey {
	k := elementKey{set: set, size: 4}
	a := address.As4()
	copy(k.key[:], a[:])
	return k
}
