package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/pool"
)

// choice is what a test reads of an answer, however it came.
type choice struct {
	text   string
	finish string
}

// choicesOf joins an answer in one piece, or a stream, by choice.
func choicesOf(t *testing.T, a answer) []choice {
	t.Helper()
	type body struct {
		Choices []struct {
			Index          int
			Text           string
			Message, Delta struct{ Content string }
			FinishReason   string `json:"finish_reason"`
		}
	}
	var list []choice
	add := func(data string) {
		var b body
		if err := json.Unmarshal([]byte(data), &b); err != nil {
			t.Fatalf("%v in %s", err, data)
		}
		for _, c := range b.Choices {
			for len(list) <= c.Index {
				list = append(list, choice{})
			}
			list[c.Index].text += c.Text + c.Message.Content + c.Delta.Content
			list[c.Index].finish += c.FinishReason
		}
	}
	if !strings.HasPrefix(a.Header().Get("Content-Type"), "text/event-stream") {
		add(a.Body.String())
		return list
	}
	for _, data := range parseSSE(a.Body.String()) {
		if data != "[DONE]" {
			add(data)
		}
	}
	return list
}

// both runs a test for an answer in one piece and for a stream.
func both(t *testing.T, f func(t *testing.T, stream string)) {
	for _, stream := range []string{"false", "true"} {
		t.Run("stream "+stream, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, stream) })
		})
	}
}

func TestStopSequenceEndsTheAnswerBeforeIt(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		child := &codextest.Child{Delay: time.Second}
		h := open(t, config(), 1, codextest.Script{codextest.Handshake(), codextest.Serve(child)})
		interrupts := 0
		for _, tt := range []struct {
			stop, want string
			cut        bool
		}{
			{`"three"`, "one two ", true},
			{`["absent","two t"]`, "one ", true}, // across deltas
			{`["e t","wo"]`, "on", true},         // the first in the text, not in the list
			{`"one two three four"`, "", true},
			{`"four five"`, "one two three four", false}, // held back, then given
			{`["x"]`, "one two three four", false},
			{`null`, "one two three four", false},
		} {
			a := h.do(t, chat(`{"stream":`+stream+`,"stop":`+tt.stop+`,"messages":[{"role":"user","content":"one two three four"}]}`))
			if got := choicesOf(t, a); a.Code != 200 || len(got) != 1 || got[0] != (choice{tt.want, "stop"}) {
				t.Errorf("%s: %d %+v", tt.stop, a.Code, got)
			}
			if tt.cut {
				interrupts++
			}
			synctest.Wait()
			if got := child.Calls("turn/interrupt"); got != interrupts {
				t.Errorf("%s: %d interrupts, want %d", tt.stop, got, interrupts)
			}
		}
	})
}

func TestChoicesAreCompletionsOfTheirOwn(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		h := open(t, config(), 2) // the third waits for one of the others
		began := time.Now()
		a := h.do(t, chat(`{"n":3,"stream":`+stream+`,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"one two"}]}`))
		want := []choice{{"one two", "stop"}, {"one two", "stop"}, {"one two", "stop"}}
		if got := choicesOf(t, a); a.Code != 200 || !slices.Equal(got, want) {
			t.Errorf("%d %+v", a.Code, got)
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("it took %v", took)
		}
		one := h.do(t, chat(`{"messages":[{"role":"user","content":"one two"}]}`))
		synctest.Wait()
		if got, single := h.results[0].Tokens, h.results[1].Tokens; one.Code != 200 || single.Output == 0 || got.Output != 3*single.Output || got.Input != 3*single.Input {
			t.Errorf("three choices used %+v, one %+v", got, single)
		}
		if s := h.pool.Stat(); s.Idle != 2 || s.Waiting != 0 {
			t.Errorf("afterwards: %+v", s)
		}
	})
}

func TestChoicesAreAdmittedAllOrNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1) // and a queue for two
		a := h.do(t, chat(`{"n":4,"messages":[{"role":"user","content":"x"}]}`))
		if a.Code != 503 || !strings.Contains(a.Body.String(), "pool_saturated") {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		if a := h.do(t, chat(`{"n":3,"messages":[{"role":"user","content":"x"}]}`)); a.Code != 200 {
			t.Errorf("afterwards: %d %s", a.Code, a.Body)
		}
	})
}

