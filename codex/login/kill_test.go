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
	"sync"
	"syscall"
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

const spentStep = "the token is spent"

// TestLoginSurvivesADaemonThatIsKilledInAnyStepOfARefresh: whatever the step, the next
// daemon finds the one refresh token that works, and none is spent twice. Where the keeper
// is killed too, as at the end of a container, the new login may be lost in one step; then
// the next daemon says so at its start.
func TestLoginSurvivesADaemonThatIsKilledInAnyStepOfARefresh(t *testing.T) {
	t.Parallel()
	there := func(path ...string) func(dir string, asked bool) bool {
		return func(dir string, _ bool) bool {
			found, err := filepath.Glob(filepath.Join(append([]string{dir}, path...)...))
			return err == nil && len(found) > 0
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
		{spentStep, func(_ string, asked bool) bool { return asked }},
		{"the keeper has written the new login, and has not renamed it", there(keeper, "home", "codex", ".auth-*")},
		{"the keeper has the new login", func(dir string, _ bool) bool {
			return refreshTokenIn(filepath.Join(dir, keeper, "home", "codex")) == "rt-1"
		}},
		{"the new login is in its place", func(dir string, _ bool) bool { return refreshTokenIn(dir) == "rt-1" }},
	} {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			dir, tokens := spendable(t)
			killed := startDaemon(t, dir, tokens)
			untilStep(t, dir, tokens, step.reached)
			killed()

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
		t.Run(step.name+", its keeper is killed too", func(t *testing.T) {
			t.Parallel()
			dir, tokens := spendable(t)
			dead := make(chan struct{})
			if step.name == spentStep {
				tokens.During(func() { <-dead })
			}
			killed := startDaemon(t, dir, tokens)
			untilStep(t, dir, tokens, step.reached)
			killed()
			killKeeper(t, dir)
			close(dead)
			flock(t, dir).Close() // which a process that ends holds a moment longer

			l := opened(t, dir, keeperOf(t, tokens))
			lost := refreshTokenIn(dir) != tokens.Issued()
			if step.name == spentStep && !lost || lost && !l.WasCutShort() {
				t.Fatalf("lost: %v; said: %v", lost, l.WasCutShort())
			}
			outcomes := outcomesOf(l)
			keepLogin(t, l)
			if lost {
				if outcome := <-outcomes; outcome != "refused" {
					t.Errorf("the refresh with the spent token: %s", outcome)
				}
			} else {
				codextest.Until(t, "the login that works", func() bool {
					issued := tokens.Issued()
					return issued != "rt-0" && refreshTokenIn(dir) == issued
				})
			}
			untilKeeperGone(t, dir) // or the start after this one would say it too
		})
	}
}

// spendable is a folder with a login that is due, and the one endpoint that takes it.
func spendable(t *testing.T) (dir string, tokens *codextest.Tokens) {
	t.Helper()
	dir = codextest.Workdir(t)
	codextest.AuthFile(t, dir, "rt-0", -time.Minute)
	tokens = codextest.NewTokens(t)
	tokens.Rotate("rt-0")
	return dir, tokens
}

// startDaemon starts a daemon that keeps the login in dir, until killed is called.
func startDaemon(t *testing.T, dir string, tokens *codextest.Tokens) (killed func()) {
	t.Helper()
	cmd := codextest.Command(t, "daemon")
	d := exec.Command(cmd.Path, cmd.Args...)
	d.Env = append(cmd.Env, "LOGIN_DIR="+dir, "KEEPER="+codextest.Binary(t), "TOKENS="+tokens.URL, "MARK="+codextest.Mark(), "PATH="+os.Getenv("PATH"))
	d.Stderr = t.Output()
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	killed = sync.OnceFunc(func() {
		d.Process.Kill()
		d.Wait()
	})
	t.Cleanup(killed)
	return killed
}

// untilStep returns in a step of a refresh, which may be short, or at the end of the refresh.
func untilStep(t *testing.T, dir string, tokens *codextest.Tokens, reached func(dir string, asked bool) bool) {
	t.Helper()
	for began := time.Now(); !reached(dir, len(tokens.Spent()) > 0) && refreshTokenIn(dir) != "rt-1"; {
		if time.Since(began) > 20*time.Second {
			t.Fatal("the step is not reached")
		}
	}
}

// killKeeper kills the keeper of the login in dir, whose daemon is dead, and waits for its end.
func killKeeper(t *testing.T, dir string) {
	t.Helper()
	codextest.Until(t, "end of the keeper", func() bool {
		alive := codextest.Keepers(dir)
		for _, pid := range alive {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(alive) == 0
	})
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
