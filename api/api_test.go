package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/pool"
	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "rewrite the golden parts of testdata")

const key = "k-test"

// house is a server over a pool of played children.
type house struct {
	*api.Server
	pool *pool.Pool

	observed func(api.Result) // called for each result, if not nil

	mu      sync.Mutex
	results []api.Result
}

var models = api.Models{Prefix: "codex-5", Default: "gpt-a", Catalog: []codex.Model{
	{ID: "gpt-a", Efforts: []string{"low", "high", "ultra"}, Default: true},
	{ID: "gpt-b-mini", Efforts: []string{"low"}},
}}

func config() api.Config {
	return api.Config{
		Keys:          []api.Key{{Name: "1", Digest: sha256.Sum256([]byte(key))}, {Name: "2", Digest: sha256.Sum256([]byte("another"))}},
		Models:        func() api.Models { return models },
		ProtectModels: true, Sandbox: "read-only", Upstream: api.Upstream{Choice: "echo", Credential: "none"},
		CacheKey: true, MaxBody: 1 << 20, MaxBodies: 1 << 24, MaxChoices: 4, MaxPlaces: 5, Keepalive: 15 * time.Second, Commit: 2 * time.Second,
		Timeout: 10 * time.Minute, IdleTimeout: 2 * time.Minute, StreamIdleTimeout: 5 * time.Minute,
		WriteTimeout: 30 * time.Second,
	}
}

// open builds a house whose children play the scripts in turn; those that come
// after are healthy. Call it in a bubble.
func open(t *testing.T, cfg api.Config, size int, scripts ...codextest.Script) *house {
	t.Helper()
	return openWith(t, cfg, pool.Config{Size: size}, nil, scripts...)
}

// relayTo is a relay to a provider that is played by its transport.
func relayTo(provider http.RoundTripper) *upstream.Relay {
	return upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider.invalid"}}, provider, upstream.Hooks{})
}

// behind is a house whose relay sends to a provider of the test's own.
func behind(t *testing.T, cfg api.Config, size int, provider http.RoundTripper) *house {
	t.Helper()
	return openWith(t, cfg, pool.Config{Size: size}, relayTo(provider))
}

// openWith has more to choose from.
func openWith(t *testing.T, cfg api.Config, children pool.Config, relay *upstream.Relay, scripts ...codextest.Script) *house {
	t.Helper()
	var mu sync.Mutex
	children.Spawn = func(ctx context.Context) (*codex.Client, error) {
		mu.Lock()
		script := healthyBehind(relay)
		if len(scripts) > 0 {
			script, scripts = scripts[0], scripts[1:]
		}
		mu.Unlock()
		return codex.Connect(ctx, codextest.Pipe(t, script), codextest.Log(t))
	}
	children.MinIdle, children.MaxWaiting, children.AcquireTimeout, children.Log = children.Size, max(children.MaxWaiting, 2), 30*time.Second, codextest.Log(t)
	p, err := pool.New(children)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{pool: p}
	h.Server = api.New(cfg, p, relay, codextest.Log(t), func(_ context.Context, r api.Result) {
		h.mu.Lock()
		h.results = append(h.results, r)
		h.mu.Unlock()
		if h.observed != nil {
			h.observed(r)
		}
	})
	t.Cleanup(p.Close)
	synctest.Wait() // the children are warm
	return h
}

func (h *house) last() api.Result {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.results) == 0 {
		return api.Result{}
	}
	return h.results[len(h.results)-1]
}

// healthy is a child that answers with the words of the user.
func healthy() codextest.Script { return healthyBehind(nil) }

// healthyBehind is a child that sends its turns to relay, or has none.
func healthyBehind(relay *upstream.Relay) codextest.Script {
	child := &codextest.Child{Delay: time.Second}
	if relay != nil {
		child.Post = func(ctx context.Context, metadata string) error {
			r := httptest.NewRequestWithContext(ctx, "POST", "/v1/responses", strings.NewReader("{}"))
			r.Header.Set("X-Codex-Turn-Metadata", metadata)
			w := httptest.NewRecorder()
			if relay.ServeHTTP(w, r); w.Code != 200 {
				return fmt.Errorf("unexpected status %d", w.Code)
			}
			return nil
		}
	}
	return codextest.Script{codextest.Handshake(), codextest.Serve(child)}
}

// says is a provider that answers each request with a text.
type says string

func (text says) RoundTrip(*http.Request) (*http.Response, error) {
	delta, _ := json.Marshal(string(text))
	stream := fmt.Sprintf("data: {\"type\":\"response.output_text.delta\",\"delta\":%s}\n\ndata: {\"type\":\"response.completed\",\"response\":{}}\n\n", delta)
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(stream))}, nil
}

// answer is what a client got.
type answer struct {
	*httptest.ResponseRecorder
	cut bool // the connection was aborted
}

// do sends one request. On every error it holds the envelope to its shape.
func (h *house) do(t *testing.T, r *http.Request) answer {
	t.Helper()
	a := answer{ResponseRecorder: httptest.NewRecorder()}
	a.cut = h.serve(a, r)
	if !a.cut && a.Code >= 400 && r.URL.Path != "/readyz" {
		checkEnvelope(t, a.ResponseRecorder)
	}
	if a.Header().Get("X-Request-Id") == "" {
		t.Error("no X-Request-Id")
	}
	return a
}

// serve serves one request, and reports whether its connection was aborted.
func (h *house) serve(w http.ResponseWriter, r *http.Request) (cut bool) {
	defer func() {
		if p := recover(); p == http.ErrAbortHandler {
			cut = true
		} else if p != nil {
			panic(p)
		}
	}()
	h.ServeHTTP(w, r)
	return false
}

func checkEnvelope(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("an error of type %q", got)
	}
	var body map[string]map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body) != 1 {
		t.Fatalf("not an envelope: %s", w.Body)
	}
	e := body["error"]
	for _, field := range []string{"message", "type", "param", "code"} {
		if _, ok := e[field]; !ok {
			t.Errorf("no %s in %s", field, w.Body)
		}
	}
	if e["message"] == "" || e["type"] == "" || len(e) != 4 {
		t.Errorf("envelope %s", w.Body)
	}
}

