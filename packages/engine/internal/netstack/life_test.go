package netstack

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	socks "golang.org/x/net/proxy"
)

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestDeletedTunnelLeavesNoGoroutineAndNoDescriptor(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.serveHTTP(t, 80, endless)
		w.spec["expiresIn"] = 60
		cycle := func() {
			address := w.put(t)
			client := throughProxy(address, "agent:s3cret")
			answer, err := client.Get("http://tools.lattice/")
			if err != nil {
				t.Fatal(err)
			}
			if status, _ := w.call(t, "DELETE", "/v1/tunnels/p1", nil); status != 204 {
				t.Fatal(status)
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
			http.DefaultClient.CloseIdleConnections()
		}
		cycle() // what is made once and stays
		goroutines, open := runtime.NumGoroutine(), descriptors(t)
		for range 5 {
			cycle()
		}
		slack := 4 // connections of the far end that are still being torn down
		waitForOrDump(t, "goroutines and descriptors to end", func() bool {
			return runtime.NumGoroutine() <= goroutines+slack && descriptors(t) <= open+slack
		})
	})
}

func waitForOrDump(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("not in time: %s (%d goroutines, %d descriptors)\n%s", what, runtime.NumGoroutine(), descriptors(t),
				stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestBadSOCKSInputHarmsNobody(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP(t, 80, func(http.ResponseWriter, *http.Request) {})
	address := w.put(t)
	login := "\x05\x01\x02\x01\x05agent\x06s3cret"
	inputs := []string{"\x05", "\x05\x00", "\x05\xff", "\x05\x01\x00", "\x05\x01\x02\x02", login + "\x04\x01\x00",
		login + "\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", login + "\x05\x01\x00\x09", login + "\x05\x01\x00\x03\x00\x00\x50",
		login + "\x05\x01\x00\x03\xff" + strings.Repeat("x", 255) + "\x00\x50", login + "\x05\x01\x00\x01\x0a\x60\x00\x01\x00\x00"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		noise := []byte(login)
		for range random.IntN(40) {
			noise = append(noise, byte(random.Uint32()))
		}
		if random.IntN(2) == 0 {
			noise[random.IntN(len(noise)-1)+1] ^= byte(random.Uint32())
		}
		inputs = append(inputs, string(noise))
	}
	for _, input := range inputs {
		connection, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(connection, input)
		_ = connection.(*net.TCPConn).CloseWrite()
		_ = connection.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.Copy(io.Discard, connection); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatalf("%q is still waited on", input)
		}
		_ = connection.Close()
	}
	if answer, err := throughProxy(address, "agent:s3cret").Get("http://tools.lattice/"); err != nil || answer.StatusCode != 200 {
		t.Fatal(answer, err)
	}
}

func TestSOCKSRefusalsHaveTheirReplies(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		address := w.put(t)
		for request, reply := range map[string]byte{
			"\x01\x00\x01\x0a\x60\x00\x01\x00\x51": replyNotAllowed, // not granted, and reset
			"\x01\x00\x01\x0a\x60\x00\x01\x00\x50": replyRefused,    // granted, nobody listens
			"\x01\x00\x01\xc0\x00\x02\x01\x00\x50": replyNotAllowed, // outside the overlay
			"\x01\x00\x03\x03abc\x00\x50":          replyNotAllowed, // a name that is not on the list
			"\x02\x00\x01\x0a\x60\x00\x01\x00\x50": replyBadCommand, // BIND
		} {
			connection, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(connection, "\x05\x01\x02\x01\x05agent\x06s3cret\x05"+request)
			answer, err := io.ReadAll(connection)
			if err != nil || len(answer) != 14 || answer[5] != reply {
				t.Fatalf("%x: %x %v", request, answer, err)
			}
			_ = connection.Close()
		}
		_, view := w.call(t, "GET", "/v1/tunnels/p1", nil)
		if view["refused"].(float64) != 3 || view["connections"].(float64) != 0 {
			t.Fatal(view)
		}
	})
}

func TestStreamedUploadAndDownloadOverHTTP(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP(t, 80, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the proxy's credentials reached the service")
		}
		rw.Header().Set(refusalHeader, "policy") // a lie
		body, _ := io.ReadAll(r.Body)
		_, _ = rw.Write(body)
	})
	address := w.put(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	answer, err := throughProxy(address, "agent:s3cret").Post("http://tools.lattice/", "text/plain", io.MultiReader(bytes.NewReader(sent)))
	if err != nil {
		t.Fatal(err)
	}
	received, err := io.ReadAll(answer.Body)
	if err != nil || !bytes.Equal(sent, received) || answer.Header.Get(refusalHeader) != "" {
		t.Fatalf("%d of %d, %v, %v", len(received), len(sent), answer.Header, err)
	}
}

func TestOneTunnelsSecretDoesNotOpenAnother(t *testing.T) {
	one, two := newWorld(t), newWorld(t)
	one.put(t)
	two.spec["proxy"] = map[string]any{"username": "other", "password": "another"}
	address := two.put(t)
	dialer, _ := socks.SOCKS5("tcp", address, &socks.Auth{User: "agent", Password: "s3cret"}, nil)
	if _, err := dialer.Dial("tcp", "tools.lattice:80"); err == nil {
		t.Fatal("another tunnel's secret was taken")
	}
}

func TestProbeOfARunningTunnelKeepsItsConnections(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.serveHTTP(t, 80, endless)
		answer, err := throughProxy(w.put(t), "agent:s3cret").Get("http://tools.lattice/")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			status, view := w.call(t, "POST", "/v1/tunnels/p1/probe", map[string]any{"address": gatewayIP, "timeout": 20})
			if status != 200 || view["rtt"].(float64) <= 0 {
				t.Fatal(status, view)
			}
			if _, err := io.CopyN(io.Discard, answer.Body, 64<<10); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestDatagramForward(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		target, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer target.Close()
		go func() {
			packet := make([]byte, 2048)
			for {
				size, from, err := target.ReadFrom(packet)
				if err != nil {
					return
				}
				_, _ = target.WriteTo(packet[:size], from)
			}
		}()
		w.put(t)
		status, answer := w.call(t, "POST", "/v1/tunnels/p1/forwards",
			map[string]any{"listenPort": 53, "protocol": "udp", "target": target.LocalAddr().String()})
		if status != 201 {
			t.Fatal(status, answer)
		}
		socket, err := w.net.openUDP(netip.AddrPortFrom(netip.MustParseAddr(gatewayIP), 0), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		for i := range 3 {
			text := fmt.Sprintf("hello %d", i)
			_, _ = socket.WriteTo([]byte(text), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(agentIP+":53")))
			_ = socket.SetReadDeadline(time.Now().Add(10 * time.Second))
			packet := make([]byte, 2048)
			size, _, err := socket.ReadFrom(packet)
			if err != nil || string(packet[:size]) != text {
				t.Fatalf("%q %v", packet[:size], err)
			}
		}
	})
}
