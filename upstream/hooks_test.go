package upstream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
)

// TestHooksGetTheContextOfTheCallersRequest has a span in the caller's context, as
// a tracer puts it there, and another one in that of the child's request.
func TestHooksGetTheContextOfTheCallersRequest(t *testing.T) {
	type span struct{}
	spans := map[string]any{} // hook -> what its context has; each hook runs within the one request
	note := func(hook string, ctx context.Context) { spans[hook] = ctx.Value(span{}) }
	p := newProvider(t, status(503, "", ""), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-ratelimit-limit-requests", "60")
		sse(completed)(w, r)
	})
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := upstream.NewRelay(upstream.Provider{Base: base}, flight{p.Client().Transport, p}, upstream.Hooks{
		Request: func(ctx context.Context, status int, _ bool, _ time.Duration) {
			note(fmt.Sprint("Request ", status), ctx)
		},
		Sending: func(ctx context.Context, _ upstream.Asked, _ http.Header) func(upstream.Answered) {
			note("Sending", ctx)
			return func(upstream.Answered) { note("Sending's end", ctx) }
		},
		Retried:  func(ctx context.Context) { note("Retried", ctx) },
		Sent:     func(ctx context.Context, _ int64) { note("Sent", ctx) },
		Received: func(ctx context.Context, _ int64) { note("Received", ctx) },
		Limit:    func(ctx context.Context, _ upstream.Limit, _ float64) { note("Limit", ctx) },
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.ServeHTTP(w, req.WithContext(context.WithValue(req.Context(), span{}, "of the child's request")))
	}))
	defer server.Close()
	call := prepare(context.WithValue(t.Context(), span{}, "of the caller's request"), r, upstream.Request{Overrides: upstream.Overrides{"temperature": json.RawMessage("1")}})
	defer call.Done()
	if code, _, err := child(t.Context(), server.URL, call.Key); code != 200 || err != nil {
		t.Fatal(code, err)
	}
	p.rest(t)
	if got, want := slices.Sorted(maps.Keys(spans)), []string{"Limit", "Received", "Request 200", "Request 503", "Retried", "Sending", "Sending's end", "Sent"}; !slices.Equal(got, want) {
		t.Errorf("hooks called: %q, want %q", got, want)
	}
	for hook, got := range spans {
		if got != "of the caller's request" {
			t.Errorf("the context of %s has %v", hook, got)
		}
	}
}

func TestLimitsOfTheProviderAreReported(t *testing.T) {
	got := map[upstream.Limit]float64{}
	p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-ratelimit-remaining-tokens", "149000")
		w.Header().Set("x-ratelimit-limit-requests", "many")
		w.Header().Set("x-ratelimit-remaining-requests", "-1")
		w.Header().Set("x-ratelimit-limit-tokens", "NaN")
		w.Header().Set("x-codex-secondary-used-percent", "+Inf")
		w.Header().Set("x-codex-primary-used-percent", "12.5")
		w.Header().Set("x-codex-primary-reset-at", "1790000000")
		w.Header().Set("x-codex-secondary-window-minutes", "300")
		sse(completed)(w, r)
	})
	r, base := relay(t, p, upstream.Hooks{Limit: func(_ context.Context, l upstream.Limit, value float64) { got[l] = value }})
	call := prepare(t.Context(), r, upstream.Request{})
	defer call.Done()
	child(t.Context(), base, call.Key)
	want := map[upstream.Limit]float64{
		{Kind: "remaining", Unit: "tokens"}: 149000, {Kind: "used", Unit: "primary"}: 0.125,
		{Kind: "reset", Unit: "primary"}: 1790000000, {Kind: "window", Unit: "secondary"}: 18000,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestConnectionReuseIsReported(t *testing.T) {
	var got []string
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{Request: func(_ context.Context, status int, reused bool, _ time.Duration) {
		got = append(got, fmt.Sprint(status, reused))
	}})
	for range 2 {
		call := prepare(t.Context(), r, upstream.Request{})
		child(t.Context(), base, call.Key)
		call.Done()
		p.rest(t)
	}
	if !slices.Equal(got, []string{"200 false", "200 true"}) {
		t.Errorf("got %v", got)
	}
}

// TestFirstTokenIsTimedFromTheRequest has a provider that sends its headers at once,
// thinks for three seconds, and writes for two more.
func TestFirstTokenIsTimedFromTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, w := io.Pipe()
		go func() { // ends with the body
			defer w.Close()
			for _, e := range []string{`{"type":"response.in_progress"}`, `{"type":"response.output_text.delta","delta":"a"}`, `{"type":"response.output_text.delta","delta":"b"}`, completed} {
				fmt.Fprintf(w, "data: %s\n\n", e)
				time.Sleep(3 * time.Second)
			}
		}()
		var reported []time.Duration
		running := 0
		var r *upstream.Relay
		r = upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider.invalid"}}, imaginary(func(*http.Request) *http.Response {
			running = r.Running()
			return &http.Response{StatusCode: 200, Body: body}
		}), upstream.Hooks{FirstToken: func(_ context.Context, took time.Duration) { reported = append(reported, took) }})
		call, _ := serveOne(t.Context(), r)
		if want := []time.Duration{3 * time.Second}; !slices.Equal(reported, want) || call.FirstToken() != want[0] {
			t.Errorf("reported %v, and the call says %v", reported, call.FirstToken())
		}
		if running != 1 || r.Running() != 0 {
			t.Errorf("%d requests ran during the request, %d after it", running, r.Running())
		}
	})
}

// TestSendingIsToldWhatIsAskedAndWhatIsAnswered has fields of ours beside a caller's own
// body, and a model's name that no collector should get whole.
func TestSendingIsToldWhatIsAskedAndWhatIsAnswered(t *testing.T) {
	p := newProvider(t, sse(fmt.Sprintf(`{"type":"response.completed","response":{"id":"resp_1","model":"gpt-x-%01000d"}}`, 0)))
	var settings upstream.Settings
	var asked upstream.Asked
	var answered upstream.Answered
	r, base := relay(t, p, upstream.Hooks{Sending: func(_ context.Context, a upstream.Asked, _ http.Header) func(upstream.Answered) {
		asked, settings = a, a.Settings()
		return func(a upstream.Answered) { answered = a }
	}})
	call := prepare(t.Context(), r, upstream.Request{
		Model: "gpt-x", Text: true, Body: []byte(`{"temperature":0,"max_output_tokens":100,"reasoning":{"effort":"low"}}`),
		Overrides: upstream.Overrides{"top_p": json.RawMessage("0.5")},
	})
	defer call.Done()
	child(t.Context(), base, call.Key)
	p.rest(t)
	if diff := cmp.Diff(upstream.Settings{MaxTokens: new(int64(100)), Temperature: new(0.0), TopP: new(0.5), Effort: "low"}, settings); diff != "" || asked.Model != "gpt-x" || !asked.Text {
		t.Errorf("%s %t (-want +got)\n%s", asked.Model, asked.Text, diff)
	}
	if answered.ID != "resp_1" || len(answered.Model) < 100 || len(answered.Model) > 510 {
		t.Errorf("%s of %d bytes", answered.ID, len(answered.Model))
	}
}
