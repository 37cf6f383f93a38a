package metrics

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"codexpool/upstream"

	"github.com/prometheus/client_golang/prometheus"
)

// provider is what is counted between the relay and the provider.
type provider struct {
	tries      *prometheus.CounterVec
	firstByte  prometheus.Observer
	firstToken prometheus.Observer
	retries    prometheus.Counter
	sent       prometheus.Counter
	received   prometheus.Counter
	limits     map[string]*prometheus.GaugeVec // by upstream.Limit.Kind
	lowest     lowest
}

// providerCodes are the statuses that have series of their own; 0 is no answer.
var providerCodes = []string{"0", "200", "400", "401", "403", "404", "429", "500", "502", "503", "504", "529", "other"}

func (p *provider) declare(m *Metrics) {
	p.tries = m.counter("codexpool_upstream_requests_total", "Requests to the provider, each try counted, by its status (0 = no answer) and whether the connection was warm.", and(by("code", providerCodes...), "connection", "new", "warm"))
	p.firstByte = m.histogram("codexpool_upstream_first_byte_seconds", "Time until the provider's headers came, where its status was 200.", firstTokenBounds, none()).WithLabelValues()
	p.firstToken = m.histogram("codexpool_upstream_first_token_seconds", "Time from a request to the provider until the first text, refusal or call of its answer.", firstTokenBounds, none()).WithLabelValues()
	p.retries = m.counter("codexpool_upstream_retries_total", "Second tries at the provider.", none()).WithLabelValues()
	p.sent = m.counter("codexpool_upstream_sent_bytes_total", "Request bodies sent to the provider.", none()).WithLabelValues()
	p.received = m.counter("codexpool_upstream_received_bytes_total", "Response bodies that came from the provider.", none()).WithLabelValues()
	unit, window := by("unit", "requests", "tokens"), by("window", "primary", "secondary")
	p.limits = map[string]*prometheus.GaugeVec{
		"limit":     m.gauge("codexpool_upstream_ratelimit_limit", "The provider's rate limit; the lowest that it reported within a minute, as models differ. Absent until it reports one.", unit),
		"remaining": m.gauge("codexpool_upstream_ratelimit_remaining", "What remains of the provider's rate limit; the lowest that it reported within a minute. Absent until it reports one.", unit),
		"used":      m.gauge("codexpool_upstream_window_used_ratio", "The used part of a usage window of the ChatGPT login, as the provider last reported it; it counts until the window's reset. Absent until then.", window),
		"reset":     m.gauge("codexpool_upstream_window_reset_timestamp_seconds", "When a usage window ends. Absent until the provider reports it.", window),
		"window":    m.gauge("codexpool_upstream_window_seconds", "Length of a usage window. Absent until the provider reports it.", window),
	}
	p.lowest.values = map[upstream.Limit]reported{}
}

// RelayHooks counts what happens between the relay and the provider.
func (m *Metrics) RelayHooks() upstream.Hooks {
	return upstream.Hooks{
		Request: func(_ context.Context, status int, reused bool, firstByte time.Duration) {
			connection := "new"
			if reused {
				connection = "warm"
			}
			m.tries.WithLabelValues(known(strconv.Itoa(status), providerCodes), connection).Inc()
			if status == 200 {
				m.firstByte.Observe(firstByte.Seconds())
			}
		},
		FirstToken: func(_ context.Context, took time.Duration) { m.provider.firstToken.Observe(took.Seconds()) },
		Retried:    func(context.Context) { m.retries.Inc() },
		Sent:       func(_ context.Context, bytes int64) { m.sent.Add(float64(bytes)) },
		Received:   func(_ context.Context, bytes int64) { m.received.Add(float64(bytes)) },
		Limit: func(_ context.Context, l upstream.Limit, value float64) {
			m.limits[l.Kind].WithLabelValues(l.Unit).Set(m.lowest.of(l, value))
		},
	}
}

// known is a value of a closed list, or "other", which is in the list.
func known(value string, list []string) string {
	if slices.Contains(list, value) {
		return value
	}
	return "other"
}

// Limits are the provider's limits as the page has them.
func (m *Metrics) Limits() map[upstream.Limit]float64 {
	m.lowest.mu.Lock()
	defer m.lowest.mu.Unlock()
	limits := map[upstream.Limit]float64{}
	for limit, reported := range m.lowest.values {
		limits[limit] = reported.value
	}
	return limits
}

// lowest keeps the last value of each limit; of a rate limit, which differs between
// models, the lowest that was reported within a minute.
type lowest struct {
	mu     sync.Mutex
	values map[upstream.Limit]reported // guarded by mu
}

type reported struct {
	value float64
	at    time.Time
}

func (l *lowest) of(limit upstream.Limit, value float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	rate := limit.Kind == "limit" || limit.Kind == "remaining"
	if last, ok := l.values[limit]; ok && rate && last.value < value && time.Since(last.at) < time.Minute {
		return last.value
	}
	l.values[limit] = reported{value, time.Now()}
	return value
}
