package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// namespaced runs lines in a mount namespace of their own.
const namespaced = `if [ -z "$IN_NAMESPACE" ]; then IN_NAMESPACE=yes exec unshare --mount "$0" "$@"; fi
`

// needsMounts skips a test where no mount namespace can be made.
func needsMounts(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace can be made here: %v: %s", err, out)
	}
}

// TestLoginThatCannotBeReplacedIsRefusedAtTheStart: a refresh token works once. A daemon
// that refreshed such a login would lose it, for itself and for the host.
func TestLoginThatCannotBeReplacedIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	needsMounts(t)
	readOnly := func(dir string) string {
		return `mount --bind "` + dir + `" "` + dir + `"; mount -o remount,bind,ro "` + dir + `"`
	}
	for name, tt := range map[string]struct{ lines, want string }{
		"the file is a mount":             {namespaced + `mount --bind "$HOST/auth.json" "$CODEX_HOME/auth.json"`, "auth.json is a mount of its own, which a refreshed login cannot replace: mount the folder that it is in, at HOME, and not the file"},
		"the folder is read-only":         {namespaced + readOnly("$CODEX_HOME"), "a refreshed login could not be written to HOME: "},
		"a link leads to such a folder":   {namespaced + `ln -sf "$HOST/auth.json" "$CODEX_HOME/auth.json"; ` + readOnly("$HOST"), "a refreshed login could not be written to HOST: "},
		"the file belongs to another":     {`chown 12345 "$CODEX_HOME/auth.json"; chmod 0644 "$CODEX_HOME/auth.json"; exec unshare --user --map-user=1000 --map-group=1000 "` + program + `" "$@"`, "so the first could not use it any more: run codexpool as user "},
		"direct children use such a file": {`export CODEX_UPSTREAM=direct; ` + namespaced + `mount --bind "$HOST/auth.json" "$CODEX_HOME/auth.json"`, "auth.json is a mount of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, host := newChatGPT(t, -time.Minute), codextest.Workdir(t)
			codextest.AuthFile(t, host, "rt-old", -time.Minute)
			out, code := serveInVain(t, within(t, tt.lines), append(g.env, "HOST="+host)...)
			want := strings.NewReplacer("HOME", g.home, "HOST", host).Replace(tt.want)
			if code != 2 || !strings.Contains(out, want) {
				t.Errorf("exit code %d, without %q:\n%s", code, want, out)
			}
			if spent := g.tokens.Spent(); len(spent) > 0 {
				t.Errorf("spent: %q", spent)
			}
			if left, _ := filepath.Glob(filepath.Join(g.home, ".codexpool-probe*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

// serveInVain runs a daemon that cannot start, and returns what it said.
func serveInVain(t *testing.T, path string, environ ...string) (out string, exitCode int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for one that starts all the same
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "serve")
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "CODEX_BIN=" + codextest.Binary(t), markVar + "=" + runMark,
		"PROXY_ENV=dev", "PORT=0", "PROXY_ADMIN_ADDR=", "PROXY_CODEX_WORKDIR=" + codextest.Workdir(t),
	}, environ...)
	said, _ := cmd.CombinedOutput() // its error is the exit code
	return string(said), cmd.ProcessState.ExitCode()
}

// TestLoginIsReplacedWhereItLies: what looks like a login that cannot be replaced, and is none.
func TestLoginIsReplacedWhereItLies(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string]string{
		"behind a link":               `mv "$CODEX_HOME/auth.json" "$HOST/auth.json"; ln -s "$HOST/auth.json" "$CODEX_HOME/auth.json"`,
		"in a folder that is a mount": namespaced + `mv "$CODEX_HOME/auth.json" "$HOST/auth.json"; mount --bind "$HOST" "$CODEX_HOME"`,
		"as a read-only file":         `mv "$CODEX_HOME/auth.json" "$HOST/auth.json"; chmod 0400 "$HOST/auth.json"; export CODEX_HOME="$HOST"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.Contains(lines, namespaced) {
				needsMounts(t)
			}
			g, host := newChatGPT(t, -time.Minute), codextest.Workdir(t)
			startProgram(t, within(t, lines), append(g.env, "POOL_SIZE=1", "HOST="+host)...).answers()
			if got := codextest.RefreshToken(t, host); got != "rt-fresh" {
				t.Errorf("on disk: %q", got)
			}
			ofUser(t, filepath.Join(host, "auth.json"), uint32(os.Geteuid()))
			if spent := g.tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
				t.Errorf("spent: %q", spent)
			}
			info, err := os.Lstat(filepath.Join(g.home, "auth.json"))
			if link := err == nil && info.Mode()&os.ModeSymlink != 0; link != (name == "behind a link") {
				t.Errorf("in CODEX_HOME: %v, %v", info, err)
			}
		})
	}
}

// container has what a container of the Dockerfile has: its user, a workdir of memory in
// which nothing can be executed, and the login's folder at another path than on the host.
// /mnt is the root: the folders above the tests' own are closed to that user.
const container = namespaced + `
mount -t tmpfs tmpfs /mnt
mkdir /mnt/login /mnt/work /mnt/codex
touch /mnt/codexpool
cp "$SSL_CERT_FILE" /mnt/roots
chmod 0644 /mnt/roots
mount --bind "$HOST" /mnt/login
mount --bind "${CODEX_BIN%/bin/codex}" /mnt/codex
mount --bind "$PROGRAM" /mnt/codexpool
mount -t tmpfs -o noexec,nosuid,nodev,uid=10001,mode=0700 tmpfs /mnt/work
export SSL_CERT_FILE=/mnt/roots CODEX_HOME=/mnt/login CODEX_BIN=/mnt/codex/bin/codex PROXY_CODEX_WORKDIR=/mnt/work HOME=/
cd /
exec setpriv --reuid=10001 --regid=10001 --clear-groups /mnt/codexpool "$@"
`

// TestLoginInAContainer does what README says for Docker, with the mounts and the user.
func TestLoginInAContainer(t *testing.T) {
	t.Parallel()
	needsMounts(t)
	g, host := newChatGPT(t, time.Hour), codextest.Workdir(t)
	cmd := loginCommand(t, newIssuer(t, false), host, "--device-auth")
	env := append(append(cmd.Env, g.env...), "HOST="+host, "PROGRAM="+program)
	logIn := func() (out string, err error) {
		cmd := exec.Command(within(t, container), cmd.Args[1:]...)
		cmd.Env = env
		said, err := cmd.CombinedOutput()
		return string(said), err
	}
	if out, err := logIn(); err == nil || !strings.Contains(out, "permission denied") {
		t.Errorf("login into a folder of another user: %v:\n%s", err, out)
	}
	codextest.AuthFile(t, host, "rt-old", -time.Minute)
	out, code := serveInVain(t, within(t, container), env...)
	if want := "permission denied: the folder and auth.json must belong to user 10001, as which codexpool runs"; code != 2 || !strings.Contains(out, want) {
		t.Errorf("with a folder of another user: exit code %d, without %q:\n%s", code, want, out)
	}

	chown(t, 10001, host)
	if out, err := logIn(); err == nil || !strings.Contains(out, "auth.json belongs to user 0") || strings.Contains(out, "ABCD-1234") {
		t.Errorf("login in place of another user's, which must not begin: %v:\n%s", err, out)
	}
	chown(t, 10001, filepath.Join(host, "auth.json"))
	if out, err := logIn(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	ofUser(t, filepath.Join(host, "auth.json"), 10001)

	codextest.AuthFile(t, host, "rt-old", -time.Minute)
	chown(t, 10001, filepath.Join(host, "auth.json"))
	startProgram(t, within(t, container), append(env, "POOL_SIZE=1")...).answers()
	if got := codextest.RefreshToken(t, host); got != "rt-fresh" {
		t.Errorf("on disk: %q", got)
	}
	ofUser(t, filepath.Join(host, "auth.json"), 10001)
	if spent := g.tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
		t.Errorf("spent: %q", spent)
	}
}

func chown(t *testing.T, uid int, path string) {
	t.Helper()
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

// ofUser fails unless a login belongs to a user, and is private.
func ofUser(t *testing.T, file string, uid uint32) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if of := info.Sys().(*syscall.Stat_t); of.Uid != uid || info.Mode() != 0o600 {
		t.Errorf("it belongs to user %d, mode %v", of.Uid, info.Mode())
	}
}
