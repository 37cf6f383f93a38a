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
	startTime   prometheus.Histogram
	deaths      *prometheus.CounterVec
	probes      *prometheus.CounterVec
	probeTime   prometheus.Histogram
	requests    *prometheus.CounterVec
	errors      *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	firstToken  *prometheus.HistogramVec
	tokens      *prometheus.CounterVec
	keyRequests *prometheus.CounterVec

	upstreamRequests  *prometheus.CounterVec
	upstreamFirstByte prometheus.Histogram
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
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		acquireWait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "codexpool_pool_acquire_wait_seconds", Buckets: waitBuckets,
			Help: "Time that requests waited for a child, by how the wait ended.",
		}, []string{"outcome"}),
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "codexpool_child_starts_total", Help: "Starts of children, by how they ended.",
		}, []string{"outcome"}),
		startTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "codexpool_child_start_seconds", Buckets: waitBuckets,
			Help: "Time from the start of a child until it was warm.",
		}),
		deaths: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "codexpool_child_deaths_total", Help: "Children that were stopped or died, by reason.",
		}, []string{"reason"}),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "codexpool_child_probes_total", Help: "Health probes of idle children, by how they ended.",
		}, []string{"outcome"}),
		probeTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "codexpool_child_probe_seconds", Buckets: waitBuckets,
			Help: "Time that children took to answer a health probe.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "codexpool_http_requests_total", Help: "Requests, by route and status; 499 where the client disconnected first.",
		}, []string{"route", "code"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "codexpool_http_errors_total", Help: "Requests that failed, by route and error code; also those that failed after their 200, not those whose client disconnected.",
		}, []string{"route", "error"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "codexpool_http_request_duration_seconds", Buckets: requestBuckets,
			Help: "Time that requests took, by route.",
		}, []string{"route"}),
		firstToken: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "codexpool_time_to_first_token_seconds", Buckets: tokenBuckets,
			Help: "Time from a request to the first text of its answer, by route.",
		}, []string{"route"}),
	}
	m.tokens = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "codexpool_tokens_total", Help: "Tokens as the upstream counted them; cached ones are a part of input, reasoning ones of output.",
	}, []string{"kind"})
	m.keyRequests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "codexpool_key_requests_total", Help: "Requests of each key, by the key's name and how they ended; requests without a valid key are not counted.",
	}, []string{"key", "outcome"})
	m.upstreamLimit = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "codexpool_upstream_limit", Help: "The provider's rate limits as it last reported them, and what remains of them.",
	}, []string{"kind", "unit"})
	m.upstreamUsed = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "codexpool_upstream_used_ratio", Help: "The used part of the provider's usage windows, as it last reported it.",
	}, []string{"window"})
	m.upstreamRequests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "codexpool_upstream_requests_total", Help: "Requests to the provider, each try counted, by its status (0 = no answer) and whether the connection was warm.",
	}, []string{"code", "connection"})
	m.upstreamFirstByte = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "codexpool_upstream_first_byte_seconds", Buckets: tokenBuckets, Help: "Time until the provider's headers came.",
	})
	m.upstreamRetries = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "codexpool_upstream_retries_total", Help: "Second tries at the provider.",
	})
	m.upstreamSent = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "codexpool_upstream_sent_bytes_total", Help: "Request bodies sent to the provider.",
	})
	m.upstreamReceived = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "codexpool_upstream_received_bytes_total", Help: "Response bodies that came from the provider.",
	})
	m.upstreamOverrides = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "codexpool_upstream_overrides_total", Help: "Fields of callers that were written into requests to the provider, by their name there.",
	}, []string{"field"})
	m.info = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "codexpool_build_info", Help: "Always 1; the versions are in the labels.",
	}, []string{"version", "codex_version"})
	m.version = version
	m.registry.MustRegister(
		m.acquireWait, m.starts, m.startTime, m.deaths, m.probes, m.probeTime, m.requests, m.errors, m.duration, m.firstToken, m.info,
		m.upstreamRequests, m.upstreamFirstByte, m.upstreamRetries, m.upstreamSent, m.upstreamReceived, m.upstreamOverrides, m.upstreamLimit, m.upstreamUsed, m.tokens, m.keyRequests,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	// Series of a closed list exist from the start: a rate over one that appears
	// with its first event misses that event.
	for _, r := range pool.Reasons {
		m.deaths.WithLabelValues(string(r))
	}
	for _, outcome := range []string{"ok", "error"} {
		m.starts.WithLabelValues(outcome)
		m.probes.WithLabelValues(outcome)
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

// SetKeys makes the series of the keys with these names exist.
func (m *Metrics) SetKeys(names []string) {
	for _, name := range names {
		for _, outcome := range requestOutcomes {
			m.keyRequests.WithLabelValues(name, outcome)
		}
	}
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
	if r.Key != "" {
		m.keyRequests.WithLabelValues(r.Key, requestOutcome(r)).Inc()
	}
	for kind, n := range map[string]int64{"input": r.Tokens.Input, "cached": r.Tokens.Cached, "output": r.Tokens.Output, "reasoning": r.Tokens.Reasoning} {
		m.tokens.WithLabelValues(kind).Add(float64(n))
	}
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
}
