package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/pool"
	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
)

func responses(body string) *http.Request { return request("POST", "/v1/responses", body) }

// verbatim is a provider that answers each request with the same bytes, and keeps the
// last.
type verbatim struct {
	status  int // 0 = 200
	header  http.Header
	answers string

	asked int
	got   http.Header
	body  string
}

func (v *verbatim) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	v.asked, v.got, v.body = v.asked+1, req.Header, string(body)
	res := &http.Response{StatusCode: max(v.status, 200), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(v.answers)), Request: req}
	for name, values := range v.header {
		res.Header[name] = values
	}
	return res, nil
}

// beforeKind is a house before a provider of this kind.
func beforeKind(t *testing.T, cfg api.Config, kind upstream.Kind, provider http.RoundTripper, scripts ...codextest.Script) *house {
	t.Helper()
	relay := upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider.invalid"}, Kind: kind}, provider, upstream.Hooks{})
	return openWith(t, cfg, pool.Config{Size: 1}, relay, scripts...)
}

const (
	created    = "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"r\"}}\n\n"
	inProgress = "data: {\"type\":\"response.in_progress\",\"sequence_number\":1}\n\n"
	delta      = ": hm\n\nevent: response.output_text.delta\r\ndata: {\"delta\":\"\\u00e9\",  \"type\":\"response.output_text.delta\",\"sequence_number\":2}\r\n\r\n"
	ending     = `{"id":"r", "object":"response","n":12345678901234567890,"usage":{"input_tokens":7,"output_tokens":2}}`
	ended      = "data: {\"type\":\"response.completed\",\"sequence_number\":3,\"response\":" + ending + "}\n\n"
	whole      = created + inProgress + delta + ended
)

func TestResponsesBodyChangesOnlyWhereItMust(t *testing.T) {
	const rest = `"input":[{"type":"item_reference","id":"rs_1"},{"type":"message","role":"user","content":"\u00e9 \/ \ud83e"}] ,` + "\n" + `"x": 12345678901234567890.10, "tools":[{"type":"hologram"}]`
	for name, tt := range map[string]struct{ sent, want string }{
		"nothing":                   {`{"model":"gpt-a","stream":true,` + rest + ` }`, `{"model":"gpt-a","stream":true,` + rest + ` }`},
		"no model, no stream":       {` { ` + rest + `}`, ` {"model":"gpt-a","stream":true, ` + rest + `}`},
		"no field at all":           {`{ }`, `{"model":"gpt-a","stream":true }`},
		"an alias":                  {`{` + rest + `, "model" : "codex-5" , "stream":false}`, `{` + rest + `, "model" : "gpt-a" , "stream":true}`},
		"another case":              {`{"stream":true,"model":"GPT-A"}`, `{"stream":true,"model":"gpt-a"}`},
		"null":                      {`{"model":null,"stream":null,"store":null}`, `{"model":"gpt-a","stream":true,"store":null}`},
		"an effort":                 {`{"model":"codex-5-high","stream":true}`, `{"reasoning":{"effort":"high"},"model":"gpt-a","stream":true}`},
		"an effort, and a summary":  {`{"stream":true,"reasoning": { "summary":"auto"},"model":"gpt-a-high"}`, `{"stream":true,"reasoning": {"effort":"high", "summary":"auto"},"model":"gpt-a"}`},
		"an effort that is given":   {`{"stream":true,"reasoning":{"effort":"low"},"model":"gpt-a-high"}`, `{"stream":true,"reasoning":{"effort":"low"},"model":"gpt-a"}`},
		"a prompt names the model":  {`{"stream":true,"prompt":{"id":"p"}}`, `{"stream":true,"prompt":{"id":"p"}}`},
		"a prompt, and a model":     {`{"stream":true,"prompt":{"id":"p"},"model":"codex-5"}`, `{"stream":true,"prompt":{"id":"p"},"model":"gpt-a"}`},
		"stored state, no schedule": {`{"stream":true,"model":"gpt-a","previous_response_id":"r","conversation":"c","background":false}`, `{"stream":true,"model":"gpt-a","previous_response_id":"r","conversation":"c","background":false}`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				provider := &verbatim{answers: whole}
				a := beforeKind(t, config(), upstream.OpenAI, provider).do(t, responses(tt.sent))
				if diff := cmp.Diff(tt.want, provider.body); diff != "" || a.Code != 200 {
					t.Errorf("%d (-want +got)\n%s", a.Code, diff)
				}
				if a.Header().Get("X-Codexpool-Ignored") != "" {
					t.Errorf("ignored: %v", a.Header())
				}
			})
		})
	}
}

