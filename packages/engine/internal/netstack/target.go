package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// outside is the host's network, which a connector's names are looked up in and dialled in.
type outside struct {
	resolver *net.Resolver
	dialer   net.Dialer
}

func newOutside() *outside { return &outside{resolver: net.DefaultResolver} }

// resolveTimeout bounds the look-up of one name.
const resolveTimeout = 5 * time.Second

// special are the networks that no name of the Internet belongs to, with the word that a refusal says. Those that
// net/netip knows by itself (loopback, private, link-local, multicast, unspecified) are not repeated.
// Sources: IANA's special-purpose address registries (RFC 6890).
var special = []struct {
	prefix netip.Prefix
	word   string
}{
	// Azure's wire server, the one cloud metadata service at a public address
	// (https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16); the others are link-local,
	// unique local (fd00:ec2::254) or shared (100.100.100.200).
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata"},
	{netip.MustParsePrefix("0.0.0.0/8"), "reserved"},
	{netip.MustParsePrefix("100.64.0.0/10"), "private"}, // RFC 6598, shared address space
	{netip.MustParsePrefix("192.0.0.0/24"), "reserved"},
	{netip.MustParsePrefix("192.0.2.0/24"), "reserved"},
	{netip.MustParsePrefix("198.18.0.0/15"), "private"}, // RFC 2544, test networks
	{netip.MustParsePrefix("198.51.100.0/24"), "reserved"},
	{netip.MustParsePrefix("203.0.113.0/24"), "reserved"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("2001::/23"), "reserved"}, // among them Teredo, which carries an IPv4 address
	{netip.MustParsePrefix("2001:db8::/32"), "reserved"},
	{netip.MustParsePrefix("2002::/16"), "reserved"}, // 6to4, likewise
}

var (
	globalUnicast6 = netip.MustParsePrefix("2000::/3")
	nat64          = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
)

// judge says why an address must not be dialled for a name: a word, or nothing where it may be. permitted are the
// networks that the workspace opens.
func judge(address netip.Addr, permitted, own []netip.Prefix) string {
	address = address.Unmap().WithZone("")
	if nat64.Contains(address) {
		bytes := address.As16()
		address = netip.AddrFrom4([4]byte(bytes[12:]))
	}
	for _, prefix := range permitted {
		if prefix.Contains(address) {
			return ""
		}
	}
	switch {
	case address.IsLoopback():
		return "loopback"
	case address.IsUnspecified():
		return "reserved"
	case address.IsPrivate():
		return "private"
	case address == netip.AddrFrom4([4]byte{169, 254, 169, 254}):
		return "metadata"
	case address.IsLinkLocalUnicast():
		return "link-local"
	case address.IsMulticast():
		return "multicast"
	case address.Is6() && !globalUnicast6.Contains(address):
		return "reserved"
	}
	for _, network := range special {
		if network.prefix.Contains(address) {
			return network.word
		}
	}
	for _, prefix := range own {
		if prefix.Addr() == address {
			return "this machine"
		}
	}
	return ""
}

// forbidden is the refusal to dial what a name resolves to.
type forbidden struct {
	reason   string
	resolved []netip.Addr
}

func (f *forbidden) Error() string {
	return fmt.Sprintf("the name resolves to %v (%s)", f.resolved, f.reason)
}

// dialName resolves a name, checks every address it has, and dials one of those that were checked: what the name
// means a moment later (DNS rebinding) makes no difference.
func (o *outside) dialName(ctx context.Context, network, name string, port uint16, permitted []netip.Prefix) (net.Conn, error) {
	addresses, err := o.lookUp(ctx, name)
	if err != nil {
		return nil, err
	}
	own := ownAddresses()
	for _, address := range addresses {
		if reason := judge(address, permitted, own); reason != "" {
			return nil, &forbidden{reason, addresses}
		}
	}
	return o.dialFirst(ctx, network, addresses, port)
}

// lookUp asks the host's resolver. localhost and what is below it is loopback without asking anybody (RFC 6761).
func (o *outside) lookUp(ctx context.Context, name string) ([]netip.Addr, error) {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	// The dot at the end keeps the host's search list out: exactly this name.
	found, err := o.resolver.LookupNetIP(ctx, "ip", name+".")
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no address", name)
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found, nil
}

func ownAddresses() []netip.Prefix {
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var own []netip.Prefix
	for _, one := range interfaces {
		if prefix, err := netip.ParsePrefix(one.String()); err == nil {
			own = append(own, prefix)
		}
	}
	return own
}

// dialFirst tries the addresses in turn, each for a fair part of the time that is left.
func (o *outside) dialFirst(ctx context.Context, network string, addresses []netip.Addr, port uint16) (net.Conn, error) {
	var last error
	for i, address := range addresses {
		part := ctx
		cancel := func() {}
		if deadline, ok := ctx.Deadline(); ok {
			left := time.Until(deadline)
			part, cancel = context.WithTimeout(ctx, max(left/time.Duration(len(addresses)-i), min(left, 2*time.Second)))
		}
		connection, err := o.dialer.DialContext(part, network, netip.AddrPortFrom(address, port).String())
		cancel()
		if err == nil {
			return connection, nil
		}
		last = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}
