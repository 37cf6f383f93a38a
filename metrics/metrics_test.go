package metrics_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"slices"
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

var update = flag.Bool("update", false, "rewrite testdata/page.prom and REFERENCE.md")

// empty is a page on which nothing has happened.
func empty() *metrics.Metrics {
	m := metrics.New("v1.2.3")
	m.SetCLI("0.0.0", []string{"other"})
	m.SetCLI("0.0.1", []string{"other", "gpt-test"}) // it was replaced
	m.WatchKeyUse(func() map[string]int { return map[string]int{"1": 3, "gone": 1} }, func() map[string]int { return map[string]int{"2": 4} })
	m.WatchRedis(func() (bool, int64) { return true, 7 })
	m.WatchKeys(func() (bool, time.Time) { return true, time.Unix(1800000000, 0) })
	m.WatchLog(func() int64 { return 3 })
	m.SetKeys([]string{"1", "2"})
	m.Watch(metrics.Sources{
		Pool: func() pool.Stat {
			return pool.Stat{Size: 8, Starting: 1, Idle: 2, Leased: 5, Late: 1, Leaving: 1, Waiting: 4, Memory: 64 << 20, Largest: 20 << 20}
		},
		API: func() api.Stat {
			return api.Stat{
				State: api.UpstreamAuth, Running: map[string]int{"chat": 3, "completions": 0, "responses": 0, "healthz": 1}, BypassUntil: time.Unix(1_800_000_000, 0), Streams: 5, Queued: 2, MaxStreams: 100,
				Silence: 1500 * time.Millisecond, Provider: &api.ProviderStat{Running: 2, Rejected: true},
			}
		},
		LoginExpiry: func() time.Time { return time.Unix(1790000000, 0) },
		Workdir:     ".",
		MaxWaiting:  64, ChildMemory: 512 << 20, MaxConnections: 900,
		Connections: func() map[string]int { return map[string]int{"public": 7, "admin": 2} }, NotAccepted: func() int64 { return 5 },
		ChildrenCPU: func() time.Duration { return 90500 * time.Millisecond },
	})
	return m
}

// filled is a page on which everything has happened.
func filled() *metrics.Metrics {
	m := empty()
	ctx := context.Background()
	hooks := m.PoolHooks()
	hooks.Spawned(ctx, 200*time.Millisecond, nil)
	hooks.Spawned(ctx, time.Second, errors.New("no"))
	hooks.Released(ctx, 1200*time.Millisecond)
	hooks.Retired(ctx, pool.Death{Why: pool.Age})
	hooks.Retired(ctx, pool.Death{Why: pool.Exited, InTurn: true})
	hooks.Probed(ctx, time.Millisecond, nil)
	hooks.Probed(ctx, 4*time.Second, errors.New("no"))
	for _, err := range []error{nil, pool.ErrFull, pool.ErrClosed, pool.ErrDraining, pool.ErrUnavailable, context.Canceled, errors.New("another choice failed"), pool.ErrTimeout} {
		hooks.Acquired(ctx, 3*time.Millisecond, 0, err)
	}
	late, cancel := context.WithTimeoutCause(ctx, 0, errors.New("the whole request took too long"))
	defer cancel()
	hooks.Acquired(late, 3*time.Millisecond, 0, context.Cause(late))
	relay := m.RelayHooks()
	relay.Request(ctx, 200, true, 40*time.Millisecond)
	relay.Request(ctx, 0, false, time.Second)
	relay.Request(ctx, 418, false, time.Second)
	relay.FirstToken(ctx, 400*time.Millisecond)
	relay.Retried(ctx)
	relay.Sent(ctx, 1900)
	relay.Received(ctx, 25000)
	relay.Limit(ctx, upstream.Limit{Kind: "limit", Unit: "tokens"}, 150000)
	relay.Limit(ctx, upstream.Limit{Kind: "remaining", Unit: "tokens"}, 149000)
	relay.Limit(ctx, upstream.Limit{Kind: "remaining", Unit: "tokens"}, 9000000) // of another model
	relay.Limit(ctx, upstream.Limit{Kind: "used", Unit: "primary"}, 0.125)
	relay.Limit(ctx, upstream.Limit{Kind: "reset", Unit: "primary"}, 1790000000)
	relay.Limit(ctx, upstream.Limit{Kind: "window", Unit: "primary"}, 18000)
	m.LoginRefreshed("refused")
	for _, r := range results() {
		m.ObserveRequest(ctx, r)
	}
	return m
}

