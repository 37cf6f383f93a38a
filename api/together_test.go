package api_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fast is a provider whose first answer is there at once, and whose others never come.
type fast struct{ answered *atomic.Bool }

func (f fast) RoundTrip(req *http.Request) (*http.Response, error) {
	if f.answered.Swap(true) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	stream := strings.Repeat("data: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n", 1000) + "data: {\"type\":\"response.completed\",\"response\":{}}\n\n"
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(stream))}, nil
}

// TestWhatComesAtOnceIsSentAtOnce has a thousand tokens without a pause, of a choice
// alone and beside another that thinks.
func TestWhatComesAtOnceIsSentAtOnce(t *testing.T) {
	for n := 1; n <= 2; n++ {
		t.Run(fmt.Sprint(n, " choices"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := config()
				cfg.StreamIdleTimeout = 10 * time.Second // for the other choice
				h := behind(t, cfg, 2, fast{new(atomic.Bool)})
				w := newSeen()
				func() {
					defer func() { recover() }() // the stream of two is cut
					h.ServeHTTP(w, chat(fmt.Sprintf(`{"n":%d,"stream":true,"messages":[{"role":"user","content":"hi"}]}`, n)))
				}()
				if w.events[0] < 1001+n || w.writes[0] > 100 { // a role for each choice, the text, the finish
					t.Errorf("%d events in %d writes at once", w.events[0], w.writes[0])
				}
			})
		})
	}
}
