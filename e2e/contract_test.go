package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"

	"github.com/google/go-cmp/cmp"
)

// ending replies with events of one's own, and then a usage of 7 and 5 tokens,
// 3 of them for reasoning.
func ending(events ...map[string]any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		for _, e := range events {
			s.Event(e)
		}
		s.Event(map[string]any{"type": "response.completed", "response": map[string]any{"id": "resp_1", "usage": map[string]any{
			"input_tokens": 7, "output_tokens": 5, "total_tokens": 12, "output_tokens_details": map[string]any{"reasoning_tokens": 3},
		}}})
	}
}

// messageEvents are the events of a whole message.
func messageEvents(id, phase string, part map[string]any) []map[string]any {
	message := func(content ...any) map[string]any {
		m := map[string]any{"type": "message", "id": id, "role": "assistant", "content": append([]any{}, content...)}
		if phase != "" {
			m["phase"] = phase
		}
		return m
	}
	events := []map[string]any{{"type": "response.output_item.added", "item": message()}}
	if text, ok := part["text"]; ok {
		events = append(events, map[string]any{"type": "response.output_text.delta", "item_id": id, "delta": text})
	} else {
		events = append(events,
			map[string]any{"type": "response.refusal.delta", "item_id": id, "delta": part["refusal"]},
			map[string]any{"type": "response.refusal.done", "item_id": id, "refusal": part["refusal"]})
	}
	return append(events, map[string]any{"type": "response.output_item.done", "item": message(part)})
}

func textMessage(id, phase, text string) []map[string]any {
	return messageEvents(id, phase, map[string]any{"type": "output_text", "text": text, "annotations": []any{}})
}

// reasoningEvents are the events of reasoning.
func reasoningEvents(summary string) []map[string]any {
	item := func(summary ...any) map[string]any {
		return map[string]any{"type": "reasoning", "id": "rs_1", "summary": append([]any{}, summary...)}
	}
	return []map[string]any{
		{"type": "response.output_item.added", "item": item()},
		{"type": "response.reasoning_summary_part.added", "item_id": "rs_1", "summary_index": 0},
		{"type": "response.reasoning_summary_text.delta", "item_id": "rs_1", "summary_index": 0, "delta": summary},
		{"type": "response.output_item.done", "item": item(map[string]any{"type": "summary_text", "text": summary})},
	}
}

func join(events ...[]map[string]any) (all []map[string]any) {
	for _, e := range events {
		all = append(all, e...)
	}
	return all
}

// completion is an answer as a client puts it together, from one piece or from
// the deltas of a stream.
type completion struct {
	Role      string
	Content   *string
	Refusal   *string
	Reasoning string `json:"reasoning_content"`
	ToolCalls []struct {
		Index    int
		ID, Type string
		Function struct{ Name, Arguments string }
	} `json:"tool_calls"`
	FunctionCall *struct{ Name, Arguments string } `json:"function_call"`
	finish       string
}

func (c completion) String() string {
	show := func(s *string) string {
		if s == nil {
			return "null"
		}
		return fmt.Sprintf("%q", *s)
	}
	out := fmt.Sprintf("%s content %s", c.Role, show(c.Content))
	if c.Refusal != nil {
		out += " refusal " + show(c.Refusal)
	}
	if c.Reasoning != "" {
		out += fmt.Sprintf(" reasoning %q", c.Reasoning)
	}
	for _, call := range c.ToolCalls {
		out += fmt.Sprintf(" %s %s %s(%s)", call.ID, call.Type, call.Function.Name, call.Function.Arguments)
	}
	if c.FunctionCall != nil {
		out += fmt.Sprintf(" %s(%s)", c.FunctionCall.Name, c.FunctionCall.Arguments)
	}
	return out + " finish " + c.finish
}

