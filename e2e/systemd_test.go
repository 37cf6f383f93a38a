package e2e

import (
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unit is the file that operators copy.
func unit(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../configs/systemd/codexpool.service")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// systemd listens as systemd does. told is the next state that the daemon sends within
// that time, "" where there is none.
func systemd(t *testing.T) (socket string, told func(within time.Duration) string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return socket, func(within time.Duration) string {
		t.Helper()
		state := make([]byte, 100)
		conn.SetReadDeadline(time.Now().Add(within))
		size, err := conn.Read(state)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		return string(state[:size])
	}
}

// The daemon is started with a CLI that cannot run a child, is repaired, stopped for a
// while as a machine that hangs, reloaded, and ended while it streams.
func TestSystemdIsToldOfTheDaemonsLife(t *testing.T) {
	t.Parallel()
	socket, told := systemd(t)
	expect := func(want string) {
		t.Helper()
		for {
			switch got := told(20 * time.Second); {
			case got == want:
				return
			case got != "WATCHDOG=1":
				t.Fatalf("systemd is told %q, want %q", got, want)
			}
		}
	}
	cli := filepath.Join(t.TempDir(), "codex")
	installWith(t, cli, "0.998.0", "exit 1")
	d := launch(t, program, "POOL_SIZE=1", "CODEX_BIN="+cli, "POOL_BACKOFF_MAX_MS=500", "CODEX_ECHO_DELAY_MS=100",
		"NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=600000")
	eventually(t, 20*time.Second, "a child that fails to start", func() bool { return strings.Contains(d.logged(), "child start failed") })
	if got := told(time.Second); got != "" {
		t.Errorf("systemd is told %q before a child is warm", got)
	}
	install(t, cli, "0.999.0")
	expect("READY=1")
	if got := d.ready(); got != `200 {"ready":true}` {
		t.Errorf("systemd knows that the daemon is ready, and /readyz says %s", got)
	}
	expect("WATCHDOG=1")
	d.cmd.Process.Signal(syscall.SIGSTOP)
	for began := time.Now(); told(time.Second) != ""; { // what was on its way
		if time.Since(began) > 10*time.Second {
			t.Fatal("a daemon that is stopped tells the watchdog that it lives")
		}
	}
	d.cmd.Process.Signal(syscall.SIGCONT)
	expect("WATCHDOG=1")
	d.cmd.Process.Signal(syscall.SIGHUP) // ExecReload; there is no keys file
	expect("WATCHDOG=1")
	expect("WATCHDOG=1")

	res, err := d.post(chatBody(strings.Repeat("word ", 50), true))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	}
	defer res.Body.Close()
	d.cmd.Process.Signal(syscall.SIGTERM)
	expect("STOPPING=1")
	if d.pool().in("leased") != 1 {
		t.Error("systemd is told only when the stream has ended")
	}
	var chunks []chunk
	if err := readStream(res.Body, func(c chunk) { chunks = append(chunks, c) }); err != nil {
		t.Error(err)
	}
	if _, err := wholeText(chunks); err != nil {
		t.Errorf("the stream that ran when systemd was told: %v", err)
	}
}

// systemd does not restart a unit that exits with 2, a wrong configuration. A Go program
// that panics, or that the watchdog ends, also exits with 2, but for what the unit sets.
func TestDaemonThatCrashesIsRestartedBySystemd(t *testing.T) {
	t.Parallel()
	text := unit(t)
	set := regexp.MustCompile(`(?m)^Environment=(GOTRACEBACK=\w+)$`).FindStringSubmatch(text)
	if set == nil || !strings.Contains(text, "\nRestartPreventExitStatus=2\n") || !strings.Contains(text, "\nLimitCORE=0\n") {
		t.Fatal("the unit restarts a daemon that crashed in another way, or lets it write its memory to disk")
	}
	dir := t.TempDir()
	d := launch(t, within(t, "cd "+dir+"; ulimit -c 0"), "POOL_SIZE=1", set[1])
	d.cmd.Process.Signal(syscall.SIGABRT) // as WatchdogSec does
	<-d.ended
	if status := d.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		t.Errorf("it ends with %v", d.cmd.ProcessState)
	}
	if !strings.Contains(d.logged(), "goroutine ") {
		t.Error("nothing shows where it was")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

func TestUnitIsWhatSystemdAccepts(t *testing.T) {
	t.Parallel()
	program := needsOf(t, "systemd-analyze", "systemd")
	// verify wants the program to be there, and root's folders to be its own.
	root := t.TempDir()
	for path, text := range map[string]string{"usr/bin/codexpool": "#!/bin/sh\n", "usr/lib/systemd/system/codexpool.service": unit(t)} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command(program, "security", "--offline=true", "--threshold=40", "--root="+root, "codexpool.service").CombinedOutput(); err != nil {
		t.Errorf("it is exposed: %v\n%s", err, out)
	}
	copied := filepath.Join(t.TempDir(), "codexpool.service")
	given := strings.ReplaceAll(unit(t), "=codexpool serve", "="+filepath.Join(root, "usr/bin/codexpool")+" serve")
	if err := os.WriteFile(copied, []byte(given), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "usr/bin/codexpool"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "verify", "--man=no", copied).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v\n%s", err, out)
	}
}
