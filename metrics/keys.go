package metrics

import (
	"sync"
	"time"

	"codexpool/api"

	"github.com/prometheus/client_golang/prometheus"
)

// maxKeys is how many keys have series of their own. The others share those of otherKeys.
const (
	maxKeys   = 200
	otherKeys = "other"
)

// keySeries are the series of the keys that exist.
type keySeries struct {
	requests, tokens *prometheus.CounterVec

	mu     sync.Mutex
	labels map[string]string // of each key that exists, by its name; guarded by mu
}

// SetKeys makes the series of the keys with these names exist, and no others. A key that
// has series of its own keeps them.
func (m *Metrics) SetKeys(names []string) { m.keys.set(names) }

func (k *keySeries) set(names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	labels, own := map[string]string{}, 0
	for _, name := range names {
		if k.labels[name] == name {
			labels[name] = name
			own++
		}
	}
	for _, name := range names {
		if _, has := labels[name]; has {
			continue
		}
		if labels[name] = otherKeys; own < maxKeys {
			labels[name] = name
			own++
		}
	}
	stay := map[string]bool{}
	for _, label := range labels {
		stay[label] = true
		k.begin(label)
	}
	for _, label := range k.labels {
		if !stay[label] {
			k.requests.DeletePartialMatch(prometheus.Labels{"key": label})
			k.tokens.DeletePartialMatch(prometheus.Labels{"key": label})
		}
	}
	k.labels = labels
}

// begin makes the series of a key exist.
func (k *keySeries) begin(label string) {
	for _, outcome := range outcomes {
		k.requests.WithLabelValues(label, outcome)
	}
	for kind := range byKind(api.Result{}) {
		k.tokens.WithLabelValues(label, kind)
	}
}

// observe counts a request of a key, if the key still exists.
func (k *keySeries) observe(r api.Result) {
	k.mu.Lock()
	defer k.mu.Unlock()
	label, exists := k.labels[r.Key]
	if !exists {
		return
	}
	k.requests.WithLabelValues(label, outcome(r)).Inc()
	for kind, n := range byKind(r) {
		k.tokens.WithLabelValues(label, kind).Add(float64(n))
	}
}

// WatchRedis reads, at each scrape, whether the limits of keys are shared through Redis
// now, and how many calls have failed.
func (m *Metrics) WatchRedis(stat func() (up bool, errors int64)) {
	m.read("codexpool_ratelimit_redis_up", "1 = the limits of keys are shared through Redis; 0 = it cannot be used, and this daemon limits keys by itself. Absent without Redis.", none(), func(set set) {
		up, _ := stat()
		set(is(up))
	})
	m.readCounter("codexpool_ratelimit_redis_errors_total", "Calls of Redis that failed or were too slow. Absent without Redis.", func() float64 {
		_, errors := stat()
		return float64(errors)
	})
}

// WatchKeys reads, at each scrape, whether the keys file as it is now is in force, and
// since when a file is.
func (m *Metrics) WatchKeys(stat func() (ok bool, at time.Time)) {
	m.read("codexpool_keys_reload_success", "1 = the keys file as it is now is in force; 0 = it has a mistake, and the keys before it stay. Absent without a keys file.", none(), func(set set) {
		ok, _ := stat()
		set(is(ok))
	})
	m.read("codexpool_keys_reload_timestamp_seconds", "When a keys file last came into force. Absent without a keys file.", none(), func(set set) {
		_, at := stat()
		set(float64(at.UnixMilli()) / 1000)
	})
}

// WatchKeyUse reads, at each scrape, how many open streams and how many requests in the
// queue each key has.
func (m *Metrics) WatchKeyUse(streams, waiting func() map[string]int) {
	use := func(name, help string, read func() map[string]int) {
		m.read(name, help, none().open("key", "the key's name"), func(set set) {
			for label, n := range m.keys.sums(read()) {
				set(float64(n), label)
			}
		})
	}
	use("codexpool_key_streams", "SSE streams of each key, open or waiting for a child.", streams)
	use("codexpool_key_waiting", "Requests of each key in the queue for a child.", waiting)
}

// sums adds up figures of keys that exist, by their labels.
func (k *keySeries) sums(figures map[string]int) map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	sums := map[string]int{}
	for name, label := range k.labels {
		sums[label] += figures[name]
	}
	return sums
}

// byKind are the tokens of a request; cached ones are a part of input, reasoning ones of
// output.
func byKind(r api.Result) map[string]int64 {
	return map[string]int64{"input": r.Tokens.Input, "cached": r.Tokens.Cached, "output": r.Tokens.Output, "reasoning": r.Tokens.Reasoning}
}