func TestResponsesAnswerIsTheProvidersByteForByte(t *testing.T) {
	for stream, want := range map[bool]string{true: whole, false: ending} {
		t.Run(fmt.Sprint(stream), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := beforeKind(t, config(), upstream.Responses, &verbatim{answers: whole})
				a := h.do(t, responses(fmt.Sprintf(`{"stream":%v,"input":"hi"}`, stream)))
				if diff := cmp.Diff(want, a.Body.String()); diff != "" || a.Code != 200 || a.cut {
					t.Errorf("%d, cut %v (-want +got)\n%s", a.Code, a.cut, diff)
				}
				kind := map[bool]string{true: "text/event-stream", false: "application/json"}[stream]
				if got := a.Header().Get("Content-Type"); got != kind {
					t.Errorf("it has the type %q", got)
				}
				got := h.last()
				if got.Route != "responses" || !got.Completion || got.Stream != stream || got.Model != "gpt-a" || got.Code != "" ||
					(got.Tokens != codex.Usage{Input: 7, Output: 2, Total: 9}) {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// TestResponsesChildGetsNothingOfTheConversation has the child write down its history.
func TestResponsesChildGetsNothingOfTheConversation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var items string
		script := codextest.Script{
			codextest.Handshake(), codextest.Thread(),
			codextest.Expect("thread/inject_items", func(params json.RawMessage) error { items = string(params); return nil }), codextest.Reply(struct{}{}),
			codextest.Expect("turn/start"), codextest.Reply(map[string]any{"turn": map[string]any{"id": "t"}}), codextest.Exit(1),
		}
		h := beforeKind(t, config(), upstream.Responses, &verbatim{answers: whole}, script)
		h.do(t, responses(`{"input":"secret plan","instructions":"secret plan","tools":[{"type":"function","name":"secret"}]}`))
		if items == "" || strings.Contains(items, "secret") {
			t.Errorf("the child got %s", items)
		}
	})
}

// TestResponsesMayHaveAnotherChildUntilTheProviderIsAsked has a child that dies with the
// turn: it had nothing of the conversation that can have killed it.
func TestResponsesMayHaveAnotherChildUntilTheProviderIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dies := codextest.Script{
			codextest.Handshake(), codextest.Thread(),
			codextest.Expect("thread/inject_items"), codextest.Reply(struct{}{}),
			codextest.Expect("turn/start"), codextest.Reply(map[string]any{"turn": map[string]any{"id": "t"}}), codextest.Exit(1),
		}
		provider := &verbatim{answers: whole}
		h := beforeKind(t, config(), upstream.Responses, provider, dies)
		a := h.do(t, responses(`{"stream":true,"input":"hi"}`))
		if a.Body.String() != whole || !h.last().Retried || provider.asked != 1 {
			t.Errorf("%d %s, retried %v, asked %d times", a.Code, a.Body, h.last().Retried, provider.asked)
		}
	})
}

