package upstream_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// FuzzAnswer: whatever a provider streams, the answer ends once, and is the same
// however the stream is cut into pieces.
func FuzzAnswer(f *testing.F) {
	for _, stream := range []string{
		"data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\\ud83e\"}\n\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"\\uddea\"}\n\ndata: " + completed + "\n\n",
		"data: {\"type\":\"response.output_item.added\",\"output_index\":0,\"item\":{\"type\":\"function_call\",\"call_id\":\"c\",\"name\":\"f\"}}\r\n\r\ndata: {\"type\":\"response.function_call_arguments.delta\",\"delta\":\"{}\"}\n\n",
		"data: {\"type\":\"response.output_item.done\",\"item\":{\"id\":\"m\",\"type\":\"message\",\"content\":[{\"text\":\"a\"},{\"type\":\"refusal\",\"refusal\":\"b\"}]}}\n\ndata: {\"type\":\"response.failed\"}\n\n",
		": x\n\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[null,{\"type\":\"reasoning\",\"summary\":[{\"text\":\"a\"},{\"text\":\"b\"}]}],\"usage\":{}}}",
	} {
		f.Add([]byte(stream), 3)
	}
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		answer := func(size int) (string, bool) {
			r := imagined(func(*http.Request) *http.Response {
				return &http.Response{StatusCode: 200, Body: io.NopCloser(&pieces{strings.NewReader(string(stream)), size})}
			})
			call, _ := serveOne(t.Context(), r)
			events, failure := answerTo(call)
			ends := 0
			for _, e := range events {
				if _, ok := e.(codex.Completed); ok {
					ends++
				}
			}
			if ends > 1 || (ends == 1) != (failure == nil) {
				t.Errorf("%d endings, failure %+v", ends, failure)
			}
			return codextest.Written(events), failure == nil
		}
		whole, well := answer(1 << 20)
		if got, gotWell := answer(1 + size&15); got != whole || gotWell != well {
			t.Errorf("in pieces: %q, in one: %q", got, whole)
		}
	})
}
