package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table and its sets. What passes is decided by elements of live, grants and pairs, each with a kernel timeout:
// the rules never change.
const (
	tableName   = "lattice"
	setLive     = "live"     // addresses whose identity lives
	setGrants   = "grants"   // source . destination . protocol . port : accept
	setPairs    = "pairs"    // source . destination : accept, for grants of any protocol
	setRanges   = "ranges"   // source . network . protocol . port : accept, for what connectors advertise
	setLines    = "lines"    // source : the agent that its line of delegations begins with
	setEnded    = "ended"    // addresses whose identity has just ended
	setTotals   = "totals"   // what was refused, with counters, by source
	setDenied   = "denied"   // the same by flow, as far as there is room
	setRoom     = "room"     // flows new to the set of denied ones, by source
	setRefusals = "refusals" // refusals a second, by source
	setFlows    = "flows"    // tracked connections, by source
	setLineFlow = "lineflows"

	deniedSize    = 16384
	deniedTimeout = time.Minute
	// deniedPerAgent bounds the elements that one agent has in the set of denied flows, which all share: half of them at
	// once and half in the minute that an element lives. The control plane writes down 50.
	deniedPerAgent = 128
	// sourcesSize is more than an overlay's addresses.
	sourcesSize = 1 << 20
	// endedTimeout is how long others may still send to who has ended without being taken for somebody who probes.
	endedTimeout = time.Minute
	// refusalRate bounds the answers that one agent can make the gateway send, in packets a second.
	refusalRate = 500
	// flowsPerAgent bounds the connections that one agent can have the kernel track, and flowsPerLine those of all that
	// come from one by delegation, so that the table is never full of one agent's: a full table drops everybody's new
	// connections. The kernel goes through the connections of one key to count them: more would cost others time.
	flowsPerAgent = 2048
	flowsPerLine  = 8192
	// flowsShare is the part of the kernel's table that each of the two may be at most.
	flowsShare    = 8
	connlimitOver = 1 // NFT_CONNLIMIT_F_INV of linux/netfilter/nf_tables.h
)

// conntrackMax is how many connections the kernel tracks in a network namespace.
const conntrackMax = "/proc/sys/net/netfilter/nf_conntrack_max"

type firewall struct {
	iface   string
	gateway netip.Addr
	host    bool
	table   *nftables.Table
	sets    map[string]*nftables.Set
	// flows is how many connections of one source are tracked, and lineFlows of one line; zero where the kernel cannot
	// count them.
	flows, lineFlows uint32
}

// tableOf names the table: two gateways of one network namespace do not share one.
func tableOf(iface string) string {
	if iface == "lattice0" {
		return tableName
	}
	return tableName + "-" + iface
}

// newFirewall makes the table in one transaction, in place of one that an earlier process has left.
func newFirewall(iface string, gateway netip.Addr, host bool) (*firewall, error) {
	f := &firewall{
		iface: iface, gateway: gateway, host: host,
		table: &nftables.Table{Name: tableOf(iface), Family: nftables.TableFamilyINet},
	}
	most := trackedMaximum()
	f.flows, f.lineFlows = flowLimit(flowsPerAgent, most), flowLimit(flowsPerLine, most)
	return f, f.write()
}

// trackedMaximum is the size of the kernel's table; 0 where it has no limit, or tells none.
func trackedMaximum() uint64 {
	text, err := os.ReadFile(conntrackMax)
	if err != nil {
		return 0
	}
	most, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0
	}
	return most
}

// flowLimit is what is wanted, or less where the kernel's table is small. It is never 0, which is no limit.
func flowLimit(wanted uint32, most uint64) uint32 {
	if most == 0 {
		return wanted
	}
	return uint32(min(uint64(wanted), max(most/flowsShare, 1)))
}

// write makes the table with its rules and empty sets, in place of what is there.
func (f *firewall) write() error {
	err := f.writeOnce()
	if errors.Is(err, unix.ENOENT) && f.flows > 0 {
		slog.Warn("the kernel cannot count connections (module nft_connlimit): one agent can fill the table of all")
		f.flows, f.lineFlows = 0, 0
		err = f.writeOnce()
	}
	return err
}

