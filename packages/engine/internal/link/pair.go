package link

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// makePair makes the veth pair of the packet device: name is the kernel's side, the other end is ours.
func makePair(name, other string, mtu int) (kernel, ours netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.TxQLen = name, mtu, 1000
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: other, PeerMTU: uint32(mtu)}
	err = netlink.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) && removeAbandoned(other) {
		err = netlink.LinkAdd(pair)
	}
	if err != nil {
		return nil, nil, err
	}
	if kernel, err = netlink.LinkByName(name); err != nil {
		return nil, nil, err
	}
	if ours, err = netlink.LinkByName(other); err != nil {
		return nil, nil, err
	}
	for _, end := range []netlink.Link{kernel, ours} {
		if err = PrepareEnd(end); err != nil {
			return nil, nil, err
		}
	}
	return kernel, ours, netlink.LinkSetUp(ours)
}

// PrepareEnd makes either end of a pair, in this network namespace, carry IPv4 packets as they are.
func PrepareEnd(end netlink.Link) error {
	DisableIPv6(end.Attrs().Name)
	// There is nobody to ask for a link-layer address: every packet goes to the one other end.
	if err := netlink.LinkSetARPOff(end); err != nil {
		return err
	}
	// The kernel's own answers must leave with complete checksums: WireGuard carries them as they are.
	return noChecksumOffload(end.Attrs().Name)
}

// removeAbandoned removes the pair of an engine that was killed: one whose end no packet socket reads.
func removeAbandoned(other string) bool {
	link, err := netlink.LinkByName(other)
	if err != nil || link.Type() != "veth" {
		return false
	}
	sockets, err := os.ReadFile("/proc/thread-self/net/packet")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(sockets)) {
		if columns := strings.Fields(line); len(columns) > 4 && columns[4] == strconv.Itoa(link.Attrs().Index) {
			return false
		}
	}
	return netlink.LinkDel(link) == nil
}

// noChecksumOffload is `ethtool -K name tx off`; segmentation offload goes with it.
func noChecksumOffload(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("checksum offload of %s cannot be turned off: %w", name, errno)
	}
	return nil
}
