package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"

	"github.com/google/go-cmp/cmp"
)

const upstreamKey = "sk-upstream-never-in-a-child"

// withRelay starts a daemon before a scripted provider that speaks TLS and HTTP/2.
func withRelay(t *testing.T, replies ...http.HandlerFunc) (*daemon, *codextest.Upstream) {
	t.Helper()
	up := newUpstream(t, replies...)
	server, roots := secure(t, up, true)
	return start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+server.URL+"/v1", "SSL_CERT_FILE="+roots, "CODEX_UPSTREAM_API_KEY="+upstreamKey), up
}

// TestProviderGetsExactlyTheCallersFields has a row for every field that
// the provider supports: the caller's field, and the fields that must arrive beside model,
// input, stream and store. Nothing of Codex's own may, and nothing of ours: some servers
// refuse fields that they do not know.
func TestProviderGetsExactlyTheCallersFields(t *testing.T) {
	_, models, err := codex.Catalog(t.Context(), codextest.Binary(t), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	d, up := withRelay(t, codextest.Text("ok"))
	const messages = `"messages":[{"role":"user","content":"hi"}]`
	for i, tt := range []struct{ sent, want string }{
		{``, `{}`},
		{`"temperature":0.25,`, `{"temperature":0.25}`},
		{`"top_p":0.5,`, `{"top_p":0.5}`},
		{`"max_tokens":16,`, `{"max_output_tokens":16}`},
		{`"max_tokens":16,"max_completion_tokens":20,`, `{"max_output_tokens":20}`},
		{`"service_tier":"flex",`, `{"service_tier":"flex"}`},
		{`"metadata":{"a":"b"},`, `{"metadata":{"a":"b"}}`},
		{`"user":"u",`, `{"user":"u"}`},
		{`"safety_identifier":"s",`, `{"safety_identifier":"s"}`},
		{`"verbosity":"high",`, `{"text":{"verbosity":"high"}}`},
		{`"reasoning_effort":"high",`, `{"reasoning":{"effort":"high"}}`},
		{`"reasoning":{"effort":"low"},`, `{"reasoning":{"effort":"low"}}`},
		{`"model":"codex-5-medium",`, `{"reasoning":{"effort":"medium"}}`},
		{`"prompt_cache_key":"mine",`, `{"prompt_cache_key":"mine"}`},
		{`"seed":1,"presence_penalty":1,"frequency_penalty":1,"logit_bias":{"1":2},`, `{}`},
	} {
		res, err := d.post("{" + tt.sent + messages + "}")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d", tt.sent, res.StatusCode)
			continue
		}
		var got, want map[string]any
		if err := json.Unmarshal(up.Bodies()[i], &got); err != nil {
			t.Fatal(err)
		}
		input, _ := json.Marshal(got["input"])
		if string(input) != `[{"content":[{"text":"hi","type":"input_text"}],"role":"user","type":"message"}]` || got["stream"] != true || got["store"] != false || got["model"] != models[0].ID {
			t.Errorf("%s: %s", tt.sent, up.Bodies()[i])
		}
		for _, field := range []string{"model", "input", "stream", "store"} {
			delete(got, field)
		}
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tt.sent, diff)
		}
	}
}

func TestRequestsThatBeginAlikeShareTheProvidersCache(t *testing.T) {
	up := newUpstream(t, codextest.Text("ok"))
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "CODEX_PROMPT_CACHE_KEY=on", "PROXY_API_KEY="+key+",another")
	send := func(bearer, system, text string) (cacheKey string) {
		t.Helper()
		body := fmt.Sprintf(`{"messages":[{"role":"system","content":%q},{"role":"user","content":%q}]}`, system, text)
		req, _ := http.NewRequest("POST", d.url+"/v1/chat/completions", strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+bearer)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		bodies := up.Bodies()
		var got struct {
			Key string `json:"prompt_cache_key"`
		}
		json.Unmarshal(bodies[len(bodies)-1], &got)
		return got.Key
	}
	first := send(key, "be brief", "one")
	if again := send(key, "be brief", "two"); again != first || first == "" {
		t.Errorf("the same beginning: %q and %q", first, again)
	}
	if other := send("another", "be brief", "one"); other == first {
		t.Error("another caller shares the key")
	}
	if other := send(key, "be long", "one"); other == first {
		t.Error("another system prompt has the same key")
	}
}

