package traces

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"testing"
	"time"

	"codexpool/api"
	"codexpool/pool"
	"codexpool/upstream"
)

// TestOffCostsNothing has no OTEL_ variable set.
func TestOffCostsNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	off, err := Open(t.Context(), "test", slog.New(slog.DiscardHandler))
	if off != nil || err != nil {
		t.Fatal(off, err)
	}
	if after := runtime.NumGoroutine(); after != before {
		t.Errorf("%d goroutines, then %d", before, after)
	}
	served := 0
	handler := off.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }))
	hooks := off.PoolHooks(pool.Hooks{Acquired: func(context.Context, time.Duration, int, error) { served++ }})
	observe := off.Observe(func(context.Context, api.Result) { served++ })
	w, r := httptest.NewRecorder(), httptest.NewRequest("POST", "/v1/chat/completions", nil)
	r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	allocations := testing.AllocsPerRun(100, func() {
		handler.ServeHTTP(w, r)
		hooks.Acquired(r.Context(), time.Second, 0, nil)
		observe(r.Context(), api.Result{Route: "chat", Code: "child_exited"})
	})
	if allocations != 0 || served == 0 {
		t.Errorf("%v allocations", allocations)
	}
	if off.RelayHooks(upstream.Hooks{}).Sending != nil || off.Turned() != nil {
		t.Error("the relay and the API have something to call")
	}
	off.Close()
}

// TestOpenNamesWhatItHasNot has values that the library would ignore, or print though they
// are secret.
func TestOpenNamesWhatItHasNot(t *testing.T) {
	const (
		badEndpoint = "OTEL_EXPORTER_OTLP_ENDPOINT: it is not an http(s) URL, or has a password, which belongs in OTEL_EXPORTER_OTLP_HEADERS"
		badHeaders  = "OTEL_EXPORTER_OTLP_HEADERS: it must be name=value,name=value with percent-encoded values"
	)
	for _, tt := range []struct {
		set  [][2]string
		on   bool
		fail string
	}{
		{[][2]string{{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"}}, true, ""},
		{[][2]string{{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces"}}, true, ""},
		{[][2]string{{"OTEL_TRACES_EXPORTER", "otlp"}}, true, ""},
		{[][2]string{{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"}, {"OTEL_TRACES_EXPORTER", "none"}}, false, ""},
		{[][2]string{{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"}, {"OTEL_SDK_DISABLED", "true"}}, false, ""},
		{[][2]string{{"OTEL_SERVICE_NAME", "x"}}, false, ""},
		{[][2]string{{"OTEL_TRACES_EXPORTER", "console"}}, false, `OTEL_TRACES_EXPORTER: it must be otlp or none, not "console"`},
		{[][2]string{{"OTEL_TRACES_EXPORTER", "otlp"}, {"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}}, false, `OTEL_EXPORTER_OTLP_PROTOCOL: it must be http/protobuf, not "grpc"`},
		{[][2]string{{"OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"}}, false, badEndpoint},
		{[][2]string{{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:p@127.0.0.1:1"}}, false, badEndpoint},
		{[][2]string{{"OTEL_TRACES_EXPORTER", "otlp"}, {"OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20k=, x-tenant=t"}}, true, ""},
		{[][2]string{{"OTEL_TRACES_EXPORTER", "otlp"}, {"OTEL_EXPORTER_OTLP_HEADERS", "Bearer k"}}, false, badHeaders},
		{[][2]string{{"OTEL_TRACES_EXPORTER", "otlp"}, {"OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer k=="}}, false, badHeaders},
		{[][2]string{{"OTEL_TRACES_EXPORTER", "otlp"}, {"OTEL_EXPORTER_OTLP_HEADERS", "a=50%"}}, false, badHeaders},
		{[][2]string{{"OTEL_TRACES_EXPORTER", "otlp"}, {"OTEL_EXPORTER_OTLP_HEADERS", "a=b,k"}}, false, badHeaders},
	} {
		t.Run("", func(t *testing.T) {
			for _, v := range tt.set {
				t.Setenv(v[0], v[1])
			}
			tracer, err := Open(t.Context(), "test", slog.New(slog.DiscardHandler))
			fail := ""
			if err != nil {
				fail = err.Error()
			}
			tracer.Close()
			if (tracer != nil) != tt.on || fail != tt.fail {
				t.Errorf("%v: on %t, %s", tt.set, tracer != nil, fail)
			}
		})
	}
}

// TestPublicProvidersAreNotTold has those that nothing of ours reaches, by whatever name.
func TestPublicProvidersAreNotTold(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off") // nothing is sent
	tracer, err := Open(t.Context(), "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer tracer.Close()
	hooks := tracer.RelayHooks(upstream.Hooks{})
	for base, told := range map[string]bool{
		"https://api.openai.com/v1":                 false,
		"https://EU.API.OpenAI.com/v1":              false,
		"https://chatgpt.com/backend-api/codex":     false,
		"https://llm.example/v1":                    true,
		"https://openai.com.example/v1":             true,
		"https://mine.openai.azure.com/openai/v1":   true,
		"http://127.0.0.1:8000/v1":                  true,
		"https://notopenai.com:8443/v1?key=of-mine": true,
	} {
		header := http.Header{}
		hooks.Sending(t.Context(), upstream.Asked{Base: parse(t, base), Settings: func() (s upstream.Settings) { t.Error("a span that is not sampled"); return s }}, header)(upstream.Answered{})
		if got := header.Get(parent) != ""; got != told {
			t.Errorf("%s: told %t", base, got)
		}
	}
}

func parse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
