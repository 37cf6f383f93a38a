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
