package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// poolBody is the part of GET /pool that tests read.
type poolBody struct {
	Idle     int
	Worn     int
	Draining bool
	Failure  *struct {
		Error  string
		Stderr []string
	}
	Children []struct {
		PID         int
		State       string
		Version     string
		Turns       int
		MemoryBytes int64 `json:"memory_bytes"`
		Probe       *struct {
			Took    float64 `json:"took_seconds"`
			Error   string
			Threads int
		}
	}
	Deaths []struct {
		PID   int
		Why   string
		Turns int
	}
}

func (d *daemon) pool() (body poolBody) {
	d.t.Helper()
	res, err := http.Get(d.admin + "/pool")
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		d.t.Fatal(err)
	}
	return body
}

// operate posts to one of the pool's routes.
func (d *daemon) operate(action string) (status int) {
	d.t.Helper()
	res, err := http.Post(d.admin+"/pool/"+action, "", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

// in counts the children in a state.
func (b poolBody) in(state string) (n int) {
	for _, c := range b.Children {
		if c.State == state {
			n++
		}
	}
	return n
}

func TestChildrenAreShownProbedAndWeighed(t *testing.T) {
	d := start(t, "POOL_SIZE=2", "POOL_PROBE_MS=200")
	if _, err := d.stream("hi"); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "probe of each child", func() bool {
		for _, c := range d.pool().Children {
			if c.Probe == nil || c.MemoryBytes == 0 {
				return false
			}
		}
		return true
	})
	pids := d.children()
	turns := 0
	for _, c := range d.pool().Children {
		turns += c.Turns
		if c.Version != "0.169.0" || c.Probe.Error != "" || c.Probe.Threads != 1 || c.MemoryBytes < 4<<20 || c.MemoryBytes > 100<<20 || (c.PID != pids[0] && c.PID != pids[1]) {
			t.Errorf("%+v", c)
		}
	}
	m := d.metrics()
	if turns != 1 || m[`codexpool_child_probes_total{outcome="ok"}`] < 2 || m[`codexpool_child_probes_total{outcome="error"}`] > 0 || m["codexpool_pool_memory_bytes"] < 8<<20 {
		t.Errorf("%d turns, %v probes, %v bytes", turns, m[`codexpool_child_probes_total{outcome="ok"}`], m["codexpool_pool_memory_bytes"])
	}
}

func TestIdleChildThatHangsIsReplacedBeforeARequestMeetsIt(t *testing.T) {
	d := start(t, "POOL_SIZE=3", "POOL_PROBE_MS=300", "POOL_PROBE_TIMEOUT_MS=500", "CODEX_ECHO_DELAY_MS=0")
	stopped := d.children()[0]
	syscall.Kill(stopped, syscall.SIGSTOP)
	eventually(t, 5*time.Second, "late child", func() bool { return d.pool().in("late") == 1 })
	// Nobody meets it while it has its second chance, nor waits for it.
	for d.pool().in("late") == 1 {
		began := time.Now()
		if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 || time.Since(began) > 2*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	}
	eventually(t, 5*time.Second, "full pool", func() bool { return d.pool().Idle == 3 })
	deaths := d.pool().Deaths
	if len(deaths) != 1 || deaths[0].PID != stopped || deaths[0].Why != "unresponsive" {
		t.Errorf("deaths %+v", deaths)
	}
	if m := d.metrics(); m[`codexpool_child_deaths_total{reason="unresponsive"}`] != 1 || m[`codexpool_child_probes_total{outcome="error"}`] != 1 {
		t.Errorf("%v deaths, %v probes", m[`codexpool_child_deaths_total{reason="unresponsive"}`], m[`codexpool_child_probes_total{outcome="error"}`])
	}
}

func TestChildThatHangsForAMomentLives(t *testing.T) {
	d := start(t, "POOL_SIZE=1", "POOL_PROBE_MS=300", "POOL_PROBE_TIMEOUT_MS=500")
	stopped := d.children()[0]
	syscall.Kill(stopped, syscall.SIGSTOP)
	eventually(t, 5*time.Second, "late child", func() bool { return d.pool().in("late") == 1 })
	syscall.Kill(stopped, syscall.SIGCONT)
	eventually(t, 5*time.Second, "idle child", func() bool { return d.pool().in("idle") == 1 })
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Error(err)
	}
	if b := d.pool(); len(b.Deaths) > 0 || b.Children[0].PID != stopped {
		t.Errorf("%+v", b)
	}
}

