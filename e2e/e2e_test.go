package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

func TestAnswerStreamsThroughRealChild(t *testing.T) {
	d := start(t, "POOL_SIZE=3", "CODEX_ECHO_DELAY_MS=50")
	if pids := d.children(); len(pids) != 3 {
		t.Errorf("%d children", len(pids))
	}
	for _, pid := range d.children() {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if !bytes.HasSuffix(args, []byte("/codex\x00app-server\x00")) {
			t.Errorf("a child is %q", args)
		}
	}
	chunks, err := d.stream("one two three four five six")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := wholeText(chunks); err != nil || text != "one two three four five six" {
		t.Errorf("%q, %v", text, err)
	}
	// Six words 50 ms apart: had they been held back, they would come at once.
	if first, last := chunks[1].after, chunks[len(chunks)-1].after; last-first < 150*time.Millisecond {
		t.Errorf("the words came within %v", last-first)
	}
}

func TestAnswerInOnePieceHasUsage(t *testing.T) {
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=0")
	res, err := d.post(chatBody("one two three", false))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var body struct {
		Model   string
		Choices []struct{ Message struct{ Content string } }
		Usage   struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
			Total      int `json:"total_tokens"`
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(body); got != "{codex-5 [{{one two three}}] {3 3 6}}" {
		t.Errorf("got %s", got)
	}
}

func TestConversationArrivesItemForItem(t *testing.T) {
	up := newUpstream(t, codextest.Text("fine"))
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	res, err := d.post(`{"messages":[{"role":"system","content":"s"},{"role":"developer","content":"d"},{"role":"user","content":"u1"},` +
		`{"role":"assistant","content":"a"},{"role":"user","content":"héllo 🧪 \u2028"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	var body struct {
		Tools        []any
		Instructions string
		Input        []struct {
			Type, Role string
			Content    []struct{ Type, Text string }
		}
	}
	if err := json.Unmarshal(up.Bodies()[0], &body); err != nil {
		t.Fatal(err)
	}
	want := "[{message system [{input_text s}]} {message developer [{input_text d}]} {message user [{input_text u1}]} " +
		"{message assistant [{output_text a}]} {message user [{input_text héllo 🧪 \u2028}]}]"
	if got := fmt.Sprint(body.Input); got != want || len(body.Tools) != 0 || body.Instructions != "" {
		t.Errorf("got  %s\nwant %s\ntools %v, instructions %q", got, want, body.Tools, body.Instructions)
	}
}

// TestCallersGetTheirOwnAnswers is the pool under load: 200 completions, 16 at
// a time over 4 children, each with a canary of its own.
func TestCallersGetTheirOwnAnswers(t *testing.T) {
	const total, atOnce = 200, 16
	d := start(t, "POOL_SIZE=4", "CODEX_ECHO_DELAY_MS=1")
	d.load(total, atOnce) // connections and buffers that are made only once
	before := d.weigh()
	d.load(total, atOnce)
	after := d.weigh()

	m := d.metrics()
	for name, want := range map[string]float64{
		`codexpool_http_requests_total{code="200",route="chat"}`:                       2 * total,
		`codexpool_completions_total{outcome="ok",route="chat",stream="true"}`:         2 * total,
		`codexpool_time_to_first_token_seconds_count{route="chat",stream="true"}`:      2 * total,
		`codexpool_overhead_seconds_count`:                                             2 * total,
		`codexpool_pool_lease_seconds_count`:                                           2 * total,
		`codexpool_pool_acquires_total{outcome="leased"}`:                              2 * total,
		`codexpool_child_starts_total{outcome="ok"}`:                                   4,
		`codexpool_child_starts_total{outcome="error"}`:                                0,
		`codexpool_child_deaths_total{reason="exited"}`:                                0,
		`codexpool_pool_children{state="leased"}`:                                      0,
		`codexpool_pool_waiting`:                                                       0,
		`codexpool_sse_streams{state="open"}`:                                          0,
		`codexpool_sse_streams{state="waiting"}`:                                       0,
		`codexpool_upstream_requests_in_flight`:                                        0,
		`codexpool_turn_silence_seconds`:                                               0,
		`codexpool_http_errors_total{error="child_exited",fault="child",route="chat"}`: 0,
	} {
		got, there := m[name]
		if got != want || !there {
			t.Errorf("%s is %v (there: %v), want %v", name, got, there, want)
		}
	}
	t.Logf("before %+v, after %+v", before, after)
	if after.heap > before.heap*1.5+1<<20 || after.goroutines > before.goroutines+4 || after.descriptors > before.descriptors+4 {
		t.Errorf("the daemon does not release something: before %+v, after %+v", before, after)
	}
	if after.children > before.children*1.5 {
		t.Errorf("the children do not release something: before %+v, after %+v", before, after)
	}
}

// load has so many completions, some at once, each with a canary of its own, and
// waits until the pool is at rest.
func (d *daemon) load(total, atOnce int) {
	d.t.Helper()
	d.spread(total, atOnce, func(i int) error {
		want := fmt.Sprintf("canary-%d sings the song of number %d", i, i)
		chunks, err := d.stream(want)
		if err != nil {
			return err
		}
		got, err := wholeText(chunks)
		if got != want && err == nil {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
	d.full(int(d.metrics()["codexpool_pool_size"]))
}

// spread spreads so many requests over clients, and waits for all.
func (d *daemon) spread(total, clients int, request func(i int) error) {
	d.t.Helper()
	turns := make(chan int, total)
	for i := range total {
		turns <- i
	}
	close(turns)
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for i := range turns {
				if err := request(i); err != nil {
					d.t.Errorf("request %d: %v", i, err)
				}
			}
		})
	}
	running.Wait()
}

// weight is the memory and other resources that the daemon and its children hold.
type weight struct {
	heap        float64 // of the daemon after a collection, bytes
	goroutines  float64
	descriptors int
	children    float64 // anonymous memory of all, bytes
}

func (d *daemon) weigh() (w weight) {
	d.t.Helper()
	http.DefaultClient.CloseIdleConnections()
	w.heap = math.Inf(1)
	for range 5 { // the lowest value counts; two collections empty the free lists
		res, err := http.Get(d.admin + "/debug/pprof/heap?gc=1&debug=1") // weighs after a collection, before it writes
		if err != nil {
			d.t.Fatal(err)
		}
		page, err := io.ReadAll(res.Body)
		res.Body.Close()
		var heap float64
		_, rest, _ := strings.Cut(string(page), "\n# HeapAlloc = ")
		if _, bad := fmt.Sscan(rest, &heap); err != nil || bad != nil {
			d.t.Fatal(err, bad)
		}
		w.heap = min(w.heap, heap)
	}
	w.goroutines = d.metrics()["go_goroutines"]
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.cmd.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	w.descriptors = len(files)
	for _, pid := range d.children() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			d.t.Fatal(err)
		}
		var kb float64
		_, rest, _ := strings.Cut(string(status), "RssAnon:")
		fmt.Sscan(rest, &kb)
		w.children += kb * 1024
	}
	return w
}

func TestKilledChildCostsOneStreamAndIsReplaced(t *testing.T) {
	d := start(t, "POOL_SIZE=3", "CODEX_ECHO_DELAY_MS=50")
	before := d.children()
	type outcome struct {
		chunks []chunk
		err    error
	}
	outcomes := make(chan outcome, 3)
	spoken := make(chan struct{}, 3)
	for range 3 {
		go func() {
			res, err := d.post(chatBody(strings.Repeat("word ", 40), true))
			if err != nil {
				outcomes <- outcome{err: err}
				return
			}
			defer res.Body.Close()
			o := outcome{chunks: make([]chunk, 0, 50)}
			o.err = readStream(res.Body, func(c chunk) {
				if len(o.chunks) == 2 {
					spoken <- struct{}{}
				}
				o.chunks = append(o.chunks, c)
			})
			outcomes <- o
		}()
	}
	for range 3 {
		select {
		case <-spoken:
		case o := <-outcomes:
			t.Fatalf("a stream ended early: %+v", o)
		}
	}
	killed := time.Now()
	syscall.Kill(before[1], syscall.SIGKILL)
	eventually(t, 2*time.Second, "full pool", func() bool {
		m := d.metrics()
		return m[`codexpool_child_starts_total{outcome="ok"}`] == 4 && m[`codexpool_pool_children{state="starting"}`] == 0 && len(d.children()) == 3
	})
	t.Logf("full again after %v", time.Since(killed))

	whole, broken := 0, 0
	for range 3 {
		o := <-outcomes
		if len(o.chunks) == 0 {
			t.Errorf("nothing came: %v", o.err)
			continue
		}
		last := o.chunks[len(o.chunks)-1]
		if _, err := wholeText(o.chunks); err == nil && o.err == nil {
			whole++
		} else if last.error == "child_exited" && o.err != nil && count(o.chunks, func(c chunk) bool { return c.error != "" || c.done }) == 1 {
			broken++ // one error frame, no [DONE], and the connection was cut
		} else {
			t.Errorf("neither whole nor properly broken: %v, last %+v", o.err, last)
		}
	}
	if whole != 2 || broken != 1 {
		t.Errorf("%d whole, %d broken", whole, broken)
	}
	if got := d.metrics()[`codexpool_child_deaths_total{reason="exited"}`]; got != 1 {
		t.Errorf("%v deaths counted", got)
	}
}

func count(chunks []chunk, is func(chunk) bool) (n int) {
	for _, c := range chunks {
		if is(c) {
			n++
		}
	}
	return n
}

func TestKilledDaemonHasNoChildAndItsHomesAreRemoved(t *testing.T) {
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=50")
	pids := d.children()
	res, err := d.post(chatBody(strings.Repeat("word ", 100), true))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	d.cmd.Process.Kill()
	eventually(t, time.Second, "end of the children", func() bool {
		for _, pid := range pids {
			if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(stat, []byte(") Z ")) {
				return false
			}
		}
		return true
	})
	left, err := filepath.Glob(filepath.Join(d.workdir, "daemon-*", "child-*"))
	if err != nil || len(left) == 0 {
		t.Errorf("none of its homes remains, so this test proves nothing: %q, %v", left, err)
	}
	next := start(t, "POOL_SIZE=2", "PROXY_CODEX_WORKDIR="+d.workdir)
	if left, err := filepath.Glob(filepath.Join(d.workdir, "daemon-*", "child-*")); err != nil || len(left) != 2 {
		t.Errorf("with the next: %q, %v", left, err)
	}
	next.cmd.Process.Signal(syscall.SIGTERM)
	<-next.ended
	if left, err := filepath.Glob(filepath.Join(d.workdir, "daemon-*")); err != nil || len(left) != 0 {
		t.Errorf("after it: %q, %v", left, err)
	}
}

// TestHomesMadeAfterTheWorkdirWasRemovedAreSweptToo has a child that was started after
// that, and a daemon that is killed.
func TestHomesMadeAfterTheWorkdirWasRemovedAreSweptToo(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=1")
	if err := os.RemoveAll(d.workdir); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(d.children()[0], syscall.SIGKILL)
	eventually(t, time.Minute, "replacement", func() bool { return d.metrics()[`codexpool_child_starts_total{outcome="ok"}`] == 2 })
	d.cmd.Process.Kill()
	<-d.ended
	left, err := filepath.Glob(filepath.Join(d.workdir, "daemon-*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("it left %q, %v: this test proves nothing", left, err)
	}
	start(t, "POOL_SIZE=1", "PROXY_CODEX_WORKDIR="+d.workdir)
	if _, err := os.Stat(left[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with the next daemon: %v", err)
	}
}

func TestSIGTERMLetsStreamFinishAndRejectsOthers(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(signal.String(), func(t *testing.T) { letsAStreamFinish(t, signal) })
	}
}

func letsAStreamFinish(t *testing.T, signal syscall.Signal) {
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=50", "POOL_MAX_WAITING=5")
	res, err := d.post(chatBody(strings.Repeat("word ", 20), true))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var chunks []chunk
	var rejected *http.Response
	err = readStream(res.Body, func(c chunk) {
		if chunks = append(chunks, c); len(chunks) != 3 {
			return
		}
		d.cmd.Process.Signal(signal)
		eventually(t, time.Second, "rejection", func() bool {
			other, err := d.post(chatBody("late", false))
			if err != nil {
				t.Fatalf("a new request while a stream runs: %v", err)
			}
			other.Body.Close()
			rejected = other
			return other.StatusCode == http.StatusServiceUnavailable
		})
	})
	if text, bad := wholeText(chunks); err != nil || bad != nil || text != strings.Repeat("word ", 20) {
		t.Errorf("%q, %v, %v", text, err, bad)
	}
	if rejected == nil || rejected.Header.Get("Retry-After") == "" {
		t.Errorf("rejected with %+v", rejected)
	}
	<-d.ended
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// timeout and supervisord signal a process and then its group, in which the process is.
func TestSIGTERMTwiceWithinASecondIsOneRequest(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=50")
	res, err := d.post(chatBody(strings.Repeat("word ", 40), true))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	d.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, time.Second, "drain", func() bool { return strings.Contains(d.logged(), `"msg":"stopping"`) })
	d.cmd.Process.Signal(syscall.SIGTERM)
	var chunks []chunk
	err = readStream(res.Body, func(c chunk) { chunks = append(chunks, c) })
	if text, bad := wholeText(chunks); err != nil || bad != nil || text != strings.Repeat("word ", 40) {
		t.Errorf("%q, %v, %v", text, err, bad)
	}
	<-d.ended
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	for name, second := range map[string]struct {
		signal syscall.Signal
		wait   time.Duration
	}{"SIGINT twice": {syscall.SIGINT, 0}, "SIGTERM after more than a second": {syscall.SIGTERM, 1100 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stopsAtOnce(t, second.signal, second.wait)
		})
	}
}

// stopsAtOnce sends a daemon with a running turn the signal twice.
func stopsAtOnce(t *testing.T, signal syscall.Signal, wait time.Duration) {
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=100", "PROXY_DRAIN_MS=60000")
	pids := d.children()
	res, err := d.post(chatBody(strings.Repeat("word ", 600), true))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	d.cmd.Process.Signal(signal)
	eventually(t, 5*time.Second, "drain", func() bool { return strings.Contains(d.ready(), "draining") })
	time.Sleep(wait) // the daemon is another process: its clock is the real one
	d.cmd.Process.Signal(signal)
	select {
	case <-d.ended:
	case <-time.After(10 * time.Second): // the turn has another minute
		t.Fatal("the daemon still runs")
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	eventually(t, time.Second, "end of the child", func() bool {
		state, _ := stateOf(fmt.Sprintf("/proc/%d", pids[0]))
		return state == "" || state == "Z"
	})
}

func TestLogReaderMayDisconnectAndWithNohupTheTerminalToo(t *testing.T) {
	log, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, "POOL_SIZE=1")
	cmd := exec.Command("sh", "-c", `trap "" HUP; exec "$0"`, program)
	cmd.Env, cmd.Stderr = append(slices.Clone(d.cmd.Env), "PROXY_CODEX_WORKDIR="+codextest.Workdir(t)), stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stderr.Close()
	other := &daemon{t: t, cmd: cmd}
	for lines := bufio.NewScanner(log); other.url == "" && lines.Scan(); {
		var line struct{ Msg, Addr string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			other.url = "http://" + line.Addr
		}
	}
	log.Close()
	cmd.Process.Signal(syscall.SIGHUP)
	for range 3 { // each is logged in a line
		if chunks, err := other.stream("hi"); err != nil || len(chunks) == 0 {
			t.Errorf("without a reader: %v", err)
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestStreamThatOutlastsTheDrainGetsErrorFrame(t *testing.T) {
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=100", "PROXY_DRAIN_MS=300")
	var last chunk
	res, err := d.post(chatBody(strings.Repeat("word ", 600), true))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	d.cmd.Process.Signal(syscall.SIGTERM)
	readStream(res.Body, func(c chunk) { last = c })
	if last.error != "shutting_down" {
		t.Errorf("the last frame is %+v", last)
	}
	<-d.ended
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestDisconnectEndsTheUpstreamRequest(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]string{"before the first token": "", "after it": "word"} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " stream ", stream), func(t *testing.T) {
				reached, ended := make(chan struct{}), make(chan time.Time, 1)
				up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
					s := codextest.StartStream(w)
					s.Begin()
					if when != "" {
						s.Delta(when)
					}
					close(reached)
					<-r.Context().Done()
					ended <- time.Now()
				}, codextest.Text("next"))
				d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
				ctx, cancel := context.WithCancel(t.Context())
				req, _ := http.NewRequestWithContext(ctx, "POST", d.url+"/v1/chat/completions", strings.NewReader(chatBody("hi", stream)))
				req.Header.Set("Authorization", "Bearer "+key)
				failed := make(chan error, 1)
				go func() {
					res, err := http.DefaultClient.Do(req)
					if err == nil {
						_, err = io.ReadAll(res.Body)
						res.Body.Close()
					}
					failed <- err
				}()
				<-reached
				left := time.Now()
				cancel()
				if err := <-failed; !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
				if took := (<-ended).Sub(left); took > time.Second {
					t.Errorf("the upstream request ended after %v", took)
				}
				// The same child serves the next.
				if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
					t.Errorf("the next: %v", err)
				}
				if got := d.metrics()[`codexpool_child_starts_total{outcome="ok"}`]; got != 1 {
					t.Errorf("%v children were started", got)
				}
			})
		}
	}
}

// narrow dials connections with a small buffer for bytes that are not read.
var narrow = net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
}}

// postWithoutReading sends a request and never reads its answer, which is longer than all
// buffers in between.
func (d *daemon) postWithoutReading(stream bool) {
	d.t.Helper()
	conn, err := narrow.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	body := chatBody("hi", stream)
	if _, err := fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", key, len(body), body); err != nil {
		d.t.Fatal(err)
	}
}

// flood answers with much text at once.
func flood(w http.ResponseWriter, _ *http.Request) {
	s := codextest.StartStream(w)
	s.Begin()
	for range 70 {
		s.Delta(strings.Repeat("word ", 20_000))
	}
	s.End()
}

func TestClientThatStopsReadingLosesItsStreamNotTheChild(t *testing.T) {
	up := newUpstream(t, flood, codextest.Text("next"))
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "PROXY_WRITE_TIMEOUT_MS=500")
	d.postWithoutReading(true)
	eventually(t, time.Minute, "cut stream", func() bool { return strings.Contains(d.logged(), `"code":"client_too_slow"`) })
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Errorf("the next: %v", err)
	}
	if got := d.metrics()[`codexpool_child_starts_total{outcome="ok"}`]; got != 1 {
		t.Errorf("%v children were started", got)
	}
}

func TestAnswerInOnePieceThatNobodyReadsHoldsNoChild(t *testing.T) {
	up := newUpstream(t, flood)
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "PROXY_WRITE_TIMEOUT_MS=10000")
	d.postWithoutReading(false)
	eventually(t, 5*time.Second, "turn", func() bool { return len(up.Bodies()) == 1 })
	eventually(t, time.Minute, "child at rest", func() bool { return d.metrics()[`codexpool_pool_children{state="idle"}`] == 1 })
	if strings.Contains(d.logged(), `"route":"chat"`) {
		t.Error("the answer was read after all: this test proves nothing")
	}
}

func TestClientThatDoesNotReadDoesNotDelayTheStop(t *testing.T) {
	up := newUpstream(t, flood)
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "PROXY_DRAIN_MS=100")
	d.postWithoutReading(true)
	eventually(t, 5*time.Second, "lease", func() bool { return len(up.Bodies()) == 1 })
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(15 * time.Second): // the write deadline alone is 30 s
		t.Error("the daemon still runs")
	}
}

func TestSIGTERMDuringTheStartIsNoError(t *testing.T) {
	d := start(t, "POOL_SIZE=1")
	for range 5 { // somewhere in the half second until it serves
		cmd := exec.Command(program)
		cmd.Env = append(slices.Clone(d.cmd.Env), "PROXY_CODEX_WORKDIR="+t.TempDir())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "call to the CLI", func() bool { return len(childrenOf(cmd.Process.Pid)) > 0 }) // it listens to signals
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func TestPromptsAnswersAndKeysAreNotLogged(t *testing.T) {
	d := start(t, "POOL_SIZE=1", "LOG_LEVEL=debug", "CODEX_ECHO_DELAY_MS=0")
	if _, err := d.stream("xyzzy-secret"); err != nil {
		t.Fatal(err)
	}
	res, err := d.post(`{"messages":[{"role":"user","content":["xyzzy-secret"]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	eventually(t, 10*time.Second, "lines of both requests", func() bool { return strings.Count(d.logged(), `"route":"chat"`) == 2 })
	for _, secret := range []string{"xyzzy", key} {
		if strings.Contains(d.logged(), secret) {
			t.Errorf("%q is in the log:\n%s", secret, d.logged())
		}
	}
}
