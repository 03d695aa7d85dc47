package link

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const cloneDevice = "/dev/net/tun"

// OpenTUN makes a TUN in this network namespace and returns its descriptor, which does not block. The interface is
// there as long as somebody holds the descriptor.
func OpenTUN(name string) (int, error) {
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", cloneDevice, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		// With the virtio-net header packets come and go as segments of up to 64 KiB.
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("TUN %s: %w", name, err)
	}
	return fd, nil
}

// joined is wireguard-go's device over the descriptor of a TUN in another network namespace, without what
// wireguard-go looks up by name in its own.
type joined struct {
	tun.Device
	mtu    int
	events chan tun.Event
	once   sync.Once
	err    error
}

// JoinTUN is the device over a TUN that OpenTUN has made, possibly in another network namespace. It takes the
// descriptor over.
func JoinTUN(fd, mtu int) (tun.Device, error) {
	device, _, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		// Not closed here: it may be a file's already, which closes it when it is collected.
		return nil, fmt.Errorf("the TUN cannot be used: %w", err)
	}
	j := &joined{Device: device, mtu: mtu, events: make(chan tun.Event, 1)}
	j.events <- tun.EventUp
	return j, nil
}

func (j *joined) MTU() (int, error)        { return j.mtu, nil }
func (j *joined) Events() <-chan tun.Event { return j.events }

func (j *joined) Close() error {
	j.once.Do(func() {
		j.err = j.Device.Close()
		close(j.events)
	})
	return j.err
}