// TestProviderErrorsReachTheCaller has errors of the provider that pass through the
// real child, which rewrites them.
func TestProviderErrorsReachTheCaller(t *testing.T) {
	envelope := func(code string) string {
		return `{"error":{"message":"The provider's words.","type":"some_type","param":"input[0]","code":"` + code + `"}}`
	}
	d, up := withRelay(t, codextest.Text("ok"))
	elsewhere := newUpstream(t, codextest.Text("from elsewhere"))
	for _, tt := range []struct {
		name  string
		reply http.HandlerFunc
		want  string // status code param retry-after, final where X-Should-Retry is false, message
	}{
		{"400", codextest.Status(400, envelope("bad_value")), "400 bad_value input[0] [] The provider's words."},
		{"404", codextest.Status(404, envelope("model_not_found")), "404 model_not_found input[0] [] The provider's words."},
		{"too long", codextest.Status(400, envelope("context_length_exceeded")), "400 context_length_exceeded messages [] The provider's words."},
		{"429", retryAfter(429, "17", envelope("rate_limit_exceeded")), "429 upstream_rate_limited  [17] The provider's words."},
		{"quota", retryAfter(429, "17", envelope("insufficient_quota")), "429 usage_limit_reached  [17] The provider's words."},
		{"quota without a time", codextest.Status(429, envelope("insufficient_quota")), "429 usage_limit_reached  [] final The provider's words."},
		{"a usage limit of ChatGPT", codextest.Status(429, `{"error":{"type":"usage_limit_reached","message":"The provider's words.","resets_in_seconds":7199.5}}`), "429 usage_limit_reached  [7200] The provider's words."},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/v1/responses", http.StatusTemporaryRedirect)
		}, "502 upstream_error  [] The upstream failed."},
		{"an image that it cannot read", func(w http.ResponseWriter, _ *http.Request) {
			codextest.StartStream(w).Fail("invalid_image", "The provider's words.")
		}, "400 invalid_image  [] The provider's words."},
		{"500", codextest.Status(500, "out of luck\nat main.go:7"), "502 upstream_error  [] out of luck"},
		{"499", codextest.Status(499, envelope("cancelled")), "502 upstream_error  [] The provider's words."},
		{"407", codextest.Status(407, envelope("proxy")), "502 upstream_error  [] The provider's words."},
		{"503", retryAfter(503, "17", envelope("busy")), "503 upstream_overloaded  [17] The provider's words."},
		{"422 of another shape", codextest.Status(422, `{"detail":"The provider's words."}`), "422   [] The provider's words."},
		{"404 for a wrong path", codextest.Status(404, `{"error":{"message":"Invalid URL (POST /v1/responses)","type":"invalid_request_error","param":null,"code":null}}`), "404   [] Invalid URL (POST …)"},
		{"400 that quotes our key", codextest.Status(400, `{"detail":"`+upstreamKey+` may not do this"}`), "400   [] … may not do this"},
		{"a long message", codextest.Status(400, `{"detail":"`+strings.Repeat("word ", 1000)+`"}`), "400   [] " + strings.Repeat("word ", 100) + "…"},
		{"a page of a gateway", page(504, "<html><head><title>504 Gateway Time-out</title>"), "502 upstream_error  [] 504 Gateway Time-out"},
		{"a page of a firewall", page(403, "<html><title>Just a moment...</title>"), "502 upstream_blocked  [] final A firewall before the upstream rejects requests of this server. Its operator can try another network or, with a ChatGPT login, CODEX_UPSTREAM=direct."},
		{"404 without a word", codextest.Status(404, "<html>"), "404   [] The upstream rejected the request."},
		{"409 without a word", codextest.Status(409, "<html>"), "502 upstream_error  [] The upstream failed."},
		{"JSON instead of a stream", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, envelope("slow_down"))
		}, "503 upstream_overloaded  [1 2 3] The provider's words."},
		{"an error event", func(w http.ResponseWriter, _ *http.Request) {
			s := codextest.StartStream(w)
			s.Begin()
			s.Event(map[string]any{"type": "error", "code": "context_length_exceeded", "message": "The provider's words.", "param": nil})
		}, "400 context_length_exceeded messages [] The provider's words."},
		{"garbage", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "what?") }, "502 upstream_error  [] what?"},
		{"failed in the stream", func(w http.ResponseWriter, _ *http.Request) {
			s := codextest.StartStream(w)
			s.Event(map[string]any{"type": "response.failed", "response": map[string]any{"id": "r", "error": map[string]any{"code": "server_is_overloaded", "message": "The provider's words."}}})
		}, "503 upstream_overloaded  [1 2 3] The provider's words."},
		{"cut before the first token", func(w http.ResponseWriter, _ *http.Request) {
			codextest.StartStream(w).Begin()
			panic(http.ErrAbortHandler)
		}, "502 upstream_error  [] The upstream failed."},
		{"403", codextest.Status(403, envelope("denied")), "403 denied input[0] [] The provider's words."},
		{"403 without a word", codextest.Status(403, ""), "502 upstream_auth  [] final The upstream rejected this server's credentials."},
		{"401", codextest.Status(401, envelope("invalid_api_key")), "502 upstream_auth  [] final The upstream rejected this server's credentials."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up.Script(tt.reply)
			res, err := d.post(chatBody("hi", true))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var body struct {
				Error struct{ Message, Code, Param string }
			}
			if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
				t.Fatal(err)
			}
			wait := fmt.Sprint(res.Header["Retry-After"])
			if strings.Contains(tt.want, "[1 2 3]") && len(wait) == 3 {
				wait = "[1 2 3]" // ours, jittered
			}
			if res.Header.Get("X-Should-Retry") == "false" {
				wait += " final"
			}
			if got := fmt.Sprint(res.StatusCode, " ", body.Error.Code, " ", body.Error.Param, " ", wait, " ", body.Error.Message); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if ready := d.ready() == `200 {"ready":true}`; ready != (tt.name != "401") {
				t.Errorf("afterwards it is ready: %v", ready)
			}
		})
	}
	if n := len(elsewhere.Bodies()); n > 0 {
		t.Errorf("%d prompts went to the target of a redirect", n)
	}
	// A rejected credential makes the daemon not ready, until one is accepted.
	if got := d.ready(); got != `503 {"ready":false,"reason":"upstream_auth"}` {
		t.Errorf("after the 401: %s", got)
	}
	up.Script(codextest.Text("ok"))
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Errorf("afterwards: %v", err)
	}
	if got := d.ready(); got != `200 {"ready":true}` {
		t.Errorf("after a success: %s", got)
	}
	if m := d.metrics(); m[`codexpool_child_starts_total{outcome="ok"}`] != 1 {
		t.Error("it cost a child")
	}
	if strings.Contains(d.logged(), "provider's words") {
		t.Error("the provider's words are in the log; they may quote a prompt")
	}
}