// request is an authorized request.
func request(method, path, body string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

func chat(body string) *http.Request { return request("POST", "/v1/chat/completions", body) }

const hello = `{"messages":[{"role":"user","content":"hi"}]}`

func TestChatTranscripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/chat/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) {
				asked := string(archive.Files[0].Data)
				first := codextest.Script{codextest.Handshake(), codextest.Thread()}
				if strings.Contains(asked, `"parameters"`) { // tools need a thread of their own
					first = append(first, codextest.Expect("thread/start"), codextest.Reply(map[string]any{"thread": map[string]any{"id": "$thread"}}))
				}
				first = append(append(first, codextest.Turn()), codextest.Wire(t, archive.Files[1].Data)...)
				h := open(t, config(), 1, append(first, codextest.Serve(&codextest.Child{})))
				path := "/v1/chat/completions"
				if strings.Contains(asked, `"prompt"`) {
					path = "/v1/completions"
				}
				got = show(h.do(t, request("POST", path, asked)), h.last())
			})
			if *update {
				archive.Files[2].Data = []byte(got)
				if err := os.WriteFile(path, txtar.Format(archive), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(archive.Files[2].Data), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

var (
	randomID = regexp.MustCompile(`cmpl-[A-Z0-9]{26}`)
	retry    = regexp.MustCompile(`Retry-After: [123]\n`)
)

// show writes an answer down, without what is random.
func show(a answer, result api.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d\n", a.Code)
	for _, name := range slices.Sorted(keys(a.Header())) {
		if name != "X-Request-Id" && name != "Content-Length" {
			fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(a.Header()[name], ", "))
		}
	}
	fmt.Fprintf(&b, "\n%s", a.Body)
	if a.cut {
		b.WriteString("(cut)\n")
	}
	if result.Code != "" {
		fmt.Fprintf(&b, "(counted as %d %s)\n", result.Status, result.Code)
	}
	s := randomID.ReplaceAllString(b.String(), "cmpl-ID")
	return retry.ReplaceAllString(s, "Retry-After: (1 to 3)\n")
}

func keys(h http.Header) func(func(string) bool) {
	return func(yield func(string) bool) {
		for name := range h {
			if !yield(name) {
				return
			}
		}
	}
}

func TestBadRequestsGetTheirOwnStatus(t *testing.T) {
	msg := func(fields string) string { return `{"messages":[{"role":"user","content":"hi"}],` + fields + `}` }
	authorized := func(body string) *http.Request { return chat(body) }
	image := func(url string) *http.Request {
		return chat(`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":` + url + `}]}]}`)
	}
	const f = `{"type":"function","function":{"name":"f"}}`
	const calls = `{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"2","type":"function","function":{"name":"f","arguments":"{}"}}]}`
	tests := []struct {
		name    string
		request *http.Request
		want    string // status type code param
	}{
		{"no key", httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(hello)), "401 authentication_error invalid_api_key <nil>"},
		{"wrong key", withHeader(authorized(hello), "Authorization", "Bearer nope"), "401 authentication_error invalid_api_key <nil>"},
		{"a part of the key", withHeader(authorized(hello), "Authorization", "Bearer k-tes"), "401 authentication_error invalid_api_key <nil>"},
		{"another scheme", withHeader(authorized(hello), "Authorization", "Basic "+key), "401 authentication_error invalid_api_key <nil>"},
		{"unknown path", request("POST", "/v1/embeddings", hello), "404 invalid_request_error not_found <nil>"},
		{"path above", request("GET", "/v1", ""), "404 invalid_request_error not_found <nil>"},
		{"wrong method", request("GET", "/v1/chat/completions", ""), "405 invalid_request_error method_not_allowed <nil>"},
		{"wrong type", withHeader(authorized(hello), "Content-Type", "text/plain"), "415 invalid_request_error unsupported_media_type <nil>"},
		{"another coding", withHeader(authorized(hello), "Content-Encoding", "br"), "415 invalid_request_error unsupported_media_type <nil>"},
		{"two codings", withHeader(authorized(hello), "Content-Encoding", "gzip, gzip"), "415 invalid_request_error unsupported_media_type <nil>"},
		{"no gzip", withHeader(authorized(hello), "Content-Encoding", "gzip"), "400 invalid_request_error invalid_json <nil>"},
		{"no zstd", withHeader(authorized(hello), "Content-Encoding", "zstd"), "400 invalid_request_error invalid_json <nil>"},
		{"a form", withHeader(authorized("a=b"), "Content-Type", "application/x-www-form-urlencoded"), "415 invalid_request_error unsupported_media_type <nil>"},
		{"bad JSON of curl", withHeader(authorized(`{"messages":[}`), "Content-Type", "application/x-www-form-urlencoded"), "400 invalid_request_error invalid_json <nil>"},
		{"what is no type", withHeader(authorized(hello), "Content-Type", "json, please"), "415 invalid_request_error unsupported_media_type <nil>"},
		{"too large", authorized(msg(`"user":"` + strings.Repeat("x", 1<<20) + `"`)), "413 invalid_request_error request_too_large <nil>"},
		{"empty body", authorized(""), "400 invalid_request_error invalid_json <nil>"},
		{"bad JSON", authorized(`{"messages":[}`), "400 invalid_request_error invalid_json <nil>"},
		{"two objects", authorized(hello + hello), "400 invalid_request_error invalid_json <nil>"},
		{"an array", authorized(`[]`), "400 invalid_request_error invalid_json <nil>"},
		{"null", authorized(`null`), "400 invalid_request_error invalid_json <nil>"},
		{"no messages", authorized(`{"model":"codex-5"}`), "400 invalid_request_error <nil> messages"},
		{"empty messages", authorized(`{"messages":[]}`), "400 invalid_request_error <nil> messages"},
		{"messages of a wrong type", authorized(`{"messages":"hi"}`), "400 invalid_request_error <nil> messages"},
		{"a message of a wrong type", authorized(`{"messages":["hi"]}`), "400 invalid_request_error <nil> messages"},
		{"no role", authorized(`{"messages":[{"content":"hi"}]}`), "400 invalid_request_error <nil> messages[0].role"},
		{"unknown role", authorized(`{"messages":[{"role":"king","content":"hi"}]}`), "400 invalid_request_error <nil> messages[0].role"},
		{"no content", authorized(`{"messages":[{"role":"user"}]}`), "400 invalid_request_error <nil> messages[0].content"},
		{"content of a wrong type", authorized(`{"messages":[{"role":"user","content":7}]}`), "400 invalid_request_error <nil> messages[0].content"},
		{"a part without text", authorized(`{"messages":[{"role":"user","content":[{"type":"text"}]}]}`), "400 invalid_request_error <nil> messages[0].content[0].text"},
		{"an unknown part", authorized(`{"messages":[{"role":"user","content":[{"type":"smell"}]}]}`), "400 invalid_request_error <nil> messages[0].content[0].type"},
		{"an image by URL", image(`{"url":"https://a.example/i.png"}`), "400 invalid_request_error <nil> messages[0].content[0].image_url.url"},
		{"an image that is no base64", image(`{"url":"data:image/png;base64,%%"}`), "400 invalid_request_error <nil> messages[0].content[0].image_url.url"},
		{"an image of another type", image(`{"url":"data:image/tiff;base64,AAAA"}`), "400 invalid_request_error <nil> messages[0].content[0].image_url.url"},
		{"an image that is none", image(`{"url":"data:image/png;base64,AAAA"}`), "400 invalid_request_error <nil> messages[0].content[0].image_url.url"},
		{"an image without URL", image(`{}`), "400 invalid_request_error <nil> messages[0].content[0].image_url.url"},
		{"a detail that is none", image(`{"url":"data:,","detail":"huge"}`), "400 invalid_request_error <nil> messages[0].content[0].image_url.detail"},
		{"an image of an assistant", authorized(`{"messages":[{"role":"assistant","content":[{"type":"image_url","image_url":{}}]}]}`), "400 invalid_request_error <nil> messages[0].content[0].type"},
		{"audio in", authorized(`{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}]}`), "400 invalid_request_error unsupported_parameter messages[0].content[0]"},
		{"a result without a call", authorized(`{"messages":[{"role":"tool","tool_call_id":"1","content":"x"}]}`), "400 invalid_request_error <nil> messages[0]"},
		{"a result without an id", authorized(`{"messages":[{"role":"tool","content":"x"}]}`), "400 invalid_request_error <nil> messages[0].tool_call_id"},
		{"a call without a result", authorized(`{"messages":[` + calls + `,{"role":"user","content":"x"}]}`), "400 invalid_request_error <nil> messages"},
		{"a call without a result at the end", authorized(`{"messages":[` + calls + `,{"role":"tool","tool_call_id":"1","content":"x"}]}`), "400 invalid_request_error <nil> messages"},
		{"a call that is answered twice", authorized(`{"messages":[` + calls + `,{"role":"tool","tool_call_id":"1","content":"x"},{"role":"tool","tool_call_id":"1","content":"x"}]}`), "400 invalid_request_error <nil> messages[2]"},
		{"two calls of one id", authorized(`{"messages":[` + strings.Replace(calls, `"2"`, `"1"`, 1) + `]}`), "400 invalid_request_error <nil> messages[0].tool_calls[1].id"},
		{"a call without arguments", authorized(`{"messages":[{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f"}}]}]}`), "400 invalid_request_error <nil> messages[0].tool_calls[0].function.arguments"},
		{"a call of another kind", authorized(`{"messages":[{"role":"assistant","tool_calls":[{"id":"1","type":"custom"}]}]}`), "400 invalid_request_error <nil> messages[0].tool_calls[0].type"},
		{"tools of a wrong type", authorized(msg(`"tools":{}`)), "400 invalid_request_error <nil> tools"},
		{"a tool that is no function", authorized(msg(`"tools":[{"type":"custom"}]`)), "400 invalid_request_error unsupported_parameter tools[0].type"},
		{"a tool without function", authorized(msg(`"tools":[{"type":"function"}]`)), "400 invalid_request_error <nil> tools[0].function"},
		{"a tool without a name", authorized(msg(`"tools":[{"type":"function","function":{}}]`)), "400 invalid_request_error <nil> tools[0].function.name"},
		{"a bad tool name", authorized(msg(`"tools":[` + f + `,{"type":"function","function":{"name":"a b"}}]`)), "400 invalid_request_error <nil> tools[1].function.name"},
		{"two tools of one name", authorized(msg(`"tools":[` + f + `,` + f + `]`)), "400 invalid_request_error <nil> tools[1].function.name"},
		{"a bad schema", authorized(msg(`"tools":[{"type":"function","function":{"name":"f","parameters":[]}}]`)), "400 invalid_request_error <nil> tools[0].function.parameters"},
		{"a schema of no object", authorized(msg(`"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"string"}}}]`)), "400 invalid_request_error <nil> tools[0].function.parameters"},
		{"strict of a wrong type", authorized(msg(`"tools":[{"type":"function","function":{"name":"f","strict":1}}]`)), "400 invalid_request_error <nil> tools[0].function.strict"},
		{"a choice without tools", authorized(msg(`"tool_choice":"required"`)), "400 invalid_request_error <nil> tool_choice"},
		{"a choice that is none", authorized(msg(`"tool_choice":"maybe"`)), "400 invalid_request_error <nil> tool_choice"},
		{"a choice that is no tool", authorized(msg(`"tools":[` + f + `],"tool_choice":{"type":"function","function":{"name":"g"}}`)), "400 invalid_request_error <nil> tool_choice"},
		{"a choice of another kind", authorized(msg(`"tools":[` + f + `],"tool_choice":{"type":"custom"}`)), "400 invalid_request_error unsupported_parameter tool_choice.type"},
		{"allowed tools that are none", authorized(msg(`"tools":[` + f + `],"tool_choice":{"type":"allowed_tools"}`)), "400 invalid_request_error <nil> tool_choice.allowed_tools"},
		{"allowed tools in no mode", authorized(msg(`"tools":[` + f + `],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"none","tools":[]}}`)), "400 invalid_request_error <nil> tool_choice.allowed_tools.mode"},
		{"an allowed tool that is no tool", authorized(msg(`"tools":[` + f + `],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"g"}}]}}`)), "400 invalid_request_error <nil> tool_choice"},
		{"an allowed tool of another kind", authorized(msg(`"tools":[` + f + `],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"mcp"}]}}`)), "400 invalid_request_error unsupported_parameter tool_choice.allowed_tools.tools[0].type"},
		{"allowed tools without a relay", authorized(msg(`"tools":[` + f + `],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}}`)), "400 invalid_request_error unsupported_parameter tool_choice"},
		{"a choice without a relay", authorized(msg(`"tools":[` + f + `],"tool_choice":"required"`)), "400 invalid_request_error unsupported_parameter tool_choice"},
		{"a bad function", authorized(msg(`"functions":[{"name":"ü"}]`)), "400 invalid_request_error <nil> functions[0].name"},
		{"a format that is none", authorized(msg(`"response_format":{"type":"xml"}`)), "400 invalid_request_error <nil> response_format.type"},
		{"a format without schema", authorized(msg(`"response_format":{"type":"json_schema"}`)), "400 invalid_request_error <nil> response_format.json_schema"},
		{"a format without a name", authorized(msg(`"response_format":{"type":"json_schema","json_schema":{"schema":{}}}`)), "400 invalid_request_error <nil> response_format.json_schema.name"},
		{"a format without a relay", authorized(msg(`"response_format":{"type":"json_object"}`)), "400 invalid_request_error unsupported_parameter response_format"},
		{"no choice", authorized(msg(`"n":0`)), "400 invalid_request_error <nil> n"},
		{"too many choices", authorized(msg(`"n":5`)), "400 invalid_request_error <nil> n"},
		{"too many stop sequences", authorized(msg(`"stop":["a","b","c","d","e"]`)), "400 invalid_request_error <nil> stop"},
		{"an empty stop sequence", authorized(msg(`"stop":""`)), "400 invalid_request_error <nil> stop"},
		{"stop of a wrong type", authorized(msg(`"stop":7`)), "400 invalid_request_error <nil> stop"},
		{"a product of choices that wraps to none", request("POST", "/v1/completions", `{"prompt":["a","b","c","d"],"n":4611686018427387904}`), "400 invalid_request_error <nil> n"},
		{"a product of choices that wraps to less", request("POST", "/v1/completions", `{"prompt":["a","b"],"n":6917529027641081856}`), "400 invalid_request_error <nil> n"},
		{"a summary that is none", authorized(msg(`"reasoning":{"summary":"foo"}`)), "400 invalid_request_error <nil> reasoning.summary"},
		{"a choice of null", authorized(msg(`"tools":[` + f + `],"tool_choice":{"type":"function","function":{"name":null}}`)), "400 invalid_request_error <nil> tool_choice.function.name"},
		{"a legacy choice that is none", authorized(msg(`"functions":[{"name":"f"}],"function_call":{"name":"g"}`)), "400 invalid_request_error <nil> function_call"},
		{"tools in both forms", authorized(msg(`"tools":[` + f + `],"functions":[{"name":"g"}]`)), "400 invalid_request_error <nil> functions"},
		{"a schema named null", authorized(msg(`"response_format":{"type":"json_schema","json_schema":{"name":null,"schema":{}}}`)), "400 invalid_request_error <nil> response_format.json_schema.name"},
		{"a call without a name", authorized(`{"messages":[{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"","arguments":""}}]}]}`), "400 invalid_request_error <nil> messages[0].tool_calls[0].function.name"},
		{"a call whose id is null", authorized(`{"messages":[{"role":"assistant","tool_calls":[{"id":null,"type":"function","function":{"name":"f","arguments":""}}]}]}`), "400 invalid_request_error <nil> messages[0].tool_calls[0].id"},
		{"a result for nothing", authorized(`{"messages":[{"role":"tool","tool_call_id":"","content":"x"}]}`), "400 invalid_request_error <nil> messages[0].tool_call_id"},
		{"a prompt of null", request("POST", "/v1/completions", `{"prompt":["a",null]}`), "400 invalid_request_error <nil> prompt"},
		{"metadata of null", authorized(msg(`"metadata":{"a":null}`)), "400 invalid_request_error <nil> metadata"},
		{"too much bias", authorized(msg(`"logit_bias":{"1":500}`)), "400 invalid_request_error <nil> logit_bias"},
		{"too much of a penalty", authorized(msg(`"presence_penalty":3`)), "400 invalid_request_error <nil> presence_penalty"},
		{"no tokens", authorized(msg(`"max_tokens":0`)), "400 invalid_request_error <nil> max_tokens"},
		{"legacy logprobs", request("POST", "/v1/completions", `{"prompt":"a","logprobs":1}`), "400 invalid_request_error unsupported_parameter logprobs"},
		{"an echo", request("POST", "/v1/completions", `{"prompt":"a","echo":true}`), "400 invalid_request_error unsupported_parameter echo"},
		{"the best of some", request("POST", "/v1/completions", `{"prompt":"a","best_of":2}`), "400 invalid_request_error unsupported_parameter best_of"},
		{"audio out", authorized(msg(`"audio":{}`)), "400 invalid_request_error unsupported_parameter audio"},
		{"a prediction that is none", authorized(msg(`"prediction":"x"`)), "400 invalid_request_error <nil> prediction"},
		{"a search", authorized(msg(`"web_search_options":{}`)), "400 invalid_request_error unsupported_parameter web_search_options"},
		{"logprobs", authorized(msg(`"logprobs":true`)), "400 invalid_request_error unsupported_parameter logprobs"},
		{"top logprobs", authorized(msg(`"top_logprobs":2`)), "400 invalid_request_error unsupported_parameter top_logprobs"},
		{"what is no UTF-8", authorized(msg("\"user\":\"\xff\"")), "400 invalid_request_error invalid_json <nil>"},
		{"a schema that nests too deep for a child", authorized(msg(`"tools":[{"type":"function","function":{"name":"f","parameters":` + strings.Repeat(`{"not":`, 130) + `{}` + strings.Repeat(`}`, 130) + `}}]`)), "400 invalid_request_error <nil> tools"},
		{"no prompt", request("POST", "/v1/completions", `{"model":"codex-5"}`), "400 invalid_request_error <nil> prompt"},
		{"a prompt of tokens", request("POST", "/v1/completions", `{"prompt":[1,2]}`), "400 invalid_request_error <nil> prompt"},
		{"too many prompts", request("POST", "/v1/completions", `{"prompt":["a","b","c"],"n":2}`), "400 invalid_request_error <nil> prompt"},
		{"a suffix", request("POST", "/v1/completions", `{"prompt":"a","suffix":"b"}`), "400 invalid_request_error unsupported_parameter suffix"},
		{"stream of a wrong type", authorized(msg(`"stream":"yes"`)), "400 invalid_request_error <nil> stream"},
		{"stream options of a wrong type", authorized(msg(`"stream_options":{"include_usage":1}`)), "400 invalid_request_error <nil> stream_options.include_usage"},
		{"unknown model", authorized(msg(`"model":"gpt-c"`)), "404 invalid_request_error model_not_found model"},
		{"unknown effort as a suffix", authorized(msg(`"model":"codex-5-huge"`)), "404 invalid_request_error model_not_found model"},
		{"model of a wrong type", authorized(msg(`"model":5`)), "400 invalid_request_error <nil> model"},
		{"unknown effort", authorized(msg(`"reasoning_effort":"huge"`)), "400 invalid_request_error <nil> reasoning_effort"},
		{"unknown effort of reasoning", authorized(msg(`"reasoning":{"effort":"huge"}`)), "400 invalid_request_error <nil> reasoning.effort"},
		{"too hot", authorized(msg(`"temperature":3`)), "400 invalid_request_error <nil> temperature"},
		{"metadata of a wrong type", authorized(msg(`"metadata":{"a":1}`)), "400 invalid_request_error <nil> metadata"},
		{"audio", authorized(msg(`"modalities":["text","audio"]`)), "400 invalid_request_error unsupported_parameter modalities"},
	}
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for _, tt := range tests {
			a := h.do(t, tt.request)
			var body struct {
				Error map[string]any
			}
			json.Unmarshal(a.Body.Bytes(), &body)
			got := fmt.Sprint(a.Code, " ", body.Error["type"], " ", body.Error["code"], " ", body.Error["param"])
			if got != tt.want {
				t.Errorf("%s: got %s, want %s (%s)", tt.name, got, tt.want, body.Error["message"])
			}
			if (a.Code == 401) != (a.Header().Get("WWW-Authenticate") == `Bearer realm="api"`) {
				t.Errorf("%s: WWW-Authenticate is %q", tt.name, a.Header().Get("WWW-Authenticate"))
			}
			if a.Code == 405 && a.Header().Get("Allow") == "" {
				t.Errorf("%s: no Allow", tt.name)
			}
		}
		if got := h.do(t, chat(hello)).Code; got != 200 {
			t.Errorf("after all that an ordinary request gets %d", got)
		}
	})
}

