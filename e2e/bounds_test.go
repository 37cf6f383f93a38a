package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// TestLogThatNobodyReadsStopsNothing has a full pipe as stderr.
func TestLogThatNobodyReadsStopsNothing(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=1")
	before := d.peak()
	d.blockLog()
	chunks, err := d.stream("one two three")
	if text, bad := wholeText(chunks); err != nil || bad != nil || text != "one two three" {
		t.Errorf("%q, %v, %v", text, err, bad)
	}
	dead := d.children()[0]
	syscall.Kill(dead, syscall.SIGKILL)
	eventually(t, time.Minute, "replacement of a dead child", func() bool { return d.metrics()[`codexpool_child_starts_total{outcome="ok"}`] == 2 })
	d.full(1)
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Errorf("the new child: %v", err)
	}
	d.bounded(before)

	d.stderr.Unlock()
	reported := func() (sum float64) {
		for line := range strings.Lines(d.logged()) {
			var l struct {
				Msg   string
				Lines float64
			}
			if json.Unmarshal([]byte(line), &l) != nil {
				t.Errorf("not a line of the log: %s", line)
			}
			if strings.HasPrefix(l.Msg, "lines of the log were dropped") {
				sum += l.Lines
			}
		}
		return sum
	}
	eventually(t, 10*time.Second, "report of the dropped lines", func() bool { return reported() > 0 })
	if got := d.metrics()["codexpool_log_dropped_total"]; reported() != got {
		t.Errorf("%v lines are reported and %v are counted", reported(), got)
	}
}

func TestLogThatNobodyReadsDoesNotDelayTheStop(t *testing.T) {
	t.Parallel()
	for signals, want := range map[int]int{1: 0, 2: 1} { // exit codes
		t.Run(fmt.Sprint(signals, " signals"), func(t *testing.T) {
			t.Parallel()
			d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=100", "PROXY_DRAIN_MS=60000")
			d.blockLog()
			if signals == 2 {
				res, err := d.post(chatBody(strings.Repeat("word ", 600), true)) // for a minute
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				d.cmd.Process.Signal(syscall.SIGTERM)
				eventually(t, 5*time.Second, "drain", func() bool { return strings.Contains(d.ready(), "draining") })
			}
			d.cmd.Process.Signal(syscall.SIGINT) // a second SIGTERM so soon would be the first again
			eventually(t, 10*time.Second, "end of the daemon", func() bool {
				state, _ := stateOf(fmt.Sprint("/proc/", d.cmd.Process.Pid))
				return state == "" || state == "Z"
			})
			d.stderr.Unlock()
			<-d.ended
			if code := d.cmd.ProcessState.ExitCode(); code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
		})
	}
}

const openConnections = `codexpool_http_connections{listener="public"}`

// attack has so many connections, on each of which act is run, and some silent ones to the
// admin listener. Meanwhile good clients send requests of all kinds, of which none may fail.
func (d *daemon) attack(connections int, act func(net.Conn)) {
	d.t.Helper()
	before := d.peak()
	var acting sync.WaitGroup
	defer acting.Wait()
	for i := range connections + 40 {
		url, act := d.url, act
		if i >= connections {
			url, act = d.admin, silent
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			d.t.Fatal(err)
		}
		defer conn.Close()
		acting.Go(func() { act(conn) }) // ends with conn
	}
	began := time.Now()
	d.spread(60, 2, func(i int) error {
		want := fmt.Sprint("good client ", i)
		chunks, err := d.stream(want)
		if err != nil {
			return err
		}
		if got, err := wholeText(chunks); err != nil || got != want {
			return fmt.Errorf("%q, %w", got, err)
		}
		if n := d.metrics()["codexpool_pool_size"]; n != 2 {
			return fmt.Errorf("/metrics says that %v children may be", n)
		}
		if got := d.ready(); got != `200 {"ready":true}` {
			return errors.New(got)
		}
		return nil
	})
	if took := time.Since(began); took > 30*time.Second {
		d.t.Errorf("the good clients' requests took %v", took)
	}
	if m := d.metrics(); m[openConnections] == 0 || m[openConnections] > m["codexpool_http_connections_limit"] {
		d.t.Errorf("%v connections are open of %v", m[openConnections], m["codexpool_http_connections_limit"])
	}
	if got := len(d.pool().Children); got != 2 {
		d.t.Errorf("/pool lists %d children", got)
	}
	d.bounded(before)
}

func TestConnectionsOfOneClientTakeNothingFromOthers(t *testing.T) {
	t.Parallel()
	const request = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
	send := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			io.WriteString(conn, text)
			io.Copy(io.Discard, conn)
		}
	}
	for name, tt := range map[string]struct {
		connections, files int
		act                func(net.Conn)
	}{
		"silent":                 {200, 128, silent},
		"silent after a request": {200, 128, send(request)},
		"a body that does not come, without a key": {200, 128, send("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")},
		"95,000 header lines and no end":           {600, 1_200, headerLines(95_000)},
		"header lines up to the limit":             {600, 1_200, headerLines(3_800)},
		"header lines after a request": {600, 1_200, func(conn net.Conn) {
			io.WriteString(conn, request)
			headerLines(3_800)(conn)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d := startProgram(t, withFiles(t, tt.files), "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=1")
			d.attack(tt.connections, tt.act)
			want := fmt.Sprintf(`"descriptors":%d,"connections":%d`, tt.files, min(tt.files-84, 1024+2+64))
			if log := d.logged(); !strings.Contains(log, want) || !strings.Contains(log, `"level":"WARN"`) {
				t.Errorf("the log does not tell the limits (%s), or not that one was reached", want)
			}
		})
	}
}