// TestChildThatHangsAfterItsRequestCostsNoStream stops a child in the middle of an
// answer: the answer comes from the provider without it.
func TestChildThatHangsAfterItsRequestCostsNoStream(t *testing.T) {
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=20", "PROXY_STREAM_IDLE_TIMEOUT_MS=1000")
	res, err := d.post(chatBody(strings.Repeat("word ", 100), true))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var stopped int
	var chunks []chunk
	if err := readStream(res.Body, func(c chunk) {
		chunks = append(chunks, c)
		if c.text == "" || stopped != 0 {
			return
		}
		for _, child := range d.pool().Children {
			if child.State == "leased" {
				stopped = child.PID
			}
		}
		syscall.Kill(stopped, syscall.SIGSTOP)
	}); err != nil || stopped == 0 {
		t.Errorf("child %d, %v", stopped, err)
	}
	if text, err := wholeText(chunks); err != nil || strings.Count(text, "word") != 100 {
		t.Errorf("%d words, %v", strings.Count(text, "word"), err)
	}
	eventually(t, time.Minute, "full pool", func() bool { return d.pool().Idle == 2 })
	deaths := d.pool().Deaths
	if len(deaths) != 1 || deaths[0].PID != stopped || deaths[0].Why != "unresponsive" || deaths[0].Turns != 1 {
		t.Errorf("deaths %+v", deaths)
	}
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Error(err)
	}
}

func TestRecycleUnderFullLoadFailsNoRequest(t *testing.T) {
	d := start(t, "POOL_SIZE=3", "CODEX_ECHO_DELAY_MS=5")
	before := d.children()
	var served, failed atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 9 {
		clients.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				want := fmt.Sprintf("client %d calls for the %d. time", i, j)
				chunks, err := d.stream(want)
				if err == nil {
					var got string
					if got, err = wholeText(chunks); err == nil && got != want {
						err = fmt.Errorf("got %q", got)
					}
				}
				if err != nil {
					failed.Add(1)
					t.Errorf("%s: %v", want, err)
				}
				served.Add(1)
			}
		})
	}
	eventually(t, time.Minute, "load", func() bool { return served.Load() > 20 })
	if status := d.operate("recycle"); status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	eventually(t, 30*time.Second, "end of the recycling", func() bool {
		b := d.pool()
		if serving := b.in("idle") + b.in("leased"); serving < 2 {
			t.Errorf("only %d of 3 serve: %+v", serving, b.Children)
		}
		return b.Worn == 0 && len(b.Children) == 3
	})
	after := served.Load()
	eventually(t, time.Minute, "load", func() bool { return served.Load() > after+20 })
	close(stop)
	clients.Wait()
	t.Logf("%d served, %d failed", served.Load(), failed.Load())
	for _, pid := range d.children() {
		for _, old := range before {
			if pid == old {
				t.Errorf("child %d is still there", pid)
			}
		}
	}
	if m := d.metrics(); m[`codexpool_child_deaths_total{reason="recycled"}`] != 3 || m[`codexpool_child_starts_total{outcome="ok"}`] != 6 {
		t.Errorf("%v recycled, %v started", m[`codexpool_child_deaths_total{reason="recycled"}`], m[`codexpool_child_starts_total{outcome="ok"}`])
	}
}

func TestChildrenThatGrowAreReplaced(t *testing.T) {
	t.Parallel()
	// Any child is fatter than that after some turns; each serves, once it is two seconds old.
	d := start(t, "POOL_SIZE=2", "POOL_MAX_CHILD_BYTES=16777216", "POOL_MIN_LIFE_MS=2000", "CODEX_ECHO_DELAY_MS=0")
	eventually(t, time.Minute, "replacement of both", func() bool {
		d.stream("hi") // which fails if the child outgrows the limit just then
		return d.metrics()[`codexpool_child_deaths_total{reason="memory"}`] >= 2
	})
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Error(err)
	}
}
