package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// issuer plays the service that gives out ChatGPT logins, to who types a code into a
// browser. Until then, which is never where pending is set, the CLI asks again and again.
type issuer struct {
	*httptest.Server
	pending bool
	asked   atomic.Int32 // whether the code was typed in
}

func newIssuer(t *testing.T, pending bool) *issuer {
	i := &issuer{pending: pending}
	i.Server = httptest.NewServer(i)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/api/accounts/deviceauth/usercode":
		fmt.Fprint(w, `{"device_auth_id":"d","user_code":"ABCD-1234","interval":"1","expires_at":"2099-01-01T00:00:00Z"}`)
	case "/api/accounts/deviceauth/token":
		i.asked.Add(1)
		if i.pending {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		fmt.Fprint(w, `{"authorization_code":"c","code_challenge":"x","code_verifier":"y"}`)
	case "/oauth/token":
		token := codextest.AccessToken("rt-new", 24*time.Hour)
		fmt.Fprintf(w, `{"id_token":%q,"access_token":%q,"refresh_token":"rt-new"}`, token, token)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// loginCommand is codexpool login into home.
func loginCommand(t *testing.T, i *issuer, home string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program, append(append([]string{"login"}, args...), "--", "--experimental_issuer", i.URL)...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CODEX_BIN=" + codextest.Binary(t), markVar + "=" + runMark,
		"CODEX_HOME=" + home, "PROXY_API_KEY=" + key,
	}
	return cmd
}

func TestLoginPutsAWholeLoginIntoCODEX_HOME(t *testing.T) {
	t.Parallel()
	home := filepath.Join(codextest.Workdir(t), "new")
	cmd := loginCommand(t, newIssuer(t, false), home, "--device-auth")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ABCD-1234") || !strings.Contains(string(out), "    codexpool check\n") {
		t.Errorf("%v:\n%s", err, out)
	}
	if got := codextest.RefreshToken(t, home); got != "rt-new" {
		t.Errorf("the refresh token is %q", got)
	}
	for name, want := range map[string]os.FileMode{".": 0o700 | os.ModeDir, "auth.json": 0o600} {
		if info, err := os.Stat(filepath.Join(home, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if all, _ := filepath.Glob(filepath.Join(home, "*")); len(all) != 1 {
		t.Errorf("it left %q", all)
	}
	if hidden, _ := filepath.Glob(filepath.Join(home, ".*")); len(hidden) != 0 {
		t.Errorf("it left %q", hidden)
	}
}

// Over SSH there is no browser.
func TestLoginOverSSHShowsACode(t *testing.T) {
	t.Parallel()
	cmd := loginCommand(t, newIssuer(t, false), codextest.Workdir(t))
	cmd.Env = append(cmd.Env, "SSH_CONNECTION=192.0.2.1 1 192.0.2.2 22")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "ABCD-1234") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestLoginThatIsInterruptedLeavesTheOldOne(t *testing.T) {
	t.Parallel()
	home, i := codextest.Workdir(t), newIssuer(t, true)
	codextest.AuthFile(t, home, "rt-old", time.Hour)
	cmd := loginCommand(t, i, home, "--device-auth")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "question for the code", func() bool { return i.asked.Load() > 0 })
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(out.String(), "interrupted; nothing was changed") {
		t.Errorf("exit code %d:\n%s", code, out.String())
	}
	if got := codextest.RefreshToken(t, home); got != "rt-old" {
		t.Errorf("the refresh token is %q", got)
	}
	if all, _ := filepath.Glob(filepath.Join(home, ".*")); len(all) != 0 {
		t.Errorf("it left %q", all)
	}
}

func TestLoginIsTakenUpByARunningDaemon(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, 60*time.Hour)
	d := start(t, append(g.env, "POOL_SIZE=1")...)
	if out, err := loginCommand(t, newIssuer(t, false), g.home, "--device-auth").CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	eventually(t, time.Minute, "request with the new login", func() bool {
		if _, err := d.stream("hi"); err != nil {
			t.Fatal(err)
		}
		bearers, _, _ := g.seen()
		return bearers[len(bearers)-1] != bearers[0]
	})
	if spent := g.tokens.Spent(); len(spent) > 0 {
		t.Errorf("the daemon has spent %q", spent)
	}
}

func TestLoginNeedsAFolder(t *testing.T) {
	t.Parallel()
	cmd := loginCommand(t, newIssuer(t, false), "")
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "set CODEX_HOME to the folder for the login") {
		t.Errorf("%v:\n%s", err, out)
	}
}
