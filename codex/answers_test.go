package codex_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// untold are the forms of which a child tells less than the provider has told it, with
// what comes instead. A test of silence is missing here too: a child says nothing while
// a call is written.
var untold = map[string]string{
	// It reads no items in the ending.
	"only in the ending":        "[Completed] stop",
	"reasoning in the ending":   "[Completed] stop",
	"a call only in the ending": "[TextDelta] one [Completed] stop",
	"a call in the ending too":  "[0 c f] [0] {}[Completed] tool_calls",
	// It takes an item with another id for another item.
	"an item under another id": "[TextDelta] one twoone two[Completed] stop",
	// It drops its own markup.
	"markup of Codex": "[TextDelta] ac[Completed] stop",
	// It knows no refusals.
	"a refusal":              "[Completed] stop",
	"a refusal in one piece": "[Completed] stop",
	// It tells of a call when it is whole.
	"a call that was cut": "[Completed] length",
	// It reports no usage of an answer that failed or was cut short, and reads no status.
	"failed, with usage":                        "[TextDelta] one ",
	"incomplete for another reason, with usage": "[TextDelta] one ",
	"too long":               "[TextDelta] one [Completed] length",
	"too long by its status": "[TextDelta] one [Completed] stop",
	"filtered":               "[TextDelta] one [Completed] content_filter",
	// It drops an event with half of a surrogate pair.
	"an emoji in halves": "[Completed] stop",
	// It needs the total.
	"usage in part": codextest.Failed,
	// It asks the model again, for a bounded number of times.
	"end_turn false": "[TextDelta] " + strings.Repeat("one ", 8) + "[Completed] stop",
}

func TestAnswersOfADirectChild(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t)
	cmd, _ := withCatalog(t, up.URL+"/v1")
	c := start(t, cmd)
	codextest.TestAnswers(t, untold, func(t *testing.T, stream []string) (events []codex.Event, fails string) {
		up.Script(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for _, e := range stream {
				var typed struct{ Type string }
				json.Unmarshal([]byte(e), &typed)
				fmt.Fprintf(w, "event: %s\ndata: %s\n\n", typed.Type, e)
			}
		})
		p := hello()
		p.Tools = []codex.Tool{{Name: "f"}, {Name: "g"}}
		for e, err := range c.Turn(t.Context(), p) {
			var failed *codex.TurnError
			if errors.As(err, &failed) {
				return events, codextest.Failed
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, tick := e.(codex.Tick); !tick {
				events = append(events, e)
			}
		}
		return events, ""
	})
}
