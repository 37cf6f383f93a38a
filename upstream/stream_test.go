package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex"
	"codexpool/upstream"
)

// endless is a body that never ends: its text, and then the same byte for ever,
// or silence until it is closed.
type endless struct {
	*io.PipeReader
	read int
}

func newEndless(text, filler string) *endless {
	r, w := io.Pipe()
	go func() { // ends when the body is closed
		_, err := io.WriteString(w, text)
		for err == nil && filler != "" {
			_, err = io.WriteString(w, strings.Repeat(filler, 32<<10))
		}
	}()
	return &endless{PipeReader: r}
}

func (e *endless) Read(b []byte) (int, error) {
	n, err := e.PipeReader.Read(b)
	e.read += n
	return n, err
}

// TestRelayStopsReadingABodyThatNeverEnds covers the bodies that the relay itself
// reads to their end: of an error, of a first try, and behind the last event.
func TestRelayStopsReadingABodyThatNeverEnds(t *testing.T) {
	const envelope = `{"error":{"message":"m"}}`
	for name, tt := range map[string]struct {
		status int
		text   string
		filler string        // what comes for ever; "" = silence
		takes  time.Duration // 0 = no time
		reads  int           // about, at most
	}{
		"a silent error":        {400, envelope, "", 5 * time.Second, 1 << 10},
		"a long error":          {400, envelope, " ", 0, 128 << 10},
		"a silent first try":    {502, envelope, "", 5 * time.Second, 1 << 10},
		"a long first try":      {502, envelope, " ", 0, 128 << 10},
		"silent after the last": {200, "data: " + completed + "\n\n", "", 5 * time.Second, 1 << 10},
		"long after the last":   {200, "data: " + completed + "\n\n", "\n", 0, 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first := newEndless(tt.text, tt.filler)
				r := imagined(func() func(*http.Request) *http.Response {
					tries := 0
					return func(*http.Request) *http.Response {
						if tries++; tries > 1 {
							return &http.Response{StatusCode: 400, Body: io.NopCloser(strings.NewReader(envelope))}
						}
						return &http.Response{StatusCode: tt.status, Body: first, Header: http.Header{"Content-Type": {"text/event-stream"}}}
					}
				}())
				began := time.Now()
				ctx, disconnect := context.WithCancel(t.Context())
				defer disconnect()
				call := prepare(t.Context(), r, upstream.Request{})
				defer call.Done()
				w := &childThatDisconnects{ResponseRecorder: httptest.NewRecorder(), disconnect: disconnect}
				func() {
					defer func() { _ = recover() }() // http.ErrAbortHandler, of a write that failed
					r.ServeHTTP(w, fromChild(ctx, "", call.Key, posted))
				}()
				if took := time.Since(began); took < tt.takes || took > tt.takes+time.Second {
					t.Errorf("it took %v", took)
				}
				if first.read > tt.reads {
					t.Errorf("%d bytes were read", first.read)
				}
				if w.Body.Len() > 64<<10 {
					t.Errorf("the child got %d bytes", w.Body.Len())
				}
				if f := failure(call); (f != nil && f.Message == "m") != (tt.status != 200) {
					t.Errorf("failure %+v", f)
				}
			})
		})
	}
}

// childThatDisconnects disconnects as soon as it has read the last event.
type childThatDisconnects struct {
	*httptest.ResponseRecorder
	disconnect func()
}

var lastEvent = regexp.MustCompile(`"(response\.(completed|incomplete|failed)|error)"`)

func (c *childThatDisconnects) Write(b []byte) (int, error) {
	if lastEvent.Match(c.Body.Bytes()) {
		return 0, errors.New("the child has disconnected")
	}
	n, err := c.ResponseRecorder.Write(b)
	if lastEvent.Match(c.Body.Bytes()) {
		c.disconnect()
	}
	return n, err
}

