package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// within makes a program that runs the daemon after these lines of shell.
func within(t *testing.T, lines string) (path string) {
	t.Helper()
	return withinOf(t, program, lines)
}

// withinOf is [within] for a daemon that may be of another commit.
func withinOf(t *testing.T, binary, lines string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "codexpool")
	if err := os.WriteFile(path, []byte("#!/bin/sh -e\n"+lines+"\nexec \""+binary+"\" \"$@\"\n"), 0o700); err != nil {
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

// Shells and services give a soft limit to what they start, which Go would pass on.
func TestChildrenHaveTheDescriptorsThatTheDaemonMayHave(t *testing.T) {
	t.Parallel()
	d := startProgram(t, within(t, "ulimit -Sn 24"), "POOL_SIZE=1")
	if got, _ := d.complete(hi, true); got.String() != `assistant content "hi" finish stop` {
		t.Errorf("got %s", got)
	}
}

func TestCheckNamesALimitOfDescriptorsThatIsTooLow(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(within(t, "ulimit -n 60"), "check")
	cmd.Env = []string{"PROXY_ENV=dev", "PROXY_CODEX_WORKDIR=/nowhere", "POOL_SIZE=1"}
	out, err := cmd.CombinedOutput()
	if want := "failed:     descriptors (ulimit -n, POOL_SIZE): the limit of 60 descriptors is too low"; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("%v, without %q:\n%s", err, want, out)
	}
}

// The limit does not count for root, so the daemon runs as another user. It needs no CLI to
// say so.
func TestLimitOfProcessesThatIsTooSmallIsNamedByCheckAndAtTheStart(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can become a user with few processes")
	}
	const problem = "POOL_SIZE=1 needs 68 processes and threads, and the limit of the user (RLIMIT_NPROC) is 60"
	for command, want := range map[string]string{"check": "warning:    " + problem, "serve": `"level":"WARN","msg":"a limit is too small","err":"` + problem + `"`} {
		cmd := exec.Command("prlimit", "--nproc=60:60", program, command)
		cmd.Env = []string{"PROXY_ENV=dev", "PROXY_CODEX_WORKDIR=/nowhere", "POOL_SIZE=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, without %q:\n%s", command, err, want, out)
		}
	}
}
