package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	handshakePoll = time.Millisecond
	// wireguard-go repeats a lost initiation only after 5 s (RekeyTimeout of the WireGuard paper, §6.4).
	// The gap doubles, so that an answer that takes longer than the first one is still waited for.
	handshakeRetry = 400 * time.Millisecond
	echoRetry      = 150 * time.Millisecond
)

// prove waits for a handshake completed after the one at `since` and, where address is valid, for an echo
// reply from there. Both together are bounded by timeout.
func (t *Tunnel) prove(ctx context.Context, since time.Time, address netip.Addr, timeout time.Duration) (handshake, echo time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	started := time.Now()
	if err := t.shakeHands(ctx, since, !since.IsZero()); err != nil {
		return 0, 0, err
	}
	shaken := time.Now()
	if !address.IsValid() {
		return shaken.Sub(started), 0, nil
	}
	if err := t.echo(ctx, address); err != nil {
		return shaken.Sub(started), 0, err
	}
	return shaken.Sub(started), time.Since(shaken), nil
}

// reprove makes a new handshake and times an echo; connections go on meanwhile.
func (t *Tunnel) reprove(ctx context.Context, address netip.Addr, timeout time.Duration) (time.Duration, error) {
	counters, err := t.device.Counters()
	if err != nil {
		return 0, fmt.Errorf("cannot read the device: %w", err)
	}
	_, echo, err := t.prove(ctx, counters.LastHandshake, address, timeout)
	return echo, err
}

// shakeHands waits for a handshake after the one at `since`; anew begins with one of its own, where one may be under way
// or done already.
func (t *Tunnel) shakeHands(ctx context.Context, since time.Time, anew bool) error {
	poll := time.NewTicker(handshakePoll)
	defer poll.Stop()
	var next time.Time
	for gap := handshakeRetry; ; {
		// Asked first: the device initiates by itself when it comes up with a keepalive, and another
		// initiation within 20 ms is dropped by the other end as a flood.
		counters, err := t.device.Counters()
		if err != nil {
			return fmt.Errorf("cannot read the device: %w", err)
		}
		if counters.LastHandshake.After(since) {
			return nil
		}
		if now := time.Now(); now.After(next) {
			if err := t.device.Initiate(anew); err != nil {
				return err
			}
			anew = true
			next = now.Add(gap)
			gap *= 2
		}
		select {
		case <-ctx.Done():
			if t.ctx.Err() != nil {
				return t.why()
			}
			t.mu.Lock()
			endpoint := t.peer.Endpoint
			t.mu.Unlock()
			return &problem{504, "handshake_timeout", fmt.Sprintf("no answer to the WireGuard handshake from %s: "+
				"the gateway does not know the key, or UDP does not get there. Check that UDP to that address and port is open", endpoint)}
		case <-poll.C:
		}
	}
}

func (t *Tunnel) echo(ctx context.Context, address netip.Addr) error {
	connection, err := t.net.dialPing(address)
	if err != nil {
		return err
	}
	defer connection.Close()
	var request icmp.Type = ipv4.ICMPTypeEcho
	if address.Is6() {
		request = ipv6.ICMPTypeEchoRequest
	}
	mark := binary.BigEndian.AppendUint64(nil, rand.Uint64())
	answer := make([]byte, 1500)
	next := time.Now().Add(handshakeRetry)
	for sequence, gap := 1, handshakeRetry; ; sequence++ {
		// The keys may have ended between the handshake and here: an initiation that crossed another one.
		if now := time.Now(); now.After(next) {
			if err := t.device.Initiate(true); err != nil {
				return err
			}
			gap *= 2
			next = now.Add(gap)
		}
		packet, err := (&icmp.Message{Type: request, Body: &icmp.Echo{Seq: sequence, Data: mark}}).Marshal(nil)
		if err != nil {
			return err
		}
		if _, err := connection.Write(packet); err != nil {
			return fmt.Errorf("cannot send an echo request: %w", err)
		}
		if err := connection.SetReadDeadline(time.Now().Add(echoRetry)); err != nil {
			return err
		}
		size, err := connection.Read(answer)
		if err == nil && size >= len(mark) && string(answer[size-len(mark):size]) == string(mark) {
			return nil
		}
		var timeout net.Error
		if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
			return fmt.Errorf("cannot receive an echo reply: %w", err)
		}
		if t.ctx.Err() != nil {
			return t.why()
		}
		if ctx.Err() != nil {
			return &problem{504, "probe_timeout", fmt.Sprintf("handshake done, but no echo reply through the tunnel from %s: "+
				"the gateway has the key and not the policy of this peer yet, or drops its packets", address)}
		}
	}
}
