package codextest

import (
	"fmt"
	"strings"
	"testing"

	"codexpool/codex"
)

// form is one form that a provider's answer takes.
type form struct {
	name   string
	events []string // the data of each event of the provider's stream
	want   string   // the events of the answer, see [Written]
	fails  string   // the code of the failure, "cut" where the stream has no end, "" where the answer is whole
}

// Failed is the word of [TestAnswers] for a failure whose code is not known.
const Failed = "failed"

// TestAnswers has every form that a provider's answer takes. answer has the provider
// stream these events, and returns those of the answer and how it failed: with a code,
// "cut", or Failed. instead has what comes where the source of the answer is not told
// enough: the events as in [Written], or Failed.
func TestAnswers(t *testing.T, instead map[string]string, answer func(t *testing.T, stream []string) (events []codex.Event, fails string)) {
	known := map[string]bool{}
	for _, f := range forms() {
		known[f.name] = true
		if other, ok := instead[f.name]; ok && other == Failed {
			f.want, f.fails = "", Failed
		} else if ok {
			f.want = other
		}
		t.Run(f.name, func(t *testing.T) {
			events, fails := answer(t, f.events)
			if got := Written(events); got != f.want {
				t.Errorf("got  %q\nwant %q", got, f.want)
			}
			if fails != f.fails && (fails != Failed || f.fails == "") {
				t.Errorf("failed with %q, want %q", fails, f.fails)
			}
		})
	}
	for name := range instead {
		if !known[name] {
			t.Errorf("there is no form %q", name)
		}
	}
}

// Written are the events of an answer, as a test reads them. What follows each other
// of one kind is joined.
func Written(events []codex.Event) string {
	var b strings.Builder
	last := ""
	for _, e := range events {
		kind, text := fmt.Sprintf("%T", e), ""
		switch e := e.(type) {
		case codex.ToolCalls:
			for i, c := range e.Calls {
				fmt.Fprintf(&b, "[%d %s %s] ", i, c.ID, c.Name)
				if c.Arguments != "" {
					fmt.Fprintf(&b, "[%d] %s", i, c.Arguments)
				}
			}
			last = kind
			continue
		case codex.TextDelta:
			text = e.Text
		case codex.ReasoningDelta:
			text = e.Text
		case codex.Refusal:
			text = e.Text
		case codex.ToolCallDelta:
			kind, text = fmt.Sprintf("%d", e.Index), e.Arguments
			if e.Name != "" {
				kind, text = fmt.Sprintf("%d %s %s", e.Index, e.ID, e.Name), e.Arguments
			}
		case codex.Usage:
			text = fmt.Sprint(e)
		case codex.Completed:
			text = string(e.Finish)
		}
		if kind != last {
			fmt.Fprintf(&b, "[%s] ", strings.TrimPrefix(kind, "codex."))
		}
		b.WriteString(text)
		if kind == last || text == "" {
			last = kind
			continue
		}
		last = kind
	}
	return b.String()
}