func TestChoiceThatFailsFailsTheRequest(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		dies := codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Exit(1)}
		slow := codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Hour})}
		h := open(t, config(), 2, dies, slow)
		a := h.do(t, chat(`{"n":2,"stream":`+stream+`,"messages":[{"role":"user","content":"x"}]}`))
		if a.Code != 502 || !strings.Contains(a.Body.String(), "child_exited") {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		time.Sleep(time.Minute)
		if s := h.pool.Stat(); s.Idle != 2 || s.Waiting != 0 {
			t.Errorf("afterwards: %+v", s)
		}
	})
}

func TestDisconnectEndsAllChoices(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		h := open(t, config(), 2)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(1500*time.Millisecond, cancel)
		h.do(t, chat(`{"n":3,"stream":`+stream+`,"messages":[{"role":"user","content":"one two three"}]}`).WithContext(ctx))
		if got := h.last(); got.Status != 499 {
			t.Errorf("counted as %+v", got)
		}
		synctest.Wait()
		if s := h.pool.Stat(); s.Idle != 2 || s.Waiting != 0 {
			t.Errorf("afterwards: %+v", s)
		}
	})
}

func TestCompletionsAnswerEachPrompt(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		h := open(t, config(), 2)
		a := h.do(t, request("POST", "/v1/completions", `{"prompt":["one two","three"],"n":2,"stream":`+stream+`}`))
		want := []choice{{"one two", "stop"}, {"one two", "stop"}, {"three", "stop"}, {"three", "stop"}}
		if got := choicesOf(t, a); a.Code != 200 || !slices.Equal(got, want) {
			t.Errorf("%d %+v", a.Code, got)
		}
		for _, unwanted := range []string{`"message"`, `"delta"`, "chat.completion", "chatcmpl-"} {
			if strings.Contains(a.Body.String(), unwanted) {
				t.Errorf("%s in %s", unwanted, a.Body)
			}
		}
		if got := strings.Count(a.Body.String(), `"object":"text_completion"`); got == 0 || (stream == "true") != strings.HasSuffix(a.Body.String(), "data: [DONE]\n\n") {
			t.Errorf("%s", a.Body)
		}
		if got := fmt.Sprint(h.last().Route); got != "completions" {
			t.Errorf("counted as %s", got)
		}
	})
}

// TestChoicesDoNotTimeOutWaitingForEachOther: the limit of the queue is for the
// first choice; the others wait for its turn, which may take long.
func TestChoicesDoNotTimeOutWaitingForEachOther(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		slow := codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: 35 * time.Second})}
		h := open(t, config(), 1, slow)
		a := h.do(t, chat(`{"n":2,"stream":`+stream+`,"messages":[{"role":"user","content":"word"}]}`))
		if got := choicesOf(t, a); a.Code != 200 || !slices.Equal(got, []choice{{"word", "stop"}, {"word", "stop"}}) {
			t.Errorf("%d %+v", a.Code, got)
		}
		busy := make(chan answer)
		go func() { busy <- h.do(t, chat(`{"messages":[{"role":"user","content":"word"}]}`)) }()
		synctest.Wait()
		if a := h.do(t, chat(`{"n":2,"stream":`+stream+`,"messages":[{"role":"user","content":"word"}]}`)); a.Code != 503 || !strings.Contains(a.Body.String(), "pool_saturated") {
			t.Errorf("behind another request: %d %s", a.Code, a.Body)
		}
		if a := <-busy; a.Code != 200 {
			t.Errorf("the other: %d", a.Code)
		}
	})
}

func TestChoiceFinishDoesNotWaitForTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quick := codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Millisecond})}
		slow := codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Minute})}
		h := open(t, config(), 2, quick, slow)
		w := newSeen()
		h.ServeHTTP(w, chat(`{"n":2,"stream":true,"messages":[{"role":"user","content":"word"}]}`))
		soon := 0
		for after, frames := range w.events {
			if after <= time.Second {
				soon += frames
			}
		}
		if soon != 4 { // two roles, a word and the finish
			t.Errorf("%d frames within a second of %v", soon, w.events)
		}
	})
}

