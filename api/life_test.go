package api_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex/codextest"
	"codexpool/pool"
	"codexpool/upstream"
)

// watched is a provider of whose last request it is known when it ended.
type watched struct {
	http.RoundTripper
	ended time.Time
}

func (w *watched) RoundTrip(req *http.Request) (*http.Response, error) {
	context.AfterFunc(req.Context(), func() { w.ended = time.Now() })
	return w.RoundTripper.RoundTrip(req)
}

// three are the first events of an answer, and last is the one behind them.
var three = []string{
	`{"type":"response.created","sequence_number":0}`,
	`{"type":"response.output_text.delta","sequence_number":1,"delta":"a"}`,
	`{"type":"response.output_text.delta","sequence_number":2,"delta":"b"}`,
}

const last = `{"type":"response.completed","sequence_number":3,"response":{}}`

// piecemeal is a stream of these events.
func piecemeal(events ...string) string {
	return "data: " + strings.Join(events, "\n\ndata: ") + "\n\n"
}

// rested reports what a house without a client still does.
func rested(t *testing.T, h *house) {
	t.Helper()
	synctest.Wait()
	if s := h.Stat(); h.pool.Stat().Idle != 1 || s.Streams != 0 || s.Provider.Running != 0 {
		t.Errorf("afterwards: %+v, %+v, %+v", h.pool.Stat(), s, s.Provider)
	}
}

// TestResponsesEndWithTheirClient has clients that leave before the first event and
// between two.
func TestResponsesEndWithTheirClient(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		for _, pause := range []time.Duration{time.Minute, time.Second} {
			provider := &watched{RoundTripper: pausing{append(three, last), pause}}
			h := behind(t, config(), 1, provider)
			const after = 2500 * time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(after, cancel)
			began := time.Now()
			a := h.do(t, responses(`{"stream":`+stream+`,"input":"hi"}`).WithContext(ctx))
			if got := h.last(); time.Since(began) != after || !a.cut || got.Status != 499 || got.Code != "" {
				t.Errorf("every %v: after %v, cut %v, %+v", pause, time.Since(began), a.cut, got)
			}
			rested(t, h)
			if took := provider.ended.Sub(began) - after; took < 0 || took > time.Second {
				t.Errorf("every %v: the provider's request ended %v later", pause, took)
			}
		}
	})
}

// dying is a child that asks the relay, and dies after a time.
func dying(relay *upstream.Relay, after time.Duration) codextest.Script {
	var metadata string
	return codextest.Script{
		codextest.Handshake(), codextest.Thread(),
		codextest.Expect("thread/inject_items"), codextest.Reply(struct{}{}),
		codextest.Expect("turn/start", func(params json.RawMessage) error {
			var turn struct {
				Metadata json.RawMessage `json:"responsesapiClientMetadata"`
			}
			err := json.Unmarshal(params, &turn)
			metadata = string(turn.Metadata)
			return err
		}),
		codextest.Reply(map[string]any{"turn": map[string]any{"id": "$turn"}}),
		codextest.Do(func() {
			ctx, cancel := context.WithTimeout(context.Background(), after)
			defer cancel()
			r := httptest.NewRequestWithContext(ctx, "POST", "/v1/responses", strings.NewReader("{}"))
			r.Header.Set("X-Codex-Turn-Metadata", metadata)
			relay.ServeHTTP(httptest.NewRecorder(), r)
		}),
		codextest.Exit(1),
	}
}

// stalled is a provider that sends this and then nothing, until its request ends.
type stalled string

func (text stalled) RoundTrip(req *http.Request) (*http.Response, error) {
	r, w := io.Pipe()
	go func() {
		io.WriteString(w, string(text))
		<-req.Context().Done()
		w.CloseWithError(req.Context().Err())
	}()
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: r}, nil
}

// TestResponsesThatAreCutSaySo has what ends an answer before its ending. The client of a
// stream gets an event of our own, with the number that is next.
func TestResponsesThatAreCutSaySo(t *testing.T) {
	for code, tt := range map[string]struct {
		provider        http.RoundTripper
		dies            bool // the child
		silence, length time.Duration
		status          int
	}{
		"child_exited":    {stalled(piecemeal(three...)), true, time.Hour, time.Hour, 502},
		"upstream_error":  {eventsOf(piecemeal(three...)), false, time.Hour, time.Hour, 502},
		"idle_timeout":    {stalled(piecemeal(three...)), false, time.Minute, time.Hour, 504},
		"request_timeout": {stalled(piecemeal(three...)), false, time.Hour, time.Minute, 504},
	} {
		t.Run(code, func(t *testing.T) {
			both(t, func(t *testing.T, stream string) {
				provider := &watched{RoundTripper: tt.provider}
				relay := relayTo(provider)
				cfg := config()
				cfg.Keepalive, cfg.Timeout, cfg.IdleTimeout, cfg.StreamIdleTimeout = 0, tt.length, tt.silence, tt.silence
				var scripts []codextest.Script
				if tt.dies {
					scripts = append(scripts, dying(relay, time.Second))
				}
				h := openWith(t, cfg, pool.Config{Size: 1}, relay, scripts...)
				a := (<-h.read(responses(`{"stream":`+stream+`,"input":"hi"}`), 1<<20)).answer
				if got := h.last(); got.Code != code || got.Retried {
					t.Errorf("%+v", got)
				}
				rested(t, h)
				if died := len(h.pool.Deaths()) == 1; died != tt.dies {
					t.Errorf("a child died: %v", died)
				}
				if provider.ended.IsZero() {
					t.Error("the provider's request goes on")
				}
				if stream == "false" {
					if got, _, _ := strings.Cut(outcome(a), " "); got != strconv.Itoa(tt.status) || a.cut {
						t.Errorf("%s, cut %v", outcome(a), a.cut)
					}
					return
				}
				data, ours := strings.CutPrefix(a.Body.String(), piecemeal(three...)+"event: error\ndata: ")
				var e struct {
					Type     string
					Sequence int `json:"sequence_number"`
					Code     string
					Error    struct{ Code string }
				}
				if err := json.Unmarshal([]byte(data), &e); err != nil || !ours || !a.cut || !strings.HasSuffix(data, "}\n\n") ||
					e.Type != "error" || e.Sequence != 3 || e.Code != code || e.Error.Code != code {
					t.Errorf("cut %v, %v: %s", a.cut, err, a.Body)
				}
			})
		})
	}
}