func TestResponsesHeadersAreAClosedList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider := &verbatim{answers: whole, header: http.Header{
			"X-Codex-Turn-State": {"s"}, "Openai-Model": {"m"}, "Openai-Processing-Ms": {"7"}, "X-Request-Id": {"req_theirs"}, "Openai-Organization": {"secret"}, "Set-Cookie": {"secret"},
		}}
		h := beforeKind(t, config(), upstream.Responses, provider)
		for _, body := range []string{`{"stream":true}`, `{}`} {
			r := responses(body)
			for _, name := range []string{"OpenAI-Beta", "X-Codex-Turn-State", "X-OpenAI-Internal-Codex-Responses-Lite", "OpenAI-Organization", "X-Stainless-Lang", "Cookie"} {
				r.Header.Set(name, "v")
			}
			a := h.do(t, r)
			for name, want := range map[string]string{
				"X-Codex-Turn-State": "s", "OpenAI-Model": "m", "OpenAI-Processing-Ms": "7", "X-Upstream-Request-Id": "req_theirs", "OpenAI-Organization": "", "Set-Cookie": "",
			} {
				if got := a.Header().Get(name); got != want {
					t.Errorf("%s: the client got %s: %q", body, name, got)
				}
			}
			for name, want := range map[string]string{
				"OpenAI-Beta": "v", "X-Codex-Turn-State": "v", "X-OpenAI-Internal-Codex-Responses-Lite": "v", "OpenAI-Organization": "", "X-Stainless-Lang": "", "Cookie": "",
			} {
				if got := provider.got.Get(name); got != want {
					t.Errorf("%s: the provider got %s: %q", body, name, got)
				}
			}
		}
		provider.status, provider.answers = 400, `{"error":{"message":"No.","type":"t","param":"input[0]","code":"c"}}`
		if a := h.do(t, responses(`{"stream":true}`)); outcome(a) != "400 c input[0]" || a.Header().Get("X-Upstream-Request-Id") != "req_theirs" {
			t.Errorf("%d %v %s", a.Code, a.Header(), a.Body)
		}
	})
}

// TestResponsesAreCommittedWithTheAnswer has what comes before an answer, and failures
// there and later.
func TestResponsesAreCommittedWithTheAnswer(t *testing.T) {
	const (
		failed   = "data: {\"type\":\"response.failed\",\"sequence_number\":2,\"response\":{\"error\":{\"code\":\"server_is_overloaded\",\"message\":\"Busy.\"}}}\n\n"
		flat     = "event: error\ndata: {\"type\":\"error\",\"code\":\"rate_limit_exceeded\",\"message\":\"Slow.\",\"sequence_number\":2}\n\n"
		tooLong  = "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"context_length_exceeded\",\"message\":\"Long.\"}}}\n\n"
		overIdle = "data: {\"type\":\"response.in"
		cutError = `{"type":"error","sequence_number":%d,"message":%q,"param":null,"code":%q,"error":{"message":%[2]q,"type":"server_error","param":null,"code":%[3]q}}`
	)
	cut := func(next int) string {
		return "event: error\ndata: " + fmt.Sprintf(cutError, next, "The upstream failed.", "upstream_error") + "\n\n"
	}
	for name, tt := range map[string]struct {
		answers string
		want    string // outcome or body
		code    string // of the result
		cut     bool
	}{
		"failed first":            {created + inProgress + failed, "503 upstream_overloaded", "upstream_overloaded", false},
		"an error first":          {created + flat, "429 upstream_rate_limited", "upstream_rate_limited", false},
		"too long":                {created + tooLong, "400 context_length_exceeded input", "context_length_exceeded", false},
		"no ending first":         {created + inProgress, "502 upstream_error", "upstream_error", false},
		"nothing":                 {"", "502 upstream_error", "upstream_error", false},
		"failed later":            {created + delta + failed, created + delta + failed, "upstream_overloaded", false},
		"an error later":          {created + delta + flat, created + delta + flat, "upstream_rate_limited", false},
		"no ending":               {created + inProgress + delta, created + inProgress + delta + cut(3), "upstream_error", true},
		"half an event":           {created + delta + overIdle, created + delta + cut(3), "upstream_error", true},
		"a line, but no empty":    {created + delta + strings.TrimSuffix(inProgress, "\n"), created + delta + cut(3), "upstream_error", true},
		"an ending without empty": {created + delta + strings.TrimSuffix(ended, "\n\n"), created + delta + strings.TrimSuffix(ended, "\n\n"), "", false},
		"no numbers":              {"data: {\"type\":\"x\"}\n\n", "data: {\"type\":\"x\"}\n\n" + cut(0), "upstream_error", true},
		"only a foreign item":     {created + "data: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"local_shell_call\"}}\n\n" + ended, created + "data: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"local_shell_call\"}}\n\n" + ended, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := beforeKind(t, config(), upstream.Responses, &verbatim{answers: tt.answers})
				a := h.do(t, responses(`{"stream":true,"input":"hi"}`))
				got := a.Body.String()
				if a.Code != 200 {
					got = outcome(a)
				}
				if got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
				if (a.Code == 429 || a.Code == 503) && a.Header().Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
				if a.cut != tt.cut || h.last().Code != tt.code {
					t.Errorf("cut %v, counted as %q", a.cut, h.last().Code)
				}
			})
		})
	}
}

