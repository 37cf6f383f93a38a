package login_test

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/codex/login"
)

// played runs this test binary as keeper, and counts the keepers.
func played(t *testing.T, child string) (keeper func(home string) codex.Command, started *atomic.Int64) {
	cmd := codextest.Command(t, child)
	started = new(atomic.Int64)
	return func(home string) codex.Command {
		started.Add(1)
		cmd := cmd
		cmd.Home, cmd.Files = home, map[string][]byte{}
		return cmd
	}, started
}

// opened opens the login in dir.
func opened(t *testing.T, dir string, keeper func(home string) codex.Command) *login.Login {
	t.Helper()
	l, err := login.Open(dir, keeper, codextest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func untilKeeperGone(t *testing.T, dir string) {
	t.Helper()
	codextest.Until(t, "end of the keeper", func() bool {
		_, err := os.Stat(filepath.Join(dir, ".codexpool-keeper"))
		return os.IsNotExist(err)
	})
}

// A keeper refreshes a login that expires within five minutes in the handshake.
func TestKeepWaitsForASlowTokenEndpoint(t *testing.T) {
	t.Parallel()
	for name, life := range map[string]time.Duration{"in the handshake": time.Minute, "when called to": 50 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := codextest.Workdir(t)
			codextest.AuthFile(t, dir, "rt-old", life)
			tokens := codextest.NewTokens(t)
			tokens.During(func() { <-time.After(11 * time.Second) }) // longer than other calls may last; a process has no fake clock
			l := opened(t, dir, keeperOf(t, tokens))
			outcomes := outcomesOf(l)
			keepLogin(t, l)
			if outcome := <-outcomes; outcome != "ok" { // a machine that is slow too has no deadline here
				t.Errorf("the refresh: %s", outcome)
			}
			if got := codextest.RefreshToken(t, dir); got != "rt-fresh" {
				t.Errorf("on disk: %q", got)
			}
			if spent := tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
				t.Errorf("spent %q", spent)
			}
		})
	}
}

// outcomesOf is how the refreshes of l end, from the first on. It comes before Keep.
func outcomesOf(l *login.Login) <-chan string {
	outcomes := make(chan string, 100)
	l.Refreshed = func(outcome string) { outcomes <- outcome }
	return outcomes
}

func TestKeepSavesWhatAKeeperWritesAtItsEnd(t *testing.T) {
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "rt-old", -time.Minute)
	keeper, _ := played(t, "refreshes-at-its-end")
	keepLogin(t, opened(t, dir, keeper))
	codextest.Until(t, "new login on disk", func() bool { return codextest.RefreshToken(t, dir) == "rt-fresh" })
	if info, err := os.Stat(filepath.Join(dir, "auth.json")); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestKeepUsesALoginThatCannotBeSavedAndSavesItLater(t *testing.T) {
	t.Parallel() // a failed attempt costs a pause of 15 s
	dir := codextest.Workdir(t)
	codextest.AuthFile(t, dir, "rt-old", -time.Minute)
	file, aside := filepath.Join(dir, "auth.json"), filepath.Join(dir, "aside")
	tokens := codextest.NewTokens(t)
	tokens.During(func() {
		os.Rename(file, aside)
		os.Mkdir(file, 0o700) // nothing can be renamed to it
	})
	l := opened(t, dir, keeperOf(t, tokens))
	outcomes := outcomesOf(l)
	keepLogin(t, l)
	if outcome := <-outcomes; outcome != "failed" {
		t.Errorf("the refresh: %s", outcome)
	}
	if _, _, err := l.Bearer(); err != nil {
		t.Errorf("the new token is not used: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, file); err != nil {
		t.Fatal(err)
	}
	if outcome := <-outcomes; outcome != "ok" {
		t.Errorf("the second attempt: %s", outcome)
	}
	if got := codextest.RefreshToken(t, dir); got != "rt-fresh" {
		t.Errorf("on disk: %q", got)
	}
	untilKeeperGone(t, dir)
	if spent := tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
		t.Errorf("spent %q", spent)
	}
}

