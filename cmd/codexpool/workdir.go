package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// claim makes a folder in workdir for the home of one child. release removes it.
//
// The daemon holds a lock on a file in the folder as long as the child lives. A folder
// whose file can be locked belongs to a daemon that is gone. Each folder has a lock of
// its own, so that those of later children are swept too where workdir was removed under
// the daemon. The children of a killed daemon read the end of their input and exit within
// a moment.
func claim(workdir string, log *slog.Logger) (dir string, release func(), err error) {
	for {
		dir = filepath.Join(workdir, fmt.Sprintf("daemon-%d-%s", os.Getpid(), rand.Text()[:8]))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, err
		}
		held, err := lock(filepath.Join(dir, "lock"), os.O_CREATE, syscall.LOCK_EX)
		if err != nil {
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
		if _, err := os.Stat(held.Name()); err != nil { // another daemon swept it before it was locked
			held.Close()
			continue
		}
		return dir, func() {
			if err := discard(dir); err != nil {
				log.Warn("folder of a child's home not removed", "err", err)
			}
			held.Close()
		}, nil
	}
}

// prepare removes from workdir the homes that killed daemons left, and shows that homes
// can be made there.
func prepare(workdir string, log *slog.Logger) error {
	_, release, err := claim(workdir, log)
	if err != nil {
		return err
	}
	release()
	sweep(workdir, log)
	return nil
}

// sweep only logs errors: the daemon can serve without a sweep.
func sweep(workdir string, log *slog.Logger) {
	entries, err := os.ReadDir(workdir)
	if err != nil {
		log.Warn("homes of dead daemons not listed", "err", err)
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), "daemon-") {
			continue
		}
		dir := filepath.Join(workdir, e.Name())
		file, err := lock(filepath.Join(dir, "lock"), 0, syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			continue // the daemon lives, or the folder is not a daemon's
		}
		if err := discard(dir); err != nil {
			log.Warn("home of a dead daemon not removed", "err", err)
		} else {
			log.Info("home of a dead daemon removed", "dir", e.Name())
		}
		file.Close()
	}
}

// discard removes the folder of a home, the lock last. When it fails, the lock remains,
// so that the next sweep tries again.
func discard(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// lock opens a file and locks it until it is closed.
func lock(path string, flags, how int) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), how); err != nil {
		file.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return file, nil
}
