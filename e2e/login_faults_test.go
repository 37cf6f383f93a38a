package e2e

import (
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// refreshing starts a daemon whose login is due, and returns while the daemon refreshes it.
// The token endpoint answers when finish is called.
func (g *chatGPT) refreshing(t *testing.T) (d *daemon, finish func()) {
	t.Helper()
	held := make(chan struct{})
	finish = sync.OnceFunc(func() { close(held) })
	t.Cleanup(finish)
	g.tokens.During(func() { <-held })
	d = start(t, append(g.env, "POOL_SIZE=1")...)
	eventually(t, time.Minute, "refresh", func() bool { return len(g.tokens.Spent()) > 0 })
	return d, finish
}

// answers waits until the daemon answers a completion.
func (d *daemon) answers() {
	d.t.Helper()
	eventually(d.t, time.Minute, "answer", func() bool { _, err := d.stream("hi"); return err == nil })
}

// TestLoginIsRefreshedOnceForTwoDaemonsThatShareIt: the second starts while the first
// refreshes. Both go on with the new login.
func TestLoginIsRefreshedOnceForTwoDaemonsThatShareIt(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, -time.Minute)
	first, finish := g.refreshing(t)
	second := start(t, append(g.env, "POOL_SIZE=1")...)
	finish()
	first.answers()
	second.answers()
	if spent := g.tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
		t.Errorf("the refresh tokens that were spent: %q", spent)
	}
	if got := codextest.RefreshToken(t, g.home); got != "rt-fresh" {
		t.Errorf("on disk: %q", got)
	}
}

// TestLoginOfTheCLIDuringARefreshWins: somebody runs codex login in the folder while the
// old login is being refreshed.
func TestLoginOfTheCLIDuringARefreshWins(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, -time.Minute)
	d, finish := g.refreshing(t)
	cmd := exec.Command(codextest.Binary(t), "login", "--device-auth", "--experimental_issuer", newIssuer(t, false).URL, "-c", `cli_auth_credentials_store="file"`)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CODEX_HOME=" + g.home, "HTTPS_PROXY=http://127.0.0.1:1", markVar + "=" + runMark}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	finish()
	eventually(t, time.Minute, "end of the keeper", func() bool {
		_, err := os.Stat(filepath.Join(g.home, ".codexpool-keeper"))
		return os.IsNotExist(err)
	})
	if got := codextest.RefreshToken(t, g.home); got != "rt-new" {
		t.Errorf("on disk: %q", got)
	}
	d.answers()
	bearers, _, _ := g.seen()
	claims, err := base64.RawURLEncoding.DecodeString(strings.Split(bearers[len(bearers)-1], ".")[1])
	if err != nil || !strings.Contains(string(claims), `"jti":"rt-new"`) {
		t.Errorf("the daemon uses another login: %v, %s", err, claims)
	}
}

// TestLoginIsNotSpentOnAFullDisk, and is refreshed when there is room.
func TestLoginIsNotSpentOnAFullDisk(t *testing.T) {
	t.Parallel()
	needsMounts(t)
	g, host := newChatGPT(t, -time.Minute), codextest.Workdir(t)
	d := startProgram(t, within(t, namespaced+`
mv "$CODEX_HOME/auth.json" "$HOST/auth.json"
mount -t tmpfs -o size=1m tmpfs "$CODEX_HOME"
cp -p "$HOST/auth.json" "$CODEX_HOME/auth.json"`), append(g.env, "POOL_SIZE=1", "HOST="+host)...)
	eventually(t, time.Minute, "word of the full disk", func() bool {
		return strings.Contains(d.logged(), `"msg":"ChatGPT login not refreshed","err":"write `) && strings.Contains(d.logged(), "no space left on device")
	})
	if spent := g.tokens.Spent(); len(spent) > 0 {
		t.Errorf("spent without room: %q", spent)
	}
	pid := strconv.Itoa(d.cmd.Process.Pid)
	if out, err := exec.Command("nsenter", "--mount", "--target", pid, "mount", "-o", "remount,size=64m", g.home).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d.answers()
	if got := codextest.RefreshToken(t, filepath.Join("/proc", pid, "root", g.home)); got != "rt-fresh" {
		t.Errorf("on disk: %q", got)
	}
	if spent := g.tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
		t.Errorf("spent: %q", spent)
	}
}

// TestLoginWhoseRefreshWasCutShortIsSaidToBePerhapsLost by check, as often as it is asked,
// and by the start.
func TestLoginWhoseRefreshWasCutShortIsSaidToBePerhapsLost(t *testing.T) {
	t.Parallel()
	const said = "a refresh of the login was cut short when its process was killed: the refresh token, which works once, may be spent"
	g := newChatGPT(t, -time.Minute)
	d, _ := g.refreshing(t)
	for _, pid := range append(codextest.Keepers(g.home), d.cmd.Process.Pid) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	<-d.ended
	g.tokens.During(nil)
	g.tokens.Reject() // it is spent
	for range 2 {
		if out, code := runCheck(t, append(g.env, "CODEX_UPSTREAM=chatgpt")...); code != 0 || !strings.Contains(out, "warning:    "+said) {
			t.Errorf("check: exit code %d\n%s", code, out)
		}
	}
	d = start(t, append(g.env, "POOL_SIZE=1")...)
	eventually(t, time.Minute, "word of a lost login", func() bool {
		log := d.logged()
		return strings.Contains(log, `"msg":"ChatGPT login perhaps lost","why":"`+said) && strings.Contains(log, "the login was rejected, log in again (codexpool login)")
	})
	if n := strings.Count(d.logged(), said); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	if out, _ := runCheck(t, append(g.env, "CODEX_UPSTREAM=chatgpt")...); strings.Contains(out, said) {
		t.Errorf("check says it after a refresh that ended:\n%s", out)
	}
}
