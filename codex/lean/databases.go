package lean

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// Databases reads the SQLite databases that a child has made in its CODEX_HOME, for
// the Files of others. The child must not have run a turn, so that they hold nothing
// of a caller.
//
// The child may run, even write. The files are read twice, and where both are alike,
// this is how they were at one moment in between. That is what SQLite finds after a
// crash, and completes: the write-ahead log (-wal) has what is not in the database yet.
// The index of that log (-shm) is made anew. Nothing else in the home is read:
// installation_id is each child's own.
func Databases(home string) (map[string][]byte, error) {
	was, err := readDatabases(home)
	if err != nil {
		return nil, err
	}
	is, err := readDatabases(home)
	if err != nil {
		return nil, err
	}
	if len(is) == 0 || !maps.EqualFunc(was, is, bytes.Equal) {
		return nil, errors.New("databases: there is none, or the child writes to one")
	}
	return is, nil
}

func readDatabases(home string) (map[string][]byte, error) {
	paths, err := filepath.Glob(filepath.Join(home, "*.sqlite*"))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, path := range paths {
		if strings.HasSuffix(path, "-shm") {
			continue
		}
		if files[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return files, nil
}
