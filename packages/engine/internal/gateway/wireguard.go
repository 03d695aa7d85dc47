package gateway

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// tunnel is the WireGuard device.
type tunnel struct {
	device    *device.Device
	guard     *guard
	bind      *socketBind
	publicKey publicKey

	mu        sync.Mutex           // one change of the device at a time
	rotations map[string]*rotation // by identity
	settling  bool
}

// readKey reads a private key file as `wg genkey` writes it. Errors never carry the content.
func readKey(path string) (private [32]byte, public publicKey, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return private, public, startFailure("key_unreadable", "the private key cannot be read (%w): give a file of this user with --private-key-file", err)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(content)))
	if err != nil || len(raw) != len(private) {
		return private, public, startFailure("key_invalid", "%s is not a WireGuard private key: write one with `wg genkey`", path)
	}
	copy(private[:], raw)
	shared, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		return private, public, startFailure("key_invalid", "%s is not a usable WireGuard private key: write one with `wg genkey`", path)
	}
	copy(public[:], shared)
	return private, public, nil
}

func newTunnel(dev tun.Device, bind *socketBind, private [32]byte, public publicKey) (*tunnel, error) {
	logger := &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { slog.Warn("wireguard: " + fmt.Sprintf(format, args...)) },
	}
	guard, err := newGuard(dev)
	if err != nil {
		return nil, startFailure("wireguard_failed", "%w", err)
	}
	t := &tunnel{device: device.NewDevice(guard, bind, logger), guard: guard, bind: bind, publicKey: public, rotations: map[string]*rotation{}}
	if err := guard.arm(t.device); err != nil {
		return nil, startFailure("wireguard_failed", "%w", err)
	}
	if err := t.device.IpcSet("private_key=" + hex.EncodeToString(private[:]) + "\n"); err != nil {
		return nil, startFailure("wireguard_failed", "the private key was not accepted: %w", err)
	}
	if err := t.device.Up(); err != nil {
		return nil, startFailure("wireguard_failed", "the WireGuard device cannot be set up: %w", err)
	}
	return t, nil
}

// configure takes peers out and puts peers in. A key that is in both stays and keeps its session; one that an identity
// exchanges stays until the new one is in use.
func (t *tunnel) configure(remove, put []*peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.settleBefore(remove, put); err != nil {
		return err
	}
	x := t.exchange(remove, put)
	var b strings.Builder
	for _, key := range x.gone {
		fmt.Fprintf(&b, "public_key=%s\nremove=true\n", hex.EncodeToString(key[:]))
	}
	for _, p := range put {
		key := p.key
		if r := x.begun[p.id]; r != nil {
			// The new key may shake hands; the address follows when it has.
			fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(key[:]))
			key = r.former
		}
		allow(&b, key, x.base[p.id], p)
	}
	if b.Len() > 0 {
		if err := t.device.IpcSet(b.String()); err != nil {
			return err
		}
	}
	t.begin(x.begun)
	t.guard.know(t.device, remove, put, t.holds)
	return nil
}

// allow writes what a key may send from and is sent. Written anew it would lose packets of a peer that only got another
// deadline, or of a connector that only got one route more.
func allow(b *strings.Builder, key publicKey, old, p *peer) {
	if old == nil || !old.address.IsValid() {
		fmt.Fprintf(b, "public_key=%s\nreplace_allowed_ips=true\n", hex.EncodeToString(key[:]))
		old = &peer{}
	} else if old.address != p.address || !slices.Equal(old.routes, p.routes) || !slices.Equal(old.networks, p.networks) {
		fmt.Fprintf(b, "public_key=%s\n", hex.EncodeToString(key[:]))
	}
	had, has := old.allowedIPs(), p.allowedIPs()
	for _, prefix := range had {
		if prefix.IsValid() && !slices.Contains(has, prefix) {
			fmt.Fprintf(b, "allowed_ip=-%s\n", prefix)
		}
	}
	for _, prefix := range has {
		if !slices.Contains(had, prefix) {
			fmt.Fprintf(b, "allowed_ip=%s\n", prefix)
		}
	}
}

// reset makes the device's peers exactly these, keeping the sessions of those that stay.
func (t *tunnel) reset(peers map[string]*peer) error {
	stats, err := t.stats()
	if err != nil {
		return err
	}
	t.mu.Lock()
	clear(t.rotations)
	t.mu.Unlock()
	var remove, put []*peer
	for key := range stats {
		remove = append(remove, &peer{key: key})
	}
	for _, p := range peers {
		put = append(put, p)
	}
	return t.configure(remove, put)
}

// peerStats is what the device knows of a peer.
type peerStats struct {
	endpoint      string
	lastHandshake float64 // Unix time in seconds, 0 for never
	rx, tx        uint64
}

func (t *tunnel) stats() (map[publicKey]*peerStats, error) {
	text, err := t.device.IpcGet()
	if err != nil {
		return nil, err
	}
	all := map[publicKey]*peerStats{}
	current := &peerStats{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch name {
		case "public_key":
			var key publicKey
			_, _ = hex.Decode(key[:], []byte(value))
			current = &peerStats{}
			all[key] = current
		case "endpoint":
			current.endpoint = value
		case "last_handshake_time_sec":
			seconds, _ := strconv.ParseFloat(value, 64)
			current.lastHandshake += seconds
		case "last_handshake_time_nsec":
			nanoseconds, _ := strconv.ParseFloat(value, 64)
			current.lastHandshake += nanoseconds / 1e9
		case "rx_bytes":
			current.rx, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			current.tx, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return all, lines.Err()
}

func (t *tunnel) close() {
	t.mu.Lock()
	clear(t.rotations)
	t.mu.Unlock()
	t.device.Close()
	t.bind.shut()
}