func TestKeepRefreshesNothingWithoutRoomForANewLogin(t *testing.T) {
	dir := t.TempDir()
	keeper, started := played(t, "refreshes")
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
	synctest.Test(t, func(t *testing.T) {
		codextest.AuthFile(t, dir, "rt-old", -time.Minute)
		l := opened(t, dir, keeper)
		keepFor(t, l, time.Minute)
		if n := started.Load(); n != 0 {
			t.Errorf("%d keepers were started without room", n)
		}
		if _, err := os.Stat(filepath.Join(dir, ".codexpool-keeper")); !os.IsNotExist(err) {
			t.Errorf("the keeper's folder is there: %v", err)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			t.Fatal(err)
		}
		keepFor(t, l, time.Minute)
		if n := started.Load(); n != 1 {
			t.Errorf("%d keepers were started with room", n)
		}
	})
}

// keepFor runs Keep that long, in a bubble.
func keepFor(t *testing.T, l *login.Login, d time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	l.Keep(ctx)
}

func TestKeepLetsALoginOrLogoutDuringARefreshWin(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, dir string){
		"another login": func(t *testing.T, dir string) { codextest.AuthFile(t, dir, "another", 24*time.Hour) },
		"an API key": func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, "auth.json"), []byte(`{"OPENAI_API_KEY":"sk-..."}`), 0o600)
		},
		"a logout": func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "auth.json")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, after := codextest.Workdir(t), t.TempDir()
			codextest.AuthFile(t, dir, "rt-old", -time.Minute)
			tokens := codextest.NewTokens(t)
			tokens.During(func() { change(t, dir); change(t, after) })
			keepLogin(t, opened(t, dir, keeperOf(t, tokens)))
			codextest.Until(t, "attempt", func() bool { return len(tokens.Spent()) > 0 })
			untilKeeperGone(t, dir)
			data, _ := os.ReadFile(filepath.Join(dir, "auth.json")) // none after a logout
			if strings.Contains(string(data), "rt-fresh") {
				t.Error("the old account is back")
			}
			if _, err := os.Stat(filepath.Join(after, "auth.json")); (err == nil) != (data != nil) {
				t.Errorf("there is %d bytes, %v", len(data), err)
			}
		})
	}
}

func TestKeepRefreshesNothingAfterALogout(t *testing.T) {
	dir := t.TempDir()
	keeper, started := played(t, "refreshes")
	synctest.Test(t, func(t *testing.T) {
		codextest.AuthFile(t, dir, "rt-old", -time.Minute)
		l := opened(t, dir, keeper)
		os.Remove(filepath.Join(dir, "auth.json"))
		keepFor(t, l, time.Minute)
		if n := started.Load(); n != 0 {
			t.Errorf("%d keepers were started after the logout", n)
		}
		codextest.AuthFile(t, dir, "another", -time.Minute)
		keepFor(t, l, time.Minute)
		if n := started.Load(); n != 1 {
			t.Errorf("%d keepers were started after the next login", n)
		}
	})
}

func TestKeepFinishesARunningRefreshBeforeItReturns(t *testing.T) {
	t.Parallel()
	dir := codextest.Workdir(t)
	codextest.AuthFile(t, dir, "rt-old", -time.Minute)
	ctx, stop := context.WithCancel(t.Context())
	tokens := codextest.NewTokens(t)
	// A call outlives its context by 2 s; a process has no fake clock.
	tokens.During(func() { stop(); <-time.After(3 * time.Second) })
	opened(t, dir, keeperOf(t, tokens)).Keep(ctx)
	if got := codextest.RefreshToken(t, dir); got != "rt-fresh" {
		t.Errorf("on disk: %q", got)
	}
}

func TestKeepSavesLoginOfAKilledDaemonsKeeper(t *testing.T) {
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "spent", 24*time.Hour)
	keeper, started := played(t, "refreshes")
	l := opened(t, dir, keeper)
	unsaved(t, dir, "works")
	keepLogin(t, l)
	codextest.Until(t, "saved login", func() bool { return codextest.RefreshToken(t, dir) == "works" })
	untilKeeperGone(t, dir)
	if n := started.Load(); n != 0 {
		t.Errorf("%d keepers were started", n)
	}
}

