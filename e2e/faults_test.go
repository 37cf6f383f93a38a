package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"codexpool/codex/codextest"
)

// faultVar names the fault that this test binary plays when it is run as a CLI.
const faultVar = "CODEXPOOL_FAULT"

// faults are children with a fault, where the real CLI cannot be brought to have
// it. Those that initialize are otherwise healthy.
var faults = map[string]func(){
	"none, and is quick": func() { serveFrom(os.Stdin, 0) },
	"never initializes":  func() { io.Copy(io.Discard, os.Stdin) },
	"exits in handshake": func() { fmt.Fprintln(os.Stderr, "cannot read my configuration"); os.Exit(3) },
	"says markup in handshake": func() {
		fmt.Fprintln(os.Stderr, `<script>console.error("run")</script><img src="x:" onerror="console.error('run')">`)
		os.Exit(3)
	},
	"starts slowly":        func() { time.Sleep(1500 * time.Millisecond); serve() },
	"ignores EOF":          func() { serve(); hang() },
	"ignores EOF and TERM": func() { signal.Ignore(syscall.SIGTERM); serve(); hang() },
	"has a grandchild":     func() { grandchild(); serve() },
	"has an orphan":        func() { exec.Command("sh", "-c", "sleep 1000 &").Run(); serve() },
	"floods stderr":        func() { floodStderr(); serve() },
	"writes garbage": func() {
		insteadOfTurn(func() { fmt.Println("thread 'main' panicked at") })
	},
	"writes a line of 20 MB": func() {
		insteadOfTurn(func() {
			fmt.Printf(`{"method":"item/agentMessage/delta","params":{"delta":"%s"}}`+"\n", strings.Repeat("x", 20<<20))
		})
	},
	"is killed when its turn starts": func() {
		insteadOfTurn(func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) })
	},
	"is stopped when its turn starts": func() {
		insteadOfTurn(func() { syscall.Kill(os.Getpid(), syscall.SIGSTOP) })
	},
	"ignores the start of its turn": func() {
		insteadOfTurn(func() {})
	},
	"ignores everything when it has asked": func() {
		post := codextest.PostTo(codextest.ConfiguredURL())
		playChild(os.Stdin, &codextest.Child{Post: func(_ context.Context, metadata string) error {
			if err := post(context.Background(), metadata); err != nil {
				return err
			}
			hang()
			return nil
		}})
	},
	"sends an unknown request": func() {
		onTurn(func(json.RawMessage) { fmt.Println(`{"id":0,"method":"item/somethingNew/request","params":{}}`) })
	},
	"grows": func() {
		var kept [][]byte
		onTurn(func(json.RawMessage) { kept = append(kept, bytes.Repeat([]byte{1}, 64<<20)) })
	},
	"answers a probe late": func() {
		late := 2500 * time.Millisecond
		relay(func(method string, _ json.RawMessage) bool {
			if method == "server/diagnostics" {
				time.Sleep(late)
				late = 0
			}
			return true
		})
	},
	"exits when probed": func() {
		relay(func(method string, _ json.RawMessage) bool {
			if method == "server/diagnostics" {
				fmt.Fprintln(os.Stderr, "thread 'main' panicked at a bug")
				os.Exit(101)
			}
			return true
		})
	},
	"does not end its turn": func() {
		relay(func(method string, _ json.RawMessage) bool { return method != "turn/interrupt" })
	},
	// As Codex does with a second turn on a busy thread: it names the old turn, and
	// nothing of its own comes of the new one.
	"steers": func() {
		relay(func(method string, id json.RawMessage) bool {
			if method == "turn/start" {
				fmt.Printf(`{"id":%s,"result":{"turn":{"id":"turn-of-another"}}}`+"\n", id)
			}
			return method != "turn/start"
		})
	},
}

// serve plays a healthy child until the end of its input.
func serve() { serveFrom(os.Stdin, 20*time.Millisecond) }

