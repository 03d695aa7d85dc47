package userns

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestWhatForbidsNamespacesIsNamedWithWhatWouldAllowThem(t *testing.T) {
	t.Cleanup(func() { readSetting = os.ReadFile })
	const (
		clone    = "/proc/sys/kernel/unprivileged_userns_clone"
		users    = "/proc/sys/user/max_user_namespaces"
		networks = "/proc/sys/user/max_net_namespaces"
		apparmor = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
	)
	hints := map[string]string{
		clone:    clone + " is 0: sysctl -w kernel.unprivileged_userns_clone=1",
		users:    users + " is 0: sysctl -w user.max_user_namespaces=10000",
		networks: networks + " is 0: sysctl -w user.max_net_namespaces=10000",
		apparmor: apparmor + " is 1: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for lattice-engine with `userns,`",
		"":       "no sysctl forbids it",
	}
	for name, c := range map[string]struct {
		settings map[string]string // the others are not there
		want     []string
	}{
		"Debian's":          {map[string]string{clone: "0\n"}, []string{clone}},
		"Ubuntu's":          {map[string]string{clone: "1\n", apparmor: "1\n", users: "63000\n", networks: "63000\n"}, []string{apparmor}},
		"no users":          {map[string]string{users: "0\n"}, []string{users}},
		"no networks":       {map[string]string{networks: "0\n"}, []string{networks}},
		"all":               {map[string]string{clone: "0\n", users: "0\n", networks: "0\n", apparmor: "1\n"}, []string{clone, users, networks, apparmor}},
		"all allow it":      {map[string]string{clone: "1\n", users: "9\n", networks: "9\n", apparmor: "0\n"}, []string{""}},
		"there are no such": {nil, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			readSetting = func(path string) ([]byte, error) {
				if value, ok := c.settings[path]; ok {
					return []byte(value), nil
				}
				return nil, os.ErrNotExist
			}
			err := Forbidden("a gateway", syscall.EPERM)
			if !errors.Is(err, syscall.EPERM) || !strings.HasPrefix(err.Error(), "a gateway needs a user and network namespace") {
				t.Error(err)
			}
			for path, hint := range hints {
				named := slices.Contains(c.want, path)
				if strings.Contains(err.Error(), hint) != named {
					t.Errorf("whether it says %q should be %v: %v", hint, named, err)
				}
			}
		})
	}
}
