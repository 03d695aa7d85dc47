package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// makeOwnDir makes a directory (0700) below one that all of this user's engines share: a sandbox hides that one, and so
// also the engines that start after it. Where the shared one cannot be used, because somebody else has that name, the
// directory is below one of its own.
func makeOwnDir(temp string) (string, error) {
	if temp == "" {
		temp = os.TempDir()
	}
	shared := sharedDir(temp)
	for range 100 {
		if err := os.Mkdir(shared, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		info, err := os.Lstat(shared)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the last engine that used it has just ended
		}
		if err != nil {
			return "", err
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(owner.Uid) != os.Geteuid() {
			if shared, err = os.MkdirTemp(temp, filepath.Base(shared)+"-"); err != nil {
				return "", err
			}
		} else if info.Mode().Perm() != 0o700 {
			if err := os.Chmod(shared, 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		if dir, err := os.MkdirTemp(shared, "engine-"); !errors.Is(err, fs.ErrNotExist) {
			return dir, err
		}
	}
	return "", fmt.Errorf("%s: it vanishes again and again", shared)
}

// sharedDir is the directory of all of this user's engines; the same in the Python package, see _place.py.
func sharedDir(temp string) string {
	return filepath.Join(temp, fmt.Sprintf("lattice-%d", os.Geteuid()))
}

// removeOwnDir removes what makeOwnDir has made, and the shared directory unless others are in it.
func removeOwnDir(dir string) {
	_ = os.RemoveAll(dir)
	_ = os.Remove(filepath.Dir(dir))
}
