package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// NFT_MSG_DESTROYSETELEM deletes without minding what is not there, since Linux 6.3.
	msgDestroySetElement = 30

	// NFTA_SET_ELEM_KEY_END
	elementKeyEnd = 10

	// elementsPerMessage keeps a message's list of elements, whose length is 16 bits, below 64 KiB. Ranges have two keys.
	elementsPerMessage = 900
	rangesPerMessage   = 600
	// elementBytes is more than what one element takes in a message, and changeBytes what its removal and addition take
	// together; on a kernel without "destroy" it is written once more.
	elementBytes       = 64
	changeBytes        = 96
	changeBytesOnOlder = 160
	// sendBuffer is what a batch may take where this process may ask for it: 100,000 renewals in one.
	sendBuffer = 32 << 20
	// netlinkDeadline bounds the wait for the kernel's answer to one batch.
	netlinkDeadline = 20 * time.Second
)

// elementKey names an element: the set and the key as the kernel has it.
type elementKey struct {
	set  uint8
	size uint8
	bits uint8    // of the network at the second address, in the set of ranges
	key  [16]byte // in the map of lines, what it leads to follows
}

// grants tells whether the element lets something pass.
func (k elementKey) grants() bool { return k.set == inGrants || k.set == inPairs || k.set == inRanges }

// end is the last key of a range.
func (k elementKey) end() [16]byte {
	last := k.key
	network := netip.PrefixFrom(netip.AddrFrom4([4]byte(k.key[4:8])), int(k.bits))
	to := lastOf(network).As4()
	copy(last[4:], to[:])
	return last
}

// Sets as the mirror numbers them.
const (
	inLive = iota
	inGrants
	inPairs
	inRanges
	inLines
	inEnded
)

var setNames = [...]string{inLive: setLive, inGrants: setGrants, inPairs: setPairs, inRanges: setRanges, inLines: setLines, inEnded: setEnded}

// change is one element's way from what the kernel has to what it shall have.
type change struct {
	key    elementKey
	remove bool
	add    bool
	// timeout of what is added; 0 for none.
	timeout time.Duration
}

// elements writes set elements. Messages are put together here, because large batches must be cut and renewals
// must not be (delete and add of an element belong into one transaction).
type elements struct {
	table   string
	destroy bool // the kernel has NFT_MSG_DESTROYSETELEM
}

func newElements(table string) (*elements, error) {
	e := &elements{table: table, destroy: true}
	probe := []change{{key: elementKey{set: inLive, size: 4, key: [16]byte{192, 0, 2, 1}}, remove: true}}
	err := e.apply(probe)
	if err != nil {
		e.destroy = false
		err = e.apply(probe)
	}
	return e, err
}

// apply carries out the changes, in one transaction where they fit into the socket's buffer. Removals come first.
func (e *elements) apply(changes []change) error {
	if len(changes) == 0 {
		return nil
	}
	ordered := make([]change, 0, len(changes))
	for _, c := range changes {
		if !c.add {
			ordered = append(ordered, c)
		}
	}
	for _, c := range changes {
		if c.add {
			ordered = append(ordered, c)
		}
	}
	conn, limit, err := dialNetfilter()
	if err != nil {
		return err
	}
	defer conn.Close()
	atOnce := max(1, limit/changeBytesOnOlder)
	if e.destroy {
		atOnce = max(1, limit/changeBytes)
	}
	if slices.ContainsFunc(ordered, func(c change) bool { return c.key.set == inRanges }) {
		atOnce = max(1, atOnce*2/3)
	}
	for len(ordered) > 0 {
		n := min(atOnce, len(ordered))
		if err := e.transact(conn, ordered[:n]); err != nil {
			return err
		}
		ordered = ordered[n:]
	}
	return nil
}

// flush empties all sets.
func (e *elements) flush() error {
	conn, _, err := dialNetfilter()
	if err != nil {
		return err
	}
	defer conn.Close()
	var messages []netlink.Message
	for set := range setNames {
		messages = append(messages, e.message(unix.NFT_MSG_DELSETELEM, uint8(set), nil, false))
	}
	return send(conn, messages)
}

func dialNetfilter() (*netlink.Conn, int, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("netlink: %w", err)
	}
	_ = conn.SetWriteBuffer(sendBuffer)
	size := 0
	raw, err := conn.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF) })
	}
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(netlinkDeadline))
	}
	if err != nil {
		conn.Close()
		return nil, 0, fmt.Errorf("netlink: %w", err)
	}
	return conn, size * 7 / 8, nil
}

