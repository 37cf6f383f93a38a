package codex_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

// TestTranscripts plays what a child notifies ("<"), requests ("?") and must then read
// (">") during one turn, and compares what the turn yields.
func TestTranscripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/turns/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = transcribe(t, archive.Files[0].Data) })
			if *update {
				archive.Files[1].Data = []byte(got)
				if err := os.WriteFile(path, txtar.Format(archive), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(archive.Files[1].Data), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func transcribe(t *testing.T, wire []byte) string {
	t.Helper()
	steps := append([]codextest.Step{codextest.Handshake(), codextest.Thread(), codextest.Turn()}, codextest.Wire(t, wire)...)
	c := connect(t, steps...)
	events, err := run(t, c, hello())
	if err != nil {
		events = append(events, "error: "+err.Error())
	}
	return strings.Join(append(events, fmt.Sprintf("reusable: %v", c.Reusable())), "\n") + "\n"
}

func TestTurnSendsTheHistoryUnchanged(t *testing.T) {
	markup := json.RawMessage(`{"text":"<p>&</p>"}`)
	var got, started string
	c := connect(t, codextest.Handshake(), codextest.Thread(),
		codextest.Expect("thread/inject_items", keep(&got)), codextest.Reply(struct{}{}),
		codextest.Expect("turn/start", keep(&started)), codextest.Reply(map[string]any{"turn": map[string]any{"id": "$turn"}}),
		codextest.Complete(1, 1))
	_, err := run(t, c, codex.TurnParams{
		Model: "m", Effort: "high", Summary: "concise", Meta: map[string]string{"key": "k"},
		Items: []json.RawMessage{codextest.UserItem("a"), markup},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantItems := fmt.Sprintf(`{"threadId":"thread-1","items":[%s,%s]}`, codextest.UserItem("a"), markup)
	wantStart := `{"threadId":"thread-1","input":[],"model":"m","effort":"high","summary":"concise","responsesapiClientMetadata":{"key":"k"}}`
	if got != wantItems || started != wantStart {
		t.Errorf("got\n%s\n%s\nwant\n%s\n%s", got, started, wantItems, wantStart)
	}
}

func TestToolsAreDeclaredToAThreadOfTheirOwn(t *testing.T) {
	var started string
	c := connect(t, codextest.Handshake(), codextest.Thread(keep(&started)), codextest.Turn(), codextest.Complete(1, 1))
	p := hello()
	p.Tools = []codex.Tool{
		{Name: "weather", Description: "of a city", Parameters: json.RawMessage(`{"type":"object","properties":{"city":{"type":"string"}}}`)},
		{Name: "mcp__files__read"}, // with this name, Codex would reject the whole thread/start
		{Name: "clock"},
		{Name: "odd", Description: "\xff", Parameters: json.RawMessage(`{"b":[1.50,{"a":null},[]],"a":"\ud800` + "\xff" + `","":{},"é\n":true}`)},
	}
	if _, err := run(t, c, p); err != nil {
		t.Fatal(err)
	}
	want := `{"ephemeral":true,"baseInstructions":"","sandbox":"read-only","approvalPolicy":"never","environments":[],"dynamicTools":[` +
		`{"type":"function","name":"weather","description":"of a city","inputSchema":{"properties":{"city":{"type":"string"}},"type":"object"}},` +
		`{"type":"function","name":"clock","description":"","inputSchema":{"properties":{},"type":"object"}},` +
		`{"type":"function","name":"odd","description":"\ufffd","inputSchema":{"":{},"a":"��","b":[1.50,{"a":null},[]],"é\n":true}}],"experimentalRawEvents":true}`
	if started != want {
		t.Errorf("got\n%s\nwant\n%s", started, want)
	}
}

func TestToolsDoNotUseTheReadyThread(t *testing.T) {
	child := &codextest.Child{}
	c := connect(t, codextest.Handshake(), codextest.Serve(child))
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	withTools := hello()
	withTools.Tools = []codex.Tool{{Name: "clock"}}
	for _, p := range []codex.TurnParams{withTools, hello()} {
		if _, err := run(t, c, p); err != nil {
			t.Fatal(err)
		}
	}
	if started, closed := child.Calls("thread/start"), child.Calls("thread/unsubscribe"); started != 2 || closed != 1 {
		t.Errorf("%d threads were started for 2 turns, %d unsubscribed", started, closed)
	}
}

func TestToolsThatTheChildRejectsDoNotSpoilIt(t *testing.T) {
	deep := json.RawMessage(strings.Repeat(`{"not":`, 124) + `{}` + strings.Repeat(`}`, 124))
	problem := "dynamic tool name must not be empty"
	for name, test := range map[string]struct {
		tool codex.Tool
		wire []codextest.Step
	}{
		"the child rejects them":            {codex.Tool{}, []codextest.Step{codextest.Expect("thread/start"), codextest.ReplyError(-32600, problem)}},
		"they nest deeper than it can read": {codex.Tool{Name: "deep", Parameters: deep}, nil},
		"they are no JSON":                  {codex.Tool{Name: "cut", Parameters: json.RawMessage(`{"type":"object"`)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, append(append([]codextest.Step{codextest.Handshake()}, test.wire...), codextest.Answer("fine"))...)
			p := hello()
			p.Tools = []codex.Tool{test.tool}
			_, err := run(t, c, p)
			if failed := (*codex.ToolsError)(nil); !errors.As(err, &failed) || failed.Problem == "" {
				t.Errorf("got %v", err)
			}
			if events, err := run(t, c, hello()); err != nil || events[0] != "codex.TextDelta{Text:fine}" {
				t.Errorf("then %v, %v", events, err)
			}
		})
	}
}

func TestToolsAreNotBlamedWhenTheChildIsOverloaded(t *testing.T) {
	c := connect(t, codextest.Handshake(), codextest.Expect("thread/start"), codextest.ReplyError(-32001, "overloaded"))
	p := hello()
	p.Tools = []codex.Tool{{Name: "clock"}}
	_, err := run(t, c, p)
	if failed := (*codex.RPCError)(nil); !errors.As(err, &failed) {
		t.Errorf("got %v", err)
	}
}

// called is what a child writes that calls a function and then waits.
func called() []codextest.Step {
	return []codextest.Step{
		codextest.Notify("rawResponseItem/completed", json.RawMessage(`{"threadId":"$thread","turnId":"$turn","item":{"type":"function_call","call_id":"c","name":"clock","arguments":"{}"}}`)),
		codextest.Request("item/tool/call", json.RawMessage(`{"threadId":"$thread","turnId":"$turn","callId":"c","tool":"clock","arguments":{}}`)),
	}
}

func TestCallsAreYieldedAfterTheInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopped := false
		steps := append([]codextest.Step{codextest.Handshake(), codextest.Thread(), codextest.Turn()}, called()...)
		c := connect(t, append(steps,
			codextest.Notify("rawResponse/completed", json.RawMessage(`{"threadId":"$thread","turnId":"$turn","responseId":"r"}`)),
			codextest.Interrupted(), codextest.Do(func() { stopped = true }))...)
		for e, err := range c.Turn(t.Context(), hello()) {
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := e.(codex.ToolCalls); ok {
				synctest.Wait() // the reader is slow
				if !stopped {
					t.Error("the child could send another request to the model")
				}
			}
		}
		c.Close()
	})
}

