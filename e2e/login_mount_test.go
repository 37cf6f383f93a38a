package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// namespaced runs lines in a mount namespace of their own.
const namespaced = `if [ -z "$IN_NAMESPACE" ]; then IN_NAMESPACE=yes exec unshare --mount "$0" "$@"; fi
`

// TestLoginThatCannotBeReplacedIsRefusedAtTheStart: a refresh token works once. A daemon
// that refreshed such a login would lose it, for itself and for the host.
func TestLoginThatCannotBeReplacedIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("unshare", "--mount", "true").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace can be made here: %v: %s", err, out)
	}
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
			cmd := exec.Command(within(t, tt.lines), "serve")
			cmd.Env = append(g.env,
				"PATH="+os.Getenv("PATH"), "HOME="+os.Getenv("HOME"), "CODEX_BIN="+codextest.Binary(t), markVar+"="+runMark,
				"PROXY_ENV=dev", "PORT=0", "PROXY_ADMIN_ADDR=", "PROXY_CODEX_WORKDIR="+codextest.Workdir(t), "HOST="+host)
			out, err := cmd.CombinedOutput()
			want := strings.NewReplacer("HOME", g.home, "HOST", host).Replace(tt.want)
			if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(string(out), want) {
				t.Errorf("exit code %d, %v, without %q:\n%s", code, err, want, out)
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
