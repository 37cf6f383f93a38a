package metrics

import (
	"context"
	"slices"
	"strconv"

	"codexpool/api"

	"github.com/prometheus/client_golang/prometheus"
)

// requests is what is counted of the api.
type requests struct {
	all         *prometheus.CounterVec
	errors      *prometheus.CounterVec
	completions *prometheus.CounterVec
	keys        keySeries
	crossOrigin *prometheus.CounterVec
	forwardAuth *prometheus.CounterVec
	unknown     *prometheus.CounterVec
	retried     prometheus.Counter

	duration   *prometheus.HistogramVec
	firstToken *prometheus.HistogramVec
	short      prometheus.Observer
	perToken   prometheus.Observer
	overhead   prometheus.Observer

	commits    *prometheus.CounterVec
	keepalives prometheus.Counter

	estimated                        *prometheus.CounterVec // tokens
	input, cached, output, reasoning *prometheus.CounterVec // tokens
}

// The statuses that have series of their own.
var (
	completionStatuses = []string{"200", "400", "401", "403", "404", "408", "413", "415", "429", "499", "500", "502", "503", "504", "other"}
	otherStatuses      = []string{"200", "202", "204", "400", "401", "403", "404", "405", "429", "499", "500", "503", "other"}
)

// shortPrompt is how many tokens a short prompt has at most.
const shortPrompt = 512

func (r *requests) declare(m *Metrics) {
	var codes, errors [][]string
	for _, route := range slices.Concat(api.CompletionRoutes, api.OtherRoutes) {
		for _, status := range statuses(route) {
			codes = append(codes, []string{route, status})
		}
		for _, k := range api.Kinds {
			if k.Any || completes(route) {
				errors = append(errors, []string{route, k.Code, string(k.Fault)})
			}
		}
	}
	route := by("route", api.CompletionRoutes...)
	streamed := and(route, "stream", "true", "false")
	r.all = m.counter("codexpool_http_requests_total", "Requests, by route and status; 499 where the client disconnected first.", of([]string{"route", "code"}, codes))
	r.errors = m.counter("codexpool_http_errors_total", "Requests that failed, by route, error code and whose fault it is; also those that failed after their 200, not those whose client disconnected.", of([]string{"route", "error", "fault"}, errors))
	r.completions = m.counter("codexpool_completions_total", "Requests for completions, by how they ended: failed by the fault of a child, the provider, the pool or the daemon, before or after the 200; refused by the client's own fault; limited by a limit for the client; left by the client; slow_reader where the client was connected and did not read. Availability is ok / (ok + failed).", and(streamed, "outcome", outcomes...))
	key := none().open("key", "the key's name, `other` beyond 200 of them")
	r.keys.requests = m.counter("codexpool_key_requests_total", "Requests of each key, by how they ended; requests without a valid key are not counted.", key.open("outcome", list(outcomes)))
	r.keys.tokens = m.counter("codexpool_key_tokens_total", "Tokens of each key as the provider counted them, by type; cached ones are a part of input, reasoning ones of output.", key.open("type", "`input`, `cached`, `output`, `reasoning`"))
	r.crossOrigin = m.counter("codexpool_cors_requests_total", "Requests of web pages of another origin, by kind and whether the page may read the answer.", and(by("kind", "preflight", "actual"), "result", api.CrossOriginAllowed, api.CrossOriginRefused))
	r.forwardAuth = m.counter("codexpool_forwardauth_requests_total", "Requests that an edge asked /verify about, by the answer; bypassed ones had no key that may.", by("result", "ok", "denied", "bypassed"))
	r.unknown = m.counter("codexpool_auth_failures_total", "Requests without a valid key, by who was asked (the API itself, or /verify by an edge) and why: throttled ones came from an address that had tried too many.", and(by("via", "api", "forwardauth"), "reason", api.AuthFailures...))
	r.retried = m.counter("codexpool_turn_retries_total", "Requests that ran again on a second child, because the first died before it got any of the conversation.", none()).WithLabelValues()
	r.duration = m.histogram("codexpool_http_request_duration_seconds", "Time that requests for completions took.", requestBounds, streamed)
	r.firstToken = m.histogram("codexpool_time_to_first_token_seconds", "Time from a request to the first text, refusal or call of its answer.", firstTokenBounds, streamed)
	r.short = m.histogram("codexpool_short_answer_seconds", "Time that answers in one piece to prompts of at most 512 tokens took, where they did not fail.", shortBounds, none()).WithLabelValues()
	r.perToken = m.histogram("codexpool_time_per_output_token_seconds", "Time between two tokens of a stream, on average over each stream that did not fail.", perTokenBounds, none()).WithLabelValues()
	r.overhead = m.histogram("codexpool_overhead_seconds", "What codexpool adds: the time to the first token without the time in the queue and without the provider's own.", overheadBounds, none()).WithLabelValues()
	r.commits = m.counter("codexpool_sse_commits_total", "Streams whose 200 was sent, by what made it be sent: token, the model began; timer, PROXY_SSE_COMMIT_MS was over, after which a failure can be no HTTP status.", by("by", api.CommitToken, api.CommitTimer))
	r.keepalives = m.counter("codexpool_sse_keepalives_total", "Comments that streams were sent in a silence, counted when the stream has ended.", none()).WithLabelValues()
	r.estimated = m.counter("codexpool_estimated_tokens_total", "Tokens of answers that were cut at a stop sequence, which the provider does not count: a quarter of their bytes.", by("kind", "input", "output"))
	model := none().open("model", "an id of the CLI's catalog, or `other`")
	r.input = m.counter("codexpool_input_tokens_total", "Tokens of prompts, as the provider counted them.", model)
	r.cached = m.counter("codexpool_cached_input_tokens_total", "Of them, those that it had cached.", model)
	r.output = m.counter("codexpool_output_tokens_total", "Tokens of answers, as the provider counted them.", model)
	r.reasoning = m.counter("codexpool_reasoning_tokens_total", "Of them, those of the reasoning.", model)
}

