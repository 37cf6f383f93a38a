package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/codex/codextest"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collector receives spans by OTLP over HTTP, and keeps each byte of them.
type collector struct {
	*httptest.Server
	t testing.TB

	mu    sync.Mutex
	bytes []byte
	spans []*tracepb.Span // guarded by mu, as is bytes
}

func newCollector(t testing.TB) *collector {
	t.Helper()
	c := &collector{t: t}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var data tracepb.TracesData // on the wire it is the same as a request of the collector's service
	if err == nil {
		err = proto.Unmarshal(body, &data)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		c.t.Errorf("the collector got %s: %v", r.URL.Path, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes = append(c.bytes, body...)
	for _, of := range data.ResourceSpans {
		for _, scope := range of.ScopeSpans {
			c.spans = append(c.spans, scope.Spans...)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// trace waits for the spans of a trace, by name. Those of a name are in their order.
func (c *collector) trace(id string, n int) map[string][]*tracepb.Span {
	c.t.Helper()
	var found map[string][]*tracepb.Span
	eventually(c.t, 10*time.Second, fmt.Sprintf("%d spans", n), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		found = map[string][]*tracepb.Span{}
		got := 0
		for _, s := range c.spans {
			if hex.EncodeToString(s.TraceId) == id {
				found[s.Name] = append(found[s.Name], s)
				got++
			}
		}
		return got >= n
	})
	return found
}

// attribute is the value of a span's attribute as text; "" where there is none.
func attribute(s *tracepb.Span, key string) string {
	for _, a := range s.Attributes {
		if a.Key != key {
			continue
		}
		if list := a.Value.GetArrayValue(); list != nil {
			return list.Values[0].GetStringValue()
		}
		switch v := a.Value.Value.(type) {
		case *commonpb.AnyValue_IntValue:
			return fmt.Sprint(v.IntValue)
		case *commonpb.AnyValue_DoubleValue:
			return fmt.Sprint(v.DoubleValue)
		}
		return a.Value.GetStringValue()
	}
	return ""
}

const (
	tracedFrom = "00f067aa0ba902b7" // the client's span
	chatSpan   = "POST /v1/chat/completions"

	collectorKey = "marked-key-of-the-collector"
)

// traced sends a completion within a trace of the client's, and returns its status. A
// change may make another request of it.
func (d *daemon) traced(id, body string, changes ...func(*http.Request)) int {
	d.t.Helper()
	req := d.newRequest(body)
	req.Header.Set("Traceparent", "00-"+id+"-"+tracedFrom+"-01")
	req.Header.Set("Tracestate", "vendor=marked-state")
	req.Header.Set("Baggage", "who=marked-baggage")
	req.Header.Set("User-Agent", "marked-agent")
	req.Header.Set("X-Request-Id", "marked-id")
	for _, change := range changes {
		change(req)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// TestTracesGoFromTheClientToTheProvider has an answer, a failure of the provider, and a text
// completion. Nothing is told of requests without a key, which the client's trace wants to be.
func TestTracesGoFromTheClientToTheProvider(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var parents []string
	then := func(reply http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			parents = append(parents, r.Header.Get("Traceparent"))
			mu.Unlock()
			if r.Header.Get("Tracestate") != "" || r.Header.Get("Baggage") != "" {
				t.Error("the provider got the client's state")
			}
			reply(w, r)
		}
	}
	up, c := newUpstream(t, then(codextest.Text("marked", "-answer")), then(codextest.Status(500, `{"error":{"message":"marked-message","code":"marked-code"}}`)), codextest.Text("marked-text")), newCollector(t)
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "CODEX_UPSTREAM_API_KEY="+upstreamKey,
		"OTEL_EXPORTER_OTLP_ENDPOINT="+c.URL, "OTEL_EXPORTER_OTLP_HEADERS=x-key="+collectorKey, "OTEL_BSP_SCHEDULE_DELAY=50")

	const answered, failed, text, keyless = "4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f3577b34da6a3ce929d0e0e4737", "4bf92f3577b34da6a3ce929d0e0e4738", "4bf92f3577b34da6a3ce929d0e0e4739"
	to := func(path string) func(*http.Request) { return func(r *http.Request) { r.URL.Path = path } }
	without := func(r *http.Request) { r.Header.Del("Authorization") }
	const tuned = `{"model":"gpt-x","stream":true,"temperature":0.5,"top_p":0,"max_completion_tokens":100,"reasoning_effort":"low","messages":[{"role":"user","content":"marked-prompt"}]}`
	for _, tt := range []struct {
		id, body string
		change   func(*http.Request)
		status   int
	}{
		{keyless, tuned, without, 401},
		{keyless, tuned, to("/v1/marked-path"), 404},
		{answered, tuned, to("/chat/completions"), 200},
		{failed, `{"model":"gpt-x","messages":[{"role":"user","content":"marked-prompt"}]}`, to("/v1/chat/completions"), 502},
		{text, `{"model":"gpt-x","prompt":"marked-prompt"}`, to("/v1/completions"), 200},
	} {
		if status := d.traced(tt.id, tt.body, tt.change); status != tt.status {
			t.Fatalf("%s: %d, want %d", tt.body, status, tt.status)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for i, tt := range []struct{ id, status, code, fault, provider, failure, finish, temperature, effort string }{
		{answered, "200", "", "", "200", "", "stop", "0.5", "low"},
		{failed, "502", "upstream_error", "upstream", "500", "500", "", "", ""},
	} {
		spans := c.trace(tt.id, 4)
		if len(spans[chatSpan]) != 1 || len(spans["pool.acquire"]) != 1 || len(spans["codex.turn"]) != 1 || len(spans["chat gpt-x"]) != 1 {
			t.Fatalf("spans: %v", spans)
		}
		request, sent := spans[chatSpan][0], spans["chat gpt-x"][0]
		if got := hex.EncodeToString(request.ParentSpanId); got != tracedFrom {
			t.Errorf("the request's span is below %s", got)
		}
		for _, name := range []string{"pool.acquire", "codex.turn", "chat gpt-x"} {
			s := spans[name][0]
			if !bytes.Equal(s.ParentSpanId, request.SpanId) {
				t.Errorf("%s is not within the request", name)
			}
			if s.StartTimeUnixNano < request.StartTimeUnixNano || s.EndTimeUnixNano > request.EndTimeUnixNano {
				t.Errorf("%s is not within the request's time", name)
			}
		}
		if want := "00-" + tt.id + "-" + hex.EncodeToString(sent.SpanId) + "-01"; i >= len(parents) || parents[i] != want {
			t.Errorf("the provider got %q, want %s", parents, want)
		}
		for _, want := range []struct {
			of         *tracepb.Span
			key, value string
		}{
			{request, "http.route", "/v1/chat/completions"},
			{request, "http.response.status_code", tt.status},
			{request, "error.type", tt.code},
			{request, "codexpool.fault", tt.fault},
			{request, "codexpool.key", "1"},
			{spans["pool.acquire"][0], "codexpool.pool.outcome", "leased"},
			{spans["pool.acquire"][0], "codexpool.pool.waiting", "0"},
			{spans["codex.turn"][0], "codexpool.child.pid", fmt.Sprint(d.children()[0])},
			{spans["codex.turn"][0], "codexpool.child.turns", fmt.Sprint(i + 1)},
			{sent, "gen_ai.operation.name", "chat"},
			{sent, "gen_ai.request.model", "gpt-x"},
			{sent, "gen_ai.request.temperature", tt.temperature},
			{sent, "gen_ai.request.reasoning.level", tt.effort},
			{sent, "gen_ai.response.finish_reasons", tt.finish},
			{sent, "http.response.status_code", tt.provider},
			{sent, "error.type", tt.failure},
		} {
			if got := attribute(want.of, want.key); got != want.value {
				t.Errorf("%s: %s is %q, want %q", want.of.Name, want.key, got, want.value)
			}
		}
	}
	if s := c.trace(answered, 4)["chat gpt-x"][0]; attribute(s, "gen_ai.usage.output_tokens") != "2" || !strings.HasPrefix(attribute(s, "gen_ai.response.id"), "resp_") {
		t.Errorf("no usage, or no id: %v", s.Attributes)
	}
	if spans := c.trace(text, 4); len(spans["POST /v1/completions"]) != 1 || len(spans["text_completion gpt-x"]) != 1 {
		t.Errorf("spans of a text completion: %v", spans)
	}
	if spans := c.trace(keyless, 0); len(spans) > 0 { // they would have come before the others
		t.Errorf("spans of requests without a key: %v", spans)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, secret := range []string{"marked", key, upstreamKey} {
		if bytes.Contains(c.bytes, []byte(secret)) {
			t.Errorf("%q is among the spans", secret)
		}
	}
	if strings.Contains(d.logged(), collectorKey) {
		t.Error("the collector's credential is in the log")
	}
}
