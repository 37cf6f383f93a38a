package metrics_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"codexpool/api"
	"codexpool/codex"
	"codexpool/metrics"
	"codexpool/pool"
	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var update = flag.Bool("update", false, "rewrite testdata/page.prom")

// filled is a page on which everything has happened.
func filled() *metrics.Metrics {
	m := metrics.New("v1.2.3")
	m.SetCLI("0.0.0")
	m.SetCLI("0.0.1") // it was replaced
	m.WatchPool(func() pool.Stat {
		return pool.Stat{Size: 8, Starting: 1, Idle: 2, Leased: 3, Waiting: 4, Memory: 64 << 20}
	})
	m.WatchAPI(func() api.Stat { return api.Stat{Streams: 5} })
	hooks := m.PoolHooks()
	hooks.Spawned(200*time.Millisecond, nil)
	hooks.Spawned(time.Second, errors.New("no"))
	hooks.Retired(pool.Age)
	hooks.Probed(time.Millisecond, nil)
	hooks.Probed(4*time.Second, errors.New("no"))
	for _, err := range []error{nil, pool.ErrFull, pool.ErrClosed, pool.ErrDraining, pool.ErrUnavailable, context.Canceled, errors.New("another choice failed"), fmt.Errorf("in line: %w", context.DeadlineExceeded)} {
		hooks.Acquired(3*time.Millisecond, err)
	}
	relay := m.RelayHooks()
	relay.Request(200, true, 40*time.Millisecond)
	relay.Request(0, false, time.Second)
	relay.Retried()
	relay.Sent(1900)
	relay.Received(25000)
	relay.Overridden("temperature")
	relay.Limit(upstream.Limit{Kind: "remaining", Unit: "tokens"}, 149000)
	relay.Limit(upstream.Limit{Kind: "used", Unit: "primary"}, 0.125)
	m.ObserveRequest(api.Result{Route: "chat", Status: 200, Took: 2 * time.Second, FirstToken: 30 * time.Millisecond, Tokens: codex.Usage{Input: 8, Cached: 4, Output: 2, Reasoning: 1}})
	m.ObserveRequest(api.Result{Route: "chat", Status: 200, Code: "child_exited", Took: time.Second})
	m.ObserveRequest(api.Result{Route: "unmatched", Status: 404, Code: "not_found", Took: time.Millisecond})
	return m
}

// TestThePage holds our part of the page against a golden one: operators'
// dashboards and alerts depend on every name.
func TestThePage(t *testing.T) {
	w := httptest.NewRecorder()
	filled().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var got strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		if strings.Contains(line, "codexpool_") {
			got.WriteString(line)
		}
	}
	if *update {
		if err := os.WriteFile("testdata/page.prom", []byte(got.String()), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/page.prom")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !strings.Contains(w.Body.String(), "go_goroutines") || !strings.Contains(w.Body.String(), "process_resident_memory_bytes") {
		t.Error("the process's own series are missing")
	}
}

func TestTheNamesFollowPrometheusRules(t *testing.T) {
	problems, err := testutil.GatherAndLint(filled().Registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestTwoDaemonsLiveInOneProcess(t *testing.T) {
	filled()
	filled()
}