func TestUsageIsNotInventedForAChoiceThatHasNone(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		// Each takes a second, so that neither serves both choices.
		counted := codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Second})}
		none := codextest.Script{
			codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Delta("x"), codextest.Do(func() { time.Sleep(time.Second) }),
			codextest.Notify("turn/completed", map[string]any{"threadId": "$thread", "turn": map[string]any{"id": "$turn", "status": "completed"}}),
			codextest.Serve(&codextest.Child{}),
		}
		h := open(t, config(), 2, counted, none)
		a := h.do(t, chat(`{"n":2,"stream":`+stream+`,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"x"}]}`))
		if a.Code != 200 || strings.Contains(a.Body.String(), "prompt_tokens") || !strings.Contains(a.Body.String(), `"usage":null`) {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

// usageOf is the last usage of an answer.
func usageOf(a answer) (usage map[string]any) {
	for line := range strings.Lines(strings.TrimSpace(a.Body.String())) {
		var body struct{ Usage map[string]any }
		if json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &body) == nil && body.Usage != nil {
			usage = body.Usage
		}
	}
	return usage
}

// The provider does not count an answer that we cut: code that reads total_tokens
// needs an estimate.
func TestStopSequenceEstimatesTheUsage(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		h := open(t, config(), 1, codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Second})})
		ask := func(stop string) answer {
			t.Helper()
			return h.do(t, chat(`{"stream":`+stream+`,"stream_options":{"include_usage":true},"stop":`+stop+`,"messages":[{"role":"system","content":"12345678"},{"role":"user","content":"one two three four"}]}`))
		}
		got := usageOf(ask(`"three"`)) // of 26 bytes sent, and "one two three " received
		if got["prompt_tokens"] != 7. || got["completion_tokens"] != 4. || got["total_tokens"] != 11. || got["estimated"] != true {
			t.Errorf("got %v", got)
		}
		if r := h.last(); r.Tokens != (codex.Usage{}) || r.Estimated != (codex.Usage{Input: 7, Output: 4, Total: 11}) {
			t.Errorf("reported as %+v", r)
		}
		got = usageOf(ask(`"five"`))
		if _, estimated := got["estimated"]; estimated || got["total_tokens"] == nil {
			t.Errorf("an answer that was not cut: %v", got)
		}
		if r := h.last(); r.Tokens == (codex.Usage{}) || r.Estimated != (codex.Usage{}) {
			t.Errorf("reported as %+v", r)
		}
	})
}

// TestIgnoredFieldsAreNamed has a row for each place where a field may
// stand that we do not know, or that does not count there.
func TestIgnoredFieldsAreNamed(t *testing.T) {
	const user = `"messages":[{"role":"user","content":"x"}]`
	const call = `{"role":"assistant","content":"a","tool_calls":[{"id":"c","index":0,"x1":1,"type":"function","function":{"name":"f","arguments":"","x2":1}}],"function_call":{},"x3":1,"audio":null},{"role":"tool","tool_call_id":"c","content":"r","name":"f"}`
	const png = "data:image/jpg;base64,iVBORw0KGgo="
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for body, want := range map[string]string{
			`{` + user + `}`:                "",
			`{"x":1,"y":null,` + user + `}`: "x",
			`{"seed":1,"temperature":1,"stream_options":{"include_usage":true},` + user + `}`:                        "seed, stream_options, temperature",
			`{"stream":true,"stream_options":{"include_obfuscation":false},` + user + `}`:                            "stream_options.include_obfuscation",
			`{"reasoning":{"exclude":true,"summary":"auto"},` + user + `}`:                                           "reasoning.exclude",
			`{"include_reasoning":false,"response_format":{"type":"text","x":1},` + user + `}`:                       "response_format.x",
			`{"prediction":{"type":"content","content":"x"},` + user + `}`:                                           "prediction",
			`{"parallel_tool_calls":true,` + user + `}`:                                                              "parallel_tool_calls",
			`{"tools":[{"type":"function","strict":true,"function":{"name":"f","x":1,"strict":true}}],` + user + `}`: "tools.function.strict, tools.function.x, tools.strict",
			`{"messages":[` + call + `]}`:                                                                            "messages.function_call, messages.name, messages.tool_calls.function.x2, messages.tool_calls.x1, messages.x3",
			`{"messages":[{"role":"user","name":"n","content":[{"type":"text","text":"x","cache_control":null,"z":1},{"type":"image_url","image_url":{"url":"` + png + `","w":1}}]}]}`: "messages.content.image_url.w, messages.content.z, messages.name",
			`{"` + strings.Repeat("k", 2000) + `":1,"z":1,` + user + `}`: strings.Repeat("k", 100) + ", z",
		} {
			a := h.do(t, chat(body))
			if got := a.Header().Get("X-Codexpool-Ignored"); a.Code != 200 || got != want {
				t.Errorf("%.200s: %d, named %q, want %q (%.200s)", body, a.Code, got, want, a.Body)
			}
		}
	})
}