func (e *elements) transact(conn *netlink.Conn, changes []change) error {
	var removed, added [len(setNames)][]change
	for _, c := range changes {
		if c.remove {
			removed[c.key.set] = append(removed[c.key.set], c)
		}
		if c.add {
			added[c.key.set] = append(added[c.key.set], c)
		}
	}
	var messages []netlink.Message
	list := func(kind int, all [len(setNames)][]change, full bool) {
		for set, part := range all {
			for len(part) > 0 {
				n := min(elementsPerMessage, len(part))
				if set == inRanges {
					n = min(rangesPerMessage, len(part))
				}
				messages = append(messages, e.message(kind, uint8(set), part[:n], full))
				part = part[n:]
			}
		}
	}
	if e.destroy {
		list(msgDestroySetElement, removed, false)
	} else {
		// Deleting what has just timed out is an error, and adding what is there is none: add, then delete.
		list(unix.NFT_MSG_NEWSETELEM, removed, false)
		list(unix.NFT_MSG_DELSETELEM, removed, false)
	}
	list(unix.NFT_MSG_NEWSETELEM, added, true)
	return send(conn, messages)
}

// message is one list of elements; full ones carry their timeout.
func (e *elements) message(kind int, set uint8, changes []change, full bool) netlink.Message {
	b := make([]byte, 4, 64+len(changes)*elementBytes)
	b[0] = unix.NFPROTO_INET
	b = attribute(b, unix.NFTA_SET_ELEM_LIST_TABLE, append([]byte(e.table), 0))
	b = attribute(b, unix.NFTA_SET_ELEM_LIST_SET, append([]byte(setNames[set]), 0))
	if len(changes) > 0 {
		var list int
		b, list = open(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for _, c := range changes {
			var element, inner int
			b, element = open(b, unix.NFTA_LIST_ELEM)
			b, inner = open(b, unix.NFTA_SET_ELEM_KEY)
			b = attribute(b, unix.NFTA_DATA_VALUE, c.key.key[:c.key.size])
			shut(b, inner)
			if set == inRanges {
				end := c.key.end()
				b, inner = open(b, elementKeyEnd)
				b = attribute(b, unix.NFTA_DATA_VALUE, end[:c.key.size])
				shut(b, inner)
			}
			if kind == unix.NFT_MSG_NEWSETELEM {
				b = c.key.data(b)
			}
			if full && c.timeout > 0 {
				ms := max(1, uint64(c.timeout.Milliseconds()))
				b = attribute(b, unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, ms))
			}
			shut(b, element)
		}
		shut(b, list)
	}
	flags := netlink.Request
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags |= netlink.Create
	}
	return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: flags}, Data: b}
}

// data appends what the element leads to.
func (k elementKey) data(b []byte) []byte {
	var data, verdict int
	switch {
	case k.grants():
		b, data = open(b, unix.NFTA_SET_ELEM_DATA)
		b, verdict = open(b, unix.NFTA_DATA_VERDICT)
		b = attribute(b, unix.NFTA_VERDICT_CODE, []byte{0, 0, 0, 1}) // NF_ACCEPT
		shut(b, verdict)
		shut(b, data)
	case k.set == inLines:
		b, data = open(b, unix.NFTA_SET_ELEM_DATA)
		b = attribute(b, unix.NFTA_DATA_VALUE, k.key[k.size:2*k.size])
		shut(b, data)
	}
	return b
}

// send sends one transaction and waits for its end.
func send(conn *netlink.Conn, messages []netlink.Message) error {
	edge := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: kind, Flags: netlink.Request},
			Data:   []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	// One acknowledgement, of the last message, stands for all: errors come without being asked for, and before it.
	messages[len(messages)-1].Header.Flags |= netlink.Acknowledge
	batch := append([]netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}, messages...)
	batch = append(batch, edge(unix.NFNL_MSG_BATCH_END))
	if _, err := conn.SendMessages(batch); err != nil {
		return fmt.Errorf("nftables batch: %w", err)
	}
	answers, err := conn.Receive()
	if err != nil {
		return fmt.Errorf("nftables batch refused: %w", err)
	}
	if len(answers) == 0 {
		return errors.New("nftables batch: the kernel gave no answer")
	}
	return nil
}

func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func open(b []byte, kind uint16) ([]byte, int) {
	at := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0)
	return binary.NativeEndian.AppendUint16(b, kind|unix.NLA_F_NESTED), at
}

func shut(b []byte, at int) {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
}
