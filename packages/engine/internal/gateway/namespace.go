package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lattice.dev/engine/internal/control"
	"lattice.dev/engine/internal/userns"
)

// Descriptors that the process inside the namespace inherits.
const (
	fdSocket = 3 + iota
	fdReport
	fdLifeline
)

// runOuter opens the UDP socket in the caller's network namespace and runs this program again inside a
// namespace of its own. Both live and die together: the inner one gets SIGTERM and the end of its lifeline when this
// one dies however it dies, and this one ends with the inner one.
func runOuter(opts *options, args []string) int {
	// PR_SET_PDEATHSIG is tied to the thread that forks.
	runtime.LockOSThread()
	socket, err := listenUDP(opts.listenPort)
	if err != nil {
		control.FailStart("listen_failed", err)
		return 1
	}
	reportRead, reportWrite, err := os.Pipe()
	if err != nil {
		control.FailStart("start_failed", err)
		return 1
	}
	lifelineRead, lifelineWrite, err := os.Pipe()
	if err != nil {
		control.FailStart("start_failed", err)
		return 1
	}
	defer lifelineWrite.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{"gateway", "--inner"}, args...)...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{socket, reportWrite, lifelineRead}
	cmd.SysProcAttr = namespaceAttributes()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		control.FailStart("userns_forbidden", userns.Forbidden("an ordinary user's gateway", err))
		return 1
	}
	// The inner process alone holds them from here on.
	socket.Close()
	reportWrite.Close()
	lifelineRead.Close()
	go func() {
		for range signals {
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}()
	reported := make(chan string, 1)
	go func() {
		report, _ := io.ReadAll(reportRead)
		if len(report) > 0 {
			// The reader of the ready line waits for the end of the stream.
			os.Stdout.Close()
		}
		reported <- string(report)
	}()
	err = cmd.Wait()
	report := <-reported
	if dir := strings.TrimSpace(report); dir != "" {
		// A killed one could not tidy up.
		_ = os.Remove(filepath.Join(dir, "control.sock"))
		if opts.runtimeDir == "" {
			_ = os.Remove(dir)
		}
	}
	if report == "" {
		control.FailStart("start_failed", fmt.Errorf("the gateway ended inside its namespace before it was ready (%v): its log says why", err))
		return 1
	}
	exit := (*exec.ExitError)(nil)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	default:
		slog.Error("the gateway inside the namespace was killed", "error", err.Error())
		return 1
	}
}

// namespaceAttributes asks for a network namespace, and for a user namespace that allows it where this process may not.
func namespaceAttributes() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGTERM,
	}
	if os.Getuid() != 0 || !userns.Has(unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN) {
		attributes.Cloneflags |= syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return attributes
}

// runInner is the gateway inside its namespace.
func runInner(opts *options, version string) int {
	unix.CloseOnExec(fdSocket)
	unix.CloseOnExec(fdReport)
	unix.CloseOnExec(fdLifeline)
	socket := os.NewFile(fdSocket, "udp")
	report := os.NewFile(fdReport, "report")
	lifeline := os.NewFile(fdLifeline, "lifeline")
	if socket == nil || report == nil || lifeline == nil {
		control.FailStart("invalid_arguments", errors.New("--inner is for the engine's own use: leave it out"))
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = lifeline.Read(make([]byte, 1))
		cancel()
	}()
	opts.namespace = namespaceOwn
	return serve(ctx, opts, version, socket, func(runtimeDir string) {
		_, _ = report.WriteString(runtimeDir + "\n")
		report.Close()
	})
}
