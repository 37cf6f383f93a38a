package codex_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// children are what this test binary plays when it is run again.
var children = map[string]func(){
	"serve": func() {
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: wordDelay})})
	},
	"never-initializes": func() { codextest.Play(codextest.Script{codextest.Hang()}) },
	"exits-in-handshake": func() {
		fmt.Fprintln(os.Stderr, "config.toml:\tno such key\x1b[2J\xff")
		codextest.Play(codextest.Script{codextest.Expect("initialize"), codextest.Exit(7)})
	},
	"has-no-threads": func() { // what the CLI writes under a limit of its threads
		fmt.Fprintln(os.Stderr, "\x1b[2m2026-11-25T18:55:00.565781Z\x1b[0m \x1b[31mERROR\x1b[0m \x1b[2mcodex_app_server\x1b[0m\x1b[2m:\x1b[0m Codex could not find bubblewrap on PATH.")
		fmt.Fprintln(os.Stderr, "\x1b[31mError\x1b[0m: Resource temporarily unavailable (os error 11)")
		fmt.Fprintln(os.Stderr, "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace")
		codextest.Play(codextest.Script{codextest.Expect("initialize"), codextest.Exit(1)})
	},
	"exits-mid-turn": func() {
		codextest.Play(codextest.Script{
			codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Delta("half"),
			codextest.Do(func() { fmt.Fprintln(os.Stderr, "out of memory") }), codextest.Exit(3),
		})
	},
	"ignores-stdin-close": func() {
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Hang()})
		select {}
	},
	"notes-sigterm": func() {
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM)
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Hang()})
		<-terminated
		os.WriteFile(os.Getenv("NOTE"), []byte("terminated\n"), 0o600)
	},
	"ignores-sigterm": func() {
		signal.Ignore(syscall.SIGTERM)
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Hang()})
		select {}
	},
	"grandchild-holds-stdout": func() { withGrandchild(os.Stdout, os.Stderr) },
	"grandchild-outlives":     func() { withGrandchild(nil, nil) },
	"closes-stdout": func() {
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Do(func() { os.Stdout.Close() }), codextest.Hang()})
		select {}
	},
	"prints-garbage": func() {
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Raw("thread 'main' panicked at"), codextest.Hang()})
	},
	"prints-20MB-line": func() {
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Raw(strings.Repeat("x", 20<<20)), codextest.Hang()})
	},
	"floods-stderr": func() {
		for i := range 100_000 {
			fmt.Fprintf(os.Stderr, "line %d %s\n", i, strings.Repeat("y", 100))
		}
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Expect("thread/start"), codextest.Exit(1)})
	},
	"stops-reading": func() {
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Do(func() { select {} })})
	},
	"prints-environment": func() {
		codextest.Play(codextest.Script{
			codextest.Handshake(), codextest.Expect("thread/start"),
			codextest.Do(func() { printEnvironment(os.Stderr) }), codextest.Exit(0),
		})
	},
}

func withGrandchild(stdout, stderr *os.File) {
	cmd := exec.Command("/bin/sleep", "300")
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	codextest.Play(codextest.Script{codextest.Handshake(), codextest.Hang()})
}

func printEnvironment(w io.Writer) {
	dir, _ := os.Getwd()
	fmt.Fprintln(w, "cwd", dir)
	for _, entry := range os.Environ() {
		fmt.Fprintln(w, "env", entry)
	}
	for _, path := range []string{os.Getenv("HOME"), os.Getenv("CODEX_HOME"), dir} {
		info, err := os.Stat(path)
		if err != nil {
			fmt.Fprintln(w, err)
			continue
		}
		fmt.Fprintln(w, "mode", info.Mode().Perm())
	}
}

func TestStartGivesTheChildPrivateFoldersAndItsOwnEnvironment(t *testing.T) {
	t.Setenv("SECRET_OF_THE_DAEMON", "x")
	cmd := codextest.Command(t, "prints-environment")
	c := start(t, cmd)
	exit := exitOf(t, c)
	printed := strings.Join(exit.Stderr, "\n")
	for _, want := range []string{
		"cwd " + filepath.Join(cmd.Home, "work"),
		"env HOME=" + cmd.Home,
		"env CODEX_HOME=" + filepath.Join(cmd.Home, "codex"),
		"env CODEX_SQLITE_HOME=" + filepath.Join(cmd.Home, "codex"),
		"mode -rwx------\nmode -rwx------\nmode -rwx------",
	} {
		if !strings.Contains(printed, want) {
			t.Errorf("no %q in\n%s", want, printed)
		}
	}
	if strings.Contains(printed, "SECRET_OF_THE_DAEMON") {
		t.Error("the daemon's environment was inherited")
	}
}

