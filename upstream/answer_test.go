package upstream_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex"
	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
)

// streamed is a relay before a provider that streams the data of these events.
func streamed(events ...string) *upstream.Relay {
	return imagined(func(*http.Request) *http.Response {
		var b strings.Builder
		for _, e := range events {
			fmt.Fprintf(&b, "event: x\ndata: %s\n\n", e)
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(b.String()))}
	})
}

// written are the events of an answer, as a test reads them. What follows each other
// of one kind is joined.
func written(events []codex.Event) string {
	var b strings.Builder
	last := ""
	for _, e := range events {
		kind, text := fmt.Sprintf("%T", e), ""
		switch e := e.(type) {
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

func TestAnswersOfEveryForm(t *testing.T) {
	const (
		text  = `{"type":"response.output_text.delta","item_id":"m","output_index":0,"delta":"one "}`
		text2 = `{"type":"response.output_text.delta","item_id":"m","output_index":0,"delta":"two"}`
		whole = `{"type":"response.output_item.done","output_index":0,"item":{"id":"m","type":"message","content":[{"type":"output_text","text":"one two"}]}}`
		end   = `{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":7,"output_tokens":2,"total_tokens":9,"input_tokens_details":{"cached_tokens":3},"output_tokens_details":{"reasoning_tokens":1}}}}`
		bare  = `{"type":"response.completed","response":{}}`
		used  = "[Usage] {7 3 2 1 9}"
	)
	added := func(index int, item string) string {
		return fmt.Sprintf(`{"type":"response.output_item.added","output_index":%d,"item":%s}`, index, item)
	}
	done := func(index int, item string) string {
		return fmt.Sprintf(`{"type":"response.output_item.done","output_index":%d,"item":%s}`, index, item)
	}
	ending := func(output string) string {
		return `{"type":"response.completed","response":{"output":[` + output + `]}}`
	}
	message := func(id, phase, text string) string {
		return fmt.Sprintf(`{"id":%q,"type":"message","phase":%q,"content":[{"type":"output_text","text":%q}]}`, id, phase, text)
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
	var eight, eightCalls []string
	for i := range 8 {
		id := fmt.Sprint("c", i)
		eight = append(eight, added(i, call(id, "f", "")), args(id, i, "{"), args(id, i, "}"))
		eightCalls = append(eightCalls, fmt.Sprintf("[%d %s f] [%d] {}", i, id, i))
	}
	for name, tt := range map[string]struct {
		events []string
		want   string
		fails  string // the failure's code, or "cut"
	}{
		"text":                          {[]string{text, text2, whole, end}, "[TextDelta] one two" + used + "[Completed] stop", ""},
		"nothing":                       {[]string{bare}, "[Completed] stop", ""},
		"no deltas":                     {[]string{whole, end}, "[TextDelta] one two" + used + "[Completed] stop", ""},
		"only deltas":                   {[]string{text, text2, bare}, "[TextDelta] one two[Completed] stop", ""},
		"only in the ending":            {[]string{ending(message("m", "", "one two"))}, "[TextDelta] one two[Completed] stop", ""},
		"in the ending too":             {[]string{text, text2, ending(message("other", "", "one two"))}, "[TextDelta] one two[Completed] stop", ""},
		"an item under another id":      {[]string{text, text2, done(3, message("other", "", "one two")), bare}, "[TextDelta] one two[Completed] stop", ""},
		"several messages":              {[]string{added(0, message("a", "", "")), done(0, message("a", "", "one ")), added(1, message("b", "", "")), done(1, message("b", "", "two")), bare}, "[TextDelta] one two[Completed] stop", ""},
		"messages with one index":       {[]string{done(0, message("a", "", "one ")), done(0, message("b", "", "two")), bare}, "[TextDelta] one two[Completed] stop", ""},
		"commentary and final":          {[]string{added(0, message("c", "commentary", "")), `{"type":"response.output_text.delta","item_id":"c","delta":"hm"}`, added(1, message("m", "final_answer", "")), `{"type":"response.output_text.delta","item_id":"m","output_index":1,"delta":"yes"}`, bare}, "[ReasoningDelta] hm[TextDelta] yes[Completed] stop", ""},
		"commentary only":               {[]string{done(0, message("c", "commentary", "hm")), bare}, "[ReasoningDelta] hm[Completed] stop", ""},
		"markup of Codex":               {[]string{`{"type":"response.output_text.delta","delta":"a<oai-mem-citation>b</oai-mem-citation>c<oai-mem-citation>d"}`, bare}, "[TextDelta] a<oai-mem-citation>b</oai-mem-citation>c<oai-mem-citation>d[Completed] stop", ""},
		"reasoning in parts":            {[]string{summary(0, "a"), summary(0, "b"), summary(1, "c"), text2, bare}, "[ReasoningDelta] ab\n\nc[TextDelta] two[Completed] stop", ""},
		"reasoning in the item":         {[]string{done(0, `{"id":"rs","type":"reasoning","summary":[{"type":"summary_text","text":"a"},{"type":"summary_text","text":"b"}]}`), bare}, "[ReasoningDelta] a\n\nb[Completed] stop", ""},
		"reasoning in both":             {[]string{summary(0, "a"), done(0, `{"id":"rs","type":"reasoning","summary":[{"type":"summary_text","text":"a"}]}`), bare}, "[ReasoningDelta] a[Completed] stop", ""},
		"reasoning in the ending":       {[]string{ending(`{"type":"reasoning","summary":[{"text":"a"}]}`)}, "[ReasoningDelta] a[Completed] stop", ""},
		"a refusal":                     {[]string{`{"type":"response.refusal.delta","item_id":"m","delta":"no "}`, `{"type":"response.refusal.delta","item_id":"m","delta":"way"}`, `{"type":"response.refusal.done","item_id":"m","refusal":"no way"}`, bare}, "[Refusal] no way[Completed] stop", ""},
		"a refusal in one piece":        {[]string{`{"type":"response.refusal.done","item_id":"m","refusal":"no way"}`, done(0, `{"id":"m","type":"message","content":[{"type":"refusal","refusal":"no way"}]}`), bare}, "[Refusal] no way[Completed] stop", ""},
		"a call":                        {[]string{added(0, call("c", "f", "")), args("c", 0, `{"a":`), args("c", 0, `12345678901234567890}`), done(0, call("c", "f", `{"a":12345678901234567890}`)), end}, `[0 c f] [0] {"a":12345678901234567890}` + used + "[Completed] tool_calls", ""},
		"a call in one piece":           {[]string{done(0, call("c", "f", "{}")), bare}, "[0 c f] [0] {}[Completed] tool_calls", ""},
		"arguments only at their end":   {[]string{added(0, call("c", "f", "")), `{"type":"response.function_call_arguments.done","item_id":"fc_c","arguments":"{}"}`, done(0, call("c", "f", "{}")), bare}, "[0 c f] [0] {}[Completed] tool_calls", ""},
		"a call without arguments":      {[]string{added(0, call("c", "f", "")), done(0, call("c", "f", "")), bare}, "[0 c f] [Completed] tool_calls", ""},
		"arguments that are no JSON":    {[]string{done(0, call("c", "f", `{"a":`)), bare}, `[0 c f] [0] {"a":[Completed] tool_calls`, ""},
		"a call after text":             {[]string{text, done(1, call("c", "f", "{}")), bare}, "[TextDelta] one [0 c f] [0] {}[Completed] tool_calls", ""},
		"eight calls":                   {append(eight, bare), strings.Join(eightCalls, "") + "[Completed] tool_calls", ""},
		"a call only in the ending":     {[]string{text, ending(call("c", "f", "{}"))}, "[TextDelta] one [0 c f] [0] {}[Completed] tool_calls", ""},
		"a call in the ending too":      {[]string{done(0, call("c", "f", "{}")), ending(call("c", "f", "{}") + "," + call("d", "g", "[]"))}, "[0 c f] [0] {}[1 d g] [1] [][Completed] tool_calls", ""},
		"a call that was cut":           {[]string{added(0, call("c", "f", "")), args("c", 0, `{"a`), `{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"}}}`}, `[0 c f] [0] {"a[Completed] length`, ""},
		"items without content":         {[]string{done(0, `{"id":"m","type":"message"}`), done(1, `{"type":"message","content":[{"type":"output_text"}]}`), done(2, `{"type":"reasoning"}`), done(3, `{}`), `{"type":"response.output_item.done","item":null}`, bare}, "[Completed] stop", ""},
		"usage null":                    {[]string{text, `{"type":"response.completed","response":{"usage":null}}`}, "[TextDelta] one [Completed] stop", ""},
		"usage in part":                 {[]string{`{"type":"response.completed","response":{"usage":{"input_tokens":7,"output_tokens":2}}}`}, "[Usage] {7 0 2 0 9}[Completed] stop", ""},
		"too long":                      {[]string{text, `{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"},"usage":{"input_tokens":7,"output_tokens":2}}}`}, "[TextDelta] one [Usage] {7 0 2 0 9}[Completed] length", ""},
		"too long by its status":        {[]string{text, `{"type":"response.completed","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}`}, "[TextDelta] one [Completed] length", ""},
		"filtered":                      {[]string{text, `{"type":"response.incomplete","response":{"incomplete_details":{"reason":"content_filter"},"usage":{"input_tokens":7,"output_tokens":2}}}`}, "[TextDelta] one [Usage] {7 0 2 0 9}[Completed] content_filter", ""},
		"incomplete for another reason": {[]string{text, `{"type":"response.incomplete","response":{"incomplete_details":{"reason":"weather"}}}`}, "[TextDelta] one ", "incomplete"},
		"failed before text":            {[]string{`{"type":"response.failed","response":{"error":{"code":"c","message":"m"}}}`}, "", "c"},
		"failed after text":             {[]string{text, `{"type":"response.failed","response":{"error":{"code":"c","message":"m"}}}`}, "[TextDelta] one ", "c"},
		"an error event":                {[]string{text, `{"type":"error","code":"c","message":"m"}`}, "[TextDelta] one ", "c"},
		"cut before text":               {[]string{`{"type":"response.created"}`}, "", "cut"},
		"cut after text":                {[]string{text}, "[TextDelta] one ", "cut"},
		"two endings":                   {[]string{text, bare, text2, end}, "[TextDelta] one [Completed] stop", ""},
		"end_turn false":                {[]string{text, `{"type":"response.completed","response":{"end_turn":false}}`}, "[TextDelta] one [Completed] stop", ""},
		"an emoji in halves":            {[]string{`{"type":"response.output_text.delta","delta":"a\ud83e"}`, `{"type":"response.output_text.delta","delta":"\uddeab"}`, bare}, "[TextDelta] a🧪b[Completed] stop", ""},
		"an escaped backslash":          {[]string{`{"type":"response.output_text.delta","delta":"a\\ud83e"}`, `{"type":"response.output_text.delta","delta":"b"}`, bare}, `[TextDelta] a\ud83eb[Completed] stop`, ""},
		"other separators of lines":     {[]string{"{\"type\":\"response.output_text.delta\",\"delta\":\"a\u2028b\u0085c\"}", bare}, "[TextDelta] a\u2028b\u0085c[Completed] stop", ""},
		"events of other types":         {[]string{`{"type":"keepalive"}`, `[]`, `{`, `[DONE]`, `{"type":7}`, text, `{"type":"response.web_search_call.searching"}`, bare}, "[TextDelta] one [Completed] stop", ""},
	} {
		t.Run(name, func(t *testing.T) {
			call, _ := serveOne(t.Context(), streamed(tt.events...))
			events, failure := answerTo(call)
			if diff := cmp.Diff(tt.want, written(events)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			fails := ""
			if failure != nil {
				if fails = failure.Code; failure.Cause != nil {
					fails = "cut"
				}
			}
			if fails != tt.fails {
				t.Errorf("failure %+v, want %q", failure, tt.fails)
			}
		})
	}
}

// TestStreamIsCutIntoEventsWhereverItBreaks sends one stream in pieces of every size,
// with each form of line end.
func TestStreamIsCutIntoEventsWhereverItBreaks(t *testing.T) {
	for _, newline := range []string{"\n", "\r\n"} {
		stream := strings.ReplaceAll(": hello\n\nevent: a\ndata:{\"type\":\"response.output_text.delta\",\ndata: \"delta\":\"äb\"}\n\n\n\ndata: "+completed+"\n", "\n", newline)
		for size := 1; size <= len(stream); size++ {
			r := imagined(func(*http.Request) *http.Response {
				return &http.Response{StatusCode: 200, Body: io.NopCloser(&pieces{strings.NewReader(stream), size})}
			})
			call, _ := serveOne(t.Context(), r)
			events, failure := answerTo(call)
			if got := written(events); got != "[TextDelta] äb[Completed] stop" || failure != nil {
				t.Fatalf("pieces of %d: %s, %+v", size, got, failure)
			}
		}
	}
}

type pieces struct {
	io.Reader
	size int
}

func (p *pieces) Read(b []byte) (int, error) { return p.Reader.Read(b[:min(len(b), p.size)]) }

// TestRelayStopsReadingWhileNobodyReadsTheAnswer has a provider that sends more than
// fits into the call's buffer.
func TestRelayStopsReadingWhileNobodyReadsTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const deltas, size = 100, 10 << 10
		sent := 0
		body, w := io.Pipe()
		go func() { // ends with the body
			for range deltas {
				fmt.Fprintf(w, "data: {\"type\":\"response.output_text.delta\",\"delta\":%q}\n\n", strings.Repeat("x", size))
				sent++
			}
			fmt.Fprintf(w, "data: %s\n\n", completed)
			w.Close()
		}()
		r := imagined(func(*http.Request) *http.Response { return &http.Response{StatusCode: 200, Body: body} })
		call := r.Prepare(t.Context(), upstream.Request{})
		defer call.Done()
		served := make(chan struct{})
		go func() {
			defer close(served)
			r.ServeHTTP(httptest.NewRecorder(), fromChild(t.Context(), "", call.Key, posted))
		}()
		synctest.Wait()
		if sent < 5 || sent > 15 {
			t.Errorf("%d deltas of 10 KB were read ahead", sent)
		}
		got := 0
		for got < deltas*size {
			e, err := call.Next()
			if err != nil {
				t.Fatal(err)
			}
			if d, ok := e.(codex.TextDelta); ok {
				got += len(d.Text)
				continue
			}
			<-call.Wake()
		}
		<-served
		if events, failure := answerTo(call); written(events) != "[Completed] stop" || failure != nil {
			t.Errorf("%d bytes, then %s, %+v", got, written(events), failure)
		}
	})
}

// TestDisconnectWhileNobodyReadsTheAnswerEndsTheRequest: the child is killed while
// the relay waits for the reader of the answer.
func TestDisconnectWhileNobodyReadsTheAnswerEndsTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		endless := newEndless("", "data: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n")
		r := imagined(func(*http.Request) *http.Response { return &http.Response{StatusCode: 200, Body: endless} })
		ctx, disconnect := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, disconnect)
		call, _ := serveOne(ctx, r)
		if _, f := answerTo(call); f != nil {
			t.Errorf("the disconnect is the child's, not the provider's: %+v", f)
		}
	})
}