// complete requests one completion, in one piece or as a stream, and returns the
// response too. fields are those of the request beside stream.
func (d *daemon) complete(fields string, stream bool) (completion, *http.Response) {
	d.t.Helper()
	res, err := d.post(fmt.Sprintf(`{"stream":%v,%s}`, stream, fields))
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		d.t.Fatalf("%d %v: %.1000s", res.StatusCode, err, body)
	}
	type choice struct {
		Message, Delta completion
		FinishReason   string `json:"finish_reason"`
	}
	decode := func(data []byte) (c choice) {
		var b struct{ Choices []choice }
		if err := json.Unmarshal(data, &b); err != nil || len(b.Choices) != 1 {
			d.t.Fatalf("%v in %.1000s", err, data)
		}
		return b.Choices[0]
	}
	if !stream {
		c := decode(body)
		c.Message.finish = c.FinishReason
		return c.Message, res
	}
	var all completion
	events := strings.Split(strings.TrimSuffix(string(body), "\n\n"), "\n\n")
	if events[len(events)-1] != "data: [DONE]" {
		d.t.Fatalf("no [DONE] in %.1000s", body)
	}
	for _, e := range events[:len(events)-1] {
		c := decode([]byte(strings.TrimPrefix(e, "data: ")))
		all.add(c.Delta)
		all.finish += c.FinishReason
	}
	return all, res
}

// add adds a delta as OpenAI's own clients do.
func (c *completion) add(delta completion) {
	c.Role += delta.Role
	c.Content = plus(c.Content, delta.Content)
	c.Refusal = plus(c.Refusal, delta.Refusal)
	c.Reasoning += delta.Reasoning
	for _, call := range delta.ToolCalls {
		if call.Index == len(c.ToolCalls) {
			c.ToolCalls = append(c.ToolCalls, call)
			continue
		}
		c.ToolCalls[call.Index].Function.Arguments += call.Function.Arguments
	}
	switch f := delta.FunctionCall; {
	case f != nil && c.FunctionCall == nil:
		c.FunctionCall = f
	case f != nil:
		c.FunctionCall.Arguments += f.Arguments
	}
}

func plus(a, b *string) *string {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	sum := *a + *b
	return &sum
}

const (
	hi       = `"messages":[{"role":"user","content":"hi"}]`
	twoTools = `"tools":[{"type":"function","function":{"name":"weather","description":"d","parameters":{"type":"object","properties":{"city":{"type":"string","minLength":2}}},"strict":true}},{"type":"function","function":{"name":"clock"}}]`
)

