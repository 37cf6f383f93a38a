package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex/codextest"
	"codexpool/pool"
	"codexpool/upstream"
)

// sent is the request that a provider of a kind gets for a chat completion. The
// answer is a single "ok".
func sent(t *testing.T, kind upstream.Kind, body string) (fields map[string]json.RawMessage, a answer) {
	t.Helper()
	return sentWith(t, config(), kind, body)
}

// sentWith is [sent] for another configuration.
func sentWith(t *testing.T, cfg api.Config, kind upstream.Kind, body string) (fields map[string]json.RawMessage, a answer) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		provider := &listening{says: "ok"}
		relay := upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider.invalid"}, Kind: kind}, provider, upstream.Hooks{})
		h := openWith(t, cfg, pool.Config{Size: 1}, relay)
		a = h.do(t, chat(body))
		if provider.body == "" {
			return // rejected
		}
		if err := json.Unmarshal([]byte(provider.body), &fields); err != nil {
			t.Errorf("%v in %s", err, provider.body)
		}
	})
	return fields, a
}

// calling is a turn of an assistant with one call, and its result.
func calling(id string) string {
	return fmt.Sprintf(`{"role":"assistant","content":null,"tool_calls":[{"id":%q,"type":"function","function":{"name":"f","arguments":"{}"}}]},`+
		`{"role":"tool","tool_call_id":%q,"content":"x"}`, id, id)
}

// callIDsOf are the ids of calls and results, in their order.
func callIDsOf(t *testing.T, input json.RawMessage) (ids []string) {
	t.Helper()
	var items []struct {
		CallID string `json:"call_id"`
	}
	if err := json.Unmarshal(input, &items); err != nil {
		t.Fatal(err)
	}
	for _, item := range items {
		if item.CallID != "" {
			ids = append(ids, item.CallID)
		}
	}
	return ids
}

func TestCallIDsAreUniqueAndShortForTheProvider(t *testing.T) {
	long := strings.Repeat("x", 116)
	short := strings.Repeat("y", 64)
	history := []string{"t:0", "t:0", long, long + "1", short, "t:0"}
	var before []string
	for n := 1; n <= len(history); n++ {
		messages := ""
		for _, id := range history[:n] {
			messages += calling(id) + ","
		}
		fields, a := sent(t, upstream.Responses, `{"messages":[`+messages+`{"role":"user","content":"go on"}]}`)
		if a.Code != 200 {
			t.Fatalf("%d %s", a.Code, a.Body)
		}
		ids := callIDsOf(t, fields["input"])
		if len(ids) != 2*n || strings.Join(ids[:len(before)], " ") != strings.Join(before, " ") {
			t.Fatalf("%v became %v", before, ids)
		}
		before = ids
	}
	seen := map[string]bool{}
	for i := 0; i < len(before); i += 2 {
		call, result := before[i], before[i+1]
		if call != result || seen[call] || len(call) > 64 {
			t.Errorf("%v", before)
		}
		seen[call] = true
	}
	if before[0] != "t:0" || before[8] != short {
		t.Errorf("ids that a provider accepts became %v", before)
	}
}

// SDKs send our own empty answers back, and go-openai and eino leave out "".
func TestMessagesThatSayNothingReachTheProvider(t *testing.T) {
	const (
		call       = `{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]}`
		legacyCall = `{"role":"assistant","function_call":{"name":"f","arguments":"{}"}}`
	)
	for _, empty := range []string{``, `,"content":null`, `,"content":""`, `,"content":[]`, `,"content":[ ]`} {
		for name, messages := range map[string]string{
			"assistant":                  `{"role":"assistant"` + empty + `}`,
			"assistant without calls":    `{"role":"assistant","tool_calls":[]` + empty + `}`,
			"assistant without refusals": `{"role":"assistant","refusal":""` + empty + `}`,
			"tool":                       call + `,{"role":"tool","tool_call_id":"c"` + empty + `}`,
			"function":                   legacyCall + `,{"role":"function","name":"f"` + empty + `}`,
		} {
			fields, a := sent(t, upstream.Responses, `{"messages":[`+messages+`]}`)
			var input []struct {
				Role, Output *string
				Content      []struct{ Text string }
			}
			if a.Code != 200 || json.Unmarshal(fields["input"], &input) != nil {
				t.Errorf("%s with %q: %d %s", name, empty, a.Code, a.Body)
				continue
			}
			last := input[len(input)-1]
			said := last.Role != nil && *last.Role == "assistant" && len(last.Content) == 1 && last.Content[0].Text == ""
			if result := last.Output != nil && *last.Output == ""; !said && !result {
				t.Errorf("%s with %q: %s", name, empty, fields["input"])
			}
		}
	}
	if _, a := sent(t, upstream.Responses, `{"messages":[{"role":"user","content":[]}]}`); a.Code != 400 || !strings.Contains(a.Body.String(), `"messages[0].content"`) {
		t.Errorf("an empty message of a user: %d %s", a.Code, a.Body)
	}
}

