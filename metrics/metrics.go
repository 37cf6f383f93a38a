// Package metrics counts what pool and api report, for Prometheus.
//
// It owns its registry: nothing is global, so two daemons can live in one test.
// The state of the pool and of the open streams is read at each scrape; events are
// counted as they happen.
package metrics

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"codexpool/api"
	"codexpool/pool"
	"codexpool/upstream"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is every series of the daemon.
type Metrics struct {
	registry *prometheus.Registry
	version  string
	info     *prometheus.GaugeVec

	acquireWait *prometheus.HistogramVec
	starts      *prometheus.CounterVec
	startTime   prometheus.Observer
	deaths      *prometheus.CounterVec
	probes      *prometheus.CounterVec
	probeTime   prometheus.Observer
	requests    *prometheus.CounterVec
	errors      *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	firstToken  *prometheus.HistogramVec
	tokens      *prometheus.CounterVec
	estimated   *prometheus.CounterVec
	keys        keySeries
	crossOrigin *prometheus.CounterVec
	forwardAuth *prometheus.CounterVec

	upstreamRequests  *prometheus.CounterVec
	upstreamFirstByte prometheus.Observer
	upstreamRetries   prometheus.Counter
	upstreamSent      prometheus.Counter
	upstreamReceived  prometheus.Counter
	upstreamOverrides *prometheus.CounterVec
	upstreamLimit     *prometheus.GaugeVec
	upstreamUsed      *prometheus.GaugeVec
}

// From a warm child on an idle machine to a queue of minutes, in seconds.
var (
	waitBuckets    = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60}
	tokenBuckets   = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120}
	requestBuckets = []float64{.01, .05, .1, .5, 1, 5, 10, 30, 60, 120, 300, 600}
)

// New makes a registry with the series of the process and of ours. version is
// the daemon's.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), version: version}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(g)
		return g
	}
	histogram := func(buckets []float64, name, help string, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(h)
		return h
	}
	m.acquireWait = histogram(waitBuckets, "codexpool_pool_acquire_wait_seconds", "Time that requests waited for a child, by how the wait ended.", "outcome")
	m.starts = counter("codexpool_child_starts_total", "Starts of children, by how they ended.", "outcome")
	m.startTime = histogram(waitBuckets, "codexpool_child_start_seconds", "Time from the start of a child until it was warm.").WithLabelValues()
	m.deaths = counter("codexpool_child_deaths_total", "Children that were stopped or died, by reason.", "reason")
	m.probes = counter("codexpool_child_probes_total", "Health probes of idle children, by how they ended.", "outcome")
	m.probeTime = histogram(waitBuckets, "codexpool_child_probe_seconds", "Time that children took to answer a health probe.").WithLabelValues()
	m.requests = counter("codexpool_http_requests_total", "Requests, by route and status; 499 where the client disconnected first.", "route", "code")
	m.errors = counter("codexpool_http_errors_total", "Requests that failed, by route and error code; also those that failed after their 200, not those whose client disconnected.", "route", "error")
	m.duration = histogram(requestBuckets, "codexpool_http_request_duration_seconds", "Time that requests took, by route.", "route")
	m.firstToken = histogram(tokenBuckets, "codexpool_time_to_first_token_seconds", "Time from a request to the first text of its answer, by route.", "route")
	m.tokens = counter("codexpool_tokens_total", "Tokens as the upstream counted them; cached ones are a part of input, reasoning ones of output.", "kind")
	m.estimated = counter("codexpool_estimated_tokens_total", "Tokens of answers that were cut at a stop sequence, which the upstream does not count: a quarter of their bytes.", "kind")
	m.keys.requests = counter("codexpool_key_requests_total", "Requests of each key, by the key's name and how they ended; requests without a valid key are not counted.", "key", "outcome")
	m.keys.tokens = counter("codexpool_key_tokens_total", "Tokens of each key as the upstream counted them, by the key's name and type; cached ones are a part of input, reasoning ones of output.", "key", "type")
	m.crossOrigin = counter("codexpool_cors_requests_total", "Requests of web pages of another origin, by kind and whether the page may read the answer.", "kind", "result")
	m.forwardAuth = counter("codexpool_forwardauth_requests_total", "Requests that an edge asked /verify about, by the answer; bypassed ones had no key that may.", "result")
	m.upstreamLimit = gauge("codexpool_upstream_limit", "The provider's rate limits as it last reported them, and what remains of them.", "kind", "unit")
	m.upstreamUsed = gauge("codexpool_upstream_used_ratio", "The used part of the provider's usage windows, as it last reported it.", "window")
	m.upstreamRequests = counter("codexpool_upstream_requests_total", "Requests to the provider, each try counted, by its status (0 = no answer) and whether the connection was warm.", "code", "connection")
	m.upstreamFirstByte = histogram(tokenBuckets, "codexpool_upstream_first_byte_seconds", "Time until the provider's headers came.").WithLabelValues()
	m.upstreamRetries = counter("codexpool_upstream_retries_total", "Second tries at the provider.").WithLabelValues()
	m.upstreamSent = counter("codexpool_upstream_sent_bytes_total", "Request bodies sent to the provider.").WithLabelValues()
	m.upstreamReceived = counter("codexpool_upstream_received_bytes_total", "Response bodies that came from the provider.").WithLabelValues()
	m.upstreamOverrides = counter("codexpool_upstream_overrides_total", "Fields of callers that were written into requests to the provider, by their name there.", "field")
	m.info = gauge("codexpool_build_info", "Always 1; the versions are in the labels.", "version", "codex_version")
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// Series of a closed list exist from the start: a rate over one that appears
	// with its first event misses that event.
	for _, r := range pool.Reasons {
		m.deaths.WithLabelValues(string(r))
	}
	for _, outcome := range []string{"ok", "error"} {
		m.starts.WithLabelValues(outcome)
		m.probes.WithLabelValues(outcome)
	}
	for _, result := range []string{"ok", "denied", "bypassed"} {
		m.forwardAuth.WithLabelValues(result)
	}
	for _, kind := range []string{"preflight", "actual"} {
		m.crossOrigin.WithLabelValues(kind, api.CrossOriginAllowed)
		m.crossOrigin.WithLabelValues(kind, api.CrossOriginRefused)
	}
	for _, outcome := range waitOutcomes {
		m.acquireWait.WithLabelValues(outcome)
	}
	return m
}

