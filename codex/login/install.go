package login

import (
	"fmt"
	"os"
	"path/filepath"
)

// Install moves a new login from one CODEX_HOME to another on the same file system, where
// it takes the place of an old one. A link to the old one is followed.
func Install(from, to string) error {
	written := filepath.Join(from, authName)
	if _, err := readAuth(written); err != nil {
		return fmt.Errorf("the new login: %w", err)
	}
	path := (&Login{dir: to}).path()
	if _, err := os.Stat(path); err == nil {
		if err := replaceable(path); err != nil {
			return err
		}
	}
	return replace(written, path)
}
