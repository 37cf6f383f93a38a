package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// load is what a daemon did in a time.
type load struct {
	seconds    float64
	rate, hold float64 // as in demand
	used       []consumption
}

// consumption is the part of something that was used. From its most on, requests suffer.
type consumption struct {
	what       string
	part, most float64
	page       string // about it
}

// watchFor is how long a daemon is watched, unless CTRL-C ends that.
const watchFor = time.Minute

// watchLoad reads the metrics of a daemon twice.
func watchLoad(ctx context.Context, url string, stderr io.Writer) (load, error) {
	before, err := scrape(ctx, url)
	if err != nil {
		return load{}, err
	}
	began := time.Now()
	fmt.Fprintf(stderr, "watching it for %v; CTRL-C ends that earlier\n", watchFor)
	select {
	case <-ctx.Done():
	case <-time.After(watchFor):
	}
	after, err := scrape(context.WithoutCancel(ctx), url)
	if err != nil {
		return load{}, err
	}
	return loadBetween(before, after, time.Since(began).Seconds()), nil
}

// series are values of metrics by name and labels.
type series map[string]float64

// scrape reads the metrics of the admin listener at url.
func scrape(ctx context.Context, url string) (series, error) {
	url = strings.TrimSuffix(strings.TrimSuffix(url, "/"), "/metrics") + "/metrics"
	status, page, err := get(ctx, url)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s answers %d: %.200s", url, status, bytes.TrimSpace(page))
	}
	s := series{}
	for line := range strings.Lines(string(page)) {
		name, value, _ := cutLast(strings.TrimSpace(line), " ")
		if number, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(name, "#") {
			s[name] = number
		}
	}
	if s["codexpool_pool_size"] == 0 {
		return nil, fmt.Errorf("%s has no metrics of codexpool", url)
	}
	return s, nil
}

// sum adds up the series of a metric that have a label; label may be "".
func (s series) sum(metric, label string) (sum float64) {
	for name, value := range s {
		if base, labels, _ := strings.Cut(name, "{"); base == metric && strings.Contains(labels, label) {
			sum += value
		}
	}
	return sum
}

// loadBetween is what a daemon did between two looks at its metrics.
func loadBetween(before, after series, seconds float64) load {
	grew := func(metric, label string) float64 { return max(0, after.sum(metric, label)-before.sum(metric, label)) }
	limited := grew("codexpool_upstream_requests_total", `code="429"`) / max(1, grew("codexpool_upstream_requests_total", ""))
	leases, held := grew("codexpool_pool_lease_seconds_count", ""), grew("codexpool_pool_lease_seconds_sum", "")
	busy := max(held/seconds, after.sum("codexpool_pool_children", `state="leased"`)) / after["codexpool_pool_size"]
	queued := grew("codexpool_pool_acquire_wait_seconds_sum", "") > 0.05*seconds || after["codexpool_pool_waiting"] > 0 ||
		grew("codexpool_pool_acquires_total", `outcome="full"`) > 0 // there may be no queue
	if !queued {
		busy = min(busy, 0.94) // a pool that is just large enough holds nobody up
	}
	cpu := grew("process_cpu_seconds_total", "") + grew("codexpool_children_cpu_seconds_total", "")
	cores := cmp.Or(after["go_sched_gomaxprocs_threads"], float64(runtime.NumCPU()))
	return load{
		seconds: seconds,
		rate:    grew("codexpool_pool_acquires_total", "") / seconds,
		hold:    held / max(1, leases),
		used: []consumption{
			{"the provider's limit (answers with 429)", limited, 0.05, "UpstreamLimits"},
			{"connections", share(after.sum("codexpool_http_connections", `listener="public"`), after["codexpool_http_connections_limit"]), 0.9, "FileDescriptors"},
			{"descriptors", share(after["process_open_fds"], after["process_max_fds"]), 0.8, "FileDescriptors"},
			{"streams", share(after.sum("codexpool_sse_streams", ""), after["codexpool_sse_streams_limit"]), 0.9, "StreamsNearLimit"},
			{"CPU (its own and its children's)", cpu / seconds / cores, 0.8, "MachineStarved"},
			{"children", busy, 0.95, "PoolSaturated"},
		},
	}
}

// share is a part of a limit, 0 where there is none.
func share(n, limit float64) float64 {
	if limit == 0 {
		return 0
	}
	return n / limit
}

// bottleneck is the first thing that is used up, or nil.
func (l load) bottleneck() *consumption {
	for i, u := range l.used {
		if u.part >= u.most {
			return &l.used[i]
		}
	}
	return nil
}

func (l load) print(w io.Writer) {
	fmt.Fprintf(w, "seen in %.0f s: %g completions a second, each of which held a child for %g s\n\n", l.seconds, round(l.rate), round(l.hold))
	var rows [][]any
	for _, u := range l.used {
		rows = append(rows, []any{u.what, fmt.Sprintf("%.0f %%", 100*u.part)})
	}
	table(w, rows...)
	if b := l.bottleneck(); b != nil {
		fmt.Fprintf(w, "\nbottleneck: %s: see codexpool runbook %s\n\n", b.what, b.page)
	} else {
		fmt.Fprintf(w, "\nbottleneck: none\n\n")
	}
}