func TestTurnIsInterruptedWhenTheReaderStopsDuringACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		steps := append([]codextest.Step{codextest.Handshake(), codextest.Thread(), codextest.Turn()}, called()...)
		c := connect(t, append(steps, codextest.Delta("stop here"), codextest.Interrupted())...)
		for e, err := range c.Turn(t.Context(), hello()) {
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := e.(codex.TextDelta); ok {
				break
			}
		}
		if !c.Reusable() {
			t.Errorf("not reusable: %v", c.Err())
		}
		c.Close()
	})
}

func keep(to *string) func(json.RawMessage) error {
	return func(params json.RawMessage) error {
		*to = string(params)
		return nil
	}
}

func TestTurnYieldsDeltasThatOvertakeTheAnswerToTurnStart(t *testing.T) {
	c := connect(t, codextest.Handshake(), codextest.Thread(),
		codextest.Expect("thread/inject_items"), codextest.Reply(struct{}{}),
		codextest.Expect("turn/start"), codextest.Delta("early"), codextest.Reply(map[string]any{"turn": map[string]any{"id": "$turn"}}),
		codextest.Complete(1, 1))
	events, err := run(t, c, hello())
	if err != nil || len(events) == 0 || events[0] != "codex.TextDelta{Text:early}" {
		t.Errorf("got %v, %v", events, err)
	}
}

func TestTurnMayEndBeforeItsStartIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, codextest.Handshake(), codextest.Thread(),
			codextest.Expect("thread/inject_items"), codextest.Reply(struct{}{}),
			codextest.Expect("turn/start"), codextest.Fail("badRequest", "no"),
			codextest.Do(func() { time.Sleep(time.Millisecond) }),
			codextest.Reply(map[string]any{"turn": map[string]any{"id": "$turn"}}))
		run(t, c, hello())
		synctest.Wait()
		if !c.Reusable() {
			t.Errorf("not reusable: %v", c.Err())
		}
		c.Close()
	})
}