func results() []api.Result {
	tokens := codex.Usage{Input: 8, Cached: 4, Output: 3, Reasoning: 1}
	list := []api.Result{
		{Stream: true, Status: 200, Took: 2 * time.Second, FirstToken: 30 * time.Millisecond, Wait: 5 * time.Millisecond, Upstream: 21 * time.Millisecond, Tokens: tokens, Commit: api.CommitToken},
		{Stream: true, Status: 200, Took: 20 * time.Second, Keepalives: 1, Commit: api.CommitTimer, Code: "child_exited", Fault: api.FaultChild},
		{Status: 200, Took: 4900 * time.Millisecond, FirstToken: time.Second, Tokens: tokens, Retried: true},
		{Status: 200, Took: 90 * time.Second, FirstToken: time.Second, Tokens: codex.Usage{Input: 513, Output: 1}, Estimated: codex.Usage{Input: 5, Output: 6}}, // its prompt is not short
		{Status: 400, Code: "invalid_json", Fault: api.FaultClient},
		{Status: 409, Code: "upstream_refused", Fault: api.FaultClient},
		{Status: 429, Code: "concurrency_exceeded", Fault: api.FaultLimit, Stream: true},
		{Status: 429, Code: "usage_limit_reached", Fault: api.FaultUpstream},
		{Status: 503, Code: "pool_saturated", Fault: api.FaultCapacity},
		{Status: api.StatusClientGone},
		{Status: api.StatusClientGone, SlowReader: true, Stream: true},
	}
	for i := range list {
		list[i].Route, list[i].Key, list[i].Completion, list[i].Model = "chat", "1", true, "gpt-test"
	}
	return append(list,
		api.Result{Route: "chat", Status: 200}, // HEAD
		api.Result{Route: "options", Status: 204, CrossOrigin: api.CrossOriginAllowed},
		api.Result{Route: "options", Status: 204, CrossOrigin: api.CrossOriginRefused},
		api.Result{Route: "chat", Key: "1", Status: 200, CrossOrigin: api.CrossOriginAllowed},
		api.Result{Route: "verify", Status: 200},
		api.Result{Route: "verify", Status: 401, Code: "invalid_api_key", Fault: api.FaultClient, AuthFailure: "throttled"},
		api.Result{Route: "models", Status: 401, Code: "invalid_api_key", Fault: api.FaultClient, AuthFailure: "missing"},
		api.Result{Route: "verify", Status: 403, Code: "permission_denied", Fault: api.FaultClient},
		api.Result{Route: "verify", Status: 200, Bypassed: true},
		api.Result{Route: "unmatched", Status: 404, Code: "not_found", Fault: api.FaultClient, Took: time.Millisecond},
	)
}

// golden holds what was made against a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got)\n%s", name, diff)
	}
}

func page(m *metrics.Metrics) string {
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

// TestPage holds our part of the page against a golden one: operators'
// dashboards and alerts depend on every name.
func TestPage(t *testing.T) {
	var got strings.Builder
	for line := range strings.Lines(page(filled())) {
		if strings.HasPrefix(line, "codexpool_workdir_") { // it is this machine's
			line = line[:strings.IndexByte(line, ' ')] + " 1\n"
		}
		if strings.Contains(line, "codexpool_") {
			got.WriteString(line)
		}
	}
	golden(t, "testdata/page.prom", got.String())
	if page := page(filled()); !strings.Contains(page, "go_goroutines") || !strings.Contains(page, "process_resident_memory_bytes") {
		t.Error("the process's own series are missing")
	}
}

func TestReferenceIsCurrent(t *testing.T) { golden(t, "REFERENCE.md", filled().Reference()) }

// series are those of a page that are ours, without their values.
func series(m *metrics.Metrics) map[string]bool {
	found := map[string]bool{}
	for line := range strings.Lines(page(m)) {
		if name, _, _ := strings.Cut(line, " "); strings.HasPrefix(name, "codexpool_") {
			found[name] = true
		}
	}
	return found
}

// TestEverySeriesOfAClosedListExistsFromTheStart: a rate over a series that appears with
// its first event misses that event.
func TestEverySeriesOfAClosedListExistsFromTheStart(t *testing.T) {
	before, after := series(empty()), series(filled())
	for _, name := range slices.Sorted(maps.Keys(after)) {
		told := strings.HasPrefix(name, "codexpool_upstream_ratelimit_") || strings.HasPrefix(name, "codexpool_upstream_window_") // by the provider
		if !before[name] && !told {
			t.Errorf("%s appears with its first event", name)
		}
	}
	// 24 series of the two keys, and 8 of the two models; a page of 1,500 series is the most.
	if n := len(before) - 24 - 8; n > 1400 {
		t.Errorf("%d series without keys", n)
	}
}

func TestLowestRateLimitOfAMinuteCounts(t *testing.T) {
	m := empty()
	tell := func(n float64) {
		m.RelayHooks().Limit(t.Context(), upstream.Limit{Kind: "remaining", Unit: "requests"}, n)
	}
	for _, n := range []float64{50, 40, 60} {
		tell(n)
	}
	if page := page(m); !strings.Contains(page, `codexpool_upstream_ratelimit_remaining{unit="requests"} 40`+"\n") {
		t.Error("not the lowest of the models")
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
