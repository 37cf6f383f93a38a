// Package e2e tests the built binary from outside: over HTTP, with signals,
// through the real Codex CLI. It is a module of its own, so that the
// dependencies of these tests stay out of the daemon's go.mod.
package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// program is the built binary: that of programVar, or TestMain builds it.
var program = os.Getenv(programVar)

const programVar = "CODEXPOOL_E2E_PROGRAM"

func TestMain(m *testing.M) {
	if fault := os.Getenv(faultVar); fault != "" {
		faults[fault]()
		os.Exit(0)
	}
	if mark := os.Getenv(guardianVar); mark != "" {
		guard(mark, os.Args[1:])
		os.Exit(0)
	}
	cleanUp, err := prepare()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if left := survivors(); len(left) > 0 {
		fmt.Println("processes that the tests did not stop:", processNames(left))
		code = 1
	}
	cleanUp()
	os.Exit(code)
}

// prepare builds the program, makes folders for all files of this run, and starts
// the guardian. cleanUp removes the folders.
func prepare() (cleanUp func(), err error) {
	temp, err := os.MkdirTemp("", "codexpool-e2e-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(temp)
		}
	}()
	if err := os.Chmod(temp, 0o711); err != nil { // a test runs the program as another user
		return nil, err
	}
	if program == "" {
		program = filepath.Join(temp, "codexpool")
		build := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./cmd/codexpool")
		build.Dir, build.Stderr = "..", os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("go build: %w", err)
		}
	}
	cache, err := os.UserCacheDir() // homes of children must not lie below /tmp
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, err
	}
	homes, err := os.MkdirTemp(cache, "codexpool-e2e-")
	if err != nil {
		return nil, err
	}
	// From here on, t.TempDir and codextest.Workdir lie in these, but what Go has built
	// remains where it is.
	if out, err := exec.Command("go", "env", "GOCACHE").Output(); err == nil {
		os.Setenv("GOCACHE", strings.TrimSpace(string(out)))
	}
	os.Setenv("TMPDIR", temp)
	os.Setenv("XDG_CACHE_HOME", homes)
	cleanUp = func() {
		os.RemoveAll(temp)
		os.RemoveAll(homes)
	}
	if err := startGuardian(temp, homes); err != nil {
		cleanUp()
		return nil, err
	}
	return cleanUp, nil
}

const key = "k-e2e-0123456789abcdef" // as long as production wants it

// daemon is one running codexpool.
type daemon struct {
	t       testing.TB
	cmd     *exec.Cmd
	url     string        // of the public listener
	admin   string        // of the admin listener; "" = there is none
	workdir string        // for the homes of children
	ended   chan struct{} // closed when it was reaped
	stderr  valve         // while it is shut, nobody reads the log
	client  *http.Client  // nil = the default one

	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

// start runs this tree's daemon on free ports, with the real CLI, and waits until
// its pool is warm.
func start(t testing.TB, environ ...string) *daemon {
	t.Helper()
	return startProgram(t, program, environ...)
}

// startProgram is [start] for a binary that may be of another commit.
func startProgram(t testing.TB, binary string, environ ...string) *daemon {
	t.Helper()
	d := launch(t, binary, environ...)
	d.warm(time.Minute)
	return d
}

// launch is [startProgram], but does not wait for the children.
func launch(t testing.TB, binary string, environ ...string) *daemon {
	t.Helper()
	return launchOn(t, nil, binary, environ...)
}

// launchOn is [launch] with this standard input.
func launchOn(t testing.TB, stdin *os.File, binary string, environ ...string) *daemon {
	t.Helper()
	workdir := codextest.Workdir(t)
	d := &daemon{t: t, workdir: workdir, ended: make(chan struct{})}
	d.cmd = exec.Command(binary)
	if stdin != nil {
		d.cmd.Stdin = stdin
	}
	d.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "CODEX_BIN=" + codextest.Binary(t),
		markVar + "=" + runMark, "PROXY_ENV=dev", "PROXY_API_KEY=" + key, "PORT=0", "PROXY_ADMIN_ADDR=127.0.0.1:0", "PROXY_CODEX_WORKDIR=" + workdir,
	}, environ...)
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.stderr.Reader = stderr
	serving := make(chan struct{})
	go d.follow(serving)
	t.Cleanup(func() {
		d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.ended:
		case <-time.After(20 * time.Second):
			t.Error("the daemon did not stop after SIGTERM")
			d.cmd.Process.Kill()
			<-d.ended
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.logged())
		}
	})
	select {
	case <-serving:
	case <-d.ended:
		t.Fatal("the daemon exited instead of serving")
	}
	return d
}

// warm waits until each child is idle.
func (d *daemon) warm(within time.Duration) {
	d.t.Helper()
	eventually(d.t, within, "a warm pool", func() bool {
		if d.admin == "" { // there is no page to read: one warm child must do
			return d.ready() == `200 {"ready":true}`
		}
		m := d.metrics()
		return m[`codexpool_pool_children{state="idle"}`] == m["codexpool_pool_size"]
	})
}

// valve is a reader that is shut while it is locked, but for a read that has begun.
type valve struct {
	sync.Mutex
	io.Reader
}

func (v *valve) Read(b []byte) (int, error) {
	v.pass()
	return v.Reader.Read(b) // without the lock, or nobody could shut it meanwhile
}

func (v *valve) pass() {
	v.Lock()
	defer v.Unlock()
}

