package api_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex/codextest"
	"codexpool/metrics"
	"codexpool/pool"
	"codexpool/upstream"
)

// failure is one way in which a request fails.
type failure struct {
	name     string
	provider http.RoundTripper    // nil = the child answers by itself
	script   codextest.Script     // of the first child; nil = a healthy one
	cfg      func(*api.Config)    // may be nil, as may the next
	before   func(*books)         // what happened before the request
	request  func() *http.Request // nil = a completion
	both     bool                 // also after the 200 of a stream

	status  int // in one piece
	code    string
	fault   api.Fault
	outcome string // "" = that of no completion
}

// answers is a provider with this status and body.
type answers struct {
	status int
	body   string
}

func (a answers) RoundTrip(*http.Request) (*http.Response, error) {
	h := http.Header{}
	if strings.HasPrefix(a.body, "<") {
		h.Set("Content-Type", "text/html")
	}
	return &http.Response{StatusCode: a.status, Header: h, Body: io.NopCloser(strings.NewReader(a.body))}, nil
}

// fails is a provider whose answer begins, and fails with this code.
func fails(code string) http.RoundTripper {
	return pausing{[]string{
		`{"type":"response.output_text.delta","delta":"Hal"}`,
		`{"type":"response.failed","response":{"error":{"code":"` + code + `","message":"m"}}}`,
	}, time.Second}
}

// silences is a provider whose answer begins, and goes on for ever with this event.
func silences(pause time.Duration) http.RoundTripper {
	events := []string{`{"type":"response.output_text.delta","delta":"Hal"}`}
	return pausing{append(events, strings.Split(strings.Repeat("{\"type\":\"response.in_progress\"}\n", 400), "\n")[:400]...), pause}
}

