package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestSeriesAreTheSameWhateverComes sends requests of every kind, most of them wrong:
// nothing that a caller writes may make a series.
func TestSeriesAreTheSameWhateverComes(t *testing.T) {
	const total, atOnce, most = 2000, 16, 1500
	d := start(t, "CODEX_ECHO_DELAY_MS=1", "POOL_SIZE=2", "PROXY_CORS_ALLOWED_ORIGINS=http://localhost:3000")
	before := ours(d.metrics())
	if len(before) > most {
		t.Errorf("%d series before the first request", len(before))
	}
	numbers := make(chan int)
	var callers sync.WaitGroup
	for range atOnce {
		callers.Go(func() {
			for i := range numbers {
				d.mixed(i)
			}
		})
	}
	for i := range total {
		numbers <- i
	}
	close(numbers)
	callers.Wait()
	after := ours(d.metrics())
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if !before[name] {
			t.Errorf("%s is new", name)
		}
	}
	if m := d.metrics(); m[`codexpool_cors_requests_total{kind="actual",result="allowed"}`] == 0 || m[`codexpool_cors_requests_total{kind="actual",result="refused"}`] == 0 {
		t.Error("no request of a listed origin, or none of another")
	}
	if len(after) != len(before) {
		t.Errorf("there are %d series, there were %d", len(after), len(before))
	}
	if n := len(d.page()); n > 250<<10 {
		t.Errorf("a page of %d bytes", n)
	}
}

// TestCPUOfChildrenIsWhatTheKernelCounts has a child that dies: what it used stays counted.
func TestCPUOfChildrenIsWhatTheKernelCounts(t *testing.T) {
	t.Parallel()
	const name = "codexpool_children_cpu_seconds_total"
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=0")
	d.load(20, 2)
	child := d.children()[0]
	used := cpu(t, child).Seconds()
	if got := d.metrics()[name]; got < used-0.02 || got > used+0.5 { // in ticks of 10 ms, for each of four figures
		t.Errorf("%v s are counted, the kernel says %v", got, used)
	}
	syscall.Kill(child, syscall.SIGKILL)
	eventually(t, 10*time.Second, "another child", func() bool {
		now := d.children()
		return len(now) == 1 && now[0] != child && d.metrics()[`codexpool_pool_children{state="idle"}`] == 1
	})
	used += cpu(t, d.children()...).Seconds()
	if got := d.metrics()[name]; got < used-0.02 || got > used+0.5 {
		t.Errorf("%v s are counted of both, the kernel says %v", got, used)
	}
}

// TestConnectionsThatCannotBeAcceptedAreCountedAndLogged takes all descriptors away from a
// daemon for a moment.
func TestConnectionsThatCannotBeAcceptedAreCountedAndLogged(t *testing.T) {
	t.Parallel()
	const name = "codexpool_http_accept_errors_total"
	d := start(t, "POOL_SIZE=1")
	if m := d.metrics(); m[name] != 0 || m[`codexpool_http_connections{listener="admin"}`] < 1 {
		t.Errorf("%v errors and %v connections before", m[name], m[`codexpool_http_connections{listener="admin"}`])
	}
	before := limitFiles(t, d.cmd.Process.Pid, 1)
	defer limitFiles(t, d.cmd.Process.Pid, before)
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://")) // the kernel takes it
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, 10*time.Second, "warning", func() bool { return strings.Contains(d.logged(), "too many open files") })
	limitFiles(t, d.cmd.Process.Pid, before)
	if n := d.metrics()[name]; n < 1 {
		t.Errorf("%v are counted", n)
	}
	if got := d.logged(); strings.Count(got, `"level":"WARN","msg":"a connection was not accepted"`) != 1 {
		t.Errorf("the log says\n%s", got)
	}
}

// ours are the names of our series.
func ours(page map[string]float64) map[string]bool {
	names := map[string]bool{}
	for name := range page {
		if strings.HasPrefix(name, "codexpool_") {
			names[name] = true
		}
	}
	return names
}

// mixed sends the i-th request. Its answer does not matter.
func (d *daemon) mixed(i int) {
	pick := func(list ...string) string { return list[rand.IntN(len(list))] }
	path := pick("/v1/chat/completions", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/models/", "/v1/models/codex-5", "/v1/usage", "/verify", "/healthz", "/livez", "/readyz", "/v1/", "/", fmt.Sprint("/random/", i))
	body := pick(
		chatBody("hi", false), chatBody("hi", true), `{"prompt":"hi"}`, `{"input":"hi"}`, "", "{", `{"messages":[]}`, `{"messages":[{"role":"robot"}]}`,
		fmt.Sprintf(`{"model":"random-%d","messages":[{"role":"user","content":"hi"}]}`, i),
		fmt.Sprintf(`{"random_%d":1,"messages":[{"role":"user","content":"hi"}]}`, i),
	)
	if path == "/v1/responses" { // where a prompt is one that the provider keeps, and ours keeps none
		body = strings.Replace(body, "prompt", "input", 1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	if i%10 == 0 {
		time.AfterFunc(time.Duration(rand.IntN(30))*time.Millisecond, cancel)
	}
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, pick("POST", "POST", "POST", "GET", "HEAD", "OPTIONS", "DELETE", "RANDOM"), d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Error(err)
		return
	}
	req.Header.Set("Authorization", pick("Bearer "+key, "Bearer "+key, "Bearer "+key, fmt.Sprint("Bearer ", i), "Basic x", ""))
	req.Header.Set("Content-Type", pick("application/json", "application/json", "text/plain", fmt.Sprint("random/", i)))
	req.Header.Set("Origin", pick("http://localhost:3000", "https://evil.example", "null"))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return // it was cancelled
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
}
