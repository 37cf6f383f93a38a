package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"

	"github.com/google/go-cmp/cmp"
)

// provider is the one model behind all clients. The last message of the user is the
// name of a scenario: the provider asserts that the request is that of the scenario,
// and sends the scenario's answer.
type provider struct {
	*httptest.Server
	t         testing.TB
	scenarios map[string][]exchange
	heard     chan struct{} // the client has read a delta
	ended     chan struct{} // the request that never ends has ended

	mu    sync.Mutex
	asked map[string]int // requests by scenario; guarded by mu
}

// exchange is one request of a scenario and its answer.
type exchange struct {
	want  string // those fields of the request that are compared
	reply http.HandlerFunc
}

// compared are the fields that arrive as the caller gave them, or not at all.
// TestProviderGetsExactlyTheCallersFields has the others.
var compared = []string{"input", "tools", "tool_choice", "text"}

// newProvider starts a provider. format is the answer format that the client sends
// for its type in "structured output".
func newProvider(t testing.TB, format string) *provider {
	t.Helper()
	p := &provider{t: t, heard: make(chan struct{}, 10), ended: make(chan struct{}, 1), asked: map[string]int{}}
	p.scenarios = p.plays(format)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/responses", p.respond)
	mux.HandleFunc("POST /read", func(http.ResponseWriter, *http.Request) { p.hear() })
	mux.HandleFunc("POST /left", func(w http.ResponseWriter, _ *http.Request) {
		if err := p.left(); err != nil {
			http.Error(w, err.Error(), http.StatusGatewayTimeout)
		}
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// plays are the scenarios by name.
func (p *provider) plays(format string) map[string][]exchange {
	plays := map[string][]exchange{
		"chat":   {{says("chat"), codextest.Text("Hello", " there", ".")}},
		"stream": {{says("stream"), p.stepwise("One", " two", " three.")}},
		"usage":  {{says("usage"), codextest.Text("Four", " tokens", " came", " out.")}},
		"abort":  {{says("abort"), p.endless}},
		"cut":    {{says("cut"), cutStream}},

		"tools":          roundTrip("tools"),
		"streamed tools": roundTrip("streamed tools"),
		"forced tool": {{
			`{"input":[` + userItem("forced tool") + `],"tools":` + providerTools + `,"tool_choice":{"type":"function","name":"weather"}}`,
			codextest.Calls(weatherCall),
		}},
		"image": {{
			`{"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"image"},` +
				`{"type":"input_image","image_url":"` + image + `","detail":"low"}]}]}`,
			codextest.Text("A dot."),
		}},
		"structured output": {{
			`{"input":[` + userItem("structured output") + `],"text":{"format":` + format + `}}`,
			codextest.Text(`{"city":"Oslo",`, `"degrees":7}`),
		}},
	}
	for _, status := range []int{400, 404, 429, 500, 503} {
		name := "fail " + strconv.Itoa(status)
		plays[name] = []exchange{{says(name), fail(status)}}
	}
	return plays
}

// respond finds the scenario, compares the request, and answers it.
func (p *provider) respond(w http.ResponseWriter, r *http.Request) {
	var got, want map[string]any
	body, err := io.ReadAll(r.Body)
	if err := errors.Join(err, strict(body), json.Unmarshal(body, &got)); err != nil {
		p.t.Errorf("the provider rejects a request: %v", err)
		codextest.Status(http.StatusBadRequest, `{"error":{"message":"The provider is strict."}}`)(w, r)
		return
	}
	name := lastSaid(got["input"])
	exchanges := p.scenarios[name]
	if exchanges == nil {
		p.t.Errorf("no scenario is called %q", name)
		return
	}
	p.mu.Lock()
	e := exchanges[p.asked[name]%len(exchanges)]
	p.asked[name]++
	p.mu.Unlock()

	if got["tool_choice"] == "auto" {
		delete(got, "tool_choice") // some clients name the default
	}
	maps.DeleteFunc(got, func(field string, _ any) bool { return !slices.Contains(compared, field) })
	if err := json.Unmarshal([]byte(e.want), &want); err != nil {
		p.t.Error(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		p.t.Errorf("%q arrived otherwise (-want +got)\n%s", name, diff)
	}
	e.reply(w, r)
}

// complete asserts that every scenario was played, and to its end.
func (p *provider) complete() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, exchanges := range p.scenarios {
		if n := p.asked[name]; n == 0 || n%len(exchanges) != 0 {
			p.t.Errorf("%q: %d requests", name, n)
		}
	}
}

// lastSaid is the first text of the user's last message.
func lastSaid(input any) (text string) {
	items, _ := input.([]any)
	for _, item := range items {
		item, _ := item.(map[string]any)
		if item["role"] != "user" {
			continue
		}
		switch content := item["content"].(type) {
		case string:
			text = content
		case []any:
			if len(content) > 0 {
				part, _ := content[0].(map[string]any)
				text, _ = part["text"].(string)
			}
		}
	}
	return text
}

// says is the request with this text as its only message.
func says(text string) string { return `{"input":[` + userItem(text) + `]}` }

func userItem(text string) string {
	return `{"type":"message","role":"user","content":[{"type":"input_text","text":"` + text + `"}]}`
}

// The tools as they must arrive: the schemas untouched, and not strict where the
// caller set no strict, because the Responses API would default to strict.
const providerTools = `[
	{"type":"function","name":"weather","description":"The weather in a city.","strict":true,"parameters":{
		"type":"object",
		"properties":{
			"city":{"type":"string","description":"Its name.","pattern":"^[A-Z]"},
			"unit":{"anyOf":[{"type":"string","enum":["C","F"]},{"type":"null"}]}
		},
		"required":["city","unit"],
		"additionalProperties":false
	}},
	{"type":"function","name":"clock","description":"The time in a city.","strict":false,"parameters":{
		"type":"object",
		"properties":{"city":{"type":"string"},"zone":{"type":"string","default":"UTC"}},
		"required":["city"],
		"additionalProperties":true
	}}
]`

var (
	weatherCall = codex.ToolCall{ID: "call_1", Name: "weather", Arguments: `{"city":"Oslo","unit":"C"}`}
	clockCall   = codex.ToolCall{ID: "call_2", Name: "clock", Arguments: `{"city":"Oslo"}`}
)

// roundTrip is a scenario in which the model calls both tools at once, and
// answers when it has the results.
func roundTrip(name string) []exchange {
	return []exchange{
		{`{"input":[` + userItem(name) + `],"tools":` + providerTools + `}`, codextest.Calls(weatherCall, clockCall)},
		{`{"input":[` + userItem(name) + `,` +
			`{"type":"function_call","call_id":"call_1","name":"weather","arguments":"{\"city\":\"Oslo\",\"unit\":\"C\"}"},` +
			`{"type":"function_call","call_id":"call_2","name":"clock","arguments":"{\"city\":\"Oslo\"}"},` +
			`{"type":"function_call_output","call_id":"call_1","output":"7 degrees"},` +
			`{"type":"function_call_output","call_id":"call_2","output":"noon"}` +
			`],"tools":` + providerTools + `}`, codextest.Text("At noon", " it is 7 degrees.")},
	}
}

// fail answers with a status. Its Retry-After is too long for the relay to try again
// by itself.
func fail(status int) http.HandlerFunc {
	return retryAfter(status, "60", `{"error":{"message":"The provider's words.","type":"some_type","param":"input[0]","code":"some_code"}}`)
}

// cutStream breaks off in the middle of a word.
func cutStream(w http.ResponseWriter, _ *http.Request) {
	s := codextest.StartStream(w)
	s.Begin()
	s.Delta("Hal")
	panic(http.ErrAbortHandler)
}

// stepwise sends each delta only when the client has read the one before.
func (p *provider) stepwise(deltas ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		for _, delta := range deltas {
			s.Delta(delta)
			select {
			case <-p.heard:
			case <-time.After(5 * time.Second):
				p.t.Errorf("the client has not read %q", delta)
			}
		}
		s.End()
	}
}

// hear lets the client report that it has read a delta.
func (p *provider) hear() { p.heard <- struct{}{} }

// endless sends one word, and nothing more until the request is cancelled.
func (p *provider) endless(w http.ResponseWriter, r *http.Request) {
	s := codextest.StartStream(w)
	s.Begin()
	s.Delta("Well")
	<-r.Context().Done()
	p.ended <- struct{}{}
}

// left lets the client report that it disconnects now.
func (p *provider) left() error {
	select {
	case <-p.ended:
		return nil
	case <-time.After(time.Second):
		return errors.New("a second later the provider's request still runs")
	}
}
