package api_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pausing is a provider that pauses before each event of its answer.
type pausing struct {
	events []string
	pause  time.Duration
}

func (p pausing) RoundTrip(req *http.Request) (*http.Response, error) {
	r, w := io.Pipe()
	go func() { // ends with the events, or when the relay closes the body
		defer w.Close()
		for _, e := range p.events {
			select {
			case <-time.After(p.pause):
			case <-req.Context().Done():
				return
			}
			if _, err := fmt.Fprintf(w, "data: %s\n\n", e); err != nil {
				return
			}
		}
	}()
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: r}, nil
}

// TestEveryEventOfTheProviderEndsItsSilence has answers that take 400 s before their
// first text: the model writes a long call, or thinks.
func TestEveryEventOfTheProviderEndsItsSilence(t *testing.T) {
	const (
		begun    = `{"type":"response.output_item.added","output_index":0,"item":{"id":"f","type":"function_call","call_id":"c","name":"f"}}`
		argument = `{"type":"response.function_call_arguments.delta","item_id":"f","output_index":0,"delta":"1"}`
		summary  = `{"type":"response.reasoning_summary_text.delta","item_id":"r","output_index":0,"summary_index":0,"delta":"hm"}`
		hidden   = `{"type":"response.reasoning_text.delta","delta":"hm"}`
		working  = `{"type":"response.in_progress"}`
		text     = `{"type":"response.output_text.delta","delta":"ok"}`
		end      = `{"type":"response.completed","response":{}}`
	)
	eight := func(event string) []string { return strings.Split(strings.Repeat(event+"\n", 8), "\n")[:8] }
	for name, events := range map[string][]string{
		"arguments":            append([]string{begun}, eight(argument)...),
		"reasoning":            eight(summary),
		"reasoning not shown":  eight(hidden),
		"a sign of life alone": eight(working),
	} {
		for pause, code := range map[time.Duration]int{50 * time.Second: 200, 70 * time.Second: 504} {
			t.Run(fmt.Sprint(name, ", every ", pause), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cfg := config()
					cfg.Timeout, cfg.IdleTimeout, cfg.StreamIdleTimeout = time.Hour, time.Minute, time.Minute
					h := behind(t, cfg, 1, pausing{append(events, text, end), pause})
					for _, r := range []*http.Request{chat(hello), responses(`{"input":"hi"}`)} {
						began := time.Now()
						a := h.do(t, r)
						if a.Code != code || (code == 200 && time.Since(began) < 400*time.Second) {
							t.Errorf("%s: %d after %v: %s", r.URL, a.Code, time.Since(began), a.Body)
						}
					}
				})
			})
		}
	}
}
