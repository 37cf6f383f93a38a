package traces

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"codexpool/api"
	"codexpool/codex"
	"codexpool/pool"
	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// recorded is a Tracer whose spans are kept.
func recorded() (*Tracer, *tracetest.SpanRecorder) {
	kept := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(kept))
	return &Tracer{tracer: provider.Tracer("test"), provider: provider}, kept
}

// request is one that has been served: the work of it is done in within.
func (t *Tracer) request(r api.Result, within func(ctx context.Context)) {
	observe := t.Observe(func(context.Context, api.Result) {})
	t.Handler(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		within(req.Context())
		observe(req.Context(), r)
	})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil))
}

// spanned are the spans as text: a line of the name, and of each attribute.
func spanned(kept *tracetest.SpanRecorder) (lines []string) {
	for _, s := range kept.Ended() {
		var of []string
		for _, a := range s.Attributes() {
			of = append(of, fmt.Sprintf("  %s=%s", a.Key, a.Value.String()))
		}
		slices.Sort(of)
		lines = append(append(lines, s.Name()), of...)
	}
	return lines
}

// TestSpansSayWhatTheConventionNames has every attribute.
func TestSpansSayWhatTheConventionNames(t *testing.T) {
	tracer, kept := recorded()
	settings := upstream.Settings{MaxTokens: new(int64(100)), Temperature: new(0.5), TopP: new(0.0), Effort: "low"}
	result := api.Result{Admitted: true, Route: "chat", Status: 502, Code: "upstream_error", Fault: api.FaultUpstream, Key: "alice", Model: "gpt-x"}
	tracer.request(result, func(ctx context.Context) {
		tracer.PoolHooks(pool.Hooks{Acquired: func(context.Context, time.Duration, int, error) {}}).Acquired(ctx, time.Second, 3, pool.ErrTimeout)
		tracer.Turned()(ctx, api.Turn{Child: 41, Turns: 7, Began: time.Now()})
		asked := upstream.Asked{Base: parse(t, "https://llm.example/v1"), Model: "gpt-x", Settings: func() upstream.Settings { return settings }}
		tracer.RelayHooks(upstream.Hooks{}).Sending(ctx, asked, http.Header{})(upstream.Answered{
			Status: 200, ID: "resp_1", Model: "gpt-x-1", FirstToken: 1500 * time.Millisecond, Finish: codex.FinishStop,
			Usage: codex.Usage{Input: 4, Cached: 3, Output: 2, Reasoning: 1},
		})
	})
	if diff := cmp.Diff([]string{
		"pool.acquire",
		"  codexpool.pool.outcome=timeout",
		"  codexpool.pool.waiting=3",
		"codex.turn",
		"  codexpool.child.pid=41",
		"  codexpool.child.turns=7",
		"chat gpt-x",
		"  gen_ai.operation.name=chat",
		"  gen_ai.provider.name=openai",
		"  gen_ai.request.max_tokens=100",
		"  gen_ai.request.model=gpt-x",
		"  gen_ai.request.reasoning.level=low",
		"  gen_ai.request.stream=true",
		"  gen_ai.request.temperature=0.5",
		"  gen_ai.request.top_p=0",
		"  gen_ai.response.finish_reasons=[\"stop\"]",
		"  gen_ai.response.id=resp_1",
		"  gen_ai.response.model=gpt-x-1",
		"  gen_ai.response.time_to_first_chunk=1.5",
		"  gen_ai.usage.cache_read.input_tokens=3",
		"  gen_ai.usage.input_tokens=4",
		"  gen_ai.usage.output_tokens=2",
		"  gen_ai.usage.reasoning.output_tokens=1",
		"  http.response.status_code=200",
		"  server.address=llm.example",
		"  server.port=443",
		"POST /v1/chat/completions",
		"  codexpool.fault=upstream",
		"  codexpool.key=alice",
		"  codexpool.model=gpt-x",
		"  error.type=upstream_error",
		"  http.request.method=POST",
		"  http.response.status_code=502",
		"  http.route=/v1/chat/completions",
		"  url.scheme=http",
	}, spanned(kept)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestSpanOfATextCompletionSaysSo has a provider at a port of its own.
func TestSpanOfATextCompletionSaysSo(t *testing.T) {
	tracer, kept := recorded()
	asked := upstream.Asked{Base: parse(t, "http://llm.example:8000/v1"), Model: "gpt-x", Text: true, Settings: func() (s upstream.Settings) { return s }}
	tracer.RelayHooks(upstream.Hooks{}).Sending(t.Context(), asked, http.Header{})(upstream.Answered{})
	if diff := cmp.Diff([]string{
		"text_completion gpt-x",
		"  gen_ai.operation.name=text_completion",
		"  gen_ai.provider.name=openai",
		"  gen_ai.request.model=gpt-x",
		"  gen_ai.request.stream=true",
		"  server.address=llm.example",
		"  server.port=8000",
	}, spanned(kept)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestNoSpanForWhoeverHasNoKey has requests that were turned away, and one that was not.
func TestNoSpanForWhoeverHasNoKey(t *testing.T) {
	tracer, kept := recorded()
	nothing := func(context.Context) {}
	for _, r := range []api.Result{
		{Route: "chat", Status: 401, Code: "invalid_api_key"},
		{Route: "unmatched", Status: 404, Code: "not_found"},
		{Route: "chat", Status: 429, Code: "rate_limited", Key: "alice"},
		{Route: "chat", Status: 503, Code: "shutting_down"},
	} {
		tracer.request(r, nothing)
	}
	if got := spanned(kept); got != nil {
		t.Errorf("spans: %q", got)
	}
	if tracer.request(api.Result{Route: "chat", Status: 413, Admitted: true}, nothing); len(kept.Ended()) != 1 {
		t.Errorf("spans of a key's own request: %q", spanned(kept))
	}
}