func silent(net.Conn) {}

// headerLines sends so many lines of a request header, in pieces, and not its end.
func headerLines(n int) func(net.Conn) {
	var b bytes.Buffer
	b.WriteString("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
	for i := range n {
		fmt.Fprintf(&b, "%d: \r\n", i)
	}
	return func(conn net.Conn) {
		for piece := range slices.Chunk(b.Bytes(), 8<<10) {
			if _, err := conn.Write(piece); err != nil {
				return
			}
		}
		io.Copy(io.Discard, conn)
	}
}

// TestConnectionsOfManyGoodClientsAreAllServed has more clients at once than may be
// connected. None of them is closed with its request on the way.
func TestConnectionsOfManyGoodClientsAreAllServed(t *testing.T) {
	t.Parallel()
	d := startProgram(t, withFiles(t, 128), "POOL_SIZE=2")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	d.spread(150, 150, func(int) error {
		res, err := client.Get(d.url + "/livez")
		if err != nil {
			return err
		}
		return res.Body.Close()
	})
}

// withFiles is the daemon with a limit of descriptors.
func withFiles(t *testing.T, limit int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "codexpool")
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec '%s'\n", limit, program)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTooFewDescriptorsAreReportedAtTheStart(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(withFiles(t, 99))
	cmd.Env = []string{"HOME=" + os.Getenv("HOME"), "PROXY_ENV=dev", "CODEX_BIN=/nowhere/codex", "POOL_SIZE=2", "PROXY_CODEX_WORKDIR=" + codextest.Workdir(t)}
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(string(out), "the limit of 99 descriptors is too low: 2 children need 84, and connections at least 16 more") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

// TestStoppedDaemonKillsNoChildWhoseAnswersLieInThePipe stops a daemon under load for
// longer than a child may take to answer. Children and provider go on meanwhile.
func TestStoppedDaemonKillsNoChildWhoseAnswersLieInThePipe(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, codextest.Text("whole ", "answer"))
	d := start(t, "POOL_SIZE=4", "CODEX_UPSTREAM="+up.URL+"/v1", "POOL_PROBE_MS=1", "PROXY_IDLE_TIMEOUT_MS=5000", "PROXY_STREAM_IDLE_TIMEOUT_MS=5000")
	before := d.peak()
	var answered atomic.Int64
	over := make(chan struct{})
	var load sync.WaitGroup
	for range 3 { // one child less, so that it is probed all the time
		load.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				chunks, err := d.stream("hi")
				if text, bad := wholeText(chunks); err != nil || bad != nil || text != "whole answer" {
					t.Errorf("%q, %v, %v", text, err, bad)
				}
				answered.Add(1)
			}
		})
	}
	more := func() {
		t.Helper()
		enough := answered.Load() + 100
		eventually(t, time.Minute, "answers", func() bool { return answered.Load() >= enough || t.Failed() })
	}
	more()
	d.cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(11 * time.Second) // a call may take 10
	d.cmd.Process.Signal(syscall.SIGCONT)
	more()
	close(over)
	load.Wait()
	for name, n := range d.metrics() {
		if strings.HasPrefix(name, "codexpool_child_deaths_total") && n > 0 {
			t.Errorf("%s is %v", name, n)
		}
	}
	d.bounded(before)
}

// blockLog stops reading the log, and has the daemon log until it drops lines. The
// caller unlocks d.stderr.
func (d *daemon) blockLog() {
	d.t.Helper()
	d.stderr.Lock()
	d.t.Cleanup(func() { // should the test fail before it unlocks
		d.stderr.TryLock()
		d.stderr.Unlock()
	})
	client := http.Client{Timeout: 10 * time.Second}
	eventually(d.t, time.Minute, "dropped line of the log", func() bool {
		d.spread(500, 4, func(int) error {
			if d.t.Failed() {
				return nil // without waiting once more
			}
			req, err := http.NewRequest("GET", d.url+"/v1/models", nil) // not refused: refusals have a bound of their own
			if err != nil {
				return err
			}
			req.Header.Set("X-Request-Id", strings.Repeat("x", 128)) // a part of the line
			res, err := client.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			_, err = io.Copy(io.Discard, res.Body)
			return err
		})
		return d.metrics()["codexpool_log_dropped_total"] > 0
	})
}

// peak is the most memory that the daemon has had so far, in bytes.
func (d *daemon) peak() (bytes int64) {
	d.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(status), "\nVmHWM:")
	if _, bad := fmt.Sscan(rest, &bytes); err != nil || bad != nil {
		d.t.Fatal(err, bad)
	}
	return bytes << 10
}

// bounded asserts that the daemon's memory has stayed within 64 MB of before.
func (d *daemon) bounded(before int64) {
	d.t.Helper()
	if grew := d.peak() - before; grew > 64<<20 {
		d.t.Errorf("the daemon's memory has grown by %d MB", grew>>20)
	}
}