// TestResponsesAreCommittedInTime has a model that thinks for 40 s behind its first
// events.
func TestResponsesAreCommittedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := []string{`{"type":"response.created"}`, `{"type":"response.in_progress"}`, `{"type":"response.output_text.delta","delta":"x"}`, `{"type":"response.completed","response":{}}`}
		h := behind(t, config(), 1, pausing{events, 1500 * time.Millisecond})
		w := newSeen()
		h.ServeHTTP(w, responses(`{"stream":true}`))
		if w.events[1500*time.Millisecond] != 0 || w.events[2*time.Second] != 1 || w.events[3*time.Second] != 1 {
			t.Errorf("events %v", w.events)
		}
		h = behind(t, config(), 1, pausing{events, 40 * time.Second})
		a := h.do(t, responses(`{"stream":true}`))
		got := h.last()
		if a.Code != 200 || got.Commit != api.CommitTimer || got.Keepalives == 0 || got.FirstToken != 120*time.Second || strings.Count(a.Body.String(), ": keepalive\n\n") != got.Keepalives {
			t.Errorf("%d %+v\n%s", a.Code, got, a.Body)
		}
	})
}

func TestResponsesRequestsThatAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider := &verbatim{answers: whole}
		cfg := config()
		cfg.Keys = append(cfg.Keys, named("thrifty"), named("tidy"), named("mini"), named("usual"))
		cfg.Keys[2].Refuse, cfg.Keys[3].Refuse, cfg.Keys[4].Models = []string{"hosted_tools"}, []string{"stored_state"}, []string{"gpt-b-mini"}
		cfg.Keys[5].Models = []string{"gpt-a"} // the default
		h := beforeKind(t, cfg, upstream.Responses, provider)
		echo := beforeKind(t, config(), upstream.EchoModel, provider)
		direct := open(t, config(), 1)
		for _, tt := range []struct {
			house           *house
			key, body, want string
		}{
			{h, key, `{`, "400 invalid_json"},
			{h, key, `[]`, "400 invalid_json"},
			{h, key, "{\"input\":\"\xff\"}", "400 invalid_json"},
			{h, key, `{"model":7}`, "400  model"},
			{h, key, `{"model":"nope"}`, "404 model_not_found model"},
			{h, key, `{"stream":"yes"}`, "400  stream"},
			{h, key, `{"background":true}`, "400 unsupported_parameter background"},
			{h, key, `{"model":"gpt-a","model":"gpt-b-mini"}`, "400  model"},
			{h, key, `{"Model":"gpt-a"}`, "400  model"},
			{h, key, `{"messages":[{"role":"user","content":"hi"}]}`, "400  input"},
			{h, "mini", `{"model":"gpt-b-mini","mod\u0065l":"gpt-a"}`, "400  model"},
			{h, "mini", `{"model":"gpt-a"}`, "403 permission_denied model"},
			{h, "mini", `{"prompt":{"id":"p"}}`, "403 permission_denied model"},
			{h, "mini", `{"model":"gpt-b-mini","stream":true}`, "200"},
			{h, "usual", `{}`, "200"},
			{h, "usual", `{"prompt":{"id":"p"}}`, "403 permission_denied model"}, // which may name any

			{h, "thrifty", `{"tools":[{"type":"function","name":"f"},{"type":"custom"},{"type":"namespace","tools":[{"type":"function"}]}],"previous_response_id":"r"}`, "200"},
			{h, "thrifty", `{"tools":[{"type":"function"},{"type":"web\u005fsearch"}]}`, "400 unsupported_parameter tools"},
			{h, "thrifty", `{"tools":[{"type":"namespace","tools":[{"type":"mcp"}]}]}`, "400 unsupported_parameter tools"},
			{h, "thrifty", `{"tools":[{"type":"mcp","type":"function"}]}`, "400 unsupported_parameter tools"},
			{h, "thrifty", `{"tools":[{"TYPE":"mcp","type":"function"}]}`, "400 unsupported_parameter tools"},
			{h, "thrifty", `{"tools":[{"name":"f"}]}`, "400 unsupported_parameter tools"},
			{h, "thrifty", `{"input":["x",{"type":"additional_tools","tools":[{"type":"image_generation"}]}]}`, "400 unsupported_parameter input[1]"},
			{h, "thrifty", `{"prompt":{"id":"p"}}`, "400 unsupported_parameter prompt"},

			{h, "tidy", `{"store":false,"input":[{"type":"message","role":"user","content":"hi","id":"m"},{"role":"user","content":"x","id":"m"}],"tools":[{"type":"mcp"}]}`, "200"},
			{h, "tidy", `{"input":"hi"}`, "400 unsupported_parameter store"},
			{h, "tidy", `{"store":true}`, "400 unsupported_parameter store"},
			{h, "tidy", `{"store":null}`, "400 unsupported_parameter store"},
			{h, "tidy", `{"store":false,"previous_response_id":"r"}`, "400 unsupported_parameter previous_response_id"},
			{h, "tidy", `{"store":false,"conversation":{"id":"c"}}`, "400 unsupported_parameter conversation"},
			{h, "tidy", `{"store":false,"prompt":{"id":"p"}}`, "400 unsupported_parameter prompt"},
			{h, "tidy", `{"store":false,"input":[{"role":"user","content":"hi"},{"type":"item_reference","id":"m"}]}`, "400 unsupported_parameter input[1]"},
			{h, "tidy", `{"store":false,"input":[{"id":"m"}]}`, "400 unsupported_parameter input[0]"},

			{echo, key, `{"input":[{"type":"item_reference","id":"m"}]}`, "400 unsupported_parameter input[0]"},
			{echo, key, `{"previous_response_id":"r"}`, "400 unsupported_parameter previous_response_id"},
			{direct, key, `{}`, "404 not_found"},
		} {
			provider.asked = 0
			a := tt.house.do(t, by(tt.key, responses(tt.body)))
			if got := outcome(a); got != tt.want || (provider.asked == 1) != (a.Code == 200) {
				t.Errorf("%s: %s, want %s; %s", tt.body, got, tt.want, a.Body)
			}
		}
	})
}

