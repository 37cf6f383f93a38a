package login_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/codex/lean"
	"codexpool/codex/login"
)

// keeperOf runs the real CLI as keeper against a token endpoint.
func keeperOf(t *testing.T, tokens *codextest.Tokens) func(home string) codex.Command {
	return keeperWith(codextest.Binary(t), tokens.URL, codextest.Mark(), codextest.Log(t))
}

func keeperWith(binary, tokens, mark string, log *slog.Logger) func(home string) codex.Command {
	return func(home string) codex.Command {
		keeper := lean.Keeper()
		return codex.Command{
			Path: binary, Args: []string{"app-server", "--strict-config"}, Home: home, Files: keeper.Files, Log: log,
			Env: append(keeper.Env, "PATH="+os.Getenv("PATH"), mark,
				"CODEX_REFRESH_TOKEN_URL_OVERRIDE="+tokens+"/token", "HTTPS_PROXY=http://127.0.0.1:1"),
		}
	}
}

// keepLogin runs Keep until the test ends.
func keepLogin(t *testing.T, l *login.Login) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { // ends with stop
		defer close(ended)
		l.Keep(ctx)
	}()
	t.Cleanup(func() { stop(); <-ended })
}

// A child refreshes by itself a token that expires within five minutes, and any
// other when it is called to. Either way the refresh token is spent once.
func TestKeepRefreshesLoginOnceAndWritesItBack(t *testing.T) {
	t.Parallel()
	for name, life := range map[string]time.Duration{"half of its life remains": 50 * time.Minute, "it expires in a minute": time.Minute, "it has expired": -time.Minute} {
		t.Run(name, func(t *testing.T) {
			dir := codextest.Workdir(t)
			codextest.AuthFile(t, dir, "rt-old", life)
			tokens := codextest.NewTokens(t)
			l, err := login.Open(dir, keeperOf(t, tokens), codextest.Log(t))
			if err != nil {
				t.Fatal(err)
			}
			before, _, err := l.Bearer()
			if (err != nil) != (life < 0) {
				t.Errorf("before: %v", err)
			}
			keepLogin(t, l)
			codextest.Until(t, "new token", func() bool {
				token, account, err := l.Bearer()
				return err == nil && token != before && account == "account"
			})
			untilKeeperGone(t, dir)
			if spent := tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
				t.Errorf("spent %q", spent)
			}
			info, err := os.Stat(filepath.Join(dir, "auth.json"))
			if got := codextest.RefreshToken(t, dir); got != "rt-fresh" || err != nil || info.Mode() != 0o600 {
				t.Errorf("on disk: %q, mode %v, %v", got, info.Mode(), err)
			}
		})
	}
}

func TestKeepRefreshesOnceForDaemonsThatShareALogin(t *testing.T) {
	t.Parallel()
	dir := codextest.Workdir(t)
	codextest.AuthFile(t, dir, "rt-old", -time.Minute)
	tokens := codextest.NewTokens(t)
	var logins []*login.Login
	for range 3 {
		l, err := login.Open(dir, keeperOf(t, tokens), codextest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		logins = append(logins, l)
	}
	for _, l := range logins {
		keepLogin(t, l)
	}
	for _, l := range logins {
		codextest.Until(t, "new token", func() bool { _, _, err := l.Bearer(); return err == nil })
	}
	if spent := tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
		t.Errorf("spent %q", spent)
	}
}

