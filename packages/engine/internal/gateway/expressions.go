package gateway

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Words of the rules. Register 1 is the 16 bytes of the 32-bit registers 8 to 11, in which keys are put together.

// field is a part of the packet's headers.
type field struct {
	base        expr.PayloadBase
	offset, len uint32
}

var (
	source      = field{expr.PayloadBaseNetworkHeader, 12, 4}
	destination = field{expr.PayloadBaseNetworkHeader, 16, 4}
	targetPort  = field{expr.PayloadBaseTransportHeader, 2, 2}
	typeOfICMP  = field{expr.PayloadBaseTransportHeader, 0, 1}
	flagsOfTCP  = field{expr.PayloadBaseTransportHeader, 13, 1}
)

// errorsOfICMP are unreachable, time exceeded and parameter problem; never a redirect.
var errorsOfICMP = []byte{3, 11, 12}

// saidOfOthers are the ICMP messages that change how a host treats another one: the errors, source quench and redirect.
var saidOfOthers = []byte{3, 4, 5, 11, 12}

func (f field) load(register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: f.base, Offset: f.offset, Len: f.len}}
}

var (
	accept  = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop    = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	back    = []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	notIPv4 = []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
	}
	ctReply = []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
	}
	pairKey = join(source.load(1), destination.load(9))
	flowKey = join(pairKey, []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 10}}, targetPort.load(11))

	// originalKey is the key of the flow that the packet belongs to, in either direction.
	originalKey = []expr.Any{
		&expr.Ct{Key: expr.CtKeySRC, Register: 1},
		&expr.Ct{Key: expr.CtKeyDST, Register: 9},
		&expr.Ct{Key: expr.CtKeyPROTOCOL, Register: 10},
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: 11},
	}

	// errorKey is the key that the flow would have whose target sends this ICMP error about it.
	errorKey = join(destination.load(1), source.load(9), []expr.Any{
		&expr.Ct{Key: expr.CtKeyPROTOCOL, Register: 10},
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: 11},
	})

	// withOptions is an IPv4 header of more than five words.
	withOptions = append(field{expr.PayloadBaseNetworkHeader, 0, 1}.load(1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x0f}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{5}})

	flowKeyWithoutPort = join(pairKey, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 10},
		&expr.Immediate{Register: 11, Data: []byte{0, 0, 0, 0}},
	})
)

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func interfaceIs(key expr.MetaKey, name string, is bool) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	op := expr.CmpOpNeq
	if is {
		op = expr.CmpOpEq
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

func l4proto(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
	}
}

func notL4proto(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{protocol}},
	}
}

func payloadIs(f field, value []byte) []expr.Any {
	return append(f.load(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value})
}

func icmpType(t byte) []expr.Any { return payloadIs(typeOfICMP, []byte{t}) }

// tcpFlags asks whether flags & mask == value.
func tcpFlags(mask, value byte) []expr.Any {
	return append(flagsOfTCP.load(1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}})
}

// ctState asks whether the connection's state is one of bits.
func ctState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func goTo(chain *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}}
}

func jump(chain *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain.Name}}
}

func reject(kind uint32, code byte) []expr.Any {
	return []expr.Any{&expr.Reject{Type: kind, Code: code}}
}