func withHeader(r *http.Request, name, value string) *http.Request {
	r.Header.Set(name, value)
	return r
}

func TestMessagesKeepTheirPlaceRoleAndText(t *testing.T) {
	var items []struct {
		Role    string
		Content []struct{ Type, Text string }
	}
	synctest.Test(t, func(t *testing.T) {
		script := codextest.Script{
			codextest.Handshake(), codextest.Thread(),
			codextest.Expect("thread/inject_items", func(params json.RawMessage) error {
				var p struct{ Items json.RawMessage }
				json.Unmarshal(params, &p)
				return json.Unmarshal(p.Items, &items)
			}), codextest.Reply(struct{}{}),
			codextest.Expect("turn/start"), codextest.Reply(map[string]any{"turn": map[string]any{"id": "$turn"}}),
			codextest.Complete(1, 1), codextest.Serve(&codextest.Child{}),
		}
		h := open(t, config(), 1, script)
		a := h.do(t, chat(`{"messages":[
			{"role":"system","content":"s"},
			{"role":"user","content":[{"type":"text","text":"u1 \u2028 <b>"},{"type":"text","text":"u2"}]},
			{"role":"assistant","content":null,"refusal":"no","tool_calls":null},
			{"role":"assistant","content":"but","refusal":"never"},
			{"role":"developer","content":"d"},
			{"role":"assistant","content":"a"},
			{"role":"user","content":""}]}`))
		if a.Code != 200 {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
	want := "[{developer [{input_text s}]} {user [{input_text u1 \u2028 <b>} {input_text u2}]} {assistant [{output_text no}]} " +
		"{assistant [{output_text but} {output_text never}]} " +
		"{developer [{input_text d}]} {assistant [{output_text a}]} {user [{input_text }]}]"
	if got := fmt.Sprint(items); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestModelAndEffortReachTheTurn(t *testing.T) {
	for body, want := range map[string]string{
		`{%s}`:                          "gpt-a ",
		`{"model":null,%s}`:             "gpt-a ",
		`{"model":"codex-5",%s}`:        "gpt-a ",
		`{"model":"CODEV-5-Ultra",%s}`:  "gpt-a ultra",
		`{"model":"gpt-b-mini",%s}`:     "gpt-b-mini ",
		`{"model":"GPT-B-mini-low",%s}`: "gpt-b-mini low",
		`{"model":"codex-5-low","reasoning_effort":"high",%s}`: "gpt-a high",
	} {
		synctest.Test(t, func(t *testing.T) {
			var got struct{ Model, Effort string }
			h := open(t, config(), 1, codextest.Script{
				codextest.Handshake(), codextest.Thread(),
				codextest.Expect("thread/inject_items"), codextest.Reply(struct{}{}),
				codextest.Expect("turn/start", func(params json.RawMessage) error { return json.Unmarshal(params, &got) }),
				codextest.Reply(map[string]any{"turn": map[string]any{"id": "$turn"}}),
				codextest.Complete(1, 1), codextest.Serve(&codextest.Child{}),
			})
			h.do(t, chat(fmt.Sprintf(body, `"messages":[{"role":"user","content":"hi"}]`)))
			if got := got.Model + " " + got.Effort; got != want {
				t.Errorf("%s: got %q, want %q", body, got, want)
			}
		})
	}
}

// A child behind a relay knows one stand-in model, and would reject any other.
func TestModelAndEffortReachTheRelayOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got map[string]any
		relay := relayTo(unplugged{})
		h := openWith(t, config(), pool.Config{Size: 1}, relay, codextest.Script{
			codextest.Handshake(), codextest.Thread(),
			codextest.Expect("thread/inject_items"), codextest.Reply(struct{}{}),
			codextest.Expect("turn/start", func(params json.RawMessage) error { return json.Unmarshal(params, &got) }),
			codextest.Reply(map[string]any{"turn": map[string]any{"id": "$turn"}}),
			codextest.Complete(1, 1), codextest.Serve(&codextest.Child{}),
		})
		h.do(t, chat(`{"model":"gpt-b-mini","reasoning":{"effort":"low","summary":"auto"},"messages":[{"role":"user","content":"hi"}]}`))
		for _, param := range []string{"model", "effort", "summary"} {
			if value, ok := got[param]; ok {
				t.Errorf("the child got the %s %v", param, value)
			}
		}
		if got["input"] == nil {
			t.Errorf("turn/start was not seen: %v", got)
		}
	})
}

// seen is a ResponseWriter that counts the events and the writes by when they came.
type seen struct {
	http.ResponseWriter
	began  time.Time
	events map[time.Duration]int
	writes map[time.Duration]int
}

func newSeen() *seen {
	return &seen{ResponseWriter: httptest.NewRecorder(), began: time.Now(), events: map[time.Duration]int{}, writes: map[time.Duration]int{}}
}

func (s *seen) Write(b []byte) (int, error) {
	s.events[time.Since(s.began)] += bytes.Count(b, []byte("data: "))
	s.writes[time.Since(s.began)]++
	return s.ResponseWriter.Write(b)
}

func TestEventsArriveBeforeTheTurnEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		w := newSeen()
		h.ServeHTTP(w, chat(`{"stream":true,"messages":[{"role":"user","content":"one two three"}]}`))
		want := map[time.Duration]int{time.Second: 2, 2 * time.Second: 1, 3 * time.Second: 3} // role with the first word; the last with finish and [DONE]
		if !maps.Equal(w.events, want) {
			t.Errorf("got %v, want %v", w.events, want)
		}
		if got := h.last().FirstToken; got != time.Second {
			t.Errorf("first token after %v", got)
		}
	})
}