func failures() []failure {
	wrong := func(body string) func() *http.Request { return func() *http.Request { return chat(body) } }
	words := func(code string) string { return `{"error":{"message":"m","type":"t","code":"` + code + `"}}` }
	short := func(timeout, idle time.Duration) func(*api.Config) {
		return func(c *api.Config) { c.Timeout, c.IdleTimeout, c.StreamIdleTimeout = timeout, idle, idle }
	}
	mute := codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Hour})}
	taken := func(b *books) {
		lease, err := b.pool.Acquire(context.Background())
		if err != nil {
			panic(err)
		}
		b.atEnd = append(b.atEnd, lease.Release)
	}
	return []failure{
		{name: "a wrong key", request: func() *http.Request { return by("wrong", chat(hello)) }, status: 401, code: "invalid_api_key", fault: api.FaultClient, outcome: "refused"},
		{name: "a route that the key may not use", cfg: func(c *api.Config) { c.Keys[0].Routes = []string{"models"} }, status: 403, code: "permission_denied", fault: api.FaultClient, outcome: "refused"},
		{name: "an unknown path", request: func() *http.Request { return request("POST", "/v1/nothing", "{}") }, status: 404, code: "not_found", fault: api.FaultClient},
		{name: "an unknown method", request: func() *http.Request { return request("DELETE", "/v1/chat/completions", "") }, status: 405, code: "method_not_allowed", fault: api.FaultClient},
		{name: "an unknown model", request: wrong(`{"model":"gpt-9",` + hello[1:]), status: 404, code: "model_not_found", fault: api.FaultClient, outcome: "refused"},
		{name: "bad JSON", request: wrong("{"), status: 400, code: "invalid_json", fault: api.FaultClient, outcome: "refused"},
		{name: "no messages", request: wrong(`{"messages":[]}`), status: 400, code: "invalid_request_error", fault: api.FaultClient, outcome: "refused"},
		{name: "a field that cannot be honoured", request: wrong(`{"logprobs":true,` + hello[1:]), status: 400, code: "unsupported_parameter", fault: api.FaultClient, outcome: "refused"},
		{name: "too long for the model", provider: answers{400, words("context_length_exceeded")}, status: 400, code: "context_length_exceeded", fault: api.FaultClient, outcome: "refused"},
		{name: "too long for the model, it says later", provider: fails("context_length_exceeded"), both: true, status: 400, code: "context_length_exceeded", fault: api.FaultClient, outcome: "refused"},
		{name: "a large body", request: wrong(strings.Repeat(" ", 2<<20)), status: 413, code: "request_too_large", fault: api.FaultClient, outcome: "refused"},
		{name: "another coding", request: func() *http.Request { return withHeader(chat(hello), "Content-Encoding", "br") }, status: 415, code: "unsupported_media_type", fault: api.FaultClient, outcome: "refused"},
		{name: "a slow body", request: func() *http.Request {
			r := chat("")
			r.Body = io.NopCloser(iotest.ErrReader(os.ErrDeadlineExceeded))
			return r
		}, status: 408, code: "slow_body", fault: api.FaultClient, outcome: "refused"},
		{name: "the provider rejects the request", provider: answers{422, words("c")}, status: 422, code: "upstream_refused", fault: api.FaultClient, outcome: "refused"},
		{name: "the provider rejects the prompt later", provider: fails("invalid_prompt"), both: true, status: 400, code: "upstream_refused", fault: api.FaultClient, outcome: "refused"},
		{name: "the limit of the key", cfg: func(c *api.Config) { c.Keys[0].RequestsPerMinute = 1 }, before: func(b *books) { b.do(b.t, chat("{")) }, status: 429, code: "rate_limited", fault: api.FaultLimit, outcome: "limited"},
		{name: "too many streams", cfg: func(c *api.Config) { c.MaxStreams = 1 }, script: mute, before: func(b *books) {
			ctx, leave := context.WithCancel(context.Background())
			b.atEnd = append(b.atEnd, leave)
			go b.do(b.t, chat(streamedHello).WithContext(ctx)) // ends with leave
			synctest.Wait()
		}, request: wrong(streamedHello), status: 429, code: "concurrency_exceeded", fault: api.FaultLimit, outcome: "limited"},
		{name: "all children are leased", before: taken, status: 503, code: "pool_saturated", fault: api.FaultCapacity, outcome: "failed"},
		{name: "a drain", before: func(b *books) { b.pool.Drain() }, status: 503, code: "shutting_down", fault: api.FaultCapacity, outcome: "failed"},
		{name: "a child that dies", script: codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Delta("Hal"), codextest.Exit(1)}, both: true, status: 502, code: "child_exited", fault: api.FaultChild, outcome: "failed"},
		{name: "no child can be started", script: codextest.Script{codextest.Exit(1)}, status: 503, code: "backend_unavailable", fault: api.FaultChild, outcome: "failed"},
		{name: "a silent provider", provider: silences(time.Hour), cfg: short(9*time.Hour, time.Minute), both: true, status: 504, code: "idle_timeout", fault: api.FaultUpstream, outcome: "failed"},
		{name: "a child that does not ask", provider: says("ok"), script: mute, cfg: short(9*time.Hour, time.Minute), both: true, status: 504, code: "idle_timeout", fault: api.FaultChild, outcome: "failed"},
		{name: "a provider that takes long", provider: silences(30 * time.Second), cfg: short(time.Minute, 9*time.Hour), both: true, status: 504, code: "request_timeout", fault: api.FaultUpstream, outcome: "failed"},
		{name: "a child that takes long to ask", provider: says("ok"), script: mute, cfg: short(time.Minute, 9*time.Hour), both: true, status: 504, code: "request_timeout", fault: api.FaultChild, outcome: "failed"},
		{name: "too long in the queue", before: taken, cfg: short(20*time.Second, 9*time.Hour), status: 504, code: "request_timeout", fault: api.FaultCapacity, outcome: "failed"},
		{name: "the provider rejects our key", provider: answers{401, words("c")}, status: 502, code: "upstream_auth", fault: api.FaultUpstream, outcome: "failed"},
		{name: "a firewall", provider: answers{403, "<html>"}, status: 502, code: "upstream_blocked", fault: api.FaultUpstream, outcome: "failed"},
		{name: "the provider fails", provider: answers{500, ""}, status: 502, code: "upstream_error", fault: api.FaultUpstream, outcome: "failed"},
		{name: "the provider fails later", provider: fails("server_error"), both: true, status: 502, code: "upstream_error", fault: api.FaultUpstream, outcome: "failed"},
		{name: "an endless answer", provider: eventsOf(strings.Repeat("data: {\"type\":\"response.output_text.delta\",\"delta\":\""+strings.Repeat("x", 1<<20)+"\"}\n\n", 65)), status: 502, code: "answer_too_large", fault: api.FaultUpstream, outcome: "failed"},
		{name: "the provider is overloaded", provider: answers{503, ""}, status: 503, code: "upstream_overloaded", fault: api.FaultUpstream, outcome: "failed"},
		{name: "the provider is overloaded, it says later", provider: fails("server_is_overloaded"), both: true, status: 503, code: "upstream_overloaded", fault: api.FaultUpstream, outcome: "failed"},
		{name: "the provider's limit", provider: answers{429, words("rate_limit_exceeded")}, status: 429, code: "upstream_rate_limited", fault: api.FaultUpstream, outcome: "failed"},
		{name: "the provider's limit, it says later", provider: fails("rate_limit_exceeded"), both: true, status: 429, code: "upstream_rate_limited", fault: api.FaultUpstream, outcome: "failed"},
		{name: "the provider's quota", provider: answers{429, words("insufficient_quota")}, status: 429, code: "usage_limit_reached", fault: api.FaultUpstream, outcome: "failed"},
		{name: "the provider's quota, it says later", provider: fails("insufficient_quota"), both: true, status: 429, code: "usage_limit_reached", fault: api.FaultUpstream, outcome: "failed"},
		{name: "a panic", request: func() *http.Request {
			r := chat(hello)
			r.Body = panicBody{}
			return r
		}, status: 500, code: "internal_error", fault: api.FaultDaemon, outcome: "failed"},
	}
}