func serveFrom(in io.Reader, delay time.Duration) {
	playChild(in, &codextest.Child{Delay: delay, Post: codextest.PostTo(codextest.ConfiguredURL())})
}

func playChild(in io.Reader, child *codextest.Child) {
	script := codextest.Script{codextest.Handshake(), codextest.Serve(child)}
	if err := script.Serve(in, os.Stdout); err != nil && err != io.EOF {
		fmt.Fprintln(os.Stderr, "played child:", err)
	}
}

// relay plays a healthy child that gets only those messages that pass accepts.
func relay(pass func(method string, id json.RawMessage) bool) {
	in, out := io.Pipe()
	go func() { // ends with the input
		defer out.Close()
		for lines := bufio.NewReader(os.Stdin); ; {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return
			}
			var m struct {
				ID     json.RawMessage
				Method string
			}
			json.Unmarshal(line, &m)
			if m.Method != "" && pass(m.Method, m.ID) { // a message without a method is the answer to a request of act
				out.Write(line)
			}
		}
	}()
	serveFrom(in, 20*time.Millisecond)
}

// onTurn plays a healthy child that does something before each turn.
func onTurn(act func(id json.RawMessage)) {
	relay(func(method string, id json.RawMessage) bool {
		if method == "turn/start" {
			act(id)
		}
		return true
	})
}

// insteadOfTurn plays a healthy child that does something instead of each turn: it sends
// no request, which could arrive before or after.
func insteadOfTurn(act func()) {
	relay(func(method string, _ json.RawMessage) bool {
		if method == "turn/start" {
			act()
		}
		return method != "turn/start"
	})
}

func hang() {
	for {
		time.Sleep(time.Hour) // an empty select would be a deadlock where signals are ignored
	}
}

func floodStderr() {
	line := []byte(strings.Repeat("e", 1<<10) + "\n")
	for range 64 << 10 {
		os.Stderr.Write(line)
	}
}

// grandchild starts a process that holds this one's output, in its group.
func grandchild() {
	cmd := exec.Command("sleep", "1000")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		panic(err)
	}
}

