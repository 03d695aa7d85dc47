package netstack

import (
	"io"
	"net"
	"sync"
)

type halfCloser interface{ CloseWrite() error }

// relay copies both ways until both have ended, passing on the end of each direction by itself.
func relay(a io.ReadWriteCloser, b io.ReadWriteCloser) {
	var both sync.WaitGroup
	oneWay := func(to, from io.ReadWriteCloser) {
		if _, err := io.Copy(to, from); err != nil {
			// a direction that broke, rather than ended, leaves nothing to wait for in the other
			_ = to.Close()
			_ = from.Close()
			return
		}
		if half, ok := to.(halfCloser); ok && half.CloseWrite() == nil {
			return
		}
		_ = to.Close()
	}
	both.Go(func() { oneWay(a, b) })
	both.Go(func() { oneWay(b, a) })
	both.Wait()
	_ = a.Close()
	_ = b.Close()
}

// buffered is a connection whose first bytes have been read into a buffer already.
type buffered struct {
	net.Conn
	reader io.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.reader.Read(p) }

// CloseWrite ends the sending direction.
func (b *buffered) CloseWrite() error {
	if half, ok := b.Conn.(halfCloser); ok {
		return half.CloseWrite()
	}
	return b.Close()
}
