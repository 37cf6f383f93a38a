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
	"codexpool/codex/codextest"
	"codexpool/upstream"
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

func TestAnswersOfTheRelay(t *testing.T) {
	codextest.TestAnswers(t, nil, func(t *testing.T, stream []string) ([]codex.Event, string) {
		call, _ := serveOne(t.Context(), streamed(stream...))
		events, failure := answerTo(call)
		switch {
		case failure == nil:
			return events, ""
		case failure.Cause != nil:
			return events, "cut"
		}
		return events, failure.Code
	})
}

// TestAnswersThatCannotBe has counts that are none, and items that no event is for.
func TestAnswersThatCannotBe(t *testing.T) {
	const (
		text = `{"type":"response.output_text.delta","item_id":"m","output_index":0,"delta":"one "}`
		end  = `{"type":"response.completed","response":{"usage":{"input_tokens":7,"output_tokens":2}}}`
		bare = `{"type":"response.completed","response":{}}`
		used = "[Usage] {7 0 2 0 9}"
		call = `{"type":"function_call","call_id":"c","name":"f","arguments":"{}"}`
	)
	done := func(index int, item string) string {
		return fmt.Sprintf(`{"type":"response.output_item.done","output_index":%d,"item":%s}`, index, item)
	}
	ending := func(output string) string {
		return `{"type":"response.completed","response":{"output":[` + output + `]}}`
	}
	for name, tt := range map[string]struct {
		events []string
		want   string
		item   string // of the failure
	}{
		"usage that is negative":        {[]string{text, `{"type":"response.completed","response":{"usage":{"input_tokens":7,"output_tokens":-2}}}`}, "[TextDelta] one [Completed] stop", ""},
		"usage in part negative":        {[]string{text, `{"type":"response.completed","response":{"usage":{"input_tokens":7,"output_tokens":2,"input_tokens_details":{"cached_tokens":-1}}}}`}, "[TextDelta] one [Completed] stop", ""},
		"usage whose sum overflows":     {[]string{text, `{"type":"response.completed","response":{"usage":{"input_tokens":9223372036854775807,"output_tokens":2}}}`}, "[TextDelta] one [Completed] stop", ""},
		"usage that is no number":       {[]string{text, `{"type":"response.completed","response":{"usage":{"input_tokens":"7","output_tokens":2}}}`}, "[TextDelta] one [Completed] stop", ""},
		"an item of another type":       {[]string{`{"type":"response.output_item.added","output_index":0,"item":{"id":"l","type":"local_shell_call"}}`, done(0, `{"id":"l","type":"local_shell_call"}`), end}, used, "local_shell_call"},
		"such an item in the ending":    {[]string{ending(`{"type":"computer_call"},{"type":"web_search_call"}`)}, "", "computer_call"},
		"a call without a name":         {[]string{done(0, `{"type":"function_call","call_id":"c"}`), bare}, "", "function_call"},
		"such an item beside text":      {[]string{text, done(1, `{"type":"local_shell_call"}`), bare}, "[TextDelta] one [Completed] stop", ""},
		"such an item beside a refusal": {[]string{`{"type":"response.refusal.delta","delta":"no"}`, done(1, `{"type":"local_shell_call"}`), bare}, "[Refusal] no[Completed] stop", ""},
		"such an item beside reasoning": {[]string{done(0, `{"type":"reasoning","summary":[]}`), done(1, `{"type":"local_shell_call"}`), bare}, "[Completed] stop", ""},
		"such an item beside a call":    {[]string{done(0, `{"type":"web_search_call"}`), done(1, call), bare}, "[0 c f] [0] {}[Completed] tool_calls", ""},
		"such an item, empty message":   {[]string{done(0, `{"type":"web_search_call"}`), done(1, `{"type":"message","content":[]}`), bare}, "[Completed] stop", ""},
		"such an item, cut":             {[]string{done(0, `{"type":"web_search_call"}`), `{"type":"response.incomplete","response":{"incomplete_details":{"reason":"max_output_tokens"}}}`}, "[Completed] length", ""},
	} {
		t.Run(name, func(t *testing.T) {
			call, _ := serveOne(t.Context(), streamed(tt.events...))
			events, failure := answerTo(call)
			if got := codextest.Written(events); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			item := ""
			if failure != nil {
				item = failure.Item
			}
			if item != tt.item || (failure != nil) != (tt.item != "") {
				t.Errorf("failure %+v, want %q", failure, tt.item)
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
			if got := codextest.Written(events); got != "[TextDelta] äb[Completed] stop" || failure != nil {
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

// TestEventOfThirtyMegabytes: an ending may repeat a long answer with all its items.
func TestEventOfThirtyMegabytes(t *testing.T) {
	long := strings.Repeat("x", 30<<20)
	r := streamed(`{"type":"response.completed","response":{"output":[{"type":"message","content":[{"type":"output_text","text":"` + long + `"}]}]}}`)
	call := prepare(t.Context(), r, upstream.Request{})
	defer call.Done()
	served := make(chan struct{})
	go func() { // ends when the answer is read
		defer close(served)
		r.ServeHTTP(httptest.NewRecorder(), fromChild(t.Context(), "", call.Key, posted))
	}()
	<-call.Wake()
	events, _ := answerTo(call)
	<-served
	rest, failure := answerTo(call)
	if got := codextest.Written(append(events, rest...)); got != "[TextDelta] "+long+"[Completed] stop" || failure != nil {
		t.Errorf("%d bytes, %+v", len(got), failure)
	}
}

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
		call := prepare(t.Context(), r, upstream.Request{})
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
		if events, failure := answerTo(call); codextest.Written(events) != "[Completed] stop" || failure != nil {
			t.Errorf("%d bytes, then %s, %+v", got, codextest.Written(events), failure)
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
