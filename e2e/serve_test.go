package e2e

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"codexpool/codex/codextest"
)

// health runs codexpool health with the daemon's environment and these settings.
func health(t *testing.T, environ ...string) (output string, exitCode int) {
	t.Helper()
	return subcommand(t, "health", environ...)
}

// subcommand runs one that ends by itself.
func subcommand(t *testing.T, name string, environ ...string) (output string, exitCode int) {
	t.Helper()
	cmd := exec.Command(program, name)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, environ...)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), cmd.ProcessState.ExitCode()
}

// TestHealthAnswersForTheDaemon covers each kind of PROXY_HOST: the image listens
// on a wildcard.
func TestHealthAnswersForTheDaemon(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "0.0.0.0", "::"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			if l, err := net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
				t.Skipf("this machine cannot listen on %s: %v", host, err)
			} else {
				l.Close()
			}
			d := start(t, "POOL_SIZE=1", "PROXY_HOST="+host)
			where, err := url.Parse(d.url)
			if err != nil {
				t.Fatal(err)
			}
			settings := []string{"PROXY_HOST=" + host, "PORT=" + where.Port()}
			if out, code := health(t, settings...); out != `{"ready":true}` || code != 0 {
				t.Errorf("healthy: %q, exit code %d", out, code)
			}
			d.operate("drain")
			if out, code := health(t, settings...); out != `{"ready":false,"reason":"draining"}` || code != 1 {
				t.Errorf("draining: %q, exit code %d", out, code)
			}
		})
	}
}

// Not every system lets a client connect to a wildcard, as Linux does.
func TestHealthCallsLoopbackForAWildcardHost(t *testing.T) {
	t.Parallel()
	var called atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { called.Store(r.Host) }))
	defer server.Close()
	addr := server.Listener.Addr().(*net.TCPAddr) // 127.0.0.1 only
	for _, host := range []string{"", "0.0.0.0", "::", "[::]"} {
		called.Store("nobody")
		if out, code := health(t, "PROXY_HOST="+host, "PORT="+strconv.Itoa(addr.Port)); code != 0 {
			t.Errorf("PROXY_HOST=%s: exit code %d, %s", host, code, out)
		}
		if got := called.Load(); got != addr.String() {
			t.Errorf("PROXY_HOST=%s: it called %v", host, got)
		}
	}
}