func retryAfter(code int, seconds, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", seconds)
		codextest.Status(code, body)(w, r)
	}
}

// page answers with a page, as gateways and firewalls do.
func page(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// TestLogSaysWhatTheProviderSaid has, for each kind of failure, what the log line of the
// request must have of it, and the metrics.
func TestLogSaysWhatTheProviderSaid(t *testing.T) {
	named := func(reply http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Request-Id", "req-of-the-provider")
			reply(w, r)
		}
	}
	cutAfter := func(events ...map[string]any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			s := codextest.StartStream(w)
			for _, e := range events {
				s.Event(e)
			}
			panic(http.ErrAbortHandler)
		}
	}
	long := strings.Repeat("x", 200)
	d, up := withRelay(t, codextest.Text("ok"))
	for _, tt := range []struct {
		name    string
		reply   http.HandlerFunc
		want    map[string]any // of the line
		counted string
	}{
		{"400", codextest.Status(400, `{"error":{"message":"m","code":"bad_value"}}`), map[string]any{"code": "bad_value", "counted": "upstream_refused", "upstream_status": 400.0, "upstream_code": "bad_value"}, "upstream_refused"},
		{"400 whose code is a sentence", codextest.Status(400, `{"error":{"message":"m","type":"some_type","code":"the prompt was this"}}`), map[string]any{"code": "some_type", "counted": "upstream_refused", "upstream_code": nil}, "upstream_refused"},
		{"429", codextest.Status(429, `{"error":{"message":"m","type":"tokens","code":"rate_limit_exceeded"}}`), map[string]any{"code": "upstream_rate_limited", "counted": nil, "upstream_status": 429.0, "upstream_code": "rate_limit_exceeded"}, "upstream_rate_limited"},
		{"a page", page(502, "<html>"+long), map[string]any{"code": "upstream_error", "upstream_status": 502.0, "upstream_content_type": "text/html", "upstream_body": "<html>" + long[:74]}, "upstream_error"},
		{"a page that quotes our key", page(502, "<html>"+strings.Repeat("x", 60)+upstreamKey), map[string]any{"upstream_body": "<html>" + strings.Repeat("x", 60) + "…"}, "upstream_error"},
		{"499", codextest.Status(499, `{"error":{"message":"m","code":"cancelled"}}`), map[string]any{"status": 502.0, "upstream_status": 499.0, "code": "upstream_error"}, "upstream_error"},
		{"failed in the stream", func(w http.ResponseWriter, _ *http.Request) {
			codextest.StartStream(w).Fail("server_error", "m")
		}, map[string]any{"code": "upstream_error", "upstream_status": 200.0, "upstream_code": "server_error"}, "upstream_error"},
		{"cut", cutAfter(map[string]any{"type": "a"}), map[string]any{"code": "upstream_error", "upstream_status": 200.0, "err": "provider hung up after 29 bytes of its stream: "}, "upstream_error"},
		{"ended", func(w http.ResponseWriter, _ *http.Request) {
			codextest.StartStream(w).Event(map[string]any{"type": "a"})
		}, map[string]any{"err": "provider ended its stream after 29 bytes, without a last event: unexpected EOF"}, "upstream_error"},
		{"cut after text", cutAfter(map[string]any{"type": "response.output_text.delta", "delta": "one"}), map[string]any{"status": 200.0, "code": "upstream_error"}, "upstream_error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			counted := func() float64 {
				return d.total("codexpool_http_errors_total", `error="`+tt.counted+`"`, `route="chat"`)
			}
			before, logged := counted(), len(d.logged())
			up.Script(named(tt.reply))
			d.stream("hi")
			line := d.lineOf(logged)
			tt.want["upstream_request"] = "req-of-the-provider"
			for name, want := range tt.want {
				got := line[name]
				if said, ok := got.(string); ok && name == "err" { // the end is net/http's
					got = said[:min(len(said), len(want.(string)))]
				}
				if got != want {
					t.Errorf("%s: %v, want %v", name, got, want)
				}
			}
			if got := counted() - before; got != 1 {
				t.Errorf("%s is counted %v times", tt.counted, got)
			}
		})
	}
}