// rolesOf are the roles of the messages of an input.
func rolesOf(t *testing.T, input json.RawMessage) (roles []string) {
	t.Helper()
	var items []struct{ Role string }
	if err := json.Unmarshal(input, &items); err != nil {
		t.Fatal(err)
	}
	for _, item := range items {
		roles = append(roles, item.Role)
	}
	return roles
}

// Templates of many open models have no role developer; the backend of a ChatGPT login
// takes no system messages.
func TestSystemMessagesKeepTheirRoleWhereTheProviderTakesThem(t *testing.T) {
	const body = `{"messages":[{"role":"system","content":"s"},{"role":"developer","content":"d"},{"role":"user","content":"u"},{"role":"system","content":"t"}]}`
	for name, tt := range map[string]struct {
		kind upstream.Kind
		want string
	}{
		"a base URL": {upstream.Responses, "[system developer user system]"},
		"OpenAI":     {upstream.OpenAI, "[system developer user system]"},
		"the echo":   {upstream.EchoModel, "[system developer user system]"},
		"ChatGPT":    {upstream.ChatGPT, "[user developer]"}, // the first two are its instructions
	} {
		fields, a := sent(t, tt.kind, body)
		if got := fmt.Sprint(rolesOf(t, fields["input"])); got != tt.want {
			t.Errorf("%s: got %s, want %s (%d %s)", name, got, tt.want, a.Code, a.Body)
		}
		if got := string(fields["instructions"]); name == "ChatGPT" && got != `"s\n\nd"` {
			t.Errorf("the instructions are %s", got)
		}
	}
}

// vLLM, Azure and gateways hold replayed answers against the published schema. Their
// ids must begin with msg_.
func TestReplayedAnswersAreCompleteByTheSchema(t *testing.T) {
	fields, a := sent(t, upstream.Responses, `{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":[{"type":"text","text":"a"},{"type":"refusal","refusal":"b"}]},
		{"role":"user","content":"v"},{"role":"assistant","content":"c","refusal":"d"},`+calling("x")+`]}`)
	want := `[{"type":"message","role":"user","content":[{"type":"input_text","text":"u"}]},` +
		`{"type":"message","id":"msg_1","status":"completed","role":"assistant","content":[{"type":"output_text","text":"a","annotations":[],"logprobs":[]},{"type":"output_text","text":"b","annotations":[],"logprobs":[]}]},` +
		`{"type":"message","role":"user","content":[{"type":"input_text","text":"v"}]},` +
		`{"type":"message","id":"msg_3","status":"completed","role":"assistant","content":[{"type":"output_text","text":"c","annotations":[],"logprobs":[]},{"type":"output_text","text":"d","annotations":[],"logprobs":[]}]},` +
		`{"type":"function_call","call_id":"x","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"x","output":"x"}]`
	if got := string(fields["input"]); got != want {
		t.Errorf("%d %s\ngot  %s\nwant %s", a.Code, a.Body, got, want)
	}
}

const onePixel = "data:image/png;base64,iVBORw0KGgo="

func TestImagesAndFilesReachProvidersThatTakeThem(t *testing.T) {
	user := func(part string) string { return `{"messages":[{"role":"user","content":[` + part + `]}]}` }
	tool := func(part string) string {
		return `{"messages":[` + strings.Replace(calling("c"), `"content":"x"`, `"content":[{"type":"text","text":"t"},`+part+`]`, 1) + `]}`
	}
	const (
		data = `{"type":"image_url","image_url":{"url":"` + onePixel + `"}}`
		url  = `{"type":"image_url","image_url":{"url":"https://a.example/i.png","detail":"low"}}`
		file = `{"type":"file","file":{"file_data":"data:application/pdf;base64,JVBERi0=","filename":"\u0061.pdf"}}`
		id   = `{"type":"file","file":{"file_id":"file-1","filename":null}}`
	)
	for name, tt := range map[string]struct{ body, arrives, param string }{
		"an image of a tool":   {tool(data), `"output":[{"type":"input_text","text":"t"},{"type":"input_image","image_url":"` + onePixel + `","detail":"auto"}]`, ""},
		"an image by URL":      {user(url), `"content":[{"type":"input_image","image_url":"https://a.example/i.png","detail":"low"}]`, "messages[0].content[0].image_url.url"},
		"a tool's by URL":      {tool(url), `{"type":"input_image","image_url":"https://a.example/i.png","detail":"low"}]`, "messages[1].content[1].image_url.url"},
		"the data of a file":   {user(file), `"content":[{"type":"input_file","file_data":"data:application/pdf;base64,JVBERi0=","filename":"\u0061.pdf"}]`, "messages[0].content[0]"},
		"the id of a file":     {user(id), `"content":[{"type":"input_file","file_id":"file-1"}]`, "messages[0].content[0]"},
		"a tool's file":        {tool(id), `{"type":"input_file","file_id":"file-1"}]`, "messages[1].content[1]"},
		"a file that has none": {user(`{"type":"file","file":{"filename":"a"}}`), "", "messages[0].content[0].file"},
	} {
		for _, kind := range []upstream.Kind{upstream.Responses, upstream.OpenAI} {
			if fields, a := sent(t, kind, tt.body); !strings.Contains(string(fields["input"]), tt.arrives) || (a.Code == 200) != (tt.arrives != "") {
				t.Errorf("%s: %d %s arrived as %s", name, a.Code, a.Body, fields["input"])
			}
		}
		refused := 200
		if tt.param != "" {
			refused = 400
		}
		if _, a := sent(t, upstream.ChatGPT, tt.body); a.Code != refused || !strings.Contains(a.Body.String(), `"param":"`+tt.param+`"`) && refused == 400 {
			t.Errorf("%s for a ChatGPT login: %d %s", name, a.Code, a.Body)
		}
	}
}

