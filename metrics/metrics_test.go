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
	m.WatchAPI(func() api.Stat { return api.Stat{Streams: 5, BypassUntil: time.Unix(1_800_000_000, 0)} })
	m.WatchLog(func() int64 { return 6 })
	m.WatchConnections(func() int { return 7 }, 900)
	ctx := context.Background()
	hooks := m.PoolHooks()
	hooks.Spawned(ctx, 200*time.Millisecond, nil)
	hooks.Spawned(ctx, time.Second, errors.New("no"))
	hooks.Retired(ctx, pool.Age)
	hooks.Probed(ctx, time.Millisecond, nil)
	hooks.Probed(ctx, 4*time.Second, errors.New("no"))
	for _, err := range []error{nil, pool.ErrFull, pool.ErrClosed, pool.ErrDraining, pool.ErrUnavailable, context.Canceled, errors.New("another choice failed"), pool.ErrTimeout} {
		hooks.Acquired(ctx, 3*time.Millisecond, err)
	}
	late, cancel := context.WithTimeoutCause(ctx, 0, errors.New("the whole request took too long"))
	defer cancel()
	hooks.Acquired(late, 3*time.Millisecond, context.Cause(late))
	m.SetKeys([]string{"1", "2"})
	m.WatchKeyUse(func() map[string]int { return map[string]int{"1": 3, "gone": 1} }, func() map[string]int { return map[string]int{"2": 4} })
	m.WatchRedis(func() (bool, int64) { return true, 7 })
	m.WatchKeys(func() (bool, time.Time) { return true, time.Unix(1800000000, 0) })
	relay := m.RelayHooks()
	relay.Request(ctx, 200, true, 40*time.Millisecond)
	relay.Request(ctx, 0, false, time.Second)
	relay.Retried(ctx)
	relay.Sent(ctx, 1900)
	relay.Received(ctx, 25000)
	relay.Overridden(ctx, "temperature")
	relay.Limit(ctx, upstream.Limit{Kind: "remaining", Unit: "tokens"}, 149000)
	relay.Limit(ctx, upstream.Limit{Kind: "used", Unit: "primary"}, 0.125)
	m.ObserveRequest(ctx, api.Result{Route: "chat", Key: "1", Status: 200, Took: 2 * time.Second, FirstToken: 30 * time.Millisecond, Tokens: codex.Usage{Input: 8, Cached: 4, Output: 2, Reasoning: 1}, Estimated: codex.Usage{Input: 5, Output: 3, Total: 8}})
	m.ObserveRequest(ctx, api.Result{Route: "chat", Key: "1", Status: 200, Code: "child_exited", Took: time.Second})
	m.ObserveRequest(ctx, api.Result{Route: "unmatched", Status: 404, Code: "not_found", Took: time.Millisecond})
	m.ObserveRequest(ctx, api.Result{Route: "chat", Key: "1", Status: 400, Code: "invalid_json"})
	m.ObserveRequest(ctx, api.Result{Route: "chat", Key: "1", Status: 429, Code: "concurrency_exceeded"})
	m.ObserveRequest(ctx, api.Result{Route: "chat", Key: "1", Status: 429, Code: "usage_limit_reached"})
	m.ObserveRequest(ctx, api.Result{Route: "chat", Key: "1", Status: api.StatusClientGone})
	m.ObserveRequest(ctx, api.Result{Route: "options", Status: 204, CrossOrigin: api.CrossOriginAllowed})
	for _, r := range []api.Result{{Status: 200}, {Status: 401, Code: "invalid_api_key"}, {Status: 403, Code: "permission_denied"}, {Status: 200, Bypassed: true}} {
		r.Route = "verify"
		m.ObserveRequest(ctx, r)
	}
	m.ObserveRequest(ctx, api.Result{Route: "options", Status: 204, CrossOrigin: api.CrossOriginRefused})
	m.ObserveRequest(ctx, api.Result{Route: "chat", Key: "1", Status: 200, CrossOrigin: api.CrossOriginAllowed})
	return m
}

// TestPage holds our part of the page against a golden one: operators'
// dashboards and alerts depend on every name.
func TestPage(t *testing.T) {
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

func TestNamesFollowPrometheusRules(t *testing.T) {
	problems, err := testutil.GatherAndLint(filled().Registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestRegistriesAreIndependent(t *testing.T) {
	filled()
	filled()
}

// TestKeysHaveSeriesWhileTheyExist: what is not in the keys file makes no series, however
// many keys there are.
func TestKeysHaveSeriesWhileTheyExist(t *testing.T) {
	m := metrics.New("v1.2.3")
	names := make([]string, 201)
	for i := range names {
		names[i] = fmt.Sprintf("k%03d", i)
	}
	count := func() (keys map[string]float64) {
		t.Helper()
		families, err := m.Registry().Gather()
		if err != nil {
			t.Fatal(err)
		}
		keys = map[string]float64{}
		for _, f := range families {
			if f.GetName() != "codexpool_key_requests_total" {
				continue
			}
			for _, s := range f.GetMetric() {
				for _, l := range s.GetLabel() {
					if l.GetName() == "key" {
						keys[l.GetValue()] += s.GetCounter().GetValue()
					}
				}
			}
		}
		return keys
	}
	used := func(name string) {
		m.ObserveRequest(context.Background(), api.Result{Route: "chat", Key: name, Status: 200})
	}
	m.SetKeys(names)
	used("k000")
	used("k200")
	used("nobody")
	if got := count(); len(got) != 201 || got["k000"] != 1 || got["other"] != 1 || got["k199"] != 0 {
		t.Errorf("%d keys: %v", len(got), got)
	}
	m.SetKeys([]string{"a", "k000"})
	used("k001") // a request that began before its key was removed
	if got := count(); fmt.Sprint(got) != "map[a:0 k000:1]" {
		t.Errorf("%v", got)
	}
}