func TestLogSaysHowFarACutStreamCame(t *testing.T) {
	d, _ := withRelay(t, cutStream)
	res, err := d.post(chatBody("hi", true))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if want := regexp.MustCompile(fmt.Sprintf(`"sent_bytes":%d\b`, n)); err == nil || n == 0 || !want.MatchString(d.logged()) {
		t.Errorf("%v; not in the log: %s", err, want)
	}
}

// TestUsageOfAFailedAnswerIsCounted has a provider that fails, and says what it has used.
func TestUsageOfAFailedAnswerIsCounted(t *testing.T) {
	d, _ := withRelay(t, func(w http.ResponseWriter, _ *http.Request) {
		s := codextest.StartStream(w)
		s.Delta("half")
		s.Event(map[string]any{"type": "response.failed", "response": map[string]any{"error": map[string]any{"code": "server_error"}, "usage": map[string]any{"input_tokens": 7, "output_tokens": 2}}})
	})
	d.stream("hi")
	if in, out := d.total("codexpool_input_tokens_total"), d.total("codexpool_output_tokens_total"); in != 7 || out != 2 {
		t.Errorf("%v in, %v out", in, out)
	}
}

// TestConnectionThatClosesAsItIsUsedAgainCostsNothing has a provider that closes an idle
// connection in the moment in which the next request comes over it.
func TestConnectionThatClosesAsItIsUsedAgainCostsNothing(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	used := map[string]bool{}
	up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		again := used[r.RemoteAddr]
		used[r.RemoteAddr] = true
		mu.Unlock()
		if again {
			panic(http.ErrAbortHandler)
		}
		codextest.Text("ok")(w, r)
	})
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	for range 2 {
		if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
			t.Error(err)
		}
	}
	if len(up.Bodies()) != 3 {
		t.Errorf("%d requests: no connection was used again", len(up.Bodies()))
	}
}

