package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// within makes a program that runs the daemon after these lines of shell.
func within(t *testing.T, lines string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "codexpool")
	if err := os.WriteFile(path, []byte("#!/bin/sh -e\n"+lines+"\nexec \""+program+"\" \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// readOnly makes every file system read-only but one for the workdir, in a namespace of
// its own, and fails where a file can still be made.
const readOnly = `
if [ -z "$READ_ONLY" ]; then READ_ONLY=yes exec unshare --mount "$0" "$@"; fi
while read -r _ dir _; do mount -o remount,bind,ro "$dir" 2>/dev/null || true; done </proc/mounts
mount -t tmpfs tmpfs "$PROXY_CODEX_WORKDIR"
for dir in /tmp /var/tmp "$HOME" /run /dev/shm; do
	if touch "$dir/codexpool-e2e" 2>/dev/null; then echo "$dir is writable" >&2; exit 3; fi
done
`

func TestReadOnlyRootNeedsNoWritableFolderButTheWorkdir(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace can be made here: %v: %s", err, out)
	}
	d := startProgram(t, within(t, readOnly), "POOL_SIZE=1")
	if got, _ := d.complete(hi, true); got.String() != `assistant content "hi" finish stop` {
		t.Errorf("got %s", got)
	}
}