func (f *firewall) writeOnce() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	// Deleting what is not there is an error, adding what is there is none.
	conn.AddTable(f.table)
	conn.DelTable(f.table)
	conn.AddTable(f.table)
	if err := f.addSets(conn); err != nil {
		return err
	}
	r := ruleset{conn: conn, firewall: f}
	r.add()
	if err := conn.Flush(); err != nil {
		return startFailure("nftables_failed", "the nftables table %s cannot be made (%w): the kernel needs nf_tables with inet, ct and reject (modules nf_tables, nft_ct, nft_reject_inet)", f.table.Name, err)
	}
	return nil
}

func (f *firewall) addSets(conn *nftables.Conn) error {
	flow := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	pair := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	f.sets = map[string]*nftables.Set{}
	for _, set := range []*nftables.Set{
		{Name: setLive, KeyType: nftables.TypeIPAddr, HasTimeout: true},
		{Name: setGrants, KeyType: flow, Concatenation: true, IsMap: true, DataType: nftables.TypeVerdict, HasTimeout: true},
		{Name: setPairs, KeyType: pair, Concatenation: true, IsMap: true, DataType: nftables.TypeVerdict, HasTimeout: true},
		{Name: setRanges, KeyType: flow, Concatenation: true, Interval: true, IsMap: true, DataType: nftables.TypeVerdict, HasTimeout: true},
		{Name: setLines, KeyType: nftables.TypeIPAddr, IsMap: true, DataType: nftables.TypeIPAddr, HasTimeout: true},
		{Name: setEnded, KeyType: nftables.TypeIPAddr, HasTimeout: true},
		{Name: setTotals, KeyType: nftables.TypeIPAddr, Dynamic: true, HasTimeout: true, Timeout: deniedTimeout, Size: sourcesSize},
		{Name: setRoom, KeyType: nftables.TypeIPAddr, Dynamic: true, HasTimeout: true, Timeout: deniedTimeout, Size: sourcesSize},
		{Name: setDenied, KeyType: flow, Concatenation: true, Dynamic: true, HasTimeout: true, Timeout: deniedTimeout, Size: deniedSize},
		{Name: setRefusals, KeyType: nftables.TypeIPAddr, Dynamic: true, HasTimeout: true, Timeout: 10 * time.Second, Size: 65535},
		// Without a timeout: an element that timed out would forget connections that are still open.
		{Name: setFlows, KeyType: nftables.TypeIPAddr, Dynamic: true, Size: sourcesSize},
		{Name: setLineFlow, KeyType: nftables.TypeIPAddr, Dynamic: true, Size: sourcesSize},
	} {
		set.Table = f.table
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", set.Name, err)
		}
		f.sets[set.Name] = set
	}
	return nil
}

// remove takes the table away; in a namespace of its own it would vanish anyway.
func (f *firewall) remove() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.DelTable(f.table)
	return conn.Flush()
}

// ruleset writes the rules. It is an nftables program, spelled in the comments as nft would print it.
type ruleset struct {
	conn     *nftables.Conn
	firewall *firewall
}