func (d *daemon) ready() string {
	d.t.Helper()
	res, err := http.Get(d.url + "/readyz")
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return fmt.Sprint(res.StatusCode, " ", strings.TrimSpace(string(body)))
}

func TestProviderThatIsBrieflyUnavailableIsTriedAgain(t *testing.T) {
	d, up := withRelay(t, codextest.Status(503, ""), codextest.Text("ok"))
	chunks, err := d.stream("hi")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := wholeText(chunks); err != nil || text != "ok" || len(up.Bodies()) != 2 {
		t.Errorf("%q, %v, %d tries", text, err, len(up.Bodies()))
	}
}

func TestStreamCutNeverRepeatsTextNorLooksFinished(t *testing.T) {
	halfway := func(w http.ResponseWriter, _ *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		s.Delta("half ")
		panic(http.ErrAbortHandler)
	}
	d, up := withRelay(t, halfway, codextest.Text("half ", "whole"))
	res, err := d.post(chatBody("hi", true))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var text string
	var last chunk
	if err := readStream(res.Body, func(c chunk) { text, last = text+c.text, c }); err == nil {
		t.Error("the connection was not cut")
	}
	if text != "half " || last.error != "upstream_error" || len(up.Bodies()) != 1 {
		t.Errorf("%q, last %+v, %d requests", text, last, len(up.Bodies()))
	}
}

// TestProviderThatMisbehavesCostsOneAnswer has failures without an error message
// from the provider. Afterwards the pool serves as before.
func TestProviderThatMisbehavesCostsOneAnswer(t *testing.T) {
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	silentLater := func(w http.ResponseWriter, r *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		<-r.Context().Done()
	}
	endless := func(w http.ResponseWriter, r *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		s.Delta(strings.Repeat("x", 70<<20))
		s.End()
	}
	for _, tt := range []struct {
		name     string
		reply    http.HandlerFunc
		idle     string  // PROXY_STREAM_IDLE_TIMEOUT_MS
		want     string  // status and code
		children float64 // started in all
	}{
		{"it is silent", silent, "1500", "504: idle_timeout", 1},
		{"it falls silent", silentLater, "1500", "504: idle_timeout", 1},
		{"an event that does not end", endless, "60000", "502: upstream_error", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			up := newUpstream(t, tt.reply, codextest.Text("ok"))
			d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "PROXY_STREAM_IDLE_TIMEOUT_MS="+tt.idle, "PROXY_SSE_COMMIT_MS=60000")
			status, code, _ := strings.Cut(tt.want, " ")
			if chunks, err := d.stream("hi"); err == nil || !strings.HasPrefix(err.Error(), status) || !strings.Contains(err.Error(), code) {
				t.Errorf("got %+v, %v, want %s", chunks, err, tt.want)
			}
			if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
				t.Errorf("the next: %v", err)
			}
			if got := d.metrics()[`codexpool_child_starts_total{outcome="ok"}`]; got != tt.children {
				t.Errorf("%v children were started", got)
			}
		})
	}
}

func TestProviderThatHangsInTheHandshakeCountsAsSilent(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never sends a byte
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM=https://"+listener.Addr().String()+"/v1", "PROXY_STREAM_IDLE_TIMEOUT_MS=1500")
	if _, err := d.stream("hi"); err == nil || !strings.Contains(err.Error(), "idle_timeout") {
		t.Errorf("got %v", err)
	}
	eventually(t, 5*time.Second, "rest", func() bool { return d.metrics()[`codexpool_pool_children{state="idle"}`] == 1 })
	if got := d.metrics()[`codexpool_child_starts_total{outcome="ok"}`]; got != 1 {
		t.Errorf("%v children were started", got)
	}
}

func TestProviderKeyIsInNoChild(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	d, _ := withRelay(t, func(w http.ResponseWriter, r *http.Request) {
		close(reached)
		<-release
		codextest.Text("ok")(w, r)
	})
	go d.stream("hi")
	<-reached
	defer close(release)
	for _, pid := range d.children() {
		holdsNot(t, pid, upstreamKey)
	}
}

