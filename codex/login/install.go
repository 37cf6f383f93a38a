package login

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Installable is an error where [Install] could not put a login into a CODEX_HOME.
func Installable(home string) error {
	path := (&Login{dir: home}).path()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return replaceable(path)
}

// Install moves a new login from one CODEX_HOME to another on the same file system, where
// it takes the place of an old one. A link to the old one is followed.
func Install(from, to string) error {
	written := filepath.Join(from, authName)
	if _, err := readAuth(written); err != nil {
		return fmt.Errorf("the new login: %w", err)
	}
	if err := Installable(to); err != nil {
		return err
	}
	return replace(written, (&Login{dir: to}).path())
}
