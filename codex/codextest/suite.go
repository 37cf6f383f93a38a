package codextest

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"codexpool/codex"
)

// UserItem is a user's message as a Responses item.
func UserItem(text string) json.RawMessage {
	return raw(map[string]any{"type": "message", "role": "user", "content": []any{map[string]any{"type": "input_text", "text": text}}})
}

// Ten is ten words, so that a test can stop in the middle.
const Ten = "one two three four five six seven eight nine ten"

// TestTurns is what every child must do, played or real. start returns a child
// that answers with the words of the last user message, about 20 ms apart, and
// with the calls that it contains (see [Calling]).
func TestTurns(t *testing.T, start func(*testing.T) *codex.Client) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *codex.Client)
	}{
		{"an answer comes in pieces, with usage, then completed", answerArrivesInPieces},
		{"turns follow each other, warmed or not, without memory of the last", turnsFollowEachOther},
		{"a loop that ends early interrupts the turn, and the child can be used again", earlyEndInterruptsTheTurn},
		{"a turn whose context ends before the first word returns the cause", canceledTurnReturnsTheCause},
		{"calls end the turn, after the text before them, and the child can be used again", callsEndTheTurn},
		{"tools that are not called change nothing", unusedToolsChangeNothing},
		{"a ping is answered between turns", pingIsAnsweredBetweenTurns},
		{"close ends the child", closeEndsTheChild},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, start(t)) })
	}
}

// answerTo runs a turn and returns its text.
func answerTo(t *testing.T, c *codex.Client, text string) string {
	t.Helper()
	var answer strings.Builder
	for e, err := range c.Turn(t.Context(), codex.TurnParams{Items: []json.RawMessage{UserItem(text)}}) {
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := e.(codex.TextDelta); ok {
			answer.WriteString(d.Text)
		}
	}
	return answer.String()
}

func answerArrivesInPieces(t *testing.T, c *codex.Client) {
	var deltas []string
	var usage codex.Usage
	var last codex.Event
	for e, err := range c.Turn(t.Context(), codex.TurnParams{Items: []json.RawMessage{UserItem(Ten)}}) {
		if err != nil {
			t.Fatal(err)
		}
		switch e := e.(type) {
		case codex.TextDelta:
			deltas = append(deltas, e.Text)
		case codex.Usage:
			usage = e
		}
		last = e
	}
	if got := strings.Join(deltas, ""); got != Ten || len(deltas) != 10 {
		t.Errorf("got %d deltas: %q", len(deltas), deltas)
	}
	if want := (codex.Usage{Input: 10, Output: 10, Total: 20}); usage != want {
		t.Errorf("usage %+v, want %+v", usage, want)
	}
	if last != (codex.Completed{Finish: codex.FinishStop}) {
		t.Errorf("the last event is %#v", last)
	}
}

func turnsFollowEachOther(t *testing.T, c *codex.Client) {
	for _, text := range []string{"first turn", "second turn"} {
		if got := answerTo(t, c, text); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
	if err := c.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := answerTo(t, c, "third turn"); got != "third turn" {
		t.Errorf("got %q", got)
	}
}

func earlyEndInterruptsTheTurn(t *testing.T, c *codex.Client) {
	for e, err := range c.Turn(t.Context(), codex.TurnParams{Items: []json.RawMessage{UserItem(Ten)}}) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := e.(codex.TextDelta); ok {
			break
		}
	}
	if !c.Reusable() {
		t.Fatalf("not reusable: %v", c.Err())
	}
	if got := answerTo(t, c, "and again"); got != "and again" {
		t.Errorf("got %q", got)
	}
}

func canceledTurnReturnsTheCause(t *testing.T, c *codex.Client) {
	gone := errors.New("client gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var got error
	for e, err := range c.Turn(ctx, codex.TurnParams{Items: []json.RawMessage{UserItem(Ten)}}) {
		if err != nil {
			got = err
		} else if _, ok := e.(codex.Tick); ok {
			cancel(gone)
		}
	}
	if !errors.Is(got, gone) {
		t.Errorf("got %v", got)
	}
	if !c.Reusable() {
		t.Errorf("not reusable: %v", c.Err())
	}
}

func callsEndTheTurn(t *testing.T, c *codex.Client) {
	calls := []codex.ToolCall{{ID: "call_1", Name: "weather", Arguments: `{"city":  "Oslo"}`}, {ID: "call_2", Name: "clock", Arguments: `{}`}}
	for _, tools := range [][]codex.Tool{
		{{Name: "weather", Parameters: json.RawMessage(`{"type":"object"}`)}, {Name: "clock"}},
		{{Name: "clock"}},
		{{Name: "neither"}},
	} {
		var text strings.Builder
		var got []codex.Event
		for e, err := range c.Turn(t.Context(), codex.TurnParams{
			Items: []json.RawMessage{UserItem("Let me look.\ncall weather {\"city\":  \"Oslo\"}\ncall clock {}")},
			Tools: tools,
		}) {
			switch e := e.(type) {
			case nil:
				t.Fatal(err)
			case codex.Tick:
			case codex.TextDelta:
				text.WriteString(e.Text)
			case codex.Usage:
				got = append(got, codex.Usage{Output: e.Output}) // every model counts its input in its own way
			default:
				got = append(got, e)
			}
		}
		want := []codex.Event{codex.ToolCalls{Calls: calls}, codex.Usage{Output: 5}, codex.Completed{Finish: codex.FinishToolCalls}}
		if text.String() != "Let me look." || !reflect.DeepEqual(got, want) {
			t.Errorf("with %d tools: %q, then %+v, want %+v", len(tools), &text, got, want)
		}
		if !c.Reusable() {
			t.Fatalf("not reusable: %v", c.Err())
		}
		if got := answerTo(t, c, "and again"); got != "and again" {
			t.Errorf("got %q", got)
		}
	}
}

func unusedToolsChangeNothing(t *testing.T, c *codex.Client) {
	var answer strings.Builder
	var last codex.Event
	for e, err := range c.Turn(t.Context(), codex.TurnParams{Items: []json.RawMessage{UserItem(Ten)}, Tools: []codex.Tool{{Name: "clock"}}}) {
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := e.(codex.TextDelta); ok {
			answer.WriteString(d.Text)
		}
		last = e
	}
	if answer.String() != Ten || last != (codex.Completed{Finish: codex.FinishStop}) {
		t.Errorf("got %q, then %#v", &answer, last)
	}
}

func pingIsAnsweredBetweenTurns(t *testing.T, c *codex.Client) {
	if _, err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := answerTo(t, c, "after a ping"); got != "after a ping" {
		t.Errorf("got %q", got)
	}
}

func closeEndsTheChild(t *testing.T, c *codex.Client) {
	c.Close()
	select {
	case <-c.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it is still there")
	}
	if c.Reusable() {
		t.Error("reusable after its end")
	}
	if exit := (*codex.ExitError)(nil); !errors.As(c.Err(), &exit) {
		t.Errorf("Err is %v", c.Err())
	}
}