// completes reports whether a route is one of completions.
func completes(route string) bool { return slices.Contains(api.CompletionRoutes, route) }

// statuses lists those of a route that have series of their own.
func statuses(route string) []string {
	if completes(route) {
		return completionStatuses
	}
	return otherStatuses
}

// setModels makes the series of these models exist.
func (r *requests) setModels(models []string) {
	for _, c := range []*prometheus.CounterVec{r.input, r.cached, r.output, r.reasoning} {
		for _, model := range models {
			c.WithLabelValues(model)
		}
	}
}

// ObserveRequest counts one request. ctx is the request's.
func (m *Metrics) ObserveRequest(_ context.Context, r api.Result) {
	m.all.WithLabelValues(r.Route, known(strconv.Itoa(r.Status), statuses(r.Route))).Inc()
	if r.Code != "" {
		m.requests.errors.WithLabelValues(r.Route, r.Code, string(r.Fault)).Inc()
	}
	m.keys.observe(r)
	if r.Route == "verify" {
		m.forwardAuth.WithLabelValues(verifyResult(r)).Inc()
	}
	if r.AuthFailure != "" {
		via := "api"
		if r.Route == "verify" {
			via = "forwardauth"
		}
		m.unknown.WithLabelValues(via, r.AuthFailure).Inc()
	}
	if r.CrossOrigin != "" {
		kind := "actual"
		if r.Route == "options" {
			kind = "preflight"
		}
		m.crossOrigin.WithLabelValues(kind, r.CrossOrigin).Inc()
	}
	if r.Completion {
		m.observeCompletion(r)
	}
}