func TestOpenPrefersANewLoginToThatOfAKeeper(t *testing.T) {
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "spent", time.Hour)
	unsaved(t, dir, "works")
	codextest.AuthFile(t, dir, "another", time.Hour)
	opened(t, dir, nil)
	if got := codextest.RefreshToken(t, dir); got != "another" {
		t.Errorf("got %q", got)
	}
}

// A keeper was killed between the write of its file and the rename.
func TestOpenSavesALoginThatAKeeperHasNotRenamed(t *testing.T) {
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "spent", time.Hour)
	spent, err := os.ReadFile(filepath.Join(dir, "auth.json"))
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(unsaved(t, dir, "works"), "home", "codex")
	if err := os.Rename(filepath.Join(home, "auth.json"), filepath.Join(home, ".auth-x7Yz01")); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"auth.json": spent, ".auth-half01": spent[:len(spent)/2]} {
		if err := os.WriteFile(filepath.Join(home, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if opened(t, dir, nil).WasCutShort() {
		t.Error("it is called lost")
	}
	if got := codextest.RefreshToken(t, dir); got != "works" {
		t.Errorf("got %q", got)
	}
}

func TestKeepWritesThroughALinkToALogin(t *testing.T) {
	dir, real := t.TempDir(), t.TempDir()
	codextest.AuthFile(t, real, "rt-old", -time.Minute)
	link := filepath.Join(dir, "auth.json")
	if err := os.Symlink(filepath.Join(real, "auth.json"), link); err != nil {
		t.Fatal(err)
	}
	keeper, _ := played(t, "refreshes")
	keepLogin(t, opened(t, dir, keeper))
	codextest.Until(t, "new login", func() bool { return codextest.RefreshToken(t, dir) != "rt-old" })
	if target, err := os.Readlink(link); err != nil || codextest.RefreshToken(t, filepath.Dir(target)) == "rt-old" {
		t.Errorf("the link: %v", err)
	}
}

// Keep reads the file before it has the lock, which may be too early.
func TestKeepReadsALoginThatAnotherDaemonHasJustRefreshed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "auth.json")
	keeper, started := played(t, "refreshes")
	synctest.Test(t, func(t *testing.T) {
		codextest.AuthFile(t, dir, "rt-1-which-is-longer-than-the-next", -time.Minute)
		l := opened(t, dir, keeper)
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		held := flock(t, dir)
		go l.Keep(ctx) // ends with stop
		time.Sleep(3 * time.Second)
		// The file's size and times remain, so that only the read under the lock can find
		// the new login.
		fresh := t.TempDir()
		codextest.AuthFile(t, fresh, "rt-2", 24*time.Hour)
		want, _, err := opened(t, fresh, keeper).Bearer()
		if err != nil {
			t.Fatal(err)
		}
		data, _ := os.ReadFile(filepath.Join(fresh, "auth.json"))
		if int64(len(data)) > info.Size() {
			t.Fatalf("%d bytes, want at most %d", len(data), info.Size())
		}
		data = append(data, strings.Repeat(" ", int(info.Size())-len(data))...)
		os.WriteFile(file, data, 0o600)
		os.Chtimes(file, info.ModTime(), info.ModTime())
		if _, _, err := l.Bearer(); err == nil {
			t.Error("the new login was read without the lock")
		}
		held.Close()
		time.Sleep(10 * time.Second)
		if token, _, err := l.Bearer(); token != want || err != nil {
			t.Errorf("the new login was not read: token %.20q, %v", token, err)
		}
		stop()
	})
	if n := started.Load(); n != 0 {
		t.Errorf("%d keepers were started", n)
	}
}