func TestPrestopKeepsServingWhileNotReady(t *testing.T) {
	t.Parallel()
	const prestop = 4 * time.Second
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=0", fmt.Sprint("PROXY_PRESTOP_MS=", prestop.Milliseconds()))
	began := time.Now()
	d.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, prestop/4, "word that it is not ready", func() bool { return d.ready() == `503 {"ready":false,"reason":"draining"}` })
	served := 0
	for ; time.Since(began) < prestop/2; served++ {
		if got, _ := d.complete(hi, false); got.String() != `assistant content "hi" finish stop` {
			t.Errorf("%v after the signal: %s", time.Since(began), got)
		}
	}
	if served == 0 {
		t.Error("no completion was sent in time: this test proves nothing")
	}
	if got := d.ready(); got != `503 {"ready":false,"reason":"draining"}` {
		t.Errorf("ready: %s", got)
	}
	<-d.ended
	if took := time.Since(began); took < prestop {
		t.Errorf("it stopped %v after the signal", took)
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestLogFormatIsChosen runs a daemon that logs one line, because its CLI is
// missing.
func TestLogFormatIsChosen(t *testing.T) {
	t.Parallel()
	const (
		isJSON    = "JSON"
		isPlain   = "text for people"
		isColored = "text for people, in color"
	)
	for _, tt := range []struct {
		settings string
		terminal bool
		want     string
	}{
		{"", false, isJSON},
		{"", true, isColored},
		{"NO_COLOR=1", true, isPlain},
		{"TERM=dumb", true, isPlain},
		{"TERM=xterm", true, isColored},
		{"LOG_FORMAT=json", false, isJSON},
		{"LOG_FORMAT=json", true, isJSON},
		{"LOG_FORMAT=tint", false, isPlain},
		{"LOG_FORMAT=tint", true, isColored},
	} {
		t.Run(fmt.Sprint(tt.settings, " on a terminal ", tt.terminal), func(t *testing.T) {
			cmd := exec.Command(program)
			cmd.Env = append([]string{"PROXY_ENV=dev", "CODEX_BIN=/nowhere/codex", "PROXY_CODEX_WORKDIR=" + codextest.Workdir(t)}, tt.settings)
			log := stderrOf(t, cmd, tt.terminal)
			var line struct{ Level, Msg string }
			got := "neither: " + log
			switch {
			case json.Unmarshal([]byte(log), &line) == nil && line.Level == "ERROR" && line.Msg == "no usable Codex CLI":
				got = isJSON
			case strings.Contains(log, "\x1b["):
				got = isColored
			case strings.Contains(log, " ERR no usable Codex CLI err="):
				got = isPlain
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// stderrOf runs cmd, whose stderr is a pipe or a terminal, and returns what it
// wrote there.
func stderrOf(t *testing.T, cmd *exec.Cmd, terminal bool) string {
	t.Helper()
	var ours, its *os.File
	var err error
	if terminal {
		ours, its = openTerminal(t)
	} else if ours, its, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	cmd.Stderr = its
	err = cmd.Start()
	its.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(ours)
	if err != nil && !errors.Is(err, syscall.EIO) { // so ends a terminal that nobody has open
		t.Fatal(err)
	}
	cmd.Wait() // it fails, as it must
	return string(out)
}

// openTerminal makes a pseudo terminal: our end, and the end for a program.
func openTerminal(t *testing.T) (ours, its *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	control := func(request uintptr, value *int32) {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, ours.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	var unlocked, number int32
	control(syscall.TIOCSPTLCK, &unlocked)
	control(syscall.TIOCGPTN, &number)
	its, err = os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return ours, its
}

// adminRoutes are those of the admin listener that nobody else may reach.
var adminRoutes = []string{
	"GET /metrics", "GET /pool", "POST /pool/recycle", "POST /pool/drain", "POST /pool/resume",
	"GET /debug/pprof/", "GET /debug/pprof/cmdline", "GET /debug/pprof/heap", "GET /debug/pprof/symbol",
}

func TestPublicListenerHasNoAdminRoutes(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=1")
	for _, route := range adminRoutes {
		method, path, _ := strings.Cut(route, " ")
		for _, prefix := range []string{"", "/v1", "/"} {
			res := d.request(method, prefix+path, "Bearer "+key, "", "")
			if got := failure(t, res); got != "404 invalid_request_error not_found -" {
				t.Errorf("%s %s%s: %s", method, prefix, path, got)
			}
		}
		req, _ := http.NewRequest(method, d.admin+path, nil)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode/100 != 2 {
			t.Errorf("%s: %d on the admin listener: this test proves nothing", route, res.StatusCode)
		}
	}
}

func TestAdminListenerCanBeOff(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=1", "PROXY_ADMIN_ADDR=")
	if d.admin != "" {
		t.Errorf("it has an admin listener: %s", d.admin)
	}
	if got, _ := d.complete(hi, true); got.String() != `assistant content "hi" finish stop` {
		t.Errorf("got %s", got)
	}
	addrs := listeners(t, d.cmd.Process.Pid)
	if len(addrs) < 2 { // the public listener and the relay
		t.Errorf("it listens on %q: this test proves nothing", addrs)
	}
	for _, addr := range addrs {
		for _, route := range adminRoutes {
			method, path, _ := strings.Cut(route, " ")
			req, _ := http.NewRequest(method, "http://"+addr+path, nil)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusNotFound {
				t.Errorf("%s on %s: %d", route, addr, res.StatusCode)
			}
		}
	}
	other := start(t, "POOL_SIZE=1") // with an admin listener
	if got := listeners(t, other.cmd.Process.Pid); len(got) != len(addrs)+1 {
		t.Errorf("it listens on %q, with an admin listener on %q", addrs, got)
	}
}

// listeners are the TCP addresses that a process listens on, with loopback for a
// wildcard.
func listeners(t *testing.T, pid int) (addrs []string) {
	t.Helper()
	sockets := map[string]bool{} // inodes
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, _ := os.Readlink(fd) // it may have just been closed
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			sockets[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(text) {
			fields := strings.Fields(string(line))
			const listening = "0A"
			if len(fields) < 10 || fields[3] != listening || !sockets[fields[9]] {
				continue
			}
			_, hexPort, _ := strings.Cut(fields[1], ":")
			port, err := hex.DecodeString(hexPort)
			if err != nil || len(port) != 2 {
				t.Fatalf("%s: %v", line, err)
			}
			addrs = append(addrs, fmt.Sprint("127.0.0.1:", int(port[0])<<8|int(port[1])))
		}
	}
	return addrs
}
