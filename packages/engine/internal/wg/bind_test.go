package wg

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// packet has a size and content of its own.
func packet(number, size int) []byte { return bytes.Repeat([]byte{byte(number)}, size) }

func TestTrainsAreOfOneSizeAndFitACall(t *testing.T) {
	many := func(count, size int) (packets [][]byte) {
		for range count {
			packets = append(packets, make([]byte, size))
		}
		return packets
	}
	for name, c := range map[string]struct {
		packets [][]byte
		train   int
	}{
		"one":                         {many(1, 100), 1},
		"equal":                       {many(40, 1452), 40},
		"the last is shorter":         {append(many(3, 100), make([]byte, 50)), 4},
		"a shorter one is the last":   {append(append(many(3, 100), make([]byte, 50)), many(3, 100)...), 4},
		"a longer one begins another": {append(many(3, 100), make([]byte, 150)), 3},
		"too many":                    {many(200, 100), 64},
		"too large":                   {many(100, 9000), 7},
		"one that is larger than all": {many(2, 65300), 1},
	} {
		if train := trainOf(c.packets); train != c.train {
			t.Errorf("%s: %d, not %d", name, train, c.train)
		}
	}
}

func TestWhatIsSentAtOnceArrivesAsItWasInItsOrder(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		for _, single := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/single=%t", host, single), func(t *testing.T) {
				receiver, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
				if err != nil {
					t.Fatal(err)
				}
				defer receiver.Close()
				_ = receiver.(*net.UDPConn).SetReadBuffer(socketBuffer)
				sender := NewBind()
				if _, _, err := sender.Open(0); err != nil {
					t.Fatal(err)
				}
				defer sender.Close()
				sender.trains.single.Store(single)
				to, err := sender.ParseEndpoint(receiver.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				var packets [][]byte
				for number, size := range slices.Concat(slices.Repeat([]int{1452}, 100), []int{60, 60, 1452, 700, 1452, 1452, 32, 1, 60000, 60000, 2}) {
					packets = append(packets, packet(number, size))
				}
				if err := sender.Send(packets, to); err != nil {
					t.Fatal(err)
				}
				received := make([]byte, 65536)
				_ = receiver.SetReadDeadline(time.Now().Add(10 * time.Second))
				for number, sent := range packets {
					size, _, err := receiver.ReadFrom(received)
					if err != nil || !bytes.Equal(received[:size], sent) {
						t.Fatalf("packet %d: %d bytes of %d, %v", number, size, len(sent), err)
					}
				}
				if sender.trains.single.Load() != single {
					t.Error("trains were given up")
				}
			})
		}
	}
}

func TestWhatTheKernelDoesNotSplitIsSentOneByOne(t *testing.T) {
	receiver, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	sender := NewBind()
	if _, _, err := sender.Open(0); err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	to, err := sender.ParseEndpoint(receiver.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := sender.socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Without checksums it splits nothing.
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) }); err != nil {
		t.Fatal(err)
	}
	if err := sender.trains.sendTrain([][]byte{{1}, {2}}, to.(endpoint).AddrPort, nil); err == nil {
		t.Fatal("it does")
	}
	if err := sender.Send([][]byte{{1}, {2}, {3}, {}, {}}, to); err != nil {
		t.Fatal(err)
	}
	_ = receiver.SetReadDeadline(time.Now().Add(10 * time.Second))
	received := make([]byte, 10)
	for _, sent := range [][]byte{{1}, {2}, {3}, {}, {}} {
		if size, _, err := receiver.ReadFrom(received); err != nil || !bytes.Equal(received[:size], sent) {
			t.Fatal(received[:size], err)
		}
	}
}

func TestWhatArrivesAtOnceIsReceivedAsItWasSentAndFromWhom(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			receiver := NewBind()
			receivers, port, err := receiver.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			defer receiver.Close()
			to, err := receiver.ParseEndpoint(net.JoinHostPort(host, fmt.Sprint(port)))
			if err != nil {
				t.Fatal(err)
			}
			sizes := slices.Concat(slices.Repeat([]int{1452}, 100), []int{60, 60, 1452, 700, 1452, 1452, 32, 1, 60000, 60000, 2})
			// Fewer at once than a train has.
			buffers, got, from := make([][]byte, 7), make([]int, 7), make([]conn.Endpoint, 7)
			for n := range buffers {
				buffers[n] = make([]byte, 65535)
			}
			longest := 0
			for number := range 2 { // one after the other: more than that, some kernels' socket buffers do not hold
				sender := NewBind()
				_, port, err := sender.Open(0)
				if err != nil {
					t.Fatal(err)
				}
				defer sender.Close()
				var packets [][]byte
				for n, size := range sizes {
					packets = append(packets, packet(number*len(sizes)+n, size))
				}
				if err := sender.Send(packets, to); err != nil {
					t.Fatal(err)
				}
				_ = receiver.socket.SetReadDeadline(time.Now().Add(10 * time.Second))
				for who := net.JoinHostPort(host, fmt.Sprint(port)); len(packets) > 0; {
					n, err := receivers[0](buffers, got, from)
					if err != nil {
						t.Fatal(err)
					}
					for i := range n {
						if len(packets) == 0 || from[i].DstToString() != who || !bytes.Equal(buffers[i][:got[i]], packets[0]) {
							t.Fatalf("%d bytes from %s, %d before the last", got[i], from[i].DstToString(), len(packets))
						}
						packets = packets[1:]
					}
					longest = max(longest, n)
				}
			}
			if longest < len(buffers) {
				t.Errorf("at most %d came at once", longest)
			}
		})
	}
}
