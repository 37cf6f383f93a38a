package login

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
)

// InstallationFile is the file in a CODEX_HOME that names an installation of Codex.
// Codex sends the name with each request, and makes one where there is none.
const InstallationFile = "installation_id"

// Installation is the content of the [InstallationFile] beside the login, for the Files of
// each child: with one of its own, every child that starts would look to the provider like
// another machine with the same login. It is nil where it could not be written.
func (l *Login) Installation() []byte { return l.installation }

// identify reads or makes the name of the installation. The caller holds the lock, if it
// is to be had, so that daemons that share a login share the name too.
func (l *Login) identify() {
	path := filepath.Join(l.dir, InstallationFile)
	name, err := os.ReadFile(path)
	if err == nil && len(bytes.TrimSpace(name)) > 0 {
		l.installation = name
		return
	}
	id := make([]byte, 16)
	rand.Read(id) // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	name = fmt.Appendf(nil, "%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	if err := os.WriteFile(path, name, 0o644); err != nil {
		l.log.Warn("CODEX_HOME: each child is an installation of its own to the provider", "err", err)
		return
	}
	l.installation = name
}