// TestAnswersOfEveryKind has, for each kind of answer, the caller's request, the
// fields that must arrive at the provider beside the conversation, the provider's
// reply, and the answer that the caller must get, in one piece and as a stream (the
// same, except that a stream's content begins empty and is never null).
func TestAnswersOfEveryKind(t *testing.T) {
	oslo, noon := codex.ToolCall{ID: "call_1", Name: "weather", Arguments: `{ "city": "Oslo"}`}, codex.ToolCall{ID: "call_2", Name: "clock", Arguments: "{"}
	arrivedTools := `"tools":[{"type":"function","name":"weather","description":"d","parameters":{"type":"object","properties":{"city":{"type":"string","minLength":2}}},"strict":true},{"type":"function","name":"clock","parameters":{"type":"object","properties":{}},"strict":false}]`
	withText := func(w http.ResponseWriter, r *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		s.Delta("Let me look.")
		s.Call(oslo)
		s.End()
	}
	schema := `{"type":"object","properties":{"a":{"type":"integer"}}}`
	d, up := withRelay(t, codextest.Text("ok"))
	for _, tt := range []struct {
		name, sent, arrives string
		reply               http.HandlerFunc
		want                string
	}{
		{"text", hi, `{}`, codextest.Text("a", "b"), `assistant content "ab" finish stop`},
		{
			"two calls", hi + "," + twoTools, `{` + arrivedTools + `}`, codextest.Calls(oslo, noon),
			`assistant content null call_1 function weather({ "city": "Oslo"}) call_2 function clock({) finish tool_calls`,
		},
		{
			"text and a call", hi + "," + twoTools + `,"tool_choice":"auto","parallel_tool_calls":false`, `{` + arrivedTools + `,"tool_choice":"auto","parallel_tool_calls":false}`, withText,
			`assistant content "Let me look." call_1 function weather({ "city": "Oslo"}) finish tool_calls`,
		},
		{
			"a forced call", hi + "," + twoTools + `,"tool_choice":{"type":"function","function":{"name":"weather"}}`, `{` + arrivedTools + `,"tool_choice":{"type":"function","name":"weather"}}`, codextest.Calls(oslo),
			`assistant content null call_1 function weather({ "city": "Oslo"}) finish tool_calls`,
		},
		{
			"some call", hi + "," + twoTools + `,"tool_choice":"required"`, `{` + arrivedTools + `,"tool_choice":"required"}`, codextest.Calls(noon),
			`assistant content null call_2 function clock({) finish tool_calls`,
		},
		{"no call, although the old form requires one", hi + "," + twoTools + `,"tool_choice":"none","function_call":{"name":"clock"}`, `{` + arrivedTools + `,"tool_choice":"none"}`, codextest.Text("ok"), `assistant content "ok" finish stop`},
		{"no call", hi + "," + twoTools + `,"tool_choice":"none"`, `{` + arrivedTools + `,"tool_choice":"none"}`, codextest.Text("ok"), `assistant content "ok" finish stop`},
		{
			"a call of what is no tool", hi + "," + twoTools, `{` + arrivedTools + `}`, codextest.Calls(codex.ToolCall{ID: "call_3", Name: "invented", Arguments: "{}"}),
			`assistant content null call_3 function invented({}) finish tool_calls`,
		},
		{
			"a legacy function", hi + `,"functions":[{"name":"clock"}],"function_call":{"name":"clock"}`,
			`{"tools":[{"type":"function","name":"clock","parameters":{"type":"object","properties":{}},"strict":false}],"tool_choice":{"type":"function","name":"clock"},"parallel_tool_calls":false}`, codextest.Calls(noon),
			`assistant content null clock({) finish function_call`,
		},
		{"JSON", hi + `,"response_format":{"type":"json_object"}`, `{"text":{"format":{"type":"json_object"}}}`, codextest.Text(`{}`), `assistant content "{}" finish stop`},
		{
			"a schema", hi + `,"verbosity":"low","response_format":{"type":"json_schema","json_schema":{"name":"n","description":"d","strict":true,"schema":` + schema + `}}`,
			`{"text":{"verbosity":"low","format":{"type":"json_schema","name":"n","description":"d","strict":true,"schema":` + schema + `}}}`, codextest.Text(`{"a":1}`), `assistant content "{\"a\":1}" finish stop`,
		},
		{
			"a schema that is not strict", hi + `,"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":` + schema + `}}`,
			`{"text":{"format":{"type":"json_schema","name":"n","strict":false,"schema":` + schema + `}}}`, codextest.Text(`{"a":1}`), `assistant content "{\"a\":1}" finish stop`,
		},
		{"a refusal", hi, `{}`, ending(messageEvents("msg_1", "", map[string]any{"type": "refusal", "refusal": "I will not."})...), `assistant content null refusal "I will not." finish stop`},
		{
			"reasoning that was requested", hi + `,"reasoning":{"summary":"concise","effort":"low"}`, `{"reasoning":{"summary":"concise","effort":"low"}}`,
			ending(join(reasoningEvents("I think."), textMessage("m", "", "So."))...), `assistant content "So." reasoning "I think." finish stop`,
		},
		{
			"reasoning that was requested in another form", hi + `,"include_reasoning":true`, `{"reasoning":{"summary":"auto"}}`,
			ending(join(reasoningEvents("I think."), textMessage("m", "", "So."))...), `assistant content "So." reasoning "I think." finish stop`,
		},
		{"reasoning that was not requested", hi, `{}`, ending(join(reasoningEvents("I think."), textMessage("m", "", "So."))...), `assistant content "So." finish stop`},
		{"commentary", hi, `{}`, ending(join(textMessage("m1", "commentary", "Hm. "), textMessage("m2", "final_answer", "So."))...), `assistant content "So." finish stop`},
		{
			"commentary beside reasoning", hi + `,"include_reasoning":true`, `{"reasoning":{"summary":"auto"}}`,
			ending(join(textMessage("m1", "commentary", "Hm."), textMessage("m2", "final_answer", "So."))...), `assistant content "So." reasoning "Hm." finish stop`,
		},
		{"a limit", hi + `,"max_completion_tokens":16`, `{"max_output_tokens":16}`, func(w http.ResponseWriter, _ *http.Request) {
			s := codextest.StartStream(w)
			s.Begin()
			s.Delta("a b")
			s.Incomplete("max_output_tokens")
		}, `assistant content "a b" finish length`},
		{"a filter", hi, `{}`, func(w http.ResponseWriter, _ *http.Request) {
			s := codextest.StartStream(w)
			s.Begin()
			s.Delta("a b")
			s.Incomplete("content_filter")
		}, `assistant content "a b" finish content_filter`},
		{"20 tokens that are alike", hi, `{}`, codextest.Text(strings.Split(strings.Repeat("na ", 20), " ")[:20]...), `assistant content "` + strings.Repeat("na", 20) + `" finish stop`},
		{"text that looks like SSE", hi, `{}`, codextest.Text("a\n\ndata: [DONE]\n\n", "\r\ndata: {}\r\n\r\n", "b\u2028"), `assistant content "a\n\ndata: [DONE]\n\n\r\ndata: {}\r\n\r\nb\u2028" finish stop`},
		{"nothing", hi, `{}`, codextest.Text(), `assistant content "" finish stop`},
	} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, " stream ", stream), func(t *testing.T) {
				up.Script(tt.reply)
				before := len(up.Bodies())
				got, _ := d.complete(tt.sent, stream)
				want := tt.want
				if stream {
					want = strings.Replace(want, "content null", `content ""`, 1)
				}
				if got.String() != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				bodies := up.Bodies()[before:]
				if len(bodies) != 1 {
					t.Fatalf("%d requests reached the provider", len(bodies))
				}
				arrivesBeside(t, bodies[0], tt.arrives)
			})
		}
	}
	if m := d.metrics(); m[`codexpool_child_starts_total{outcome="ok"}`] != 1 {
		t.Error("it cost a child")
	}
}

