package wg

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Key is a WireGuard key as hexadecimal, the form of the UAPI (https://www.wireguard.com/xplatform/).
type Key string

// ParseKey reads a key in base64, as `wg` prints it. The error never contains the text.
func ParseKey(text string) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != device.NoisePublicKeySize {
		return "", fmt.Errorf("not a WireGuard key: 32 bytes in base64, as wg prints it")
	}
	return Key(hex.EncodeToString(raw)), nil
}

// Peer is the other end of a tunnel.
type Peer struct {
	PublicKey    Key
	PresharedKey Key
	Endpoint     string // address and port, resolved
	AllowedIPs   []string
	Keepalive    int // seconds, 0 is off
}

// ResolveEndpoint turns host:port into address:port by the host's resolver; of several addresses the first, IPv4 before
// IPv6.
func ResolveEndpoint(ctx context.Context, text string) (string, error) {
	address, err := resolve(ctx, text)
	if err != nil {
		return "", fmt.Errorf("the gateway's endpoint %q does not resolve: %w", text, err)
	}
	return address.String(), nil
}

func resolve(ctx context.Context, text string) (netip.AddrPort, error) {
	var none netip.AddrPort
	host, service, err := net.SplitHostPort(text)
	if err != nil {
		return none, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return none, err
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return none, err
	}
	for _, address := range found {
		if address.Unmap().Is4() {
			return netip.AddrPortFrom(address.Unmap(), uint16(port)), nil
		}
	}
	return netip.AddrPortFrom(found[0], uint16(port)), nil
}

// UAPI renders the lines that make the peer.
func (p Peer) UAPI() string {
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\nendpoint=%s\nreplace_allowed_ips=true\n", p.PublicKey, p.Endpoint)
	if p.PresharedKey != "" {
		fmt.Fprintf(&b, "preshared_key=%s\n", p.PresharedKey)
	}
	fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", p.Keepalive)
	for _, prefix := range p.AllowedIPs {
		fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
	}
	return b.String()
}

// Counters is what a device says of its one peer.
type Counters struct {
	LastHandshake time.Time // zero: never
	Received      uint64
	Sent          uint64
}

func readCounters(dev *device.Device) (Counters, error) {
	var counters Counters
	text, err := dev.IpcGet()
	if err != nil {
		return counters, err
	}
	var seconds, nanoseconds int64
	for line := range strings.SplitSeq(text, "\n") {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "last_handshake_time_sec":
			_, err = fmt.Sscan(value, &seconds)
		case "last_handshake_time_nsec":
			_, err = fmt.Sscan(value, &nanoseconds)
		case "rx_bytes":
			_, err = fmt.Sscan(value, &counters.Received)
		case "tx_bytes":
			_, err = fmt.Sscan(value, &counters.Sent)
		}
		if err != nil {
			return counters, fmt.Errorf("the device's %s is not a number: %w", key, err)
		}
	}
	if seconds != 0 || nanoseconds != 0 {
		counters.LastHandshake = time.Unix(seconds, nanoseconds)
	}
	return counters, nil
}
