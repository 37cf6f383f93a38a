package login

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"codexpool/codex"
)

const (
	keeperDir = ".codexpool-keeper" // beside auth.json: on its file system, so that a rename moves the login back
	beganFile = "began.json"        // in keeperDir: the auth.json that the refresh began with
	lockFile  = ".codexpool-lock"   // beside auth.json

	refreshTimeout = 90 * time.Second // a whole refresh: the token endpoint may be slow, and its answer must not be lost
	keeperGrace    = 30 * time.Second // each step of stopping the keeper: it finishes its refresh first
	needed         = 4 << 20          // bytes that must be free: the keeper writes 1 MB of its own before the login
)

// unsaved reports whether a keeper's folder exists: a keeper runs, or what it wrote
// is not saved yet, or it was killed before it wrote.
func (l *Login) unsaved() bool {
	_, err := os.Lstat(filepath.Join(filepath.Dir(l.path()), keeperDir))
	return err == nil
}

// lock keeps other daemons from refreshing the login at path. It does not wait: the error is EWOULDBLOCK where another
// holds it. The lock lives until the file is closed, here and in the keeper.
func lock(path string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(filepath.Dir(path), lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// refresh has a keeper refresh the login. What counts is the file that the keeper
// has written when it is gone: what it answers also depends on services that we do
// not need.
func (l *Login) refresh(ctx context.Context) error {
	path := l.path()
	held, err := lock(path)
	if err != nil {
		return err
	}
	defer held.Close()
	dir := filepath.Join(filepath.Dir(path), keeperDir)
	if err := l.salvage(path); err != nil {
		return err
	}
	if l.unsaved() {
		l.log.Warn("ChatGPT login perhaps lost", "why", CutShort)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := l.load(path); err != nil {
		return err
	}
	before := l.current()
	if !before.due(time.Now()) {
		return nil // another daemon has refreshed it, perhaps one that was then killed
	}
	if err := replaceable(path); err != nil {
		return err
	}
	failed := l.runKeeper(ctx, dir, before, held)
	if err := l.salvage(path); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := l.load(path); err != nil || l.current().tokens != before.tokens {
		return err
	}
	if failed == nil {
		failed = errors.New("the child kept the old one")
	}
	return failed
}

// runKeeper starts a keeper in dir, has it refresh the login, and returns when it
// is gone.
func (l *Login) runKeeper(ctx context.Context, dir string, before auth, held *os.File) error {
	if err := prepare(dir, before.whole); err != nil {
		return err
	}
	ctx, cancel := codex.Patience(context.WithoutCancel(ctx), refreshTimeout)
	defer cancel()
	cmd := l.keeper(filepath.Join(dir, "home"))
	cmd.Files[authName] = before.whole
	cmd.CallTimeout, cmd.StopGrace = refreshTimeout, keeperGrace
	cmd.KeepHome = true
	cmd.ExtraFiles = []*os.File{held} // so that the lock lives as long as the keeper
	c, err := codex.Start(ctx, cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	// The keeper refreshes by itself a token that is about to expire. A call to
	// refresh would then spend the new token too, so it comes second.
	for _, call := range []func(context.Context) (bool, error){c.LoggedIn, c.RefreshLogin} {
		loggedIn, callErr := call(ctx)
		if err = callErr; err == nil && !loggedIn {
			return errRejected
		}
		after, unread := readAuth(filepath.Join(cmd.CodexHome(), authName))
		if c.Err() != nil || (unread == nil && after.tokens != before.tokens) {
			break
		}
	}
	return err
}

// prepare makes the keeper's folder. It fails where there is no room to write a
// refreshed login: the refresh must then not begin.
func prepare(dir string, began []byte) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	ballast := filepath.Join(dir, "ballast")
	if err := writeSynced(ballast, make([]byte, needed)); err != nil {
		return err
	}
	if err := os.Remove(ballast); err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, beganFile), began)
}

// salvage moves the auth.json that a keeper wrote to path, and removes the keeper's
// folder: ours, or that of a daemon that was killed or failed to do so. Its refresh
// token is the only one that works. So where the move fails the folder remains, and
// the login in it is used. Where the keeper wrote no new login, the folder remains too:
// the keeper may have spent the token before it could write. The caller holds the lock.
func (l *Login) salvage(path string) error {
	dir := filepath.Join(filepath.Dir(path), keeperDir)
	began, err := os.ReadFile(filepath.Join(dir, beganFile))
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(dir) // no refresh began
	}
	if err != nil {
		return err
	}
	from, written, err := writtenIn(codex.Command{Home: filepath.Join(dir, "home")}.CodexHome(), began)
	if err != nil {
		return err
	}
	kept, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || (err == nil && !bytes.Equal(kept, began)): // a logout or another login came since: it wins
	case from == "":
		return nil
	default:
		if err == nil {
			err = replace(from, path)
		}
		if err != nil {
			l.adopt(written)
			return fmt.Errorf("the refreshed one remains in %s: %w", keeperDir, err)
		}
	}
	return os.RemoveAll(dir)
}

// writtenIn finds the login that a keeper wrote into its CODEX_HOME; from is "" where it wrote
// none. Codex writes another file and renames it, and may be killed in between.
func writtenIn(home string, began []byte) (from string, written auth, err error) {
	unnamed, err := filepath.Glob(filepath.Join(home, ".auth-*"))
	if err != nil {
		return "", auth{}, err
	}
	for _, path := range append([]string{filepath.Join(home, authName)}, unnamed...) {
		written, err := readAuth(path)
		if unread := (*fs.PathError)(nil); errors.As(err, &unread) {
			return "", auth{}, err
		}
		if err == nil && !bytes.Equal(written.whole, began) {
			return path, written, nil
		}
	}
	return "", auth{}, nil
}

// replace moves an auth.json to the place of another, or of none.
func replace(from, to string) error {
	if err := os.Chmod(from, 0o600); err != nil {
		return err
	}
	if was := ownerOf(to); was != ownerOf(from) && os.Geteuid() == 0 { // root keeps the login of a user for that user
		if err := os.Chown(from, was.uid, was.gid); err != nil {
			return err
		}
	}
	if err := syncFile(from); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncFile(filepath.Dir(to))
}

func writeSynced(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return syncFile(path)
}

func syncFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}