// arrivesBeside asserts which fields a request to the provider has beside those
// that it always has, and their values. TestFieldsArriveByteForByte compares
// bytes, where bytes are promised.
func arrivesBeside(t *testing.T, body []byte, fields string) {
	t.Helper()
	var got, want map[string]any
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	for _, always := range []string{"model", "input", "stream", "store"} {
		if _, there := got[always]; !there {
			t.Errorf("no %s", always)
		}
		delete(got, always)
	}
	if err := json.Unmarshal([]byte(fields), &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestFieldsArriveByteForByte has JSON values that the caller wrote: schemas, metadata,
// numbers, strings. They arrive as they were written, with the order of names, the
// form of numbers, and the escapes. Only white space between tokens may be missing.
func TestFieldsArriveByteForByte(t *testing.T) {
	t.Parallel()
	const (
		schema = `{"type":"object","z":{"enum":[1.0,1e2,12345678901234567890123,-0,"<b>\u00e9é&amp;\/\u2028\ud83d\ude00\ud800"]},"properties":{"b":{},"a":{"$ref":"#"}}}`
		spaced = "{ \"type\" :\t\"object\",\n\"z\":1 }"
	)
	d, up := withRelay(t, codextest.Text("ok"))
	for _, tt := range []struct {
		name, sent string
		arrive     []string // bytes of the request to the provider
	}{
		{"a tool's parameters", `"tools":[{"type":"function","function":{"name":"f","parameters":` + schema + `}}]`, []string{`"parameters":` + schema}},
		{"a legacy function's parameters", `"functions":[{"name":"f","parameters":` + schema + `}]`, []string{`"parameters":` + schema}},
		{"parameters with white space", `"tools":[{"type":"function","function":{"name":"f","parameters":` + spaced + `}}]`, []string{`"parameters":{"type":"object","z":1}`}},
		{"the schema of an answer", `"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":` + schema + `}}`, []string{`"schema":` + schema}},
		{"metadata", `"metadata":{"z":"<\u00e9\/>","a":"é"}`, []string{`"metadata":{"z":"<\u00e9\/>","a":"é"}`}},
		{"numbers", `"temperature":2.5e-1,"top_p":1.0`, []string{`"temperature":2.5e-1`, `"top_p":1.0`}},
		{"strings", `"user":"\u00e9<","prompt_cache_key":"\u0061\/"`, []string{`"user":"\u00e9<"`, `"prompt_cache_key":"\u0061\/"`}},
	} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, " stream ", stream), func(t *testing.T) {
				before := len(up.Bodies())
				d.complete(hi+","+tt.sent, stream)
				body := up.Bodies()[before]
				for _, want := range tt.arrive {
					if !bytes.Contains(body, []byte(want)) {
						t.Errorf("no %s in\n%s", want, body)
					}
				}
			})
		}
	}
}

