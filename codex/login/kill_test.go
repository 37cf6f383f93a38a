package login_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"codexpool/codex/codextest"
	"codexpool/codex/login"
)

// daemon plays a daemon that keeps the login in LOGIN_DIR with the real CLI, until it is
// killed.
func daemon() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	keeper := keeperWith(os.Getenv("KEEPER"), os.Getenv("TOKENS"), os.Getenv("MARK"), log)
	l, err := login.Open(os.Getenv("LOGIN_DIR"), keeper, log)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	l.Keep(context.Background())
}

// TestLoginSurvivesADaemonThatIsKilledInAnyStepOfARefresh: whatever the step, the next
// daemon finds the one refresh token that works, and none is spent twice.
func TestLoginSurvivesADaemonThatIsKilledInAnyStepOfARefresh(t *testing.T) {
	t.Parallel()
	binary := codextest.Binary(t)
	there := func(path ...string) func(dir string, asked bool) bool {
		return func(dir string, _ bool) bool {
			_, err := os.Stat(filepath.Join(append([]string{dir}, path...)...))
			return err == nil
		}
	}
	const keeper = ".codexpool-keeper"
	for _, step := range []struct {
		name    string
		reached func(dir string, asked bool) bool
	}{
		{"the lock is made", there(".codexpool-lock")},
		{"the keeper's folder is made", there(keeper)},
		{"room is made", there(keeper, "ballast")},
		{"the beginning is noted", there(keeper, "began.json")},
		{"the keeper has the login", there(keeper, "home", "codex", "auth.json")},
		{"the token is spent", func(_ string, asked bool) bool { return asked }},
		{"the keeper has the new login", func(dir string, _ bool) bool {
			return refreshTokenIn(filepath.Join(dir, keeper, "home", "codex")) == "rt-1"
		}},
		{"the new login is in its place", func(dir string, _ bool) bool { return refreshTokenIn(dir) == "rt-1" }},
	} {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			dir := codextest.Workdir(t)
			codextest.AuthFile(t, dir, "rt-0", -time.Minute)
			tokens := codextest.NewTokens(t)
			tokens.Rotate("rt-0")
			cmd := codextest.Command(t, "daemon")
			first := exec.Command(cmd.Path, cmd.Args...)
			first.Env = append(cmd.Env, "LOGIN_DIR="+dir, "KEEPER="+binary, "TOKENS="+tokens.URL, "MARK="+codextest.Mark(), "PATH="+os.Getenv("PATH"))
			first.Stderr = t.Output()
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			killed := false
			t.Cleanup(func() {
				if !killed {
					first.Process.Kill()
					first.Wait()
				}
			})
			for began := time.Now(); !step.reached(dir, len(tokens.Spent()) > 0) && refreshTokenIn(dir) != "rt-1"; { // steps may be short
				if time.Since(began) > 20*time.Second {
					t.Fatal("the step is not reached")
				}
			}
			first.Process.Kill()
			first.Wait()
			killed = true

			keepLogin(t, opened(t, dir, keeperOf(t, tokens)))
			codextest.Until(t, "the login that works", func() bool {
				issued := tokens.Issued()
				return issued != "rt-0" && refreshTokenIn(dir) == issued
			})
			untilKeeperGone(t, dir)
			if spent := tokens.Spent(); len(slices.Compact(slices.Sorted(slices.Values(spent)))) != len(spent) {
				t.Errorf("spent twice: %q", spent)
			}
		})
	}
}

// refreshTokenIn is the refresh token in the auth.json in dir, "" where there is none yet.
func refreshTokenIn(dir string) string {
	data, _ := os.ReadFile(filepath.Join(dir, "auth.json"))
	found := refreshTokens.FindSubmatch(data)
	if found == nil {
		return ""
	}
	return string(found[1])
}

var refreshTokens = regexp.MustCompile(`"refresh_token":\s*"([^"]*)"`)
