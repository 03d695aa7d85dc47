package keeper

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// needed is all that the keeper may do in its user namespace: namespaces, interfaces and addresses, packet sockets.
var needed = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}

// confine closes the keeper to the programs that share its user namespace, and gives up what it does not need: root
// in that namespace could otherwise read every file of the host's root. It is called on the first thread.
func confine() error {
	have, err := effective()
	if err != nil {
		return err
	}
	if have != setOf(needed) {
		// Capabilities are each thread's own, and there are several already: an exec leaves one thread, with what
		// the bounding set allows.
		return narrow(have)
	}
	// Whoever is in this user namespace and not its owner needs CAP_SYS_PTRACE in it for a process that cannot be
	// dumped, to trace it and to read its memory, environment and descriptors.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	return nil
}

func narrow(have uint64) error {
	if have&setOf(needed) != setOf(needed) {
		return errors.New("it has been given less than it needs")
	}
	for capability := uintptr(0); capability < 64; capability++ {
		if slices.Contains(needed, capability) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // this kernel knows no more of them
			break
		}
		if err != nil {
			return fmt.Errorf("PR_CAPBSET_DROP: %w", err)
		}
	}
	return fmt.Errorf("exec: %w", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}

func effective() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}

func setOf(capabilities []uintptr) (set uint64) {
	for _, capability := range capabilities {
		set |= 1 << capability
	}
	return set
}