// TestConversationsOfEveryKindArriveItemForItem has a client's messages, and the
// input that must arrive for them: the same items, each with the same values, so that
// every text, call and image has the same characters. The order of an item's names,
// and the escapes in which JSON writes a character, are not promised: the child
// writes the items anew.
func TestConversationsOfEveryKindArriveItemForItem(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 3<<20/16)
	const second = "call_441e2e8a3b974b4a5954258b85bcbf7b" // of the second t:0, in every conversation
	d, up := withRelay(t, codextest.Text("ok"))
	many, manyArrive := `{"role":"user","content":"0"}`, `{"content":[{"text":"0","type":"input_text"}],"role":"user","type":"message"}`
	for i := 1; i < 200; i++ {
		role, arrives := "user", `{"content":[{"text":"%d","type":"input_text"}],"role":"user","type":"message"}`
		if i%2 == 1 {
			role, arrives = "assistant", `{"content":[{"annotations":[],"logprobs":[],"text":"%[1]d","type":"output_text"}],"id":"msg_%[1]d","role":"assistant","status":"completed","type":"message"}`
		}
		many += fmt.Sprintf(`,{"role":%q,"content":"%d"}`, role, i)
		manyArrive += "," + fmt.Sprintf(arrives, i)
	}
	for _, tt := range []struct{ name, messages, arrive string }{
		{
			"roles", `{"role":"system","content":"s"},{"role":"developer","content":"d"},{"role":"user","content":"u"},{"role":"assistant","content":"a"},{"role":"user","content":"v"}`,
			`{"content":[{"text":"s","type":"input_text"}],"role":"system","type":"message"},{"content":[{"text":"d","type":"input_text"}],"role":"developer","type":"message"},` +
				`{"content":[{"text":"u","type":"input_text"}],"role":"user","type":"message"},{"content":[{"annotations":[],"logprobs":[],"text":"a","type":"output_text"}],"id":"msg_3","role":"assistant","status":"completed","type":"message"},` +
				`{"content":[{"text":"v","type":"input_text"}],"role":"user","type":"message"}`,
		},
		{
			"odd text", `{"role":"user","content":[{"type":"text","text":"héllo 🧪 \u2028\u0001\u001b<b>&amp;"},{"type":"text","text":""}]}`,
			`{"content":[{"text":"héllo 🧪 \u2028\u0001\u001b<b>&amp;","type":"input_text"},{"text":"","type":"input_text"}],"role":"user","type":"message"}`,
		},
		{"3 MB", `{"role":"user","content":"` + long + `"}`, `{"content":[{"text":"` + long + `","type":"input_text"}],"role":"user","type":"message"}`},
		{"200 messages", many, manyArrive},
		{
			"images", `{"role":"user","content":[{"type":"image_url","image_url":{"url":"` + image + `","detail":"low"}},{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"` + image + `"}}]}`,
			`{"content":[{"detail":"low","image_url":"` + image + `","type":"input_image"},{"text":"x","type":"input_text"},{"detail":"auto","image_url":"` + image + `","type":"input_image"}],"role":"user","type":"message"}`,
		},
		{
			"images and files that the provider must fetch, and of a tool", `{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://a.example/i.png","detail":"high"}},{"type":"file","file":{"file_id":"file-1"}},{"type":"file","file":{"file_data":"data:application/pdf;base64,JVBERi0=","filename":"a.pdf"}}]},` +
				`{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}}]},` +
				`{"role":"tool","tool_call_id":"call_1","content":[{"type":"text","text":"here"},{"type":"image_url","image_url":{"url":"` + image + `"}},{"type":"file","file":{"file_id":"file-2"}}]}`,
			`{"content":[{"detail":"high","image_url":"https://a.example/i.png","type":"input_image"},{"file_id":"file-1","type":"input_file"},{"file_data":"data:application/pdf;base64,JVBERi0=","filename":"a.pdf","type":"input_file"}],"role":"user","type":"message"},` +
				`{"arguments":"{}","call_id":"call_1","name":"f","type":"function_call"},` +
				`{"call_id":"call_1","output":[{"text":"here","type":"input_text"},{"detail":"auto","image_url":"` + image + `","type":"input_image"},{"file_id":"file-2","type":"input_file"}],"type":"function_call_output"}`,
		},
		{
			"calls and results", `{"role":"user","content":"u"},{"role":"assistant","content":"","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{ }"}},{"id":"call_2","type":"function","function":{"name":"g","arguments":"no JSON"}}]},` +
				`{"role":"tool","tool_call_id":"call_2","content":"two"},{"role":"tool","tool_call_id":"call_1","content":[{"type":"text","text":"o"},{"type":"text","text":"ne"}]},` +
				`{"role":"assistant","content":"and","tool_calls":[{"id":"call_3","type":"function","function":{"name":"f","arguments":""}}]},{"role":"tool","tool_call_id":"call_3","content":""}`,
			`{"content":[{"text":"u","type":"input_text"}],"role":"user","type":"message"},{"arguments":"{ }","call_id":"call_1","name":"f","type":"function_call"},{"arguments":"no JSON","call_id":"call_2","name":"g","type":"function_call"},` +
				`{"call_id":"call_2","output":"two","type":"function_call_output"},{"call_id":"call_1","output":"one","type":"function_call_output"},` +
				`{"content":[{"annotations":[],"logprobs":[],"text":"and","type":"output_text"}],"id":"msg_5","role":"assistant","status":"completed","type":"message"},{"arguments":"","call_id":"call_3","name":"f","type":"function_call"},{"call_id":"call_3","output":"","type":"function_call_output"}`,
		},
		{
			"what says nothing", `{"role":"assistant"},{"role":"user","content":"u"},{"role":"assistant","content":null,"tool_calls":[]},` +
				`{"role":"assistant","content":[],"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":null}`,
			`{"content":[{"annotations":[],"logprobs":[],"text":"","type":"output_text"}],"id":"msg_0","role":"assistant","status":"completed","type":"message"},{"content":[{"text":"u","type":"input_text"}],"role":"user","type":"message"},` +
				`{"content":[{"annotations":[],"logprobs":[],"text":"","type":"output_text"}],"id":"msg_2","role":"assistant","status":"completed","type":"message"},` +
				`{"arguments":"{}","call_id":"c","name":"f","type":"function_call"},{"call_id":"c","output":"","type":"function_call_output"}`,
		},
		{
			"ids that come again", `{"role":"user","content":"u"},` + strings.Repeat(`{"role":"assistant","tool_calls":[{"id":"t:0","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"t:0","content":"x"},`, 2) + `{"role":"user","content":"v"}`,
			`{"content":[{"text":"u","type":"input_text"}],"role":"user","type":"message"},{"arguments":"{}","call_id":"t:0","name":"f","type":"function_call"},{"call_id":"t:0","output":"x","type":"function_call_output"},` +
				`{"arguments":"{}","call_id":"` + second + `","name":"f","type":"function_call"},{"call_id":"` + second + `","output":"x","type":"function_call_output"},{"content":[{"text":"v","type":"input_text"}],"role":"user","type":"message"}`,
		},
		{
			"legacy calls", `{"role":"user","content":"u"},{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}},{"role":"function","name":"f","content":"one"},` +
				`{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}},{"role":"function","name":"f","content":"two"}`,
			`{"content":[{"text":"u","type":"input_text"}],"role":"user","type":"message"},{"arguments":"{}","call_id":"function_call_1","name":"f","type":"function_call"},{"call_id":"function_call_1","output":"one","type":"function_call_output"},` +
				`{"arguments":"{}","call_id":"function_call_3","name":"f","type":"function_call"},{"call_id":"function_call_3","output":"two","type":"function_call_output"}`,
		},
	} {
		for _, stream := range []bool{false, true} {
			for _, tools := range []string{"", "," + twoTools} {
				t.Run(fmt.Sprint(tt.name, " stream ", stream, " tools ", tools != ""), func(t *testing.T) {
					before := len(up.Bodies())
					d.complete(`"messages":[`+tt.messages+`]`+tools, stream)
					var body struct{ Input []json.RawMessage }
					if err := json.Unmarshal(up.Bodies()[before], &body); err != nil {
						t.Fatal(err)
					}
					var want []json.RawMessage
					if err := json.Unmarshal([]byte("["+tt.arrive+"]"), &want); err != nil {
						t.Fatal(err)
					}
					if len(body.Input) != len(want) {
						t.Fatalf("%d items arrived, want %d", len(body.Input), len(want))
					}
					for i := range want {
						if got := canonical(t, body.Input[i]); got != canonical(t, want[i]) {
							t.Fatalf("item %d:\ngot  %.500s\nwant %.500s", i, got, want[i])
						}
					}
				})
			}
		}
	}
}