// variableOf is the value of a variable in the environment of a process.
func variableOf(t *testing.T, pid int, name string) string {
	t.Helper()
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for v := range strings.SplitSeq(string(environ), "\x00") {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return ""
}

// holdsNot asserts that a child has none of the secrets in its environment, its
// arguments, its files, or its memory.
func holdsNot(t *testing.T, pid int, secrets ...string) {
	t.Helper()
	search := func(where string, data []byte) {
		for _, secret := range secrets {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%q is in %s", secret, where)
			}
		}
	}
	proc := fmt.Sprintf("/proc/%d", pid)
	environ, err := os.ReadFile(proc + "/environ")
	if err != nil {
		t.Fatal(err)
	}
	search("environ", environ)
	cmdline, err := os.ReadFile(proc + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	search("cmdline", cmdline)
	files, size := 0, 0
	home := variableOf(t, pid, "HOME")
	filepath.WalkDir(home, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			data, _ := os.ReadFile(path) // it may have just been removed
			files++
			search(path, data)
		}
		return nil
	})
	memory(t, proc, func(part []byte) {
		size += len(part)
		search("memory", part)
	})
	if files == 0 || size == 0 {
		t.Errorf("%d files in %q, %d bytes of memory: this test proves nothing", files, home, size)
	}
}

// memory reads the writable memory of a process.
func memory(t *testing.T, proc string, each func([]byte)) {
	t.Helper()
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(proc + "/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if n, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n != 3 || err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if !strings.HasPrefix(mode, "rw") || to-from > 256<<20 {
			continue
		}
		part := make([]byte, to-from)
		if n, _ := mem.ReadAt(part, int64(from)); n > 0 { // a part may have just been unmapped
			each(part[:n])
		}
	}
}

// TestModelUnknownToCodexAcceptsLongConversations: by default Codex
// would compact the conversation at a megabyte.
func TestModelUnknownToCodexAcceptsLongConversations(t *testing.T) {
	d, up := withRelay(t, codextest.Text("ok"))
	got, _ := d.complete(`"model":"vendor/own-model","messages":[{"role":"user","content":"`+strings.Repeat("word ", 2<<20/5)+`"}]`, true)
	if got.String() != `assistant content "ok" finish stop` {
		t.Errorf("got %s", got)
	}
	var body struct{ Model string }
	if err := json.Unmarshal(up.Bodies()[0], &body); err != nil || body.Model != "vendor/own-model" || len(up.Bodies()) != 1 {
		t.Errorf("%d requests, the first for %q, %v", len(up.Bodies()), body.Model, err)
	}
}

// TestConnectionsToTheProviderStayWarm counts them at a provider that ends its
// body a little after the last event, when the child has hung up.
func TestConnectionsToTheProviderStayWarm(t *testing.T) {
	t.Parallel()
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			var mu sync.Mutex
			var inFlight, most, versions int
			connections := map[string]bool{}
			server, roots := secure(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				inFlight++
				most = max(most, inFlight)
				connections[r.RemoteAddr] = true
				versions |= r.ProtoMajor
				mu.Unlock()
				codextest.Text("ok")(w, r)
				time.Sleep(3 * time.Millisecond)
				mu.Lock()
				inFlight--
				mu.Unlock()
			}), http2)
			const children = 4
			d := start(t, "POOL_SIZE="+strconv.Itoa(children), "CODEX_UPSTREAM="+server.URL+"/v1", "SSL_CERT_FILE="+roots)
			d.spread(200, 8, func(int) error {
				_, err := d.stream("hi")
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			most = max(most, children) // those on their way have not been seen here
			if len(connections) > most || (versions == 2) != http2 {
				t.Errorf("%d connections for at most %d requests in flight, HTTP/%d", len(connections), most, versions)
			}
			m := d.metrics()
			if warm, cold := m[`codexpool_upstream_requests_total{code="200",connection="warm"}`], m[`codexpool_upstream_requests_total{code="200",connection="new"}`]; warm+cold != 200 || cold > float64(most) {
				t.Errorf("counted %v requests over warm connections, %v over new ones", warm, cold)
			}
		})
	}
}

// TestProviderBytesOutOfTurnAreNotLogged has a provider that sends something
// more when its answer has ended. net/http would quote it in a log of its own.
func TestProviderBytesOutOfTurnAreNotLogged(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	left := make(chan struct{})
	go func() { // ends when the daemon has hung up
		defer close(left)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		io.Copy(io.Discard, req.Body)
		answer := httptest.NewRecorder()
		codextest.Text("ok")(answer, req)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s", answer.Body.Len(), answer.Body)
		time.Sleep(100 * time.Millisecond) // until the connection is idle: nothing tells
		io.WriteString(conn, "data: the words of the model\n\n")
		io.Copy(io.Discard, conn)
	}()
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM=http://"+listener.Addr().String()+"/v1")
	if _, err := d.stream("hi"); err != nil {
		t.Fatal(err)
	}
	<-left
	if log := d.logged(); strings.Contains(log, "words of the model") || strings.Contains(log, "Unsolicited") {
		t.Errorf("logged:\n%s", log)
	}
}