func TestResponsesNameWhatTheEchoIgnores(t *testing.T) {
	for _, tt := range []struct{ sent, want, ignored string }{
		{
			`{"tools":[], "input":"hi","store":true,"x\n":1,"temperature":1,"instructions":"i","max_output_tokens":3,"text":{},"include":null}`,
			`{"model":"gpt-a","stream":true, "input":"hi","store":false,"instructions":"i","max_output_tokens":3}`,
			"store, temperature, text, tools, x?",
		},
		{`{"x":1, "stream":true,"store":false,"instructions":"i"}`, `{"model":"gpt-a", "stream":true,"store":false,"instructions":"i"}`, "x"},
	} {
		synctest.Test(t, func(t *testing.T) {
			provider := &verbatim{answers: whole}
			cfg := config()
			cfg.CacheKey = false
			a := beforeKind(t, cfg, upstream.EchoModel, provider).do(t, responses(tt.sent))
			if got := a.Header().Get("X-Codexpool-Ignored"); got != tt.ignored || a.Code != 200 {
				t.Errorf("%d, ignored %s", a.Code, got)
			}
			if provider.body != tt.want {
				t.Errorf("got  %s\nwant %s", provider.body, tt.want)
			}
		})
	}
}

func TestResponsesOverAWebSocketAreTurnedToHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := behind(t, config(), 1, says("ok"))
		for _, path := range []string{"/v1/responses", "/responses"} {
			r := request("GET", path, "")
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", "WebSocket")
			if a := h.do(t, r); a.Code != 426 || a.Header().Get("Upgrade") != "HTTP/1.1" || a.Header().Get("Connection") != "Upgrade" || h.last().Completion || h.last().Route != "responses" {
				t.Errorf("%s: %d %v %+v", path, a.Code, a.Header(), h.last())
			}
			r.Header.Del("Authorization")
			if a := h.do(t, r); a.Code != 401 {
				t.Errorf("%s without a key: %d", path, a.Code)
			}
			if a := h.do(t, request("GET", path, "")); a.Code != 405 || a.Header().Get("Allow") != "HEAD, OPTIONS, POST" {
				t.Errorf("GET %s: %d, allowed %q", path, a.Code, a.Header().Get("Allow"))
			}
			if a := h.do(t, request("HEAD", path, "")); a.Code != 200 {
				t.Errorf("HEAD %s: %d", path, a.Code)
			}
		}
	})
}