// follow keeps the log, and reads from it where the daemon listens.
func (d *daemon) follow(serving chan struct{}) {
	lines := bufio.NewScanner(&d.stderr)
	for lines.Scan() {
		d.mu.Lock()
		fmt.Fprintln(&d.log, lines.Text())
		d.mu.Unlock()
		var line struct{ Msg, Addr, Admin string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
			d.url = "http://" + line.Addr
			if line.Admin != "off" {
				d.admin = "http://" + line.Admin
			}
			close(serving)
		}
	}
	d.cmd.Wait()
	close(d.ended)
}

func (d *daemon) logged() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// eventually polls, because it waits for events in other processes.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(25 * time.Millisecond) {
		if time.Since(began) > within {
			t.Fatalf("no %s within %v", what, within)
		}
	}
}

// page is the metrics page.
func (d *daemon) page() []byte {
	d.t.Helper()
	res, err := http.Get(d.admin + "/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	page, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return page
}

// metrics reads the metrics page.
func (d *daemon) metrics() map[string]float64 {
	d.t.Helper()
	values := map[string]float64{}
	for lines := bufio.NewScanner(bytes.NewReader(d.page())); lines.Scan(); {
		if i := strings.LastIndexByte(lines.Text(), ' '); i > 0 && lines.Text()[0] != '#' {
			values[lines.Text()[:i]], _ = strconv.ParseFloat(lines.Text()[i+1:], 64)
		}
	}
	return values
}

// total is the sum of the series of a metric that have all these labels, such as
// route="chat".
func (d *daemon) total(name string, labels ...string) (sum float64) {
	d.t.Helper()
	for series, n := range d.metrics() {
		of, rest, _ := strings.Cut(series, "{")
		has := func(label string) bool { return strings.Contains(","+rest, ","+label) }
		if of == name && !slices.ContainsFunc(labels, func(label string) bool { return !has(label) }) {
			sum += n
		}
	}
	return sum
}

// children are the pids of the daemon's app-servers.
func (d *daemon) children() []int { return childrenOf(d.cmd.Process.Pid) }

func childrenOf(parent int) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if state, of := stateOf(dir); of == parent && state != "Z" {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// stateOf reads the state of a process, such as Z, and the pid of its parent. dir
// is its folder below /proc; without the folder the state is "" and the parent 0.
func stateOf(dir string) (state string, parent int) {
	stat, _ := os.ReadFile(dir + "/stat")
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return "", 0
	}
	parent, _ = strconv.Atoi(fields[1])
	return fields[0], parent
}

// post sends one chat completion.
func (d *daemon) post(body string) (*http.Response, error) {
	return cmp.Or(d.client, http.DefaultClient).Do(d.newRequest(body))
}

// newRequest is one chat completion.
func (d *daemon) newRequest(body string) *http.Request {
	d.t.Helper()
	req, err := http.NewRequest("POST", d.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	return req
}

func chatBody(text string, stream bool) string {
	body, _ := json.Marshal(map[string]any{"model": "codex-5", "stream": stream, "messages": []any{map[string]any{"role": "user", "content": text}}})
	return string(body)
}

// chunk is the part of a stream's chunk that tests read.
type chunk struct {
	choice int
	text   string
	finish string
	error  string        // code of an error frame
	done   bool          // [DONE], or response.completed
	after  time.Duration // since the reading began
}

// readStream reads a stream to its end, chunk by chunk: of either API.
func readStream(r io.Reader, each func(chunk)) error {
	began := time.Now()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		c := chunk{after: time.Since(began)}
		if data == "[DONE]" {
			c.done = true
			each(c)
			continue
		}
		var body struct {
			Choices []struct {
				Index        int
				Delta        struct{ Content string }
				FinishReason *string `json:"finish_reason"`
			}
			Error *struct{ Code string }
			Type  string // of an event of the Responses API
			Delta json.RawMessage
		}
		if err := json.Unmarshal([]byte(data), &body); err != nil {
			return fmt.Errorf("%w in %s", err, data)
		}
		if body.Error != nil {
			c.error = body.Error.Code
		}
		switch body.Type {
		case "response.output_text.delta":
			if err := json.Unmarshal(body.Delta, &c.text); err != nil {
				return err
			}
		case "response.completed":
			c.finish, c.done = "stop", true
		}
		for _, choice := range body.Choices {
			c.choice, c.text = choice.Index, choice.Delta.Content
			if choice.FinishReason != nil {
				c.finish = *choice.FinishReason
			}
		}
		each(c)
	}
	return lines.Err()
}

// stream requests a stream and reads it to its end.
func (d *daemon) stream(text string) (chunks []chunk, err error) {
	res, err := d.post(chatBody(text, true))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(res.Body)
		return nil, fmt.Errorf("%d: %s", res.StatusCode, body)
	}
	err = readStream(res.Body, func(c chunk) { chunks = append(chunks, c) })
	return chunks, err
}

// wholeText joins a whole stream's text; it must have finished and be done.
func wholeText(chunks []chunk) (string, error) {
	var text strings.Builder
	for _, c := range chunks {
		text.WriteString(c.text)
	}
	if n := len(chunks); n < 2 || !chunks[n-1].done || chunks[n-2].finish != "stop" {
		return text.String(), fmt.Errorf("not a whole stream: %+v", chunks)
	}
	return text.String(), nil
}