func TestDisconnectInterruptsTheTurn(t *testing.T) {
	for name, body := range map[string]string{
		"stream": `{"stream":true,"messages":[{"role":"user","content":"one two three"}]}`,
		"whole":  `{"messages":[{"role":"user","content":"one two three"}]}`,
	} {
		for _, after := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " after ", after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					child := &codextest.Child{Delay: time.Second}
					h := open(t, config(), 1, codextest.Script{codextest.Handshake(), codextest.Serve(child)})
					ctx, cancel := context.WithCancel(t.Context())
					time.AfterFunc(after, cancel)
					began := time.Now()
					a := h.do(t, chat(body).WithContext(ctx))
					if time.Since(began) != after || child.Calls("turn/interrupt") != 1 {
						t.Errorf("after %v, %d interrupts", time.Since(began), child.Calls("turn/interrupt"))
					}
					if got := h.last(); got.Status != 499 || got.Code != "" || strings.Contains(a.Body.String(), "[DONE]") {
						t.Errorf("counted as %+v: %s", got, a.Body)
					}
					synctest.Wait()
					if s := h.pool.Stat(); s.Idle != 1 || h.Stat().Streams != 0 {
						t.Errorf("afterwards: %+v, %+v", s, h.Stat())
					}
				})
			})
		}
	}
}