// stuck is a client that reads nothing until it is told to.
type stuck struct {
	*httptest.ResponseRecorder
	read chan struct{}
}

func (w *stuck) Write(b []byte) (int, error) {
	<-w.read
	return w.ResponseRecorder.Write(b)
}

func TestSlowClientHoldsNoChildOfAShortAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, n := range []string{"1", "2"} {
			h := open(t, config(), 1)
			w := &stuck{httptest.NewRecorder(), make(chan struct{})}
			served := make(chan struct{})
			go func() {
				defer close(served)
				h.ServeHTTP(w, chat(`{"n":`+n+`,"stream":true,"messages":[{"role":"user","content":"one two three"}]}`))
			}()
			time.Sleep(10 * time.Second)
			if s := h.pool.Stat(); s.Idle != 1 {
				t.Errorf("n = %s: while nobody reads: %+v", n, s)
			}
			close(w.read)
			<-served
			for i, c := range choicesOf(t, answer{ResponseRecorder: w.ResponseRecorder}) {
				if c != (choice{"one two three", "stop"}) {
					t.Errorf("choice %d: %+v", i, c)
				}
			}
		}
	})
}

// TestSlowClientHoldsTheChildOfALongAnswer: an answer of more than a megabyte waits for
// its client.
func TestSlowClientHoldsTheChildOfALongAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat(strings.Repeat("x", 10<<10)+" ", 200)
		cfg := config()
		cfg.MaxBody = 4 << 20
		h := open(t, cfg, 1, codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{})})
		w := &stuck{httptest.NewRecorder(), make(chan struct{})}
		served := make(chan struct{})
		go func() {
			defer close(served)
			h.ServeHTTP(w, chat(`{"stream":true,"messages":[{"role":"user","content":"`+long+`"}]}`))
		}()
		time.Sleep(cfg.StreamIdleTimeout / 2)
		if s := h.pool.Stat(); s.Leased != 1 {
			t.Errorf("while nobody reads: %+v", s)
		}
		close(w.read)
		<-served
		if got := choicesOf(t, answer{ResponseRecorder: w.ResponseRecorder}); len(got) != 1 || got[0] != (choice{long, "stop"}) {
			t.Errorf("%.100v", got)
		}
	})
}

// TestDrainWhileAChoiceWaits has three choices for two children. The first two answer
// after a second and two, and then the third.
func TestDrainWhileAChoiceWaits(t *testing.T) {
	for name, stop := range map[string]func(*pool.Pool){"drain": (*pool.Pool).Drain, "close": (*pool.Pool).Close} {
		for _, tt := range []struct {
			stream string
			after  time.Duration
			served bool
		}{
			{"true", 500 * time.Millisecond, false},   // nothing was sent
			{"true", 1500 * time.Millisecond, true},   // the first words were
			{"false", 1500 * time.Millisecond, false}, // nothing can be sent yet
			{"false", 2500 * time.Millisecond, true},  // none waits
		} {
			t.Run(fmt.Sprint(name, " after ", tt.after, ", stream ", tt.stream), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := open(t, config(), 2)
					time.AfterFunc(tt.after, func() { stop(h.pool) })
					a := h.do(t, chat(`{"n":3,"stream":`+tt.stream+`,"messages":[{"role":"user","content":"one two"}]}`))
					want := []choice{{"one two", "stop"}, {"one two", "stop"}, {"one two", "stop"}}
					if tt.served && (a.Code != 200 || a.cut || !slices.Equal(choicesOf(t, a), want)) {
						t.Errorf("%d, cut %t: %s", a.Code, a.cut, a.Body)
					}
					if !tt.served && (a.Code != 503 || h.last().Code != "shutting_down") {
						t.Errorf("%d %s", a.Code, a.Body)
					}
				})
			})
		}
	}
}