func (r *ruleset) add() {
	deny, opening := r.chain("deny"), r.chain("opening")
	forward := r.base("forward", nftables.ChainHookForward)
	input := r.base("input", nftables.ChainHookInput)
	output := r.base("output", nftables.ChainHookOutput)
	if r.firewall.host {
		// The host's own traffic is none of ours.
		r.rule(forward, r.in(false), r.out(false), accept)
		r.rule(input, r.in(false), accept)
		r.rule(output, r.out(false), accept)
	}

	r.rule(forward, r.in(false), drop)
	r.rule(forward, notIPv4, drop)
	// Nobody needs IP options, and a source route says where a packet is to go in a second place.
	// ip hdrlength != 5 drop
	r.rule(forward, withOptions, drop)
	r.rule(forward, r.out(false), goTo(deny))
	// ct direction reply ct state established ip saddr @live ip daddr @live accept
	r.rule(forward, ctReply, ctState(expr.CtStateBitESTABLISHED), r.isLive(source), r.isLive(destination), accept)
	// An error about a flow is taken from its target alone: from anybody else it is an attempt to break it. Nobody but
	// who opened the flow is told of errors.
	for _, t := range errorsOfICMP {
		// icmp type T ct state related ip saddr @live ip daddr @live ip daddr . ip saddr . ct protocol . ct original proto-dst vmap @grants
		r.rule(forward, l4proto(unix.IPPROTO_ICMP), icmpType(t), ctState(expr.CtStateBitRELATED), r.isLive(source), r.isLive(destination), errorKey, r.verdict(setGrants))
		r.rule(forward, l4proto(unix.IPPROTO_ICMP), icmpType(t), ctState(expr.CtStateBitRELATED), r.isLive(destination), errorKey, r.verdict(setRanges))
	}
	for _, t := range saidOfOthers {
		r.rule(forward, l4proto(unix.IPPROTO_ICMP), icmpType(t), drop) // no grant is for these
	}
	// What comes back from a connector's network has a source that is no identity: the flow's grant stands for it.
	// ct direction reply ct state established ip daddr @live ct original saddr . ct original daddr . ct protocol . ct original proto-dst vmap @ranges
	r.rule(forward, ctReply, ctState(expr.CtStateBitESTABLISHED), r.isLive(destination), originalKey, r.verdict(setRanges))
	if r.firewall.flows > 0 {
		r.rule(forward, ctState(expr.CtStateBitNEW), jump(opening))
	}
	// The original direction is looked up on every packet: a grant's end needs nobody to act.
	// ip saddr . ip daddr . meta l4proto . th dport vmap @grants
	r.rule(forward, flowKey, r.verdict(setGrants))
	// ip saddr . ip daddr vmap @pairs
	r.rule(forward, pairKey, r.verdict(setPairs))
	// ip saddr . ip daddr . meta l4proto . th dport vmap @ranges
	r.rule(forward, flowKey, r.verdict(setRanges))
	r.rule(forward, goTo(deny))

	r.rule(input, r.in(false), drop)
	r.rule(input, notIPv4, drop)
	r.rule(input, withOptions, drop)
	r.rule(input, payloadIs(destination, r.firewall.gateway.AsSlice()), l4proto(unix.IPPROTO_ICMP), icmpType(8), r.isLive(source), accept)
	r.rule(input, goTo(deny))

	r.rule(output, r.out(false), drop)
	r.rule(output, notIPv4, drop)
	r.rule(output, l4proto(unix.IPPROTO_ICMP), icmpType(0), r.isLive(destination), accept) // echo reply
	for _, t := range errorsOfICMP {
		r.rule(output, l4proto(unix.IPPROTO_ICMP), icmpType(t), accept)
	}
	r.rule(output, l4proto(unix.IPPROTO_TCP), tcpFlags(0x04, 0x04), accept) // the reset that refuses

	if r.firewall.flows > 0 {
		r.countFlows(opening, deny)
	}
	r.refuse(deny)
}

// countFlows refuses a connection beyond what its agent, or what its agent's line may have. Like all that is refused it
// goes on record: an agent does not hide what it tries behind connections that it has.
func (r *ruleset) countFlows(opening, deny *nftables.Chain) {
	// add @lineflows { ip saddr map @lines ct count over 8192 } goto deny
	r.rule(opening, source.load(1), r.data(setLines, 1), r.over(setLineFlow, r.firewall.lineFlows), goTo(deny))
	// add @flows { ip saddr ct count over 2048 } goto deny
	r.rule(opening, source.load(1), r.over(setFlows, r.firewall.flows), goTo(deny))
}

// refuse is the end of what does not pass.
func (r *ruleset) refuse(deny *nftables.Chain) {
	record, other, refuse := r.chain("record"), r.chain("record-other"), r.chain("refuse")
	r.rule(deny, ctState(expr.CtStateBitINVALID), drop)
	// Only what opens a flow is recorded: the rest of a flow whose grant or other end has gone is not an attempt.
	// tcp flags & (syn | ack) == syn jump record
	r.rule(deny, l4proto(unix.IPPROTO_TCP), tcpFlags(0x12, 0x02), jump(record))
	r.rule(deny, notL4proto(unix.IPPROTO_TCP), ctState(expr.CtStateBitNEW), jump(record))
	r.rule(deny, goTo(refuse))

	r.rule(record, r.isNotLive(source), back)
	// An answer that comes too late is none either, or who ends could have others punished for their answers.
	r.rule(record, destination.load(1), r.has(setEnded), back)
	// update @totals { ip saddr counter }
	r.rule(record, source.load(1), r.count(setTotals))
	r.rule(record, notL4proto(unix.IPPROTO_TCP), notL4proto(unix.IPPROTO_UDP), goTo(other))
	r.detail(record, flowKey)
	r.detail(other, flowKeyWithoutPort)

	// update @refusals { ip saddr limit rate over 500/second } drop
	r.rule(refuse, source.load(1), r.limit(setRefusals, &expr.Limit{Rate: refusalRate, Unit: expr.LimitTimeSecond, Burst: refusalRate, Over: true}), drop)
	r.rule(refuse, l4proto(unix.IPPROTO_TCP), reject(unix.NFT_REJECT_TCP_RST, 0))
	r.rule(refuse, reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))
}

