package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSeriesAreTheSameWhateverComes sends requests of every kind, most of them wrong:
// nothing that a caller writes may make a series.
func TestSeriesAreTheSameWhateverComes(t *testing.T) {
	const total, atOnce, most = 2000, 16, 1500
	d := start(t, "CODEX_ECHO_DELAY_MS=1", "POOL_SIZE=2")
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
	res, err := http.Get(d.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if page, err := io.ReadAll(res.Body); err != nil || len(page) > 250<<10 {
		t.Errorf("a page of %d bytes, %v", len(page), err)
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
	path := pick("/v1/chat/completions", "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/", "/v1/models/codex-5", "/healthz", "/livez", "/readyz", "/v1/", "/", fmt.Sprint("/random/", i))
	body := pick(
		chatBody("hi", false), chatBody("hi", true), `{"prompt":"hi"}`, "", "{", `{"messages":[]}`, `{"messages":[{"role":"robot"}]}`,
		fmt.Sprintf(`{"model":"random-%d","messages":[{"role":"user","content":"hi"}]}`, i),
		fmt.Sprintf(`{"random_%d":1,"messages":[{"role":"user","content":"hi"}]}`, i),
	)
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