func TestRelayRejectsOtherProcesses(t *testing.T) {
	d, up := withRelay(t, codextest.Text("ok"))
	config, err := os.ReadFile(filepath.Join(variableOf(t, d.children()[0], "CODEX_HOME"), "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(config), `base_url = "http://`)
	addr, path, _ := strings.Cut(strings.TrimSuffix(strings.SplitN(rest, "\n", 2)[0], `"`), "/")
	for url, want := range map[string]int{
		"http://" + addr + "/v1/responses":                     404,
		"http://" + addr + "/" + path + "x/responses":          404,
		"http://" + addr + "/guess/v1/responses":               404,
		"http://" + addr + "/" + path + "/responses":           403, // a child's, but no running turn's
		"http://" + addr + "/" + path + "/models?client_id=me": 404,
	} {
		res, err := http.Post(url, "application/json", strings.NewReader(`{"model":"m","input":[]}`))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, want %d", strings.ReplaceAll(url, path, "PATH"), res.StatusCode, want)
		}
	}
	if len(up.Bodies()) != 0 {
		t.Error("a request reached the provider")
	}
}

// TestQueryOfTheBaseURLIsKept has a provider such as Azure, which wants api-version
// with each request. A query may hold a key, so it is not shown.
func TestQueryOfTheBaseURLIsKept(t *testing.T) {
	t.Parallel()
	const secret = "s3cret-of-the-url"
	asked := make(chan string, 1)
	noted := func(reply http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			asked <- r.URL.RequestURI()
			reply(w, r)
		}
	}
	const query = "?api-version=2025-04-01&code=" + secret
	up := newUpstream(t, noted(codextest.Text("ok")), noted(codextest.Status(400, `{"detail":"the code `+secret+` is unknown"}`)), noted(codextest.Status(404, "")))
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1"+query)
	for i, tt := range []struct{ method, path, answer, asked string }{
		{"POST", chatPath, `"content":"ok"`, "/v1/responses" + query},
		{"POST", chatPath, `"message":"the code … is unknown"`, "/v1/responses" + query},
		{"GET", "/v1/models", `"object":"list"`, "/v1/models" + query},
	} {
		res := d.request(tt.method, tt.path, "Bearer "+key, "application/json", chatBody("hi", false))
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if got := <-asked; err != nil || !strings.Contains(string(body), tt.answer) || got != tt.asked {
			t.Errorf("%d: %d %s, %v, the provider was asked for %s", i, res.StatusCode, body, err, got)
		}
	}
	if strings.Contains(d.logged(), secret) || !strings.Contains(d.logged(), up.URL+"/v1") {
		t.Errorf("the log names the provider otherwise:\n%s", d.logged())
	}
}

// TestModelsAreThoseOfTheProvider has a provider with models that Codex does not know.
func TestModelsAreThoseOfTheProvider(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "GET" || r.URL.Path != "/v1/models" || r.Header.Get("Authorization") != "Bearer "+upstreamKey {
			t.Errorf("asked for %s %s with %v", r.Method, r.URL, r.Header)
		}
		io.WriteString(w, `{"object":"list","data":[{"id":"qwen-3","object":"model","created":7,"owned_by":"vllm"}]}`)
	})
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "CODEX_UPSTREAM_API_KEY="+upstreamKey)
	var list struct{ Data []struct{ ID string } }
	res := d.request("GET", "/v1/models", "Bearer "+key, "", "")
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	var ids []string
	for _, m := range list.Data {
		ids = append(ids, m.ID)
	}
	if got := strings.Join(ids, " "); !strings.HasPrefix(got, "codev-5 ") || !strings.HasSuffix(got, " codex-5 qwen-3") {
		t.Errorf("got %s", got)
	}
	for name, want := range map[string]int{"qwen-3": 200, "NONSENSE": 404} {
		res := d.request("GET", "/v1/models/"+name, "Bearer "+key, "", "")
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}
}