// TestResponsesOfAKeyAreLimitedAndCounted has a key with a limit of tokens, which an
// answer that is cut uses too.
func TestResponsesOfAKeyAreLimitedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("k")}
		cfg.Keys[0].TokensPerMinute = 1000
		h := behind(t, cfg, 1, &verbatim{answers: whole})
		if a := h.do(t, by("k", responses(`{"input":"hi"}`))); said(a) != "200 1000 1000 0s" {
			t.Error(said(a))
		}
		image := `"data:image/png;base64,` + strings.Repeat("A", 10_000) + `"`
		large := `{"input":[{"type":"input_image","image_url":` + image + `},{"type":"input_text","text":"` + strings.Repeat("x", 400) + `"}]}`
		for _, tt := range []struct {
			answers     string // without an ending, so without usage
			most, least int    // that remain
		}{
			{created + delta, 880, 800},
			{created + strings.Repeat(inProgress, 100) + delta, 880, 800}, // only the deltas count
			{created + inProgress, 1000, 990},                             // no answer
		} {
			h = behind(t, cfg, 1, &verbatim{answers: tt.answers})
			h.do(t, by("k", responses(large)))
			a := h.do(t, by("k", responses(`{"input":"hi"}`)))
			var remaining int
			fmt.Sscan(a.Header().Get("X-Ratelimit-Remaining-Tokens"), &remaining)
			if remaining > tt.most || remaining < tt.least {
				t.Errorf("%d remain of 1000: %s", remaining, said(a))
			}
		}
	})
}