// flock plays another daemon that refreshes the login.
func flock(t *testing.T, dir string) *os.File {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(dir, ".codexpool-lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestKeepReadsANewLoginWhileAnotherDaemonRefreshes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "rt-old", -time.Minute)
	flock(t, dir)
	keeper, _ := played(t, "refreshes")
	l := opened(t, dir, keeper)
	keepLogin(t, l)
	codextest.AuthFile(t, dir, "another", 24*time.Hour)
	codextest.Until(t, "new login", func() bool { _, _, err := l.Bearer(); return err == nil })
}

func TestKeepRefreshesADayBeforeExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		codextest.AuthFile(t, dir, "rt-old", 5*24*time.Hour)
		keeper, started := played(t, "rejects")
		l := opened(t, dir, keeper)
		time.Sleep(4*24*time.Hour - time.Hour)
		keepFor(t, l, 59*time.Minute)
		if n := started.Load(); n != 0 {
			t.Errorf("%d keepers were started before", n)
		}
		keepFor(t, l, 2*time.Minute)
		if n := started.Load(); n != 1 {
			t.Errorf("%d keepers were started", n)
		}
	})
}

func TestKeepPausesBetweenRefreshes(t *testing.T) {
	t.Parallel()
	for child, want := range map[string]struct {
		soon  int64         // keepers within a minute
		after time.Duration // and that much later
		later int64         // so many, at most
		least int64
	}{
		"refreshes":          {soon: 1, after: 20 * time.Minute, later: 5, least: 5},  // the login that it writes has expired by our clock
		"rejects":            {soon: 1, after: 20 * time.Minute, later: 3, least: 3},  // tried again: a program in between may have rejected it
		"exits-in-handshake": {soon: 4, after: 5 * time.Minute, later: 23, least: 20}, // a poll every 2 s, a pause of 15 s
	} {
		t.Run(child, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				codextest.AuthFile(t, dir, "rt-old", -time.Minute)
				keeper, started := played(t, child)
				l := opened(t, dir, keeper)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				go l.Keep(ctx) // ends with stop
				time.Sleep(time.Minute)
				if n := started.Load(); n != want.soon {
					t.Errorf("%d keepers after a minute, want %d", n, want.soon)
				}
				time.Sleep(want.after)
				if n := started.Load(); n < want.least || n > want.later {
					t.Errorf("%d keepers %v later, want %d to %d", n, want.after, want.least, want.later)
				}
			})
		})
	}
}

func TestRejectedLoginIsRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		codextest.AuthFile(t, dir, "rt-old", 60*time.Hour)
		keeper, started := played(t, "rejects")
		l := opened(t, dir, keeper)
		l.Rejected("yesterday's token")
		keepFor(t, l, time.Minute)
		if n := started.Load(); n != 0 {
			t.Errorf("%d keepers were started for another token", n)
		}
		token, _, _ := l.Bearer()
		l.Rejected(token)
		keepFor(t, l, time.Minute)
		if n := started.Load(); n != 1 {
			t.Errorf("%d keepers were started", n)
		}
	})
}

// By our clock a token that is new expired half an hour ago.
func TestBearerAcceptsAGoodLoginWhenOurClockIsAhead(t *testing.T) {
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "rt-old", -30*time.Minute)
	renewedAt(t, dir, time.Now())
	keeper, _ := played(t, "rejects")
	if _, _, err := opened(t, dir, keeper).Bearer(); err != nil {
		t.Error(err)
	}
}

// A daemon in a container may be root there, and the login that of a user of the host.
func TestKeepLeavesALoginToItsOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file to another user")
	}
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "rt-old", -time.Minute)
	file := filepath.Join(dir, "auth.json")
	if err := os.Chown(file, 12345, 54321); err != nil {
		t.Fatal(err)
	}
	keeper, _ := played(t, "refreshes")
	keepLogin(t, opened(t, dir, keeper))
	codextest.Until(t, "new login on disk", func() bool { return codextest.RefreshToken(t, dir) != "rt-old" })
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if of := info.Sys().(*syscall.Stat_t); of.Uid != 12345 || of.Gid != 54321 || info.Mode() != 0o600 {
		t.Errorf("it belongs to %d:%d, mode %v", of.Uid, of.Gid, info.Mode())
	}
}