func TestFullPoolAnswers503(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		busy := make(chan answer, 3)
		for range 3 { // one served, two in the queue; half a minute each
			go func() {
				busy <- h.do(t, chat(`{"messages":[{"role":"user","content":"a b c d e f g h i j k l m n o p q r s t u v w x y z 1 2 3 4 5 6"}]}`))
			}()
		}
		synctest.Wait()
		a := h.do(t, chat(hello))
		if got := h.last(); a.Code != 503 || got.Code != "pool_saturated" || a.Header().Get("Retry-After") == "" || got.Took != 0 {
			t.Errorf("the queue is full: %d %+v", a.Code, got)
		}
		codes := map[int]int{}
		for range 3 {
			codes[(<-busy).Code]++
		}
		if codes[200] != 1 || codes[503] != 2 { // 32 s of work, 30 s of patience
			t.Errorf("%v", codes)
		}
	})
}

// TestRetryIsForChildrenThatGotNothingOfTheConversation: the conversation that has killed
// one child may not kill another.
func TestRetryIsForChildrenThatGotNothingOfTheConversation(t *testing.T) {
	fails := codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Do(func() { time.Sleep(time.Minute) }), codextest.Exit(1)}
	dies := codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Exit(1)}
	for name, tt := range map[string]struct {
		scripts []codextest.Script
		relay   bool
		code    int
		died    int
	}{
		"it takes nothing":        {[]codextest.Script{fails}, true, 200, 1},
		"nor does the next":       {[]codextest.Script{fails, fails}, true, 502, 2},
		"nor without a relay":     {[]codextest.Script{fails}, false, 200, 1},
		"it dies of what it took": {[]codextest.Script{dies}, true, 502, 1},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, stream string) {
				var relay *upstream.Relay
				if tt.relay {
					relay = relayTo(says("hi there"))
				}
				h := openWith(t, config(), pool.Config{Size: 1}, relay, tt.scripts...)
				a := h.do(t, chat(`{"stream":`+stream+`,"messages":[{"role":"user","content":"hi there"}]}`))
				if a.Code != tt.code || (a.Code == 200 && choicesOf(t, a)[0] != choice{"hi there", "stop"}) {
					t.Errorf("%d %s", a.Code, a.Body)
				}
				synctest.Wait()
				if got := len(h.pool.Deaths()); got != tt.died {
					t.Errorf("%d children died", got)
				}
			})
		})
	}
}

func TestStreamsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.MaxStreams = 1
		h := open(t, cfg, 3)
		streaming := `{"stream":true,"messages":[{"role":"user","content":"one two"}]}`
		first := make(chan answer)
		go func() { first <- h.do(t, chat(streaming)) }()
		synctest.Wait()
		if h.Stat().Streams != 1 {
			t.Errorf("%+v", h.Stat())
		}
		a := h.do(t, chat(streaming))
		if a.Code != 429 || h.last().Code != "concurrency_exceeded" || a.Header().Get("Retry-After") == "" {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		if a := h.do(t, chat(hello)); a.Code != 200 {
			t.Errorf("an answer in one piece is no stream: %d", a.Code)
		}
		<-first
		if a := h.do(t, chat(streaming)); a.Code != 200 {
			t.Errorf("after the first: %d", a.Code)
		}
	})
}

func TestRequestHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Timeout = 2500 * time.Millisecond
		h := open(t, cfg, 1)
		if a := h.do(t, chat(`{"messages":[{"role":"user","content":"one two three four"}]}`)); a.Code != 504 || h.last().Code != "request_timeout" {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

func TestKeepalivesAreOmittedForClientsThatChokeOnThem(t *testing.T) {
	slow := codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Minute})}
	body := `{"stream":true,"messages":[{"role":"user","content":"hi"}]}`
	for name, tt := range map[string]struct {
		request func() *http.Request
		want    int
	}{
		"everybody else":  {func() *http.Request { return chat(body) }, 3},
		"Obsidian":        {func() *http.Request { return withHeader(chat(body), "User-Agent", "Mozilla/5.0 Obsidian/1.8") }, 0},
		"Electron":        {func() *http.Request { return withHeader(chat(body), "User-Agent", "Mozilla/5.0 Electron/30") }, 0},
		"by header":       {func() *http.Request { return withHeader(chat(body), "X-No-Keepalive", "1") }, 0},
		"by query string": {func() *http.Request { return request("POST", "/v1/chat/completions?no_keepalive=1", body) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := open(t, config(), 1, slow)
				if got := strings.Count(h.do(t, tt.request()).Body.String(), ": keepalive\n\n"); got != tt.want {
					t.Errorf("%d comments in a minute, want %d", got, tt.want)
				}
			})
		})
	}
}

func TestDrainStillServesHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		running := make(chan answer)
		go func() { running <- h.do(t, chat(`{"stream":true,"messages":[{"role":"user","content":"one two"}]}`)) }()
		synctest.Wait()
		h.Unready()
		if a := h.do(t, request("GET", "/readyz", "")); a.Code != 503 || !strings.Contains(a.Body.String(), `"reason":"draining"`) {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		if a := h.do(t, chat(hello)); a.Code != 200 {
			t.Errorf("not ready yet serving: %d", a.Code)
		}
		h.pool.Drain()
		a := h.do(t, httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(hello)))
		if a.Code != 503 || h.last().Code != "shutting_down" || a.Header().Get("Retry-After") == "" || a.Header().Get("Connection") != "close" {
			t.Errorf("%d %v %s", a.Code, a.Header(), a.Body)
		}
		if a := h.do(t, request("GET", "/livez", "")); a.Code != 200 {
			t.Errorf("livez: %d", a.Code)
		}
		if a := <-running; !strings.HasSuffix(a.Body.String(), "data: [DONE]\n\n") {
			t.Errorf("the running stream: %s", a.Body)
		}
	})
}

// A kept-alive connection would lead the next request to the same daemon.
func TestEveryAnswerOfAServerThatLeavesClosesItsConnection(t *testing.T) {
	for name, leave := range map[string]func(*house){
		"asked to stop":  func(h *house) { h.Unready() },
		"asked to drain": func(h *house) { h.pool.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := config()
				cfg.CORS, cfg.Origins = true, []string{"*"}
				h := open(t, cfg, 1)
				each := func(want string) {
					t.Helper()
					preflight := withHeader(request("OPTIONS", "/v1/models", ""), "Origin", "https://app.example")
					for _, r := range []*http.Request{
						chat(hello), chat(`{"stream":true,"messages":[{"role":"user","content":"hi"}]}`), chat(`{`),
						request("GET", "/v1/models", ""), request("HEAD", "/v1/completions", ""), request("GET", "/nowhere", ""),
						request("GET", "/readyz", ""), request("OPTIONS", "/", ""), withHeader(preflight, "Access-Control-Request-Method", "GET"),
					} {
						if got := h.do(t, r).Header().Get("Connection"); got != want {
							t.Errorf("%s %s: Connection: %q, want %q", r.Method, r.URL.Path, got, want)
						}
					}
				}
				each("")
				early := chat(hello)
				body, rest := io.Pipe()
				early.Body = body
				answered := make(chan answer)
				go func() { answered <- h.do(t, early) }()
				synctest.Wait()
				leave(h)
				each("close")
				io.WriteString(rest, hello)
				rest.Close()
				if got := (<-answered).Header().Get("Connection"); got != "close" {
					t.Errorf("a request that came before: Connection: %q", got)
				}
			})
		})
	}
}

func TestReadyFollowsTheChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spawned := make(chan error)
		p, err := pool.New(pool.Config{Size: 1, MinIdle: 1, Log: codextest.Log(t), Spawn: func(ctx context.Context) (*codex.Client, error) {
			if err := <-spawned; err != nil {
				return nil, err
			}
			return codex.Connect(ctx, codextest.Pipe(t, healthy()), codextest.Log(t))
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		h := &house{Server: api.New(config(), p, nil, codextest.Log(t), func(context.Context, api.Result) {}), pool: p}
		ready := func() string {
			synctest.Wait()
			a := httptest.NewRecorder()
			h.ServeHTTP(a, httptest.NewRequest("GET", "/readyz", nil))
			return fmt.Sprint(a.Code, " ", strings.TrimSpace(a.Body.String()))
		}
		for _, step := range []struct {
			spawn func()
			want  string
		}{
			{func() {}, `503 {"ready":false,"reason":"starting"}`},
			{func() { spawned <- fmt.Errorf("no such file") }, `503 {"ready":false,"reason":"backend_unavailable"}`},
			{func() { spawned <- nil }, `200 {"ready":true}`},
		} {
			step.spawn()
			if got := ready(); got != step.want {
				t.Errorf("got %s, want %s", got, step.want)
			}
		}
	})
}

func TestRoutesWithoutAModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for _, tt := range []struct {
			request *http.Request
			code    int
			body    string
		}{
			{httptest.NewRequest("GET", "/healthz", nil), 200, `{"ok":true,"sandbox_mode":"read-only"}`},
			{httptest.NewRequest("GET", "/healthz/", nil), 200, `{"ok":true,"sandbox_mode":"read-only"}`},
			{httptest.NewRequest("GET", "/livez", nil), 200, `{"ok":true}`},
			{httptest.NewRequest("GET", "/readyz", nil), 200, `{"ready":true}`},
			{request("GET", "/v1/models", ""), 200, `{"id":"codex-5","object":"model","created":946684800,"owned_by":"codexpool"},{"id":"codex-5-low"`},
			{request("GET", "/v1/models/", ""), 200, `"codex-5-ultra"`},
			{request("GET", "/v1/models/gpt-b-mini", ""), 200, `{"id":"gpt-b-mini","object":"model"`},
			{request("GET", "/v1/models/gpt-c", ""), 404, `model_not_found`},
			{httptest.NewRequest("GET", "/v1/models", nil), 401, `invalid_api_key`},
			{request("HEAD", "/v1/chat/completions", ""), 200, ``},
			{httptest.NewRequest("HEAD", "/v1/chat/completions", nil), 401, ``},
			{httptest.NewRequest("OPTIONS", "/nowhere", nil), 204, ``},
			{request("POST", "/v1/chat/completions/", hello), 200, `"content":"hi"`},
			{request("POST", "//v1/chat/completions", hello), 200, `"content":"hi"`},
			{request("POST", "/v1//chat///completions//", hello), 200, `"content":"hi"`},
			{request("POST", "/chat/completions", hello), 200, `"content":"hi"`},
			{request("POST", "//chat/completions/", hello), 200, `"content":"hi"`},
			{request("POST", "/completions", `{"prompt":"hi"}`), 200, `"text":"hi"`},
			{request("GET", "/models", ""), 200, `"codex-5-ultra"`},
			{request("GET", "//v1//models", ""), 200, `"codex-5-ultra"`},
			{request("GET", "/models/gpt-b-mini", ""), 200, `{"id":"gpt-b-mini","object":"model"`},
			{httptest.NewRequest("GET", "/models", nil), 401, `invalid_api_key`},
			{httptest.NewRequest("POST", "//v1/chat/completions", strings.NewReader(hello)), 401, `invalid_api_key`},
			{request("HEAD", "/chat/completions", ""), 200, ``},
			{request("GET", "//", ""), 200, "codexpool serves"},
			{request("POST", "/v1/v1/chat/completions", hello), 404, `not_found`},
		} {
			a := h.do(t, tt.request)
			if a.Code != tt.code || !strings.Contains(a.Body.String(), tt.body) {
				t.Errorf("%s %s: %d %s", tt.request.Method, tt.request.URL, a.Code, a.Body)
			}
		}
	})
}