// TestResponsesWithAChatGPTLogin has what the backend of a login rejects, and what it
// leaves out.
func TestResponsesWithAChatGPTLogin(t *testing.T) {
	const user = `{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}`
	for name, tt := range map[string]struct{ sent, want, ignored string }{
		"nothing but a text": {`{"input":"hi"}`, `{"input":[` + user + `]}`, ""},
		"what it rejects": {
			`{"input":[` + user + `],"max_output_tokens":9,"temperature":1,"top_p":1,"metadata":{},"user":"u","safety_identifier":"s","truncation":"auto","prompt_cache_retention":"24h",` +
				`"prompt_cache_options":{},"context_management":[],"stream_options":{"include_obfuscation":false},"service_tier":"flex","store":true}`,
			`{"input":[` + user + `]}`,
			"context_management, max_output_tokens, metadata, prompt_cache_options, prompt_cache_retention, safety_identifier, service_tier, store, stream_options, temperature, top_p, truncation, user",
		},
		"system messages": {
			`{"input":[{"role":"system","content":"s\u00e9","x":12345678901234567890},` + user + `,{"type":"reasoning","id":"rs","encrypted_content":"e"}]}`,
			`{"input":[{"role":"developer","content":"s\u00e9","x":12345678901234567890},` + user + `,{"type":"reasoning","id":"rs","encrypted_content":"e"}]}`, "",
		},
		"what is exact": {
			`{"x":{"y":1.50},"instructions":"i","input":[{"type":"hologram"}],"tools":[{"type":"web_search"},{"type":"custom"}],"include":["a"],"text":{"verbosity":"low"},` +
				`"reasoning":{"effort":"low"},"client_metadata":{"a":"b"},"service_tier":"priority","store":false,"prompt_cache_key":"mine"}`,
			`{"x":{"y":1.50},"instructions":"i","input":[{"type":"hologram"}],"tools":[{"type":"web_search"},{"type":"custom"}],"include":["a"],"text":{"verbosity":"low"},` +
				`"reasoning":{"effort":"low"},"client_metadata":{"a":"b"},"service_tier":"priority","prompt_cache_key":"mine"}`, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				provider := &verbatim{answers: whole}
				a := beforeKind(t, config(), upstream.ChatGPT, provider).do(t, responses(tt.sent))
				var got, want map[string]json.RawMessage
				if err := errors.Join(json.Unmarshal([]byte(provider.body), &got), json.Unmarshal([]byte(tt.want), &want)); err != nil || a.Code != 200 {
					t.Fatalf("%d %s, %v: %s", a.Code, a.Body, err, provider.body)
				}
				want["model"], want["stream"], want["store"] = json.RawMessage(`"gpt-a"`), json.RawMessage("true"), json.RawMessage("false")
				for _, ours := range []string{"instructions", "prompt_cache_key", "client_metadata"} { // where the caller gave none
					if want[ours] == nil {
						if got[ours] == nil {
							t.Errorf("no %s", ours)
						}
						delete(got, ours)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
				if got := a.Header().Get("X-Codexpool-Ignored"); got != tt.ignored {
					t.Errorf("ignored %s, want %s", got, tt.ignored)
				}
			})
		})
	}
	for body, param := range map[string]string{
		`{"previous_response_id":"r"}`: "previous_response_id", `{"conversation":"c"}`: "conversation", `{"prompt":{"id":"p"}}`: "prompt",
		`{"input":[{"role":"user","content":"hi"},{"type":"item_reference","id":"m"}]}`: "input[1]",
	} {
		synctest.Test(t, func(t *testing.T) {
			a := beforeKind(t, config(), upstream.ChatGPT, &verbatim{answers: whole}).do(t, responses(body))
			if got := outcome(a); got != "400 unsupported_parameter "+param || !strings.Contains(a.Body.String(), "store:false") {
				t.Errorf("%s: %s %s", body, got, a.Body)
			}
		})
	}
}

func TestResponsesOfAChatGPTLoginAreCompleted(t *testing.T) {
	const (
		codexOnly = "event: codex.rate_limits\ndata: {\"type\":\"codex.rate_limits\"}\n\n"
		item      = `{"id":"m","type":"message","content":[{"type":"output_text","text":"a<b"}]}`
		done      = "data: {\"type\":\"response.output_item.done\",\"output_index\":0,\"item\":" + item + "}\n\n"
		empty     = "data: {\"type\":\"response.completed\",\"sequence_number\":9,\"response\":{\"id\":\"r\",\"n\":1.50,\"output\":[]}}\n\n"
		full      = `{"id":"r","n":1.50,"output":[` + item + `]}`
	)
	for name, tt := range map[string]struct{ answers, stream, whole string }{
		"an empty output": {created + codexOnly + done + empty, created + done + "event: response.completed\ndata: {\"response\":" + full + ",\"sequence_number\":9,\"type\":\"response.completed\"}\n\n", full},
		"an output":       {created + done + ended, created + done + ended, ending},
	} {
		if name == "an output" {
			tt.answers = strings.Replace(tt.answers, `"n":`, `"output":[{"id":"x"}],"n":`, 1)
			tt.stream, tt.whole = tt.answers, strings.Replace(tt.whole, `"n":`, `"output":[{"id":"x"}],"n":`, 1)
		}
		synctest.Test(t, func(t *testing.T) {
			h := beforeKind(t, config(), upstream.ChatGPT, &verbatim{answers: tt.answers})
			if a := h.do(t, responses(`{"stream":true}`)); a.Body.String() != tt.stream {
				t.Errorf("%s: got\n%s\nwant\n%s", name, a.Body, tt.stream)
			}
			if a := h.do(t, responses(`{}`)); a.Body.String() != tt.whole {
				t.Errorf("%s: got\n%s\nwant\n%s", name, a.Body, tt.whole)
			}
		})
	}
}