// TestResponsesAreFinishedWhileThePoolDrains has a stream that is running then.
func TestResponsesAreFinishedWhileThePoolDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := behind(t, config(), 1, pausing{append(three, last), time.Second})
		running := make(chan answer)
		go func() { running <- h.do(t, responses(`{"stream":true}`)) }()
		time.Sleep(1500 * time.Millisecond)
		h.Unready()
		h.pool.Drain()
		if a := h.do(t, responses(`{"stream":true}`)); outcome(a) != "503 shutting_down" {
			t.Errorf("another: %s", outcome(a))
		}
		if a, want := <-running, piecemeal(append(three, last)...); a.Body.String() != want || a.cut {
			t.Errorf("got  %s\nwant %s", a.Body, want)
		}
	})
}

// reader is the connection of a client that reads so many bytes in a second. Nothing
// between it and the server buffers any.
type reader struct {
	answer
	rate  int
	until time.Time // the deadline of a write
}

func (r *reader) SetWriteDeadline(at time.Time) error {
	r.until = at
	return nil
}

func (r *reader) Write(b []byte) (int, error) {
	takes := time.Duration(len(b)) * time.Second / time.Duration(r.rate)
	if left := time.Until(r.until); takes > left {
		time.Sleep(left)
		return 0, os.ErrDeadlineExceeded
	}
	time.Sleep(takes)
	return r.answer.Write(b)
}

// read sends a request, whose client reads slowly.
func (h *house) read(r *http.Request, rate int) chan *reader {
	done := make(chan *reader, 1)
	go func() {
		w := &reader{answer: answer{ResponseRecorder: httptest.NewRecorder()}, rate: rate}
		w.cut = h.serve(w, r)
		done <- w
	}()
	return done
}

// TestResponsesOfSlowReadersHoldNoChild has answers of which a client reads nothing to
// speak of: one of 920 KB, and one of more than a megabyte, whose child waits for as long
// as one write may take.
func TestResponsesOfSlowReadersHoldNoChild(t *testing.T) {
	text := `{"type":"response.output_text.delta","delta":"` + strings.Repeat("x", 10_000) + `"}`
	for _, tt := range []struct {
		deltas int
		holds  bool
	}{{90, false}, {120, true}} {
		synctest.Test(t, func(t *testing.T) {
			h := behind(t, config(), 1, eventsOf(piecemeal(append(slices.Repeat([]string{text}, tt.deltas), last)...)))
			done := h.read(responses(`{"stream":true}`), 1)
			time.Sleep(29 * time.Second)
			if holds := h.pool.Stat().Leased == 1; holds != tt.holds || h.Stat().Streams != 1 {
				t.Errorf("%d deltas: %+v", tt.deltas, h.pool.Stat())
			}
			time.Sleep(2 * time.Second)
			rested(t, h)
			if a := <-done; !a.cut || !h.last().SlowReader {
				t.Errorf("%d deltas: cut %v, %+v", tt.deltas, a.cut, h.last())
			}
		})
	}
}

// TestSlowReaderThatReadsKeepsItsAnswer has an event that takes longer than one write
// may, and then longer than a request.
func TestSlowReaderThatReadsKeepsItsAnswer(t *testing.T) {
	const rate, length = 10_000, 10 << 20
	both(t, func(t *testing.T, stream string) {
		answer := `{"output":"` + strings.Repeat("x", length) + `"}`
		event := piecemeal(`{"type":"response.completed","response":` + answer + `}`)
		want := map[string]string{"true": event, "false": answer}[stream]
		for _, keeps := range []bool{true, false} {
			cfg := config()
			cfg.Timeout = time.Hour
			if !keeps {
				cfg.Timeout = length / rate * time.Second / 2
			}
			h := behind(t, cfg, 1, eventsOf(event))
			began := time.Now()
			w := <-h.read(responses(`{"stream":`+stream+`}`), rate)
			if whole := w.Body.String() == want; whole != keeps || w.cut == keeps || h.last().SlowReader == keeps {
				t.Errorf("%d bytes of %d, cut %v", w.Body.Len(), len(want), w.cut)
			}
			if took := time.Since(began); took > cfg.Timeout+cfg.WriteTimeout {
				t.Errorf("it took %v", took)
			}
			rested(t, h)
		}
	})
}
