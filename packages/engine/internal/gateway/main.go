// Package gateway is the engine's gateway mode: one autonomous process that owns a WireGuard device,
// its addresses, the nftables table that decides what passes, conntrack, and the peers' deadlines.
package gateway

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/control"
	"lattice.dev/engine/internal/userns"
)

const (
	namespaceOwn  = "own"
	namespaceHost = "host"

	deviceAuto   = "auto"
	deviceTUN    = "tun"
	devicePacket = "packet"

	// shutdownLimit bounds the clean-up: whoever waits for the process must not wait for ever.
	shutdownLimit = 5 * time.Second
)

type options struct {
	keyFile    string
	listenPort int
	address    netip.Prefix
	iface      string
	namespace  string
	device     string
	mtu        int
	runtimeDir string
	inner      bool
}

// Main runs the gateway mode with the arguments after the mode's name and returns the exit code.
func Main(args []string, version string) int {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	opts, err := parseOptions(args)
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		control.FailStart("invalid_arguments", err)
		return 1
	}
	switch {
	case opts.inner:
		return runInner(opts, version)
	case opts.namespace == namespaceOwn:
		return runOuter(opts, args)
	default:
		return runHost(opts, version)
	}
}

func parseOptions(args []string) (*options, error) {
	opts := &options{}
	flags := flag.NewFlagSet("lattice-engine gateway", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	address := flags.String("address", "", "overlay address of the gateway with the overlay's prefix, such as 10.96.0.1/16")
	flags.StringVar(&opts.keyFile, "private-key-file", "", "file with the WireGuard private key, as `wg genkey` prints it")
	flags.IntVar(&opts.listenPort, "listen-port", 0, "UDP port; 0 takes a free one")
	flags.StringVar(&opts.iface, "interface", "lattice0", "name of the interface")
	flags.StringVar(&opts.namespace, "namespace", "", "own or host; own is the default without CAP_NET_ADMIN")
	flags.StringVar(&opts.device, "device", deviceAuto, "tun, packet (a veth pair, for machines without /dev/net/tun) or auto")
	flags.IntVar(&opts.mtu, "mtu", 1420, "MTU of the interface")
	flags.StringVar(&opts.runtimeDir, "runtime-dir", "", "directory of the control socket; made where it is missing")
	flags.BoolVar(&opts.inner, "inner", false, "internal: this process is the one inside the namespace")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(os.Stderr)
			flags.PrintDefaults()
		}
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q: see `lattice-engine gateway --help`", flags.Arg(0))
	}
	if opts.keyFile == "" || *address == "" {
		return nil, errors.New("--private-key-file and --address are needed: a gateway has a key and an overlay address")
	}
	var err error
	if opts.address, err = netip.ParsePrefix(*address); err != nil || !opts.address.Addr().Is4() || opts.address.Bits() > 30 {
		return nil, fmt.Errorf("--address %q is not an IPv4 address with its overlay's prefix: give one such as 10.96.0.1/16", *address)
	}
	if opts.listenPort < 0 || opts.listenPort > 65535 {
		return nil, fmt.Errorf("--listen-port %d is not a UDP port: give 0 to 65535", opts.listenPort)
	}
	if opts.mtu < 576 || opts.mtu > 9000 {
		return nil, fmt.Errorf("--mtu %d is out of range: give 576 to 9000", opts.mtu)
	}
	// One byte short of IFNAMSIZ, because the packet device's other end is called <name>p.
	if n := len(opts.iface); n == 0 || n > unix.IFNAMSIZ-2 || strings.ContainsAny(opts.iface, "/ \t\n%:") {
		return nil, fmt.Errorf("--interface %q is not an interface name of at most %d characters", opts.iface, unix.IFNAMSIZ-2)
	}
	switch opts.device {
	case deviceAuto, deviceTUN, devicePacket:
	default:
		return nil, fmt.Errorf("--device %q is unknown: give auto, tun or packet", opts.device)
	}
	switch opts.namespace {
	case namespaceOwn, namespaceHost:
	case "":
		opts.namespace = namespaceOwn
		if userns.Has(unix.CAP_NET_ADMIN) {
			opts.namespace = namespaceHost
		}
	default:
		return nil, fmt.Errorf("--namespace %q is unknown: give own or host", opts.namespace)
	}
	return opts, nil
}

// runHost is the gateway in the caller's network namespace.
func runHost(opts *options, version string) int {
	socket, err := listenUDP(opts.listenPort)
	if err != nil {
		control.FailStart("listen_failed", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return serve(ctx, opts, version, socket, func(string) {})
}

// startError carries the code that a failed start reports.
type startError struct {
	code string
	err  error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

func startFailure(code, format string, args ...any) error {
	return &startError{code: code, err: fmt.Errorf(format, args...)}
}

// serve runs the gateway until ctx is done. reported is called once the ready line (with the runtime directory) or the
// start's failure is out.
func serve(ctx context.Context, opts *options, version string, socket *os.File, reported func(runtimeDir string)) int {
	// Packet buffers come and go in bursts; a tighter garbage collector keeps the resident size near the live one.
	debug.SetGCPercent(50)
	g, err := start(opts, socket)
	if err != nil {
		code := "start_failed"
		if e := (*startError)(nil); errors.As(err, &e) {
			code = e.code
		}
		control.FailStart(code, err)
		reported("")
		return 1
	}
	defer g.close()
	server, err := control.New("gateway", opts.runtimeDir, version)
	if err != nil {
		control.FailStart("control_failed", err)
		reported("")
		return 1
	}
	g.version = version
	g.routes(server)
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	done := make(chan error, 1)
	go func() { done <- server.Serve(serving) }()
	if err := server.Ready(); err != nil {
		slog.Error("the ready line could not be written", "error", err)
	}
	reported(server.RuntimeDir())
	select {
	case <-ctx.Done():
	case <-g.failed:
		slog.Error("the WireGuard device has ended on its own: see the lines above")
	case err := <-done:
		slog.Error("the control socket failed", "error", err)
		return 1
	}
	limit := time.AfterFunc(shutdownLimit, func() { os.Exit(1) })
	defer limit.Stop()
	g.events.close()
	stopServing()
	<-done
	return 0
}
