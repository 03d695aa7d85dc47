package netstack

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"

	"lattice.dev/engine/internal/control"
)

// gcPercent keeps the heap near what lives: agents mostly wait, and their packet buffers are garbage soon.
const gcPercent = 40

// testSilence, for tests alone, is the age in seconds of the last handshake at which a tunnel is silent.
const testSilence = "LATTICE_TEST_SILENCE"

// Main runs the netstack mode with the arguments after the mode's name and returns the exit code.
func Main(args []string, version string) int {
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	flags := flag.NewFlagSet("lattice-engine netstack", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	pipe := flags.Bool("parent-pipe", false, "end when standard input, a pipe that the parent holds open, ends")
	runtimeDir := flags.String("runtime-dir", "", "directory of the control socket; one of the engine's own when left out")
	err := flags.Parse(args)
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q: see `lattice-engine netstack --help`", flags.Arg(0))
	}
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(os.Stderr)
		flags.PrintDefaults()
		return 0
	}
	if err != nil {
		control.FailStart("invalid_arguments", err)
		return 1
	}
	return run(*pipe, *runtimeDir, version)
}

func run(pipe bool, runtimeDir, version string) int {
	debug.SetGCPercent(gcPercent)
	// A reader of the log that has gone, or a terminal that was closed, must not keep revokes from happening.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	told, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	alone, gone := context.WithCancel(told)
	defer gone()
	watchParent(pipe, gone)

	server, err := control.New("netstack", runtimeDir, version)
	if err != nil {
		control.FailStart("control_failed", err)
		return 1
	}
	s := newService(version, server.RuntimeDir(), slog.Default())
	if silent, err := strconv.ParseFloat(os.Getenv(testSilence), 64); err == nil && silent > 0 {
		s.watchdog = newWatchdog(seconds(silent))
	}
	s.routes(server)
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	done := make(chan error, 1)
	go func() { done <- server.Serve(serving) }()
	if err := server.Ready(); err != nil {
		slog.Error("the ready line could not be written", "error", err)
	}
	code := 0
	select {
	case <-alone.Done():
	case err := <-done:
		slog.Error("the control socket failed", "error", err)
		code = 1
		done <- err
	}
	s.end()
	stopServing()
	<-done
	return code
}