func TestTurnStartThatFailsDoesNotSpoilTheChild(t *testing.T) {
	c := connect(t, codextest.Handshake(), codextest.Thread(),
		codextest.Expect("thread/inject_items"), codextest.Reply(struct{}{}),
		codextest.Expect("turn/start"), codextest.ReplyError(-32602, "bad params: my prompt"))
	_, err := run(t, c, hello())
	if failed := (*codex.RPCError)(nil); !errors.As(err, &failed) || failed.Code != -32602 {
		t.Errorf("got %v", err)
	}
	if strings.Contains(err.Error(), "prompt") || codex.Said(err) != "bad params: my prompt" {
		t.Errorf("an error that is logged says %q, the child said %q", err, codex.Said(err))
	}
	if !c.Reusable() {
		t.Errorf("not reusable: %v", c.Err())
	}
}

func TestReusableIsFalseAfterAnUnexpectedAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, codextest.Handshake(), codextest.Notify("skills/changed", struct{}{}), codextest.Raw(`{"id":99,"result":{}}`))
		synctest.Wait()
		if c.Reusable() {
			t.Error("reusable")
		}
		c.Close()
	})
}

func TestTurnThatDoesNotEndAfterItsInterruptSpoilsTheChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Delta("a"), codextest.Hang())
		began := time.Now()
		for e := range c.Turn(t.Context(), hello()) {
			if _, ok := e.(codex.TextDelta); ok {
				break
			}
		}
		if c.Reusable() || !errors.Is(c.Err(), codex.ErrUnresponsive) {
			t.Errorf("Err is %v", c.Err())
		}
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("the wait was %v", took)
		}
		c.Close()
	})
}

func TestTicksHaveTheTimeOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, codextest.Handshake(), codextest.Thread(), codextest.Turn(),
			codextest.Do(func() { time.Sleep(2500 * time.Millisecond) }), codextest.Delta("a"),
			codextest.Do(func() { time.Sleep(1200 * time.Millisecond) }), codextest.Complete(1, 1))
		var got []string
		for e, err := range c.Turn(t.Context(), hello()) {
			if err != nil {
				t.Fatal(err)
			}
			switch e := e.(type) {
			case codex.Tick:
				got = append(got, e.Silent.String())
			case codex.TextDelta:
				got = append(got, e.Text)
			}
		}
		if want := "0s 1s 2s a 500ms"; strings.Join(got, " ") != want {
			t.Errorf("got %v, want %s", got, want)
		}
		c.Close()
	})
}

// On a starved machine a child may need longer for its handshake than for any other
// call. The context of its start bounds it.
func TestConnectHasTheTimeOfItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := codextest.Script{codextest.Do(func() { time.Sleep(time.Minute) }), codextest.Handshake(), codextest.Hang()}
		for within, want := range map[time.Duration]error{2 * time.Minute: nil, time.Second: codex.ErrUnresponsive} {
			ctx, cancel := context.WithTimeoutCause(t.Context(), within, codex.ErrUnresponsive)
			began := time.Now()
			c, err := codex.Connect(ctx, codextest.Pipe(t, slow), codextest.Log(t))
			if took := time.Since(began); !errors.Is(err, want) || took > within {
				t.Errorf("within %v: %v after %v", within, err, took)
			}
			if err == nil {
				c.Close()
			}
			cancel()
		}
	})
}

func TestWarmGivesUpAWedgedChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, codextest.Handshake(), codextest.Hang())
		if err := c.Warm(t.Context()); !errors.Is(err, codex.ErrUnresponsive) {
			t.Errorf("got %v", err)
		}
		if c.Reusable() {
			t.Error("reusable")
		}
		c.Close()
	})
}

func TestTurnThatIsCanceledDuringACallDoesNotSpoilTheChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := connect(t, codextest.Handshake(), codextest.Expect("thread/start"), codextest.Do(cancel),
			codextest.Do(func() { time.Sleep(time.Second) }), codextest.Reply(map[string]any{"thread": map[string]any{"id": "t"}}))
		for _, err := range c.Turn(ctx, hello()) {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		}
		if !c.Reusable() {
			t.Errorf("not reusable: %v", c.Err())
		}
		c.Close()
	})
}

// busy is a child that takes each piece of its input only after a while.
type busy struct{ io.ReadWriteCloser }

func (b busy) Write(p []byte) (int, error) {
	time.Sleep(5 * time.Second)
	return b.ReadWriteCloser.Write(p)
}

func TestChildThatTakesALongHistorySlowlyIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stream := busy{codextest.Pipe(t, codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{})})}
		c, err := codex.Connect(t.Context(), stream, codextest.Log(t))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		events, err := run(t, c, codex.TurnParams{Items: []json.RawMessage{codextest.UserItem(strings.Repeat("x", 1<<20))}})
		if err != nil || len(events) == 0 || time.Since(began) < time.Minute { // six times as long as a call may take
			t.Errorf("%d events after %v: %v", len(events), time.Since(began), err)
		}
	})
}