// faulty is a CLI whose children are real, or have the fault that it is set to.
type faulty struct {
	t    *testing.T
	path string
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &faulty{t, filepath.Join(t.TempDir(), "codex")}
	f.set("")
	script := fmt.Sprintf(`#!/bin/sh
fault=$(cat '%s.fault')
[ "$1" = app-server ] && [ -n "$fault" ] && exec env %s="$fault" '%s'
exec '%s' "$@"
`, f.path, faultVar, self, codextest.Binary(t))
	if err := os.WriteFile(f.path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return f
}

// set chooses the fault of the children that are started from now on.
func (f *faulty) set(fault string) {
	f.t.Helper()
	if err := os.WriteFile(f.path+".fault", []byte(fault), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// TestFaultMatrix has a row for each way in which a child can fail. The row has the
// response to the client, a text of the log, and the reason that is counted; after
// each the pool is full again. With a single child there is no other to hide
// behind; the text of the log and the reason are those of the child with the fault.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	const (
		fine = "200"

		idle = "504 timeout_error idle_timeout -"
		gone = "502 server_error child_exited -"
	)
	chat := func(d *daemon, text string) string {
		res := d.request("POST", "/v1/chat/completions", "Bearer "+key, "application/json", chatBody(text, false))
		if res.StatusCode == 200 {
			res.Body.Close()
			return fine
		}
		return failure(d.t, res)
	}
	pid := func(d *daemon) int { return d.children()[0] }
	recycle := func(d *daemon) { d.operate("recycle") }
	stop := func(d *daemon) { syscall.Kill(pid(d), syscall.SIGSTOP) }
	probes := []string{"POOL_PROBE_MS=200", "POOL_PROBE_TIMEOUT_MS=1000"}
	for _, tt := range []struct {
		name   string
		fault  string          // of faults; "" = the real CLI
		env    []string        // of the daemon
		text   string          // the client's message; "" = three words
		act    func(d *daemon) // brings it about; nil = the client's request does
		client string          // the response to the client; "" = the client notices nothing
		log    string          // a text that the log must contain
		reason string          // counted once, "" = the child lives or was none
	}{
		{name: "exits idle", act: func(d *daemon) { syscall.Kill(pid(d), syscall.SIGKILL) }, log: "signal: killed", reason: "exited"},
		{name: "stopped idle", env: probes, act: stop, log: `"why":"unresponsive"`, reason: "unresponsive"},
		{name: "ignores EOF", fault: "ignores EOF", act: recycle, log: `"why":"recycled"`, reason: "recycled"},
		{name: "ignores EOF and TERM", fault: "ignores EOF and TERM", act: recycle, log: `"why":"recycled"`, reason: "recycled"},
		{name: "has a grandchild", fault: "has a grandchild", act: recycle, log: `"why":"recycled"`, reason: "recycled"},
		{name: "writes garbage", fault: "writes garbage", client: gone, log: "is not a message", reason: "protocol"},
		{name: "writes a line of 20 MB", fault: "writes a line of 20 MB", client: gone, log: "is longer than", reason: "protocol"},
		{name: "floods stderr", fault: "floods stderr", client: fine},
		{name: "sends an unknown request", fault: "sends an unknown request", client: fine, log: "child asked, declined"},
		{name: "grows in its turn", fault: "grows", env: []string{"POOL_MAX_CHILD_BYTES=40000000"}, text: strings.Repeat("word ", 5000), client: gone, log: `"why":"memory"`, reason: "memory"},
		{name: "answers a probe late", fault: "answers a probe late", env: probes, client: fine},
		{name: "does not end its turn", fault: "does not end its turn", env: []string{"PROXY_TIMEOUT_MS=1000"}, text: strings.Repeat("word ", 5000), client: "504 timeout_error request_timeout -", log: `"why":"unresponsive"`, reason: "unresponsive"},
		{name: "steers", fault: "steers", env: []string{"PROXY_IDLE_TIMEOUT_MS=500"}, client: idle, log: `"why":"unresponsive"`, reason: "unresponsive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			f := newFaulty(t)
			f.set(tt.fault)
			d := start(t, append(tt.env, "POOL_SIZE=1", "CODEX_BIN="+f.path, "CODEX_STOP_GRACE_MS=300", "CODEX_ECHO_DELAY_MS=1")...)
			child := pid(d)
			f.set("") // the next is real
			if tt.act != nil {
				tt.act(d)
			} else if got := chat(d, cmp.Or(tt.text, "one two three")); got != tt.client {
				t.Errorf("the client sees %s, want %s", got, tt.client)
			}
			if tt.reason != "" {
				eventually(t, time.Minute, "death by "+tt.reason, func() bool {
					return d.metrics()[`codexpool_child_deaths_total{reason="`+tt.reason+`"}`] == 1
				})
			}
			d.full(1)
			if got := chat(d, "one two three"); got != fine {
				t.Errorf("the next client sees %s", got)
			}
			if !strings.Contains(d.logged(), tt.log) {
				t.Errorf("no %s in the log", tt.log)
			}
			deaths := 0.0
			for name, n := range d.metrics() {
				if strings.HasPrefix(name, "codexpool_child_deaths_total") {
					deaths += n
				}
			}
			if want := map[bool]float64{true: 0, false: 1}[tt.reason == ""]; deaths != want {
				t.Errorf("%v deaths are counted, want %v", deaths, want)
			}
			if alive := pid(d) == child; alive != (tt.reason == "") {
				t.Errorf("the child with the fault lives: %v", alive)
			}
		})
	}
}