// SetCLI sets the version of the Codex CLI that children are started from.
func (m *Metrics) SetCLI(version string) {
	m.info.Reset()
	m.info.WithLabelValues(m.version, version).Set(1)
}

// WatchKeys reads, at each scrape, whether the keys file as it is now is in force, and
// since when a file is.
func (m *Metrics) WatchKeys(stat func() (ok bool, at time.Time)) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "codexpool_keys_reload_success", Help: "1 = the keys file as it is now is in force; 0 = it has a mistake, and the keys before it stay.",
	}, func() float64 {
		ok, _ := stat()
		return truth(ok)
	}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "codexpool_keys_reload_timestamp_seconds", Help: "When a keys file last came into force.",
	}, func() float64 {
		_, at := stat()
		return float64(at.UnixMilli()) / 1000
	}))
}

// Handler serves the metrics page.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// Registry is for tests that read it.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// PoolHooks counts what happens in a pool.
func (m *Metrics) PoolHooks() pool.Hooks {
	return pool.Hooks{
		Spawned: func(_ context.Context, took time.Duration, err error) {
			if err != nil {
				m.starts.WithLabelValues("error").Inc()
				return
			}
			m.starts.WithLabelValues("ok").Inc()
			m.startTime.Observe(took.Seconds())
		},
		Acquired: func(ctx context.Context, waited time.Duration, err error) {
			m.acquireWait.WithLabelValues(waitOutcome(ctx, err)).Observe(waited.Seconds())
		},
		Probed: func(_ context.Context, took time.Duration, err error) {
			if err != nil {
				m.probes.WithLabelValues("error").Inc()
				return
			}
			m.probes.WithLabelValues("ok").Inc()
			m.probeTime.Observe(took.Seconds())
		},
		Retired: func(_ context.Context, why pool.Reason) { m.deaths.WithLabelValues(string(why)).Inc() },
	}
}

// RelayHooks counts what happens between the relay and the provider.
func (m *Metrics) RelayHooks() upstream.Hooks {
	return upstream.Hooks{
		Request: func(_ context.Context, status int, reused bool, firstByte time.Duration) {
			connection := "new"
			if reused {
				connection = "warm"
			}
			m.upstreamRequests.WithLabelValues(strconv.Itoa(status), connection).Inc()
			if status != 0 {
				m.upstreamFirstByte.Observe(firstByte.Seconds())
			}
		},
		Retried:    func(context.Context) { m.upstreamRetries.Inc() },
		Sent:       func(_ context.Context, bytes int64) { m.upstreamSent.Add(float64(bytes)) },
		Received:   func(_ context.Context, bytes int64) { m.upstreamReceived.Add(float64(bytes)) },
		Overridden: func(_ context.Context, field string) { m.upstreamOverrides.WithLabelValues(field).Inc() },
		Limit: func(_ context.Context, l upstream.Limit, value float64) {
			if l.Kind == "used" {
				m.upstreamUsed.WithLabelValues(l.Unit).Set(value)
				return
			}
			m.upstreamLimit.WithLabelValues(l.Kind, l.Unit).Set(value)
		},
	}
}

// waitOutcomes are the ends of waiting for a child.
var waitOutcomes = []string{"leased", "full", "timeout", "left", "unavailable", "closing"}

// waitOutcome is how the waiting of a request ended, whose context is ctx.
func waitOutcome(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "leased"
	case errors.Is(err, pool.ErrFull):
		return "full"
	case errors.Is(err, pool.ErrUnavailable):
		return "unavailable"
	case errors.Is(err, pool.ErrDraining), errors.Is(err, pool.ErrClosed):
		return "closing"
	case errors.Is(err, pool.ErrTimeout), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "timeout"
	}
	return "left" // the client disconnected, or another choice of its request failed
}