// Some clients send each field that they know, with the value that asks for nothing.
func TestFieldsThatAskForNothingAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for _, fields := range []string{`"logprobs":false,"top_logprobs":0`, `"logprobs":0`, `"top_logprobs":null`, `"logprobs":false`, `"modalities":["text"]`} {
			for path, body := range map[string]string{
				"/v1/chat/completions": `{"messages":[{"role":"user","content":"hi"}],` + fields + `}`,
				"/v1/completions":      `{"prompt":"hi",` + fields + `}`,
			} {
				if a := h.do(t, request("POST", path, body)); a.Code != 200 {
					t.Errorf("%s with %s: %d %s", path, fields, a.Code, a.Body)
				}
			}
		}
	})
}

func TestAllowedToolsReachTheProvider(t *testing.T) {
	const body = `{"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}},{"type":"function","function":{"name":"h"}}],
		"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"required","tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"h"}}]}}}`
	fields, a := sent(t, upstream.Responses, body)
	want := `{"mode":"required","tools":[{"name":"f","type":"function"},{"name":"h","type":"function"}],"type":"allowed_tools"}`
	if got := string(fields["tool_choice"]); got != want {
		t.Errorf("%d %s: got %s, want %s", a.Code, a.Body, got, want)
	}
	if got := strings.Count(string(fields["tools"]), `"name"`); got != 3 {
		t.Errorf("tools are %s", fields["tools"])
	}
}

// LangChain sends ten prompts at once; the bound of n is not about them.
func TestPromptsAreBoundedByThePlacesOfThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.MaxChoices, cfg.MaxPlaces = 2, 10
		h := openWith(t, cfg, pool.Config{Size: 2, MaxWaiting: 8}, nil)
		for body, want := range map[string]string{
			`{"prompt":["a","b","c","d","e","f","g","h","i","j"]}`:     "200 10 <nil>",
			`{"prompt":["a","b","c","d","e"],"n":2}`:                   "200 10 <nil>",
			`{"prompt":["a","b","c","d","e","f"],"n":2}`:               "400 0 prompt",
			`{"prompt":["a","b","c","d","e","f","g","h","i","j","k"]}`: "400 0 prompt",
			`{"prompt":"a","n":3}`:                                     "400 0 n",
		} {
			a := h.do(t, request("POST", "/v1/completions", body))
			var got struct {
				Choices []any
				Error   struct{ Param any }
			}
			json.Unmarshal(a.Body.Bytes(), &got)
			if got := fmt.Sprint(a.Code, " ", len(got.Choices), " ", got.Error.Param); got != want {
				t.Errorf("%s: got %s, want %s (%s)", body, got, want, a.Body)
			}
		}
	})
}

func TestBodiesOfAnotherRouteAreSentThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		const tools = `"tools":[{"type":"function","name":"f","parameters":{}}],"tool_choice":{"type":"function","name":"f"}`
		for _, tt := range []struct{ path, body, param, route string }{
			{"/v1/chat/completions", `{"model":"codex-5","input":"hi",` + tools + `}`, "messages", "/v1/responses"},
			{"/v1/chat/completions", `{"prompt":"hi","logprobs":5}`, "messages", "/v1/completions"},
			{"/v1/completions", hello, "prompt", "/v1/chat/completions"},
			{"/v1/completions", `{"prompt":null,"input":[]}`, "prompt", "/v1/responses"},
		} {
			a := h.do(t, request("POST", tt.path, tt.body))
			if a.Code != 400 || !strings.Contains(a.Body.String(), `"param":"`+tt.param+`"`) || !strings.Contains(a.Body.String(), "is for "+tt.route+".") {
				t.Errorf("%s %s: %d %s", tt.path, tt.body, a.Code, a.Body)
			}
		}
	})
}