// full waits until the pool has its children, all idle, and no process beside
// them.
func (d *daemon) full(size int) {
	d.t.Helper()
	eventually(d.t, time.Minute, "full pool", func() bool {
		m := d.metrics()
		return m[`codexpool_pool_children{state="idle"}`] == float64(size) && len(d.children()) == size
	})
}

// TestStartsThatFail has the faults that prevent a start. Clients get an error at
// once, and are served as soon as children can be started again.
func TestStartsThatFail(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fault, log, admin string
		hangs             bool
	}{
		{"never initializes", "child does not answer", "child does not answer", true},
		{"exits in handshake", "exit status 3", "cannot read my configuration", false},
	} {
		t.Run(tt.fault, func(t *testing.T) {
			t.Parallel()
			f := newFaulty(t)
			// The real child must start within the limit too, however busy the machine is. Who
			// waits for a start that hangs waits longer than for an error that is known.
			d := start(t, "POOL_SIZE=1", "CODEX_BIN="+f.path, "CODEX_START_TIMEOUT_MS=6000", "CODEX_STOP_GRACE_MS=100", "POOL_BACKOFF_MAX_MS=500")
			f.set(tt.fault)
			syscall.Kill(d.children()[0], syscall.SIGKILL)
			eventually(t, time.Minute, "backend_unavailable", func() bool { return d.ready() == `503 {"ready":false,"reason":"backend_unavailable"}` })
			if tt.hangs {
				eventually(t, time.Minute, "the next start", func() bool { return len(d.children()) > 0 })
			}
			began := time.Now()
			res := d.request("POST", "/v1/chat/completions", "Bearer "+key, "application/json", chatBody("hi", true))
			if got := failure(t, res); got != "503 server_error backend_unavailable - *" {
				t.Errorf("the client sees %s", got)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("the error came after %v", took)
			}
			if !strings.Contains(d.logged(), tt.log) {
				t.Errorf("no %q in the log", tt.log)
			}
			if got := d.pool().Failure; got == nil || !strings.Contains(fmt.Sprint(*got), tt.admin) {
				t.Errorf("no %q in /pool: %+v", tt.admin, got)
			}
			f.set("")
			d.full(1)
			if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
				t.Errorf("when it is well: %v", err)
			}
		})
	}
	t.Run("starts slowly", func(t *testing.T) {
		t.Parallel()
		f := newFaulty(t)
		d := start(t, "POOL_SIZE=1", "CODEX_BIN="+f.path)
		f.set("starts slowly")
		syscall.Kill(d.children()[0], syscall.SIGKILL)
		// A child that dies at this moment may still take a request along.
		eventually(t, time.Minute, "end of the child", func() bool { return d.metrics()[`codexpool_child_deaths_total{reason="exited"}`] == 1 })
		if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 { // it waits
			t.Errorf("meanwhile: %v", err)
		}
	})
}

