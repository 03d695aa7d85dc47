package lock

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const tableName = "lattice-pod"

type words = []expr.Any

var (
	accept = words{&expr.Verdict{Kind: expr.VerdictAccept}}
	reset  = words{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	refuse = words{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
	// ct direction reply ct state established,related: answers to what was let through as a question.
	answers = words{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
)

// write makes the table in one transaction, in place of one that is there.
func write(s *settings) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	// Deleting what is not there is an error, adding what is there is none.
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	w := writer{conn, table}
	input, output := w.chain("input", nftables.ChainHookInput), w.chain("output", nftables.ChainHookOutput)
	w.chain("forward", nftables.ChainHookForward)

	w.rule(input, device(expr.MetaKeyIIFNAME, "lo"), accept)
	w.rule(input, device(expr.MetaKeyIIFNAME, s.iface), accept) // the gateway decides what comes by it
	w.rule(input, answers, accept)
	w.neighbours(input)
	for _, from := range s.probesFrom {
		for _, port := range s.probePorts {
			w.rule(input, address(from, true), tcpPort(port), accept)
		}
	}
	for _, network := range s.allowed {
		w.rule(input, address(network, true), accept)
	}
	w.refuse(input)

	w.rule(output, device(expr.MetaKeyOIFNAME, "lo"), accept)
	w.rule(output, device(expr.MetaKeyOIFNAME, s.iface), accept)
	w.rule(output, group(s.group), accept)
	w.rule(output, answers, accept)
	w.neighbours(output)
	for _, network := range s.allowed {
		w.rule(output, address(network, false), accept)
	}
	w.refuse(output)
	return conn.Flush()
}

type writer struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func (w writer) chain(name string, hook *nftables.ChainHook) *nftables.Chain {
	policy := nftables.ChainPolicyDrop
	return w.conn.AddChain(&nftables.Chain{
		Name: name, Table: w.table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
}

func (w writer) rule(chain *nftables.Chain, parts ...words) {
	var all words
	for _, part := range parts {
		all = append(all, part...)
	}
	w.conn.AddRule(&nftables.Rule{Table: w.table, Chain: chain, Exprs: all})
}

// refuse answers at once: who is told stops, who waits tries again.
func (w writer) refuse(chain *nftables.Chain) {
	w.rule(chain, protocol(unix.IPPROTO_TCP), reset)
	w.rule(chain, refuse)
}

// neighbours lets IPv6 find routers and link-layer addresses (RFC 4861); the kernel itself sends these.
func (w writer) neighbours(chain *nftables.Chain) {
	for kind := byte(133); kind <= 136; kind++ {
		w.rule(chain, protocol(unix.IPPROTO_ICMPV6), words{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
		}, accept)
	}
}

func device(key expr.MetaKey, name string) words {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return words{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded}}
}

func protocol(number byte) words {
	return words{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

// group asks whose socket it is. A process without CAP_SETGID cannot take on a group.
func group(id uint32) words {
	return words{
		&expr.Meta{Key: expr.MetaKeySKGID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(id)},
	}
}

func tcpPort(port uint16) words {
	return append(protocol(unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)})
}

// address asks whether the packet's source, or its destination, is in a network.
func address(network netip.Prefix, source bool) words {
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if source {
		offset = 12
	}
	if network.Addr().Is6() {
		family, offset, length = unix.NFPROTO_IPV6, 24, 16
		if source {
			offset = 8
		}
	}
	mask := make([]byte, length)
	for bit := range network.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	return words{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: network.Masked().Addr().AsSlice()},
	}
}