// detail counts a flow that was refused by itself, as long as its source has room for it.
func (r *ruleset) detail(chain *nftables.Chain, key []expr.Any) {
	// The look-up counts, since Linux 5.7. ip saddr . ip daddr . meta l4proto . th dport @denied return
	r.rule(chain, key, r.has(setDenied), back)
	// update @room { ip saddr limit rate 64/minute burst 64 } update @denied { … counter }
	room := &expr.Limit{Rate: deniedPerAgent / 2, Unit: expr.LimitTimeMinute, Burst: deniedPerAgent / 2}
	r.rule(chain, source.load(1), r.limit(setRoom, room), key, r.count(setDenied))
}

func (r *ruleset) chain(name string) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.firewall.table})
}

func (r *ruleset) base(name string, hook *nftables.ChainHook) *nftables.Chain {
	policy := nftables.ChainPolicyDrop
	return r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.firewall.table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
}

func (r *ruleset) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.firewall.table, Chain: chain, Exprs: all})
}

func (r *ruleset) in(is bool) []expr.Any {
	return interfaceIs(expr.MetaKeyIIFNAME, r.firewall.iface, is)
}
func (r *ruleset) out(is bool) []expr.Any {
	return interfaceIs(expr.MetaKeyOIFNAME, r.firewall.iface, is)
}

// isLive looks one address of the packet up in the set of live identities.
func (r *ruleset) isLive(f field) []expr.Any {
	return append(f.load(1), r.lookup(setLive))
}

func (r *ruleset) isNotLive(f field) []expr.Any {
	not := r.lookup(setLive)
	not.Invert = true
	return append(f.load(1), not)
}

// has looks the key in register 1 up in a set.
func (r *ruleset) has(name string) []expr.Any { return []expr.Any{r.lookup(name)} }

// data replaces the key in register 1 by what a map has for it.
func (r *ruleset) data(name string, register uint32) []expr.Any {
	lookup := r.lookup(name)
	lookup.DestRegister, lookup.IsDestRegSet = register, true
	return []expr.Any{lookup}
}

// verdict looks the key in register 1 up in a verdict map.
func (r *ruleset) verdict(name string) []expr.Any { return r.data(name, unix.NFT_REG_VERDICT) }

func (r *ruleset) lookup(name string) *expr.Lookup {
	set := r.firewall.sets[name]
	return &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}
}

// count counts packets by the key in register 1.
func (r *ruleset) count(name string) []expr.Any {
	return r.dynamic(name, unix.NFT_DYNSET_OP_UPDATE, &expr.Counter{})
}

// over asks whether the connections of the key in register 1 are more than so many.
func (r *ruleset) over(name string, most uint32) []expr.Any {
	return r.dynamic(name, unix.NFT_DYNSET_OP_ADD, &expr.Connlimit{Count: most, Flags: connlimitOver})
}

// limit asks whether packets with the key in register 1 are within, or over, a rate.
func (r *ruleset) limit(name string, limit *expr.Limit) []expr.Any {
	limit.Type = expr.LimitTypePkts
	return r.dynamic(name, unix.NFT_DYNSET_OP_UPDATE, limit)
}

func (r *ruleset) dynamic(name string, operation uint32, what expr.Any) []expr.Any {
	set := r.firewall.sets[name]
	return []expr.Any{&expr.Dynset{SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: operation, Exprs: []expr.Any{what}}}
}