// TestRelayReadsTheBodyToItsEndAfterEachLastEvent has a body end a second after the
// child has disconnected: a body that is cut off costs the connection.
func TestRelayReadsTheBodyToItsEndAfterEachLastEvent(t *testing.T) {
	for kind, whole := range map[string]bool{
		"response.completed": true, "response.incomplete": true, "response.failed": true, "error": true,
		"response.output_text.delta": false, // the disconnect is a cancel
	} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				body, end := io.Pipe()
				var cut error
				go func() { // ends with the body
					io.WriteString(end, `data: {"type":"`+kind+`"}`+"\n\n")
					time.Sleep(time.Second)
					_, cut = io.WriteString(end, "\n")
					end.Close()
				}()
				r := imagined(func(*http.Request) *http.Response { return &http.Response{StatusCode: 200, Body: body} })
				call := prepare(t.Context(), r, upstream.Request{})
				defer call.Done()
				ctx, disconnect := context.WithCancel(t.Context())
				if !whole {
					time.AfterFunc(500*time.Millisecond, disconnect)
				}
				func() {
					defer func() { _ = recover() }() // http.ErrAbortHandler, of what was cut
					r.ServeHTTP(&childThatDisconnects{httptest.NewRecorder(), disconnect}, fromChild(ctx, "", call.Key, posted))
				}()
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if (cut == nil) != whole {
					t.Errorf("its end: %v", cut)
				}
			})
		})
	}
}

func TestDisconnectAfterTheLastEventKeepsTheConnection(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			p := newProvider(t, sse(`{"type":"response.output_text.delta","delta":"x"}`, completed))
			if !http2 {
				p.Client().Transport.(*http.Transport).ForceAttemptHTTP2 = false
				p.Client().Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
			}
			r, base := relay(t, p, upstream.Hooks{})
			for range 50 {
				call := prepare(t.Context(), r, upstream.Request{})
				if code, got, err := child(t.Context(), base, call.Key); code != 200 || err != nil {
					t.Fatal(code, got, err)
				}
				if events, f := answerTo(call); len(events) != 2 || events[0] != (codex.TextDelta{Text: "x"}) || f != nil {
					t.Fatal(events, f)
				}
				call.Done()
				p.rest(t)
			}
			if _, _, conns := p.seen(); conns != 1 {
				t.Errorf("%d connections for 50 requests, one at a time", conns)
			}
		})
	}
}

func TestDisconnectBeforeTheLastEventEndsTheProvidersRequest(t *testing.T) {
	ended := make(chan struct{})
	p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	})
	r, base := relay(t, p, upstream.Hooks{})
	call := prepare(t.Context(), r, upstream.Request{})
	defer call.Done()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel) // after the headers, in most runs; before them is well, too
	child(ctx, base, call.Key)
	<-ended
	if f := failure(call); f != nil {
		t.Errorf("a cancel is no failure: %+v", f)
	}
}

func TestEventThatIsTooLongEndsTheStream(t *testing.T) {
	p := newProvider(t, sse(`{"type":"x","delta":"`+strings.Repeat("x", 65<<20)+`"}`, completed))
	r, base := relay(t, p, upstream.Hooks{})
	call := prepare(t.Context(), r, upstream.Request{})
	defer call.Done()
	child(t.Context(), base, call.Key)
	if events, f := answerTo(call); f == nil || f.Code != "event_too_long" || len(events) > 0 {
		t.Errorf("%d events, failure %+v", len(events), f)
	}
}

// TestItemsWithoutEndAreNotRemembered has a provider that begins items for ever.
func TestItemsWithoutEndAreNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body, w := io.Pipe()
		go func() { // ends with the body
			var err error
			for i := 0; err == nil; i++ {
				_, err = fmt.Fprintf(w, "data: {\"type\":\"response.output_item.added\",\"output_index\":%d,\"item\":{\"id\":\"%d%s\",\"type\":\"message\"}}\n\n", i, i, strings.Repeat("x", 60<<10))
			}
		}()
		r := imagined(func(*http.Request) *http.Response { return &http.Response{StatusCode: 200, Body: body} })
		call, _ := serveOne(t.Context(), r)
		if events, f := answerTo(call); f == nil || f.Code != "too_many_items" || len(events) > 0 {
			t.Errorf("%d events, %+v", len(events), f)
		}
	})
}

func TestPanicOfAHookIsAFailureOfTheCall(t *testing.T) {
	answer := imaginary(func(*http.Request) *http.Response { return &http.Response{StatusCode: 200, Body: http.NoBody} })
	r := upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider.invalid"}}, answer, upstream.Hooks{
		Request: func(context.Context, int, bool, time.Duration) { panic("a hook") },
	})
	call := prepare(t.Context(), r, upstream.Request{Overrides: upstream.Overrides{"model": json.RawMessage(`"m"`)}})
	defer call.Done()
	func() {
		defer func() { _ = recover() }() // http.ErrAbortHandler: the child's connection is cut
		r.ServeHTTP(httptest.NewRecorder(), fromChild(t.Context(), "", call.Key, posted))
	}()
	if _, f := answerTo(call); f == nil || !strings.Contains(f.Error(), "a hook") {
		t.Errorf("failure %+v", f)
	}
}
