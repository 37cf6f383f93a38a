package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
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
			d.cmd.Process.Signal(syscall.SIGTERM)
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
			req, err := http.NewRequest("GET", d.url+"/nothing", nil)
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