// curl -d names the type of a form, as does any form of a web page: only a key shows
// that it was curl.
func TestBodyOfCurlNeedsNoTypeWhereAKeyIsRequired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		h := open(t, cfg, 1)
		curl := func() *http.Request {
			return withHeader(chat(" \n"+hello), "Content-Type", "application/x-www-form-urlencoded")
		}
		if a := h.do(t, curl()); a.Code != 200 || !strings.Contains(a.Body.String(), `"content":"hi"`) {
			t.Errorf("with a key: %d %s", a.Code, a.Body)
		}
		cfg.Keyless, cfg.Keys = true, nil
		h = open(t, cfg, 1)
		if a := h.do(t, curl()); a.Code != 415 || !strings.Contains(a.Body.String(), "Content-Type: application/json") {
			t.Errorf("without keys: %d %s", a.Code, a.Body)
		}
	})
}

func TestEffortThatIsNoneNamesAllThatAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		ask := func(effort string) answer {
			return h.do(t, chat(`{"reasoning_effort":"`+effort+`","messages":[{"role":"user","content":"hi"}]}`))
		}
		const taken = "none, minimal, low, medium, high, xhigh, ultra"
		if a := ask("huge"); a.Code != 400 || !strings.Contains(a.Body.String(), "'reasoning_effort' must be one of "+taken+".") {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		for _, effort := range strings.Split(taken, ", ") {
			if a := ask(effort); a.Code != 200 {
				t.Errorf("%s: %d %s", effort, a.Code, a.Body)
			}
		}
	})
}

func TestEffortsThatTheUpstreamRefusesAreNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Models = func() api.Models {
			m := models
			m.Refused = []string{"minimal", "ultra"}
			return m
		}
		h := open(t, cfg, 1)
		if got := ids(h.do(t, request("GET", "/v1/models", ""))); got != "codex-5 codex-5-low codex-5-high gpt-a gpt-b-mini" {
			t.Errorf("listed are %s", got)
		}
		for field, want := range map[string]string{
			`"reasoning_effort":"ultra"`:       "400 'reasoning_effort' must be one of none, low, medium, high, xhigh.",
			`"reasoning":{"effort":"minimal"}`: "400 'reasoning.effort' must be one of none, low, medium, high, xhigh.",
			`"model":"codex-5-ultra"`:          "404 The model \"codex-5-ultra\" does not exist.",
			`"reasoning":{"effort":"high"}`:    "200 ",
		} {
			a := h.do(t, chat(`{`+field+`,"messages":[{"role":"user","content":"hi"}]}`))
			var got struct{ Error struct{ Message string } }
			json.Unmarshal(a.Body.Bytes(), &got)
			if got := fmt.Sprint(a.Code, " ", got.Error.Message); got != want {
				t.Errorf("%s: got %s, want %s", field, got, want)
			}
		}
	})
}

// TestStreamThatBreaksLingers: the client has a second to read what was sent, while its
// child serves the next.
func TestStreamThatBreaksLingers(t *testing.T) {
	for name, tt := range map[string]struct {
		leaves, want time.Duration
	}{
		"a client that waits":  {time.Hour, time.Second},
		"a client that leaves": {300 * time.Millisecond, 300 * time.Millisecond}, // or a daemon that stops
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				breaks := codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Delta("Hal"), codextest.Exit(1)}
				h := open(t, config(), 1, breaks)
				ctx, leave := context.WithTimeout(t.Context(), tt.leaves)
				defer leave()
				began := time.Now()
				ended := make(chan answer)
				go func() {
					ended <- h.do(t, chat(`{"stream":true,"messages":[{"role":"user","content":"hi"}]}`).WithContext(ctx))
				}()
				time.Sleep(100 * time.Millisecond)
				if s := h.pool.Stat(); s.Leased != 0 || h.Stat().Streams != 0 || h.last().Code != "child_exited" || h.last().Took != 0 {
					t.Errorf("meanwhile: %+v, %+v, %+v", s, h.Stat(), h.last())
				}
				a := <-ended
				if took := time.Since(began); took != tt.want || !a.cut || !strings.Contains(a.Body.String(), `data: {"error":`) {
					t.Errorf("cut %v after %v: %s", a.cut, took, a.Body)
				}
			})
		})
	}
}