// canonical writes JSON in one way, so that equal values are equal text.
func canonical(t *testing.T, data []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	out, _ := json.Marshal(v)
	return string(out)
}

func TestStopSequenceEndsTheProvidersRequest(t *testing.T) {
	left := make(chan struct{})
	d, _ := withRelay(t, func(w http.ResponseWriter, r *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		for _, delta := range []string{"one ", "tw", "o END", " three"} {
			s.Delta(delta)
		}
		<-r.Context().Done()
		close(left)
	}, codextest.Text("ok"))
	got, _ := d.complete(hi+`,"stop":["wo E"]`, true)
	if got.String() != `assistant content "one t" finish stop` {
		t.Errorf("got %s", got)
	}
	select {
	case <-left:
	case <-time.After(5 * time.Second):
		t.Error("the provider's request still runs")
	}
	// "one ", "tw" and "o END" came: 11 bytes.
	if estimated, counted := d.total("codexpool_estimated_tokens_total", `kind="output"`), d.total("codexpool_output_tokens_total"); estimated != 3 || counted != 0 {
		t.Errorf("%v tokens are estimated, %v counted", estimated, counted)
	}
	if got, _ := d.complete(hi, false); got.String() != `assistant content "ok" finish stop` {
		t.Errorf("the next: %s", got)
	}
}

// image is a PNG of one pixel.
const image = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