// observeCompletion counts what only a completion has.
func (m *Metrics) observeCompletion(r api.Result) {
	stream, ended := strconv.FormatBool(r.Stream), outcome(r)
	m.completions.WithLabelValues(r.Route, stream, ended).Inc()
	m.duration.WithLabelValues(r.Route, stream).Observe(r.Took.Seconds())
	if r.Retried {
		m.retried.Inc()
	}
	if r.Commit != "" {
		m.commits.WithLabelValues(string(r.Commit)).Inc()
	}
	m.keepalives.Add(float64(r.Keepalives))
	m.estimated.WithLabelValues("input").Add(float64(r.Estimated.Input))
	m.estimated.WithLabelValues("output").Add(float64(r.Estimated.Output))
	if r.Model != "" {
		for c, n := range map[*prometheus.CounterVec]int64{m.input: r.Tokens.Input, m.cached: r.Tokens.Cached, m.output: r.Tokens.Output, m.reasoning: r.Tokens.Reasoning} {
			c.WithLabelValues(r.Model).Add(float64(n))
		}
	}
	if r.FirstToken > 0 {
		m.requests.firstToken.WithLabelValues(r.Route, stream).Observe(r.FirstToken.Seconds())
		if r.Upstream > 0 {
			m.overhead.Observe(max(0, (r.FirstToken - r.Wait - r.Upstream).Seconds()))
		}
	}
	switch {
	case ended != "ok":
	case !r.Stream && r.Tokens.Input > 0 && r.Tokens.Input <= shortPrompt:
		m.short.Observe(r.Took.Seconds())
	case r.Stream && r.Tokens.Output > 1 && r.FirstToken > 0:
		m.perToken.Observe((r.Took - r.FirstToken).Seconds() / float64(r.Tokens.Output-1))
	}
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

// outcomes are the ends of a request.
var outcomes = []string{"ok", "failed", "refused", "limited", "left", "slow_reader"}

// outcome is how a request ended. Only failed counts against the daemon's availability.
func outcome(r api.Result) string {
	switch {
	case r.SlowReader:
		return "slow_reader"
	case r.Status == api.StatusClientGone:
		return "left"
	}
	switch r.Fault {
	case "":
		return "ok"
	case api.FaultClient:
		return "refused"
	case api.FaultLimit:
		return "limited"
	}
	return "failed"
}

func (m *Metrics) watchAPI(stat func() api.Stat) {
	m.read("codexpool_state", "1 for the state that the daemon is in, 0 for the others: ready, or why /readyz answers that it is not.", by("state", api.States...), func(set set) {
		now := stat().State
		for _, state := range api.States {
			set(is(state == now), string(state))
		}
	})
	m.read("codexpool_forwardauth_bypass_until_timestamp_seconds", "When the ForwardAuth bypass ends; 0 = it is closed.", none(), func(set set) {
		if until := stat().BypassUntil; !until.IsZero() {
			set(float64(until.Unix()))
			return
		}
		set(0)
	})
	m.read("codexpool_http_requests_in_flight", "Requests that run.", by("route", slices.Concat(api.CompletionRoutes, api.OtherRoutes)...), func(set set) {
		for route, n := range stat().Running {
			set(float64(n), route)
		}
	})
	m.read("codexpool_sse_streams", "SSE streams: waiting have had no child yet, open have.", by("state", "waiting", "open"), func(set set) {
		s := stat()
		set(float64(s.Queued), "waiting")
		set(float64(s.Streams-s.Queued), "open")
	})
	m.read("codexpool_sse_streams_limit", "SSE streams at most, in all states together; absent without a limit.", none(), func(set set) {
		if s := stat(); s.MaxStreams > 0 {
			set(float64(s.MaxStreams))
		}
	})
	m.read("codexpool_turn_silence_seconds", "The longest time, of all turns that run, since the child or the provider last sent anything; 0 without a turn.", none(), func(set set) { set(stat().Silence.Seconds()) })
	m.read("codexpool_upstream_requests_in_flight", "Requests that are with the provider; absent where children call it themselves.", none(), func(set set) {
		if p := stat().Provider; p != nil {
			set(float64(p.Running))
		}
	})
	m.read("codexpool_upstream_credential_ok", "0 if the provider has rejected the daemon's credential, or there is no usable one, else 1; absent where children call the provider themselves.", none(), func(set set) {
		if p := stat().Provider; p != nil {
			set(is(!p.Rejected))
		}
	})
}

func is(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