// ObserveRequest counts one request. ctx is the request's.
func (m *Metrics) ObserveRequest(_ context.Context, r api.Result) {
	m.requests.WithLabelValues(r.Route, strconv.Itoa(r.Status)).Inc()
	m.duration.WithLabelValues(r.Route).Observe(r.Took.Seconds())
	if r.Code != "" {
		m.errors.WithLabelValues(r.Route, r.Code).Inc()
	}
	m.keys.observe(r)
	if r.Route == "verify" {
		m.forwardAuth.WithLabelValues(verifyResult(r)).Inc()
	}
	if r.CrossOrigin != "" {
		kind := "actual"
		if r.Route == "options" {
			kind = "preflight"
		}
		m.crossOrigin.WithLabelValues(kind, r.CrossOrigin).Inc()
	}
	for kind, n := range byKind(r) {
		m.tokens.WithLabelValues(kind).Add(float64(n))
	}
	m.estimated.WithLabelValues("input").Add(float64(r.Estimated.Input))
	m.estimated.WithLabelValues("output").Add(float64(r.Estimated.Output))
	if r.FirstToken > 0 {
		m.firstToken.WithLabelValues(r.Route).Observe(r.FirstToken.Seconds())
	}
}

// requestOutcomes are the ends of a request.
var requestOutcomes = []string{"ok", "failed", "refused", "limited", "left"}

// requestOutcome is how a request ended: by itself, by a fault of the daemon or
// of the provider, by a mistake of the client, at a limit of ours for the client,
// or because the client disconnected.
func requestOutcome(r api.Result) string {
	switch {
	case r.Status == api.StatusClientGone:
		return "left"
	case r.Code == "":
		return "ok"
	case r.Code == "rate_limited", r.Code == "concurrency_exceeded":
		return "limited"
	case r.Status >= 400 && r.Status < 500 && r.Status != http.StatusTooManyRequests:
		return "refused"
	}
	return "failed"
}

// verifyResult is what /verify answered.
func verifyResult(r api.Result) string {
	switch {
	case r.Bypassed:
		return "bypassed"
	case r.Status >= 400:
		return "denied"
	}
	return "ok"
}

// WatchPool reads stat at each scrape.
func (m *Metrics) WatchPool(stat func() pool.Stat) { m.registry.MustRegister(poolCollector{stat}) }

var (
	childrenDesc = prometheus.NewDesc("codexpool_pool_children", "Children of the pool, by state.", []string{"state"}, nil)
	sizeDesc     = prometheus.NewDesc("codexpool_pool_size", "Children at most.", nil, nil)
	memoryDesc   = prometheus.NewDesc("codexpool_pool_memory_bytes", "Private memory of all children and their helpers.", nil, nil)
	waitingDesc  = prometheus.NewDesc("codexpool_pool_waiting", "Requests in the queue for a child.", nil, nil)
)

type poolCollector struct{ stat func() pool.Stat }

func (c poolCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- childrenDesc
	descs <- sizeDesc
	descs <- memoryDesc
	descs <- waitingDesc
}

func (c poolCollector) Collect(metrics chan<- prometheus.Metric) {
	s := c.stat()
	gauge := func(desc *prometheus.Desc, n int, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	gauge(memoryDesc, int(s.Memory))
	gauge(childrenDesc, s.Starting, "starting")
	gauge(childrenDesc, s.Idle, "idle")
	gauge(childrenDesc, s.Leased, "leased")
	gauge(sizeDesc, s.Size)
	gauge(waitingDesc, s.Waiting)
}

// WatchAPI reads stat at each scrape.
func (m *Metrics) WatchAPI(stat func() api.Stat) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "codexpool_sse_streams", Help: "SSE streams, open or waiting for a child.",
	}, func() float64 { return float64(stat().Streams) }))
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "codexpool_forwardauth_bypass_until_timestamp_seconds", Help: "When the ForwardAuth bypass ends, in Unix time; 0 = it is closed.",
	}, func() float64 {
		if until := stat().BypassUntil; !until.IsZero() {
			return float64(until.Unix())
		}
		return 0
	}))
}

// WatchLog reads at each scrape how many lines of the log were dropped.
func (m *Metrics) WatchLog(dropped func() int64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "codexpool_log_dropped_total", Help: "Lines of the log that were dropped, because stderr did not take them.",
	}, func() float64 { return float64(dropped()) }))
}

// WatchConnections reads at each scrape how many connections of the public listener are
// open. most is how many may be.
func (m *Metrics) WatchConnections(open func() int, most int) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "codexpool_http_connections", Help: "Connections of the public listener that are open.",
		}, func() float64 { return float64(open()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "codexpool_http_connections_max", Help: "Connections of the public listener at most.",
		}, func() float64 { return float64(most) }),
	)
}
