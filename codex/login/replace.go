package login

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// replaceable is an error where the auth.json at path, which is no link, could not be
// replaced by a refreshed one. Then nothing may refresh it: a refresh token works once, so
// the login would be lost, for whoever else uses the file too.
func replaceable(path string) error {
	dir := filepath.Dir(path)
	probe, err := os.CreateTemp(dir, ".codexpool-probe-*")
	if err != nil {
		return fmt.Errorf("a refreshed login could not be written to %s: %w", dir, err)
	}
	probe.Close()
	if err := os.Remove(probe.Name()); err != nil {
		return err
	}
	if mounted(path) {
		return fmt.Errorf("auth.json is a mount of its own, which a refreshed login cannot replace: mount the folder that it is in, at %s, and not the file", dir)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		file.Close()
	} else if errors.Is(err, syscall.EPERM) { // a file that is read-only by its mode can be replaced, this one not
		return fmt.Errorf("auth.json is immutable, so a refreshed login could not replace it: chattr -i %s", path)
	}
	if owner, us := ownerOf(path), os.Geteuid(); us != 0 && owner.uid != us {
		return fmt.Errorf("auth.json belongs to user %d, and a refreshed one would belong to user %d, so the first could not use it any more: run codexpool as user %d", owner.uid, us, owner.uid)
	}
	return nil
}

// mounted reports whether a file is on another mount than its folder: a container may
// have the file of a host. Both may be of one device.
func mounted(path string) bool {
	file, err := mountOf(path)
	folder, err2 := mountOf(filepath.Dir(path))
	return errors.Join(err, err2) == nil && !bytes.Equal(file, folder)
}

// mountOf is the number of the mount that a file is on, in a line of /proc.
func mountOf(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", file.Fd()))
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(info) {
		if bytes.HasPrefix(line, []byte("mnt_id:")) {
			return line, nil
		}
	}
	return nil, errors.ErrUnsupported
}

type owner struct{ uid, gid int }

// ownerOf is whom a file belongs to; us, where it is not there.
func ownerOf(path string) owner {
	if info, err := os.Stat(path); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			return owner{int(stat.Uid), int(stat.Gid)}
		}
	}
	return owner{os.Geteuid(), os.Getegid()}
}
