package netstack

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer is the resolver of a server that answers each question for an IPv4 address with the next of these lists,
// and the last one from then on.
func nameServer(t *testing.T, lists ...[]string) (resolver *net.Resolver, asked func() int) {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", socket.LocalAddr().String())
	}}
	var mu sync.Mutex
	questions := 0
	go func() {
		packet := make([]byte, 1500)
		for {
			size, from, err := socket.ReadFrom(packet)
			if err != nil {
				return
			}
			var query dnsmessage.Message
			if query.Unpack(packet[:size]) != nil || len(query.Questions) != 1 {
				continue
			}
			query.Response, query.Additionals = true, nil
			if query.Questions[0].Type == dnsmessage.TypeA {
				mu.Lock()
				list := lists[min(questions, len(lists)-1)]
				questions++
				mu.Unlock()
				for _, text := range list {
					query.Answers = append(query.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: query.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
						Body:   &dnsmessage.AResource{A: netip.MustParseAddr(text).As4()}})
				}
			}
			answer, _ := query.Pack()
			_, _ = socket.WriteTo(answer, from)
		}
	}()
	return resolver, func() int { mu.Lock(); defer mu.Unlock(); return questions }
}

// recorded is a network with these answers, that records what is dialled and lets none of it out.
func recorded(t *testing.T, answers ...[]string) (o *outside, asked func() int, dialled *[]string) {
	t.Helper()
	o, dialled = newOutside(), &[]string{}
	o.resolver, asked = nameServer(t, answers...)
	o.dialer.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		*dialled = append(*dialled, address)
		return net.ErrClosed
	}
	return o, asked, dialled
}

func TestANameWithOneForbiddenAddressAmongItsOwnIsNotDialled(t *testing.T) {
	for _, answers := range [][]string{{"8.8.8.8", "10.0.0.1"}, {"10.0.0.1", "8.8.8.8"}, {"8.8.8.8", "169.254.169.254"}, {"8.8.8.8", "8.8.4.4", "127.0.0.1"}} {
		o, asked, list := recorded(t, answers)
		_, err := o.dialName(t.Context(), "tcp", "mixed.example", 443, nil)
		if err == nil || !strings.Contains(err.Error(), "the name resolves to") {
			t.Errorf("%v: %v", answers, err)
		}
		if asked() != 1 || len(*list) != 0 {
			t.Errorf("%v: asked %d times, dialled %v", answers, asked(), *list)
		}
	}
}

// DNS rebinding: the answer is public when it is checked, and private a moment later.
func TestTheAddressThatWasCheckedIsDialled(t *testing.T) {
	o, asked, list := recorded(t, []string{"8.8.8.8"}, []string{"10.0.0.1"})
	if _, err := o.dialName(t.Context(), "tcp", "rebinding.example", 443, nil); err == nil {
		t.Error("a packet got out")
	}
	if asked() != 1 || !slices.Equal(*list, []string{"8.8.8.8:443"}) {
		t.Errorf("asked %d times, dialled %v", asked(), *list)
	}
	if _, err := o.dialName(t.Context(), "tcp", "rebinding.example", 443, nil); err == nil || !strings.Contains(err.Error(), "private") {
		t.Errorf("the next connection: %v", err)
	}
	if len(*list) != 1 {
		t.Errorf("dialled %v", *list)
	}
}