// exitOf runs one turn on a child that exits during it.
func exitOf(t *testing.T, c *codex.Client) *codex.ExitError {
	t.Helper()
	_, err := run(t, c, hello())
	exit := (*codex.ExitError)(nil)
	if !errors.As(err, &exit) {
		t.Fatalf("got %v, want an ExitError", err)
	}
	if c.Reusable() {
		t.Error("reusable after its end")
	}
	return exit
}

func TestStartFailsWhenTheChildNeverInitializes(t *testing.T) {
	cmd := codextest.Command(t, "never-initializes")
	cause := errors.New("too slow")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, cause)
	defer cancel()
	if _, err := codex.Start(ctx, cmd); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(cmd.Home); !os.IsNotExist(err) {
		t.Errorf("its home is still there: %v", err)
	}
}

func TestStartReturnsStderrOfAChildThatExits(t *testing.T) {
	exited := 0
	cmd := codextest.Command(t, "exits-in-handshake")
	cmd.Exited = func() { exited++ }
	_, err := codex.Start(t.Context(), cmd)
	exit := (*codex.ExitError)(nil)
	if !errors.As(err, &exit) || exit.Status != "exit status 7" || len(exit.Stderr) != 1 || exit.Stderr[0] != "config.toml: no such key\uFFFD[2J\uFFFD" {
		t.Errorf("got %v", err)
	}
	if exited != 1 {
		t.Errorf("Exited was called %d times", exited)
	}
}

func TestStartCleansUpWhenTheBinaryIsMissing(t *testing.T) {
	exited := 0
	cmd := codex.Command{Path: filepath.Join(t.TempDir(), "missing"), Home: codextest.Home(t), Exited: func() { exited++ }, Log: codextest.Log(t)}
	_, err := codex.Start(t.Context(), cmd)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(cmd.Home); !os.IsNotExist(err) || exited != 1 {
		t.Errorf("home: %v, Exited called %d times", err, exited)
	}
}

func TestStartDoesNotRemoveAHomeThatExists(t *testing.T) {
	cmd := codextest.Command(t, "serve")
	cmd.Home = t.TempDir()
	if c, err := codex.Start(t.Context(), cmd); !errors.Is(err, os.ErrExist) {
		c.Close()
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(cmd.Home); err != nil {
		t.Errorf("it was removed: %v", err)
	}
}

func TestTurnFailsWhenTheChildExits(t *testing.T) {
	c := start(t, codextest.Command(t, "exits-mid-turn"))
	events, err := run(t, c, hello())
	exit := (*codex.ExitError)(nil)
	if !errors.As(err, &exit) || exit.Status != "exit status 3" || strings.Join(exit.Stderr, "") != "out of memory" {
		t.Errorf("got %v", err)
	}
	if len(events) != 1 {
		t.Errorf("what came before is lost: %v", events)
	}
}

func TestCloseEndsEveryKindOfChild(t *testing.T) {
	for child, want := range map[string]string{
		"serve":                   "exit status 0",
		"ignores-stdin-close":     "signal: terminated",
		"ignores-sigterm":         "signal: killed",
		"grandchild-holds-stdout": "exit status 0",
		"grandchild-outlives":     "exit status 0",
		"closes-stdout":           "signal: terminated",
	} {
		t.Run(child, func(t *testing.T) {
			t.Parallel()
			c := start(t, codextest.Command(t, child))
			pid := c.Pid()
			c.Close()
			exit := (*codex.ExitError)(nil)
			if !errors.As(c.Err(), &exit) || exit.Status != want {
				t.Errorf("it ended with %v, want %s", c.Err(), want)
			}
			if alive := livingGroup(t, pid); len(alive) > 0 {
				t.Errorf("members of its process group are alive: %q", alive)
			}
		})
	}
}

func TestCallTimeoutBoundsACall(t *testing.T) {
	cmd := codextest.Command(t, "ignores-stdin-close")
	cmd.CallTimeout = 50 * time.Millisecond
	c := start(t, cmd)
	began := time.Now()
	if _, err := c.Ping(t.Context()); !errors.Is(err, codex.ErrUnresponsive) || time.Since(began) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
}

// Its end shows whether SIGTERM came before SIGKILL.
func TestKeepHomeKeepsFilesAndNeverKillsAtOnce(t *testing.T) {
	for keep, want := range map[bool]string{true: "terminated\n", false: ""} {
		cmd := codextest.Command(t, "notes-sigterm")
		cmd.CallTimeout, cmd.KeepHome = 50*time.Millisecond, keep
		note := filepath.Join(t.TempDir(), "note")
		cmd.Env = append(cmd.Env, "NOTE="+note)
		c, err := codex.Start(t.Context(), cmd)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Ping(t.Context()); !errors.Is(err, codex.ErrUnresponsive) {
			t.Errorf("got %v", err)
		}
		c.Close()
		got, _ := os.ReadFile(note) // none where it was killed at once
		if string(got) != want {
			t.Errorf("KeepHome %v: the child noted %q, want %q", keep, got, want)
		}
		if _, err := os.Stat(cmd.CodexHome()); (err == nil) != keep {
			t.Errorf("KeepHome %v: home: %v", keep, err)
		}
	}
}

func TestExtraFilesAreOpenInTheChild(t *testing.T) {
	lock := func() (*os.File, error) {
		file, err := os.OpenFile(filepath.Join(filepath.Dir(t.TempDir()), "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		return file, syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	held, err := lock()
	if err != nil {
		t.Fatal(err)
	}
	cmd := codextest.Command(t, "serve")
	cmd.ExtraFiles = []*os.File{held}
	c := start(t, cmd)
	held.Close()
	if _, err := lock(); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("while the child runs: %v", err)
	}
	c.Close()
	if _, err := lock(); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// livingGroup lists the members of a process group, without the dead that
// nobody has reaped yet: an orphan's reaper is init.
func livingGroup(t *testing.T, group int) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Fatal("no /proc here", err)
	}
	var living []string
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has just gone
		}
		// pid (comm) state ppid pgrp …
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if fields[0] != "Z" && fields[2] == strconv.Itoa(group) {
			living = append(living, string(stat))
		}
	}
	return living
}