// TestFaultsOfTheHost has faults of the machine under the real child and the daemon:
// each is reported while it lasts, and the pool is well again afterwards.
func TestFaultsOfTheHost(t *testing.T) {
	t.Parallel()
	const unavailable = `503 {"ready":false,"reason":"backend_unavailable"}`
	kill := func(d *daemon) { syscall.Kill(d.children()[0], syscall.SIGKILL) }
	// over waits for a pool that is well again, and uses it.
	over := func(d *daemon) {
		d.t.Helper()
		eventually(d.t, time.Minute, "readiness", func() bool { return d.ready() == `200 {"ready":true}` })
		d.full(1)
		if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
			d.t.Errorf("when it is over: %v", err)
		}
	}
	t.Run("its home is removed", func(t *testing.T) {
		t.Parallel()
		d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=1")
		homes, err := filepath.Glob(filepath.Join(d.workdir, "daemon-*", "child-*"))
		if err != nil || len(homes) != 1 {
			t.Fatal(homes, err)
		}
		if err := os.RemoveAll(homes[0]); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
				t.Errorf("without its home: %v", err)
			}
		}
		over(d)
	})
	t.Run("no descriptors remain", func(t *testing.T) {
		t.Parallel()
		d := start(t, "POOL_SIZE=1", "POOL_BACKOFF_MAX_MS=500", "CODEX_ECHO_DELAY_MS=1")
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		before := limitFiles(t, d.cmd.Process.Pid, uint64(len(fds)+2)) // enough to answer requests, too few to start a child
		kill(d)
		eventually(t, time.Minute, "report of it", func() bool { return strings.Contains(d.logged(), "too many open files") })
		if got := d.ready(); got != unavailable {
			t.Errorf("ready: %s", got)
		}
		limitFiles(t, d.cmd.Process.Pid, before)
		over(d)
	})
	t.Run("no descriptors remain for its child", func(t *testing.T) {
		t.Parallel()
		d := start(t, "POOL_SIZE=1", "POOL_BACKOFF_MAX_MS=500", "CODEX_ECHO_DELAY_MS=1")
		limitFiles(t, d.children()[0], 10)
		eventually(t, time.Minute, "death of the child", func() bool {
			d.stream("hi") // it may fail
			return strings.Contains(d.logged(), `"msg":"child gone"`)
		})
		if log := d.logged(); !strings.Contains(log, `"why":"failing"`) || !strings.Contains(log, "too many open files") {
			t.Errorf("the log does not say what was missing")
		}
		over(d)
	})
	t.Run("its disk is full", func(t *testing.T) {
		t.Parallel()
		disk := smallDisk(t, "32m")
		d := start(t, "POOL_SIZE=1", "POOL_BACKOFF_MAX_MS=500", "CODEX_ECHO_DELAY_MS=1", "PROXY_CODEX_WORKDIR="+disk)
		fill(t, disk)
		if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
			t.Errorf("the child that is there: %v", err)
		}
		eventually(t, time.Minute, "report of it", func() bool {
			for _, pid := range d.children() {
				syscall.Kill(pid, syscall.SIGKILL) // which makes room, of its home
			}
			fill(t, disk)
			return strings.Contains(d.logged(), "no space left on device")
		})
		if got := d.ready(); got != unavailable {
			t.Errorf("ready: %s", got)
		}
		empty(t, disk)
		over(d)
	})
}

// smallDisk is an empty disk for the homes of children.
func smallDisk(t testing.TB, size string) (path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	path = codextest.Workdir(t)
	if err := syscall.Mount("tmpfs", path, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("a small disk cannot be mounted here: ", err)
	}
	t.Cleanup(func() { syscall.Unmount(path, syscall.MNT_DETACH) })
	return path
}

// filler is the file that fills a small disk.
func filler(disk string) string { return filepath.Join(disk, "filler") }

// fill takes all room that is left on a small disk.
func fill(t testing.TB, disk string) {
	t.Helper()
	file, err := os.OpenFile(filler(disk), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Error(err)
		return
	}
	defer file.Close()
	for block := make([]byte, 4<<10); err == nil; { // it fails when the disk is full
		_, err = file.Write(block)
	}
}

// empty gives the room back.
func empty(t testing.TB, disk string) {
	t.Helper()
	if err := os.Remove(filler(disk)); err != nil {
		t.Error(err)
	}
}

// limitFiles sets the limit of the descriptors of a process, and returns the limit from
// before.
func limitFiles(t *testing.T, pid int, n uint64) (before uint64) {
	t.Helper()
	var limit syscall.Rlimit
	prlimit := func(now, was *syscall.Rlimit) {
		_, _, errno := syscall.Syscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_NOFILE,
			uintptr(unsafe.Pointer(now)), uintptr(unsafe.Pointer(was)), 0, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
	}
	prlimit(nil, &limit)
	before, limit.Cur = limit.Cur, n
	prlimit(&limit, nil)
	return before
}