// TestClientLogAndCountersAgreeOnEveryFailure has each error code, before and after the
// 200 where both can be: what the client gets, the one line of the log, and the counters
// say the same.
func TestClientLogAndCountersAgreeOnEveryFailure(t *testing.T) {
	seen := map[api.Kind]bool{}
	for _, f := range failures() {
		for _, k := range api.Kinds {
			if k.Code == f.code && k.Fault == f.fault {
				seen[k] = true
			}
		}
		t.Run(f.name, func(t *testing.T) { synctest.Test(t, f.whole) })
		if f.both {
			t.Run(f.name+", after the 200", func(t *testing.T) { synctest.Test(t, f.afterThe200) })
		}
	}
	for _, k := range api.Kinds {
		if !seen[k] {
			t.Errorf("no request fails with %s by the fault of %s", k.Code, k.Fault)
		}
	}
}

func (f failure) whole(t *testing.T) {
	b := f.books(t)
	r := chat(hello)
	if f.request != nil {
		r = f.request()
	}
	a := b.do(t, r)
	if told := outcome(a); a.Code != f.status || f.code != "upstream_refused" && f.code != "invalid_request_error" && !strings.HasPrefix(told, fmt.Sprint(f.status, " ", f.code)) {
		t.Errorf("the client gets %s", told)
	}
	b.agree(t, f, f.status)
}

func (f failure) afterThe200(t *testing.T) {
	b := f.books(t)
	a := b.do(t, chat(streamedHello))
	if a.Code != 200 || !a.cut || f.code != "upstream_refused" && !strings.Contains(a.Body.String(), `"code":"`+f.code+`"`) {
		t.Errorf("the client gets %d, cut %v, %s", a.Code, a.cut, a.Body)
	}
	b.agree(t, f, 200)
}

// books are a house with what is written down of its requests.
type books struct {
	*house
	t       *testing.T
	log     *bytes.Buffer
	metrics *metrics.Metrics
	before  map[string]float64
	atEnd   []func()
}

func (f failure) books(t *testing.T) *books {
	t.Helper()
	var relay *upstream.Relay
	if f.provider != nil {
		relay = upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider.invalid"}}, f.provider, upstream.Hooks{})
	}
	cfg := config()
	if f.cfg != nil {
		f.cfg(&cfg)
	}
	var scripts []codextest.Script
	if f.script != nil {
		scripts = append(scripts, f.script)
	}
	children := pool.Config{Size: 1}
	if f.code == "backend_unavailable" { // none of them starts
		scripts = slices.Repeat(scripts, 1000)
		children.BackoffMin, children.BackoffMax = time.Hour, time.Hour
	}
	b := &books{t: t, house: openWith(t, cfg, children, relay, scripts...), log: new(bytes.Buffer), metrics: metrics.New("v")}
	b.metrics.SetCLI("0", api.Models{Catalog: cfg.Models().Catalog}.Labels())
	b.Server = api.New(cfg, b.pool, relay, slog.New(slog.NewJSONHandler(b.log, nil)), b.metrics.ObserveRequest)
	if f.before != nil {
		f.before(b)
	}
	b.log.Reset()
	b.before = b.counters(t)
	t.Cleanup(func() {
		for _, end := range b.atEnd {
			end()
		}
	})
	return b
}

// counters are the series that count requests, as metric and labels.
func (b *books) counters(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := b.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.Counter == nil {
				continue
			}
			name := strings.TrimPrefix(f.GetName(), "codexpool_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetCounter().GetValue()
		}
	}
	return values
}

// agree holds the log and the counters against what happened.
func (b *books) agree(t *testing.T, f failure, status int) {
	t.Helper()
	synctest.Wait()
	want := map[string]float64{}
	route, stream := "chat", fmt.Sprint(status == 200 || f.code == "concurrency_exceeded")
	if f.outcome == "" {
		route = "unmatched"
	} else {
		want[fmt.Sprintf("completions_total %s %s %s", f.outcome, route, stream)] = 1
	}
	want[fmt.Sprintf("http_errors_total %s %s %s", f.code, f.fault, route)] = 1
	counted := fmt.Sprint(status)
	if status == 422 {
		counted = "other"
	}
	want[fmt.Sprintf("http_requests_total %s %s", counted, route)] = 1
	got := map[string]float64{}
	for name, value := range b.counters(t) {
		metric, _, _ := strings.Cut(name, " ")
		if slices.Contains([]string{"completions_total", "http_errors_total", "http_requests_total"}, metric) && value != b.before[name] {
			got[name] = value - b.before[name]
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
	var lines []string
	for _, l := range told(t, b.log) {
		if l["msg"] == "request" {
			code := l["code"]
			if l["counted"] != nil {
				code = l["counted"]
			}
			lines = append(lines, fmt.Sprint(l["route"], " ", l["status"], " ", code, " ", l["fault"]))
		}
	}
	if line := fmt.Sprint(route, " ", status, " ", f.code, " ", f.fault); !slices.Equal(lines, []string{line}) {
		t.Errorf("the log has %q, want %q", lines, line)
	}
}