func forms() []form {
	const (
		open  = `{"type":"response.output_item.added","output_index":0,"item":{"id":"m","type":"message","role":"assistant","content":[]}}`
		text  = `{"type":"response.output_text.delta","item_id":"m","output_index":0,"delta":"one "}`
		text2 = `{"type":"response.output_text.delta","item_id":"m","output_index":0,"delta":"two"}`
		whole = `{"type":"response.output_item.done","output_index":0,"item":{"id":"m","type":"message","role":"assistant","content":[{"type":"output_text","text":"one two"}]}}`
		end   = `{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":7,"output_tokens":2,"total_tokens":9,"input_tokens_details":{"cached_tokens":3},"output_tokens_details":{"reasoning_tokens":1}}}}`
		bare  = `{"type":"response.completed","response":{"id":"r"}}`
		used  = "[Usage] {7 3 2 1 9}"
	)
	added := func(index int, item string) string {
		return fmt.Sprintf(`{"type":"response.output_item.added","output_index":%d,"item":%s}`, index, item)
	}
	done := func(index int, item string) string {
		return fmt.Sprintf(`{"type":"response.output_item.done","output_index":%d,"item":%s}`, index, item)
	}
	ending := func(output string) string {
		return `{"type":"response.completed","response":{"id":"r","output":[` + output + `]}}`
	}
	message := func(id, phase, text string) string {
		if phase != "" {
			phase = fmt.Sprintf(`"phase":%q,`, phase)
		}
		return fmt.Sprintf(`{"id":%q,"type":"message","role":"assistant",%s"content":[{"type":"output_text","text":%q}]}`, id, phase, text)
	}
	call := func(id, name, arguments string) string {
		return fmt.Sprintf(`{"id":"fc_%s","type":"function_call","call_id":%q,"name":%q,"arguments":%q}`, id, id, name, arguments)
	}
	args := func(id string, index int, delta string) string {
		return fmt.Sprintf(`{"type":"response.function_call_arguments.delta","item_id":"fc_%s","output_index":%d,"delta":%q}`, id, index, delta)
	}
	summary := func(part int, delta string) string {
		return fmt.Sprintf(`{"type":"response.reasoning_summary_text.delta","item_id":"rs","output_index":0,"summary_index":%d,"delta":%q}`, part, delta)
	}
	thought := added(0, `{"id":"rs","type":"reasoning","summary":[]}`)
	var eight, eightCalls []string
	for i := range 8 {
		id := fmt.Sprint("c", i)
		eight = append(eight, added(i, call(id, "f", "")), args(id, i, "{"), args(id, i, "}"), done(i, call(id, "f", "{}")))
		eightCalls = append(eightCalls, fmt.Sprintf("[%d %s f] [%d] {}", i, id, i))
	}
	return []form{
		{"text", []string{open, text, text2, whole, end}, "[TextDelta] one two" + used + "[Completed] stop", ""},
		{"nothing", []string{bare}, "[Completed] stop", ""},
		{"no deltas", []string{whole, end}, "[TextDelta] one two" + used + "[Completed] stop", ""},
		{"only deltas", []string{open, text, text2, bare}, "[TextDelta] one two[Completed] stop", ""},
		{"only in the ending", []string{ending(message("m", "", "one two"))}, "[TextDelta] one two[Completed] stop", ""},
		{"in the ending too", []string{open, text, text2, ending(message("other", "", "one two"))}, "[TextDelta] one two[Completed] stop", ""},
		{"an item under another id", []string{open, text, text2, done(3, message("other", "", "one two")), bare}, "[TextDelta] one two[Completed] stop", ""},
		{"several messages", []string{added(0, message("a", "", "")), done(0, message("a", "", "one ")), added(1, message("b", "", "")), done(1, message("b", "", "two")), bare}, "[TextDelta] one two[Completed] stop", ""},
		{"messages with one index", []string{done(0, message("a", "", "one ")), done(0, message("b", "", "two")), bare}, "[TextDelta] one two[Completed] stop", ""},
		{"commentary and final", []string{added(0, message("c", "commentary", "")), `{"type":"response.output_text.delta","item_id":"c","delta":"hm"}`, added(1, message("m", "final_answer", "")), `{"type":"response.output_text.delta","item_id":"m","output_index":1,"delta":"yes"}`, bare}, "[ReasoningDelta] hm[TextDelta] yes[Completed] stop", ""},
		{"commentary only", []string{done(0, message("c", "commentary", "hm")), bare}, "[ReasoningDelta] hm[Completed] stop", ""},
		{"markup of Codex", []string{open, `{"type":"response.output_text.delta","item_id":"m","delta":"a<oai-mem-citation>b</oai-mem-citation>c<oai-mem-citation>d"}`, bare}, "[TextDelta] a<oai-mem-citation>b</oai-mem-citation>c<oai-mem-citation>d[Completed] stop", ""},
		{"reasoning in parts", []string{thought, summary(0, "a"), summary(0, "b"), summary(1, "c"), added(1, message("m", "", "")), text2, bare}, "[ReasoningDelta] ab\n\nc[TextDelta] two[Completed] stop", ""},
		{"reasoning in the item", []string{done(0, `{"id":"rs","type":"reasoning","summary":[{"type":"summary_text","text":"a"},{"type":"summary_text","text":"b"}]}`), bare}, "[ReasoningDelta] a\n\nb[Completed] stop", ""},
		{"reasoning in both", []string{thought, summary(0, "a"), done(0, `{"id":"rs","type":"reasoning","summary":[{"type":"summary_text","text":"a"}]}`), bare}, "[ReasoningDelta] a[Completed] stop", ""},
		{"reasoning in the ending", []string{ending(`{"type":"reasoning","summary":[{"text":"a"}]}`)}, "[ReasoningDelta] a[Completed] stop", ""},
		{"a refusal", []string{open, `{"type":"response.refusal.delta","item_id":"m","delta":"no "}`, `{"type":"response.refusal.delta","item_id":"m","delta":"way"}`, `{"type":"response.refusal.done","item_id":"m","refusal":"no way"}`, bare}, "[Refusal] no way[Completed] stop", ""},
		{"a refusal in one piece", []string{open, `{"type":"response.refusal.done","item_id":"m","refusal":"no way"}`, done(0, `{"id":"m","type":"message","content":[{"type":"refusal","refusal":"no way"}]}`), bare}, "[Refusal] no way[Completed] stop", ""},
		{"a call", []string{added(0, call("c", "f", "")), args("c", 0, `{"a":`), args("c", 0, `12345678901234567890}`), done(0, call("c", "f", `{"a":12345678901234567890}`)), end}, `[0 c f] [0] {"a":12345678901234567890}` + used + "[Completed] tool_calls", ""},
		{"a call in one piece", []string{done(0, call("c", "f", "{}")), bare}, "[0 c f] [0] {}[Completed] tool_calls", ""},
		{"arguments only at their end", []string{added(0, call("c", "f", "")), `{"type":"response.function_call_arguments.done","item_id":"fc_c","arguments":"{}"}`, done(0, call("c", "f", "{}")), bare}, "[0 c f] [0] {}[Completed] tool_calls", ""},
		{"a call without arguments", []string{added(0, call("c", "f", "")), done(0, call("c", "f", "")), bare}, "[0 c f] [Completed] tool_calls", ""},
		{"arguments that are no JSON", []string{done(0, call("c", "f", `{"a":`)), bare}, `[0 c f] [0] {"a":[Completed] tool_calls`, ""},
		{"a call after text", []string{open, text, done(1, call("c", "f", "{}")), bare}, "[TextDelta] one [0 c f] [0] {}[Completed] tool_calls", ""},
		{"eight calls", append(eight, bare), strings.Join(eightCalls, "") + "[Completed] tool_calls", ""},
		{"a call only in the ending", []string{open, text, ending(call("c", "f", "{}"))}, "[TextDelta] one [0 c f] [0] {}[Completed] tool_calls", ""},
		{"a call in the ending too", []string{done(0, call("c", "f", "{}")), ending(call("c", "f", "{}") + "," + call("d", "g", "[]"))}, "[0 c f] [0] {}[1 d g] [1] [][Completed] tool_calls", ""},
		{"a call that was cut", []string{added(0, call("c", "f", "")), args("c", 0, `{"a`), `{"type":"response.incomplete","response":{"id":"r","incomplete_details":{"reason":"max_output_tokens"}}}`}, `[0 c f] [0] {"a[Completed] length`, ""},
		{"items without content", []string{done(0, `{"id":"m","type":"message"}`), done(1, `{"type":"message","content":[{"type":"output_text"}]}`), done(2, `{"type":"reasoning"}`), done(3, `{}`), `{"type":"response.output_item.done","item":null}`, bare}, "[Completed] stop", ""},
		{"usage null", []string{open, text, `{"type":"response.completed","response":{"id":"r","usage":null}}`}, "[TextDelta] one [Completed] stop", ""},
		{"usage in part", []string{`{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":7,"output_tokens":2}}}`}, "[Usage] {7 0 2 0 9}[Completed] stop", ""},
		{"too long", []string{open, text, `{"type":"response.incomplete","response":{"id":"r","incomplete_details":{"reason":"max_output_tokens"},"usage":{"input_tokens":7,"output_tokens":2}}}`}, "[TextDelta] one [Usage] {7 0 2 0 9}[Completed] length", ""},
		{"too long by its status", []string{open, text, `{"type":"response.completed","response":{"id":"r","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}`}, "[TextDelta] one [Completed] length", ""},
		{"filtered", []string{open, text, `{"type":"response.incomplete","response":{"id":"r","incomplete_details":{"reason":"content_filter"},"usage":{"input_tokens":7,"output_tokens":2}}}`}, "[TextDelta] one [Usage] {7 0 2 0 9}[Completed] content_filter", ""},
		{"incomplete for another reason", []string{open, text, `{"type":"response.incomplete","response":{"id":"r","incomplete_details":{"reason":"weather"}}}`}, "[TextDelta] one ", "incomplete"},
		{"incomplete for another reason, with usage", []string{open, text, `{"type":"response.incomplete","response":{"id":"r","incomplete_details":{"reason":"weather"},"usage":{"input_tokens":7,"output_tokens":2}}}`}, "[TextDelta] one [Usage] {7 0 2 0 9}", "incomplete"},
		{"failed before text", []string{`{"type":"response.failed","response":{"id":"r","error":{"code":"c","message":"m"}}}`}, "", "c"},
		{"failed after text", []string{open, text, `{"type":"response.failed","response":{"id":"r","error":{"code":"c","message":"m"}}}`}, "[TextDelta] one ", "c"},
		{"failed, with usage", []string{open, text, `{"type":"response.failed","response":{"id":"r","error":{"code":"c","message":"m"},"usage":{"input_tokens":7,"output_tokens":2}}}`}, "[TextDelta] one [Usage] {7 0 2 0 9}", "c"},
		{"an error event", []string{open, text, `{"type":"error","code":"c","message":"m"}`}, "[TextDelta] one ", "c"},
		{"cut before text", []string{`{"type":"response.created"}`}, "", "cut"},
		{"cut after text", []string{open, text}, "[TextDelta] one ", "cut"},
		{"two endings", []string{open, text, bare, text2, end}, "[TextDelta] one [Completed] stop", ""},
		{"end_turn false", []string{open, text, `{"type":"response.completed","response":{"id":"r","end_turn":false}}`}, "[TextDelta] one [Completed] stop", ""},
		{"an emoji in halves", []string{open, `{"type":"response.output_text.delta","item_id":"m","delta":"a\ud83e"}`, `{"type":"response.output_text.delta","item_id":"m","delta":"\uddeab"}`, bare}, "[TextDelta] a🧪b[Completed] stop", ""},
		{"an escaped backslash", []string{open, `{"type":"response.output_text.delta","item_id":"m","delta":"a\\ud83e"}`, `{"type":"response.output_text.delta","item_id":"m","delta":"b"}`, bare}, `[TextDelta] a\ud83eb[Completed] stop`, ""},
		{"other separators of lines", []string{open, "{\"type\":\"response.output_text.delta\",\"item_id\":\"m\",\"delta\":\"a\u2028b\u0085c\"}", bare}, "[TextDelta] a\u2028b\u0085c[Completed] stop", ""},
		{"events of other types", []string{open, `{"type":"keepalive"}`, `[]`, `{`, `[DONE]`, `{"type":7}`, text, `{"type":"response.web_search_call.searching"}`, bare}, "[TextDelta] one [Completed] stop", ""},
	}
}