func TestDoneAfterAKillBetweenTurns(t *testing.T) {
	c := start(t, codextest.Command(t, "serve"))
	syscall.Kill(c.Pid(), syscall.SIGKILL)
	<-c.Done()
	if got := fmt.Sprint(c.Err()); got != "child is gone: signal: killed" {
		t.Errorf("Err is %q", got)
	}
}

func TestTurnFailsOnGarbageAndSpoilsTheChild(t *testing.T) {
	t.Parallel()
	for _, child := range []string{"prints-garbage", "prints-20MB-line"} {
		t.Run(child, func(t *testing.T) {
			c := start(t, codextest.Command(t, child))
			_, err := run(t, c, hello())
			if protocol := (*codex.ProtocolError)(nil); !errors.As(err, &protocol) {
				t.Errorf("got %v", err)
			}
			if c.Reusable() {
				t.Error("reusable after garbage")
			}
		})
	}
}

func TestExitErrorHasOnlyTheLastLinesOfStderr(t *testing.T) {
	t.Parallel()
	exit := exitOf(t, start(t, codextest.Command(t, "floods-stderr")))
	if len(exit.Stderr) != 20 || !strings.HasPrefix(exit.Stderr[19], "line 99999 ") {
		t.Errorf("%d lines are kept, the last is %.20q", len(exit.Stderr), exit.Stderr[len(exit.Stderr)-1])
	}
}

func TestTurnGivesUpAChildThatStopsReading(t *testing.T) {
	t.Parallel()
	c := start(t, codextest.Command(t, "stops-reading"))
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // ends with the test, if the pipe is never full
		for ctx.Err() == nil && codex.Waiting(c) < 60<<10 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	p := hello()
	p.Items[0] = codextest.UserItem(strings.Repeat("a pipe holds 64 KB ", 10_000))
	for _, err := range c.Turn(ctx, p) {
		if !errors.Is(err, codex.ErrUnresponsive) {
			t.Errorf("got %v", err)
		}
	}
	if c.Reusable() {
		t.Error("reusable with half a line in its input")
	}
}

func TestExitErrorShowsThatAnotherEndedARealChild(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("hi"))
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		c := start(t, codextest.Real(t, up.URL+"/v1"))
		syscall.Kill(c.Pid(), signal)
		<-c.Done()
		if exit := (*codex.ExitError)(nil); !errors.As(c.Err(), &exit) || !exit.Killed() {
			t.Errorf("%v: %v", signal, c.Err())
		}
	}
	if exit := exitOf(t, start(t, codextest.Command(t, "exits-mid-turn"))); exit.Killed() {
		t.Errorf("it exited by itself: %v", exit)
	}
}

func TestCloseRemovesEveryTraceOfARealChild(t *testing.T) {
	up := codextest.NewUpstream(t, codextest.Text("hi"))
	cmd := codextest.Real(t, up.URL+"/v1")
	c := start(t, cmd)
	if c.Version() != codex.Pinned {
		t.Errorf("version %q", c.Version())
	}
	for _, w := range c.Warnings() {
		if !strings.Contains(w, "bubblewrap") {
			t.Errorf("config warning: %s", w)
		}
	}
	if _, err := run(t, c, hello()); err != nil {
		t.Fatal(err)
	}
	c.Close()
	exit := (*codex.ExitError)(nil)
	if !errors.As(c.Err(), &exit) || exit.Status != "exit status 0" {
		t.Errorf("it ended with %v", c.Err())
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(c.Pid())); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}
