package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// wire carries what leaves one stack into the other, and back. It tells of the largest packet and of the longest batch.
func wire(t *testing.T, one, other *overlay) (largest, longest *atomic.Int64) {
	t.Helper()
	largest, longest = new(atomic.Int64), new(atomic.Int64)
	carry := func(from, to *overlay) {
		const offset = 16
		packets, sizes := make([][]byte, packetBatch), make([]int, packetBatch)
		for n := range packets {
			packets[n] = make([]byte, 65535)
		}
		for {
			n, err := from.Read(packets, sizes, offset)
			if err != nil {
				return
			}
			arrived := make([][]byte, n)
			for i := range n {
				arrived[i] = packets[i][:offset+sizes[i]]
				largest.Store(max(largest.Load(), int64(sizes[i])))
			}
			longest.Store(max(longest.Load(), int64(n)))
			if _, err := to.Write(arrived, offset); err != nil {
				return
			}
		}
	}
	go carry(one, other)
	go carry(other, one)
	return largest, longest
}

func TestStacksExchangeWhatWasSentInPacketsThatTheLinkTakes(t *testing.T) {
	for _, family := range []struct{ one, other string }{{"10.96.0.2", "10.96.0.3"}, {"fd00::2", "fd00::3"}} {
		t.Run(family.one, func(t *testing.T) {
			one, other := netip.MustParseAddr(family.one), netip.MustParseAddr(family.other)
			client, err := newOverlay([]netip.Addr{one}, 1420, false)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			server, err := newOverlay([]netip.Addr{other}, 1420, false)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			largest, longest := wire(t, client, server)
			at := netip.AddrPortFrom(other, 80)
			listener, err := server.listenTCP(at)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					connection, err := listener.Accept()
					if err != nil {
						return
					}
					go func() {
						defer connection.Close()
						_, _ = io.Copy(connection, connection)
					}()
				}
			}()
			// More connections than the stack has buckets to join packets in, so that some share one.
			const flows, size = 40, 512 << 10
			failures := make(chan error, flows)
			for n := range flows {
				go func() { failures <- echoed(client, at, n, size) }()
			}
			for range flows {
				if err := <-failures; err != nil {
					t.Fatal(err)
				}
			}
			if largest.Load() > 1420 {
				t.Errorf("a packet of %d bytes left", largest.Load())
			}
			if longest.Load() < 2 {
				t.Error("packets left one by one")
			}
		})
	}
}

// echoed sends so many bytes, not a multiple of a packet's, and compares what comes back.
func echoed(from *overlay, to netip.AddrPort, seed, size int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	connection, err := from.dialTCP(ctx, to)
	if err != nil {
		return err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(5 * time.Minute))
	sent := make([]byte, size+seed)
	source := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = source.Read(sent)
	go func() { _, _ = connection.Write(sent) }()
	received := make([]byte, len(sent))
	if _, err := io.ReadFull(connection, received); err != nil {
		return fmt.Errorf("connection %d: %w", seed, err)
	}
	if !bytes.Equal(sent, received) {
		return fmt.Errorf("connection %d: %x came back as %x", seed, sha256.Sum256(sent), sha256.Sum256(received))
	}
	return nil
}