func TestKeepSpendsRejectedLoginOnceAndReadsANewOne(t *testing.T) {
	dir := codextest.Workdir(t)
	codextest.AuthFile(t, dir, "rt-old", -time.Minute)
	tokens := codextest.NewTokens(t)
	tokens.Reject()
	l, err := login.Open(dir, keeperOf(t, tokens), codextest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	keepLogin(t, l)
	codextest.Until(t, "attempt", func() bool { return len(tokens.Spent()) > 0 })
	if _, _, err := l.Bearer(); err == nil {
		t.Error("an expired token is returned")
	}
	codextest.AuthFile(t, dir, "another", 24*time.Hour)
	codextest.Until(t, "new login", func() bool { _, _, err := l.Bearer(); return err == nil })
	for _, spent := range tokens.Spent() {
		if spent != "rt-old" {
			t.Errorf("%q was spent", spent)
		}
	}
}

// The login that a killed daemon's keeper wrote is the only one that works.
func TestOpenSavesLoginOfAKilledDaemonsKeeper(t *testing.T) {
	dir := codextest.Workdir(t)
	codextest.AuthFile(t, dir, "spent", time.Hour)
	keeper := unsaved(t, dir, "works")
	if _, err := login.Open(dir, nil, codextest.Log(t)); err != nil {
		t.Fatal(err)
	}
	if got := codextest.RefreshToken(t, dir); got != "works" {
		t.Errorf("got %q", got)
	}
	if _, err := os.Stat(keeper); !os.IsNotExist(err) {
		t.Errorf("the keeper's folder is still there: %v", err)
	}
}

// unsaved makes the folder of a keeper that has refreshed the login in dir, and
// whose daemon was killed before it saved the new one. It returns that folder. By
// the keeper's clock the old login is the newer one.
func unsaved(t *testing.T, dir, refresh string) string {
	t.Helper()
	keeper := filepath.Join(dir, ".codexpool-keeper")
	home := filepath.Join(keeper, "home", "codex")
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	began, err := os.ReadFile(filepath.Join(dir, "auth.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(keeper, "began.json"), began, 0o600); err != nil {
		t.Fatal(err)
	}
	codextest.AuthFile(t, home, refresh, 24*time.Hour)
	renewedAt(t, home, time.Now().Add(-2*time.Hour))
	return keeper
}

// renewedAt sets the time of the last refresh of the login in dir.
func renewedAt(t *testing.T, dir string, at time.Time) {
	t.Helper()
	path := filepath.Join(dir, "auth.json")
	auth, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	auth = regexp.MustCompile(`"last_refresh":"[^"]*"`).ReplaceAll(auth, []byte(`"last_refresh":"`+at.UTC().Format(time.RFC3339)+`"`))
	if err := os.WriteFile(path, auth, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenFailsWithoutALogin(t *testing.T) {
	for content, want := range map[string]string{
		"":                            "there is no ChatGPT login",
		`{"OPENAI_API_KEY":"sk-..."}`: "there is no ChatGPT login",
		`{"tokens`:                    "not what Codex writes",
	} {
		dir := t.TempDir()
		if content != "" {
			if err := os.WriteFile(filepath.Join(dir, "auth.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := login.Open(dir, nil, codextest.Log(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// A mode of 0400 does not matter: a rename replaces such a file too.
func TestOpenRefusesAnImmutableLogin(t *testing.T) {
	dir := codextest.Workdir(t)
	codextest.AuthFile(t, dir, "rt-old", time.Hour)
	file := filepath.Join(dir, "auth.json")
	if err := os.Chmod(file, 0o400); err != nil {
		t.Fatal(err)
	}
	opened(t, dir, nil)
	if out, err := exec.Command("chattr", "+i", file).CombinedOutput(); err != nil {
		t.Skipf("no file can be made immutable here: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("chattr", "-i", file).Run() })
	if _, err := login.Open(dir, nil, codextest.Log(t)); err == nil || !strings.HasSuffix(err.Error(), "chattr -i "+file) {
		t.Errorf("got %v", err)
	}
}

func TestWithoutRefreshHasNoRefreshToken(t *testing.T) {
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "secret", time.Hour)
	l, err := login.Open(dir, nil, codextest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	var auth struct {
		Mode   string `json:"auth_mode"`
		Tokens map[string]string
	}
	if err := json.Unmarshal(l.WithoutRefresh(), &auth); err != nil {
		t.Fatal(err)
	}
	if auth.Mode != "chatgpt" || auth.Tokens["access_token"] == "" || auth.Tokens["refresh_token"] != "" {
		t.Errorf("got %+v", auth)
	}
}
