// Package userns knows what this process may do with user namespaces, and why not.
package userns

import (
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Has tells whether this process has all of these capabilities in effect.
func Has(capabilities ...int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	for _, capability := range capabilities {
		if data[capability/32].Effective&(1<<(capability%32)) == 0 {
			return false
		}
	}
	return true
}

// readSetting is replaced in tests, which cannot have each distribution's settings.
var readSetting = os.ReadFile

// Forbidden explains why a user namespace was refused to who, and what would allow it.
func Forbidden(who string, err error) error {
	var hints []string
	for _, s := range []struct{ path, bad, hint string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"},
		{"/proc/sys/user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=10000"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for lattice-engine with `userns,`"},
	} {
		value, readErr := readSetting(s.path)
		if readErr == nil && strings.TrimSpace(string(value)) == s.bad {
			hints = append(hints, fmt.Sprintf("%s is %s: %s", s.path, s.bad, s.hint))
		}
	}
	if len(hints) == 0 {
		hints = append(hints, "no sysctl forbids it, so a container's seccomp profile or a security module does: allow unshare(CLONE_NEWUSER|CLONE_NEWNET), or run as root")
	}
	return fmt.Errorf("%s needs a user and network namespace of its own and this machine refuses it (%w). %s", who, err, strings.Join(hints, "; "))
}

// Identity maps users and groups of a new user namespace to themselves: all that this process may map, or its own.
// setgroups tells whether groups may be given up and taken in it.
func Identity() (uids, gids []syscall.SysProcIDMap, setgroups bool, err error) {
	// Linux 5.12 wants CAP_SETFCAP of who maps the parent's root.
	if !Has(unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETFCAP) {
		own := func(id int) []syscall.SysProcIDMap {
			return []syscall.SysProcIDMap{{ContainerID: id, HostID: id, Size: 1}}
		}
		return own(os.Getuid()), own(os.Getgid()), false, nil
	}
	if uids, err = everyID("/proc/self/uid_map"); err != nil {
		return nil, nil, false, err
	}
	if gids, err = everyID("/proc/self/gid_map"); err != nil {
		return nil, nil, false, err
	}
	// What is denied here cannot be allowed below.
	allowed, err := os.ReadFile("/proc/self/setgroups")
	return uids, gids, err == nil && strings.TrimSpace(string(allowed)) == "allow", nil
}

// everyID maps what this user namespace has; in the first one that is all there is.
func everyID(path string) ([]syscall.SysProcIDMap, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot tell which users there are: %w", err)
	}
	var maps []syscall.SysProcIDMap
	for line := range strings.Lines(string(text)) {
		var first, outside, size int64
		if _, err := fmt.Sscan(line, &first, &outside, &size); err != nil {
			return nil, fmt.Errorf("%s is not a map of users: %w", path, err)
		}
		maps = append(maps, syscall.SysProcIDMap{ContainerID: int(first), HostID: int(first), Size: int(min(size, math.MaxInt))})
	}
	return maps, nil
}
