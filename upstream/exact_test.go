package upstream_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"codexpool/codex"
	"codexpool/upstream"
)

// exactly has a provider send a stream in pieces of this size, and returns what came out
// of an exact call.
func exactly(t *testing.T, stream string, size int) (bytes string, events []codex.Event, failure *upstream.Failure) {
	t.Helper()
	r := imagined(func(*http.Request) *http.Response {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(&pieces{strings.NewReader(stream), size})}
	})
	call := prepare(t.Context(), r, upstream.Request{Body: []byte("{}")})
	defer call.Done()
	r.ServeHTTP(httptest.NewRecorder(), fromChild(t.Context(), "", call.Key, posted))
	events, failure = answerTo(call)
	for _, e := range events {
		if raw, ok := e.(upstream.Raw); ok {
			bytes += string(raw.Bytes)
		}
	}
	return bytes, events, failure
}

// TestExactAnswerIsTheStreamWhereverItBreaks sends one stream in pieces of every size,
// with each form of line end.
func TestExactAnswerIsTheStreamWhereverItBreaks(t *testing.T) {
	for _, newline := range []string{"\n", "\r\n"} {
		stream := strings.ReplaceAll(": hello\n\nevent: a\nid: 1\ndata:{\"type\":\"response.custom_tool_call_input.delta\",\ndata: \"delta\":\"ä\"}\n\n\n\ndata: {\"type\":\"response.reasoning_text.delta\",\"delta\":\"hm\"}\n\n: end\ndata: "+completed+"\n\n", "\n", newline)
		for size := 1; size <= len(stream); size++ {
			bytes, events, failure := exactly(t, stream, size)
			if bytes != stream || failure != nil {
				t.Fatalf("pieces of %d: %q, %+v", size, bytes, failure)
			}
			kinds := ""
			for _, e := range events {
				kinds += fmt.Sprintf("%T ", e)
			}
			if kinds != "upstream.Opening upstream.Raw codex.TextDelta upstream.Raw upstream.Raw codex.Completed " {
				t.Fatalf("pieces of %d: %s", size, kinds)
			}
		}
	}
}

// TestExactAnswerEndsWithItsLastEvent: nothing behind it is read, or passed on.
func TestExactAnswerEndsWithItsLastEvent(t *testing.T) {
	stream := "data: " + completed + "\n\n"
	if bytes, _, failure := exactly(t, stream+"data: [DONE]\n\n", 1<<10); bytes != stream || failure != nil {
		t.Errorf("%q, %+v", bytes, failure)
	}
}