func TestModelIDMayHaveASlash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := behindURL(t, &lists{}, "codex-5")
		for _, path := range []string{"/v1/models/meta/llama-4", "/v1/models/meta%2Fllama-4"} {
			if a := h.do(t, request("GET", path, "")); a.Code != 200 || !strings.Contains(a.Body.String(), `"id":"meta/llama-4"`) {
				t.Errorf("%s: %d %s", path, a.Code, a.Body)
			}
		}
	})
}

// deadlines is a ResponseWriter that notes the read deadlines of its connection.
type deadlines struct {
	*httptest.ResponseRecorder
	began time.Time
	set   []string
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	if at.IsZero() {
		d.set = append(d.set, "none")
	} else {
		d.set = append(d.set, at.Sub(d.began).String())
	}
	return nil
}

// net/http reads what is left of a body before it answers. Without a deadline a
// client that never sends it holds a connection for ever, key or no key.
func TestBodyHasALimitOfTimeOnEveryRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for _, tt := range []struct {
			request *http.Request
			want    string
		}{
			{httptest.NewRequest("GET", "/healthz", nil), "[]"},
			{httptest.NewRequest("GET", "/healthz", strings.NewReader("x")), "[1s]"},
			{httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(hello)), "[1s]"},
			{httptest.NewRequest("POST", "/nowhere", strings.NewReader(hello)), "[1s]"},
			{chat(hello), "[1s 1m0s none]"}, // what follows is not the body's business
		} {
			w := &deadlines{ResponseRecorder: httptest.NewRecorder(), began: time.Now()}
			h.ServeHTTP(w, tt.request)
			if got := fmt.Sprint(w.set); got != tt.want {
				t.Errorf("%s %s: %s, want %s", tt.request.Method, tt.request.URL, got, tt.want)
			}
		}
	})
}

// broken is a body that fails as those of net/http do.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

func TestBodyThatIsMalformedIsRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for _, tt := range []struct {
			err  error
			want int
		}{
			{errors.New("invalid byte in chunk length"), 400},
			{io.ErrUnexpectedEOF, 499}, // in the log; nobody is there to read it
			{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, 499},
		} {
			r := chat(hello)
			r.Body = io.NopCloser(broken{tt.err})
			a := h.do(t, r)
			if got := h.last().Status; got != tt.want || a.cut != (tt.want == 499) {
				t.Errorf("%v: %d %s", tt.err, got, a.Body)
			}
		}
	})
}

func TestBodyThatIsTooLargeIsNotSentAfterExpect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		r := withHeader(chat(hello), "Expect", "100-continue")
		r.ContentLength, r.Body = 20<<20, io.NopCloser(broken{errors.New("it was sent")})
		if a := h.do(t, r); a.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

func TestRequestIDIsTheClientsOwnWhereItIsSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for given, kept := range map[string]bool{"abc-1._X": true, "": false, "a b": false, "a\u00e9": false, strings.Repeat("a", 129): false} {
			got := h.do(t, withHeader(request("GET", "/livez", ""), "X-Request-Id", given)).Header().Get("X-Request-Id")
			if (got == given) != kept {
				t.Errorf("%q became %q", given, got)
			}
		}
	})
}

func TestCrossOriginRequests(t *testing.T) {
	for _, tt := range []struct {
		origins                   []string
		origin                    string
		wantAllow, wantCredential string
	}{
		{[]string{"*"}, "https://a.example", "*", ""},
		{[]string{"https://a.example"}, "https://a.example", "https://a.example", "true"},
		{[]string{"https://a.example"}, "https://b.example", "", ""},
		{nil, "https://a.example", "", ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg := config()
			cfg.CORS, cfg.Origins = true, tt.origins
			h := open(t, cfg, 1)
			a := h.do(t, preflight(tt.origin))
			if a.Code != 204 || a.Header().Get("Access-Control-Allow-Origin") != tt.wantAllow || a.Header().Get("Access-Control-Allow-Credentials") != tt.wantCredential {
				t.Errorf("%v %s: %d %v", tt.origins, tt.origin, a.Code, a.Header())
			}
			a = h.do(t, withHeader(chat(hello), "Origin", tt.origin))
			if a.Code != 200 || a.Header().Get("Access-Control-Allow-Origin") != tt.wantAllow {
				t.Errorf("%v %s: %d %v", tt.origins, tt.origin, a.Code, a.Header())
			}
		})
	}
}

// Without a secret key any web page could spend a developer's money: a browser
// lets it call 127.0.0.1.
func TestLoopbackAloneMayCallWithoutASecretKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.LoopbackOnly, cfg.ProtectModels, cfg.CORS, cfg.Origins = true, false, true, []string{"*"}
		h := open(t, cfg, 1)
		for _, tt := range []struct {
			host, origin string
			want         int
		}{
			{"localhost:11435", "", 200},
			{"127.0.0.1:11435", "http://localhost:3000", 200},
			{"[::1]:11435", "", 200},
			{"evil.example:11435", "", 403}, // a name that an attacker points at 127.0.0.1
			{"localhost:11435", "https://evil.example", 403},
			{"localhost:11435", "null", 403},
		} {
			for _, r := range []*http.Request{chat(hello), request("GET", "/v1/models", ""), request("GET", "/v1/models/codex-5", "")} {
				r.Host = tt.host
				if tt.origin != "" {
					r.Header.Set("Origin", tt.origin)
				}
				if got := h.do(t, r).Code; got != tt.want {
					t.Errorf("%s of %s from %q: %d, want %d", r.URL, tt.host, tt.origin, got, tt.want)
				}
			}
		}
	})
}

// TestPanicBecomesAnEnvelope needs a body that panics when it is read.
func TestPanicBecomesAnEnvelope(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		r := chat(hello)
		r.Body = io.NopCloser(panicReader{})
		if a := h.do(t, r); a.Code != 500 || !strings.Contains(a.Body.String(), `"message":"internal error"`) || strings.Contains(a.Body.String(), "secret") {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

func TestPanicOfTheMetricsCostsNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		h.observed = func(api.Result) { panic("metrics") }
		if a := h.do(t, chat(hello)); a.Code != 200 || a.cut {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

type panicReader struct{}

func (panicReader) Read([]byte) (int, error) { panic("secret") }
