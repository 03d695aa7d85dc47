package gateway

import (
	"bufio"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// inHostNamespace is inNamespace with loopback up, as a host has it.
func inHostNamespace(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	inNamespace(t, func(t *testing.T) {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		test(t)
	})
}

func tables(t *testing.T) []string {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	all, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, table := range all {
		names = append(names, table.Name)
	}
	return names
}

func TestInTheHostsNamespaceOnlyWhatIsOursIsTouched(t *testing.T) {
	for _, device := range []string{deviceTUN, devicePacket} {
		t.Run(device, func(t *testing.T) {
			inHostNamespace(t, func(t *testing.T) {
				conn, err := nftables.New()
				if err != nil {
					t.Fatal(err)
				}
				conn.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet})
				// What a gateway that was killed has left behind.
				conn.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
				if err := conn.Flush(); err != nil {
					t.Fatal(err)
				}
				g := startGateway(t, setup{"host", device, true, true})
				agent, service := g.client("agent", "10.96.2.5"), g.client("service", "10.96.0.7")
				g.put(agent.body(600, toTCP(service, 443)), service.body(nil))
				agent.up()
				service.up()
				service.serve(443, hello)
				stream, err := agent.dial(service, 443, patience)
				if err != nil {
					t.Fatal(err)
				}
				line, err := bufio.NewReader(stream).ReadString('\n')
				if line != "hello 10.96.2.5\n" {
					t.Errorf("%q %v", line, err)
				}
				if _, err := agent.dial(service, 444, patience); !isRefused(err) {
					t.Errorf("not granted: %v", err)
				}
				forwarding, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
				if err != nil || strings.TrimSpace(string(forwarding)) != "0" {
					t.Errorf("the host's forwarding was switched on: %s %v", forwarding, err)
				}
				// Somebody reloads the host's firewall.
				conn.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
				if err := conn.Flush(); err != nil {
					t.Fatal(err)
				}
				for until := time.Now().Add(15 * time.Second); len(tables(t)) != 2; {
					if time.Now().After(until) {
						t.Fatal("the table does not come back")
					}
					time.Sleep(10 * time.Millisecond)
				}
				g.get("/v1/status") // waits for the table to be filled, too
				if stream, err = agent.dial(service, 443, patience); err != nil {
					t.Errorf("after the table came back: %v", err)
				} else {
					stream.Close()
				}
				if _, err := agent.dial(service, 444, patience); !isRefused(err) {
					t.Errorf("not granted, after the table came back: %v", err)
				}
				// A killed one leaves its pair and its table, which the next one takes over.
				_ = g.cmd.Process.Kill()
				<-g.ended
				g = startGateway(t, setup{"host", device, true, true})
				g.stop()
				<-g.ended
				if left := tables(t); len(left) != 1 || left[0] != "theirs" {
					t.Errorf("tables: %v", left)
				}
				if _, err := netlink.LinkByName("lattice0"); err == nil {
					t.Error("the interface is left")
				}
			})
		})
	}
}
