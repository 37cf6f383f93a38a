package codextest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Wire reads the wire part of a transcript: what a child does during a turn, a
// line each.
//
//	< METHOD PARAMS            it sends a notification
//	? METHOD PARAMS => ANSWER  it sends a request, and expects this line as the answer
//	? METHOD PARAMS            it sends a request, and does not wait for an answer
//	> turn/interrupt           it is interrupted, and ends the turn
//	~ DURATION                 it pauses
//	! TEXT                     it writes a line that is not a message
//	exit                       it dies
func Wire(t testing.TB, data []byte) []Step {
	t.Helper()
	var steps []Step
	for line := range strings.Lines(strings.TrimSpace(string(data))) {
		step, err := wireStep(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step)
	}
	return steps
}

func wireStep(line string) (Step, error) {
	kind, rest, _ := strings.Cut(line, " ")
	method, params, _ := strings.Cut(rest, " ")
	switch {
	case kind == "<":
		return Notify(method, json.RawMessage(params)), nil
	case kind == "?":
		params, want, waits := strings.Cut(params, " => ")
		if !waits {
			return Request(method, json.RawMessage(params)), nil
		}
		return RequestAnswered(method, json.RawMessage(params), func(answer json.RawMessage) error {
			if !bytes.Equal(answer, []byte(want)) {
				return fmt.Errorf("answered %s, want %s", answer, want)
			}
			return nil
		}), nil
	case line == "> turn/interrupt":
		return Interrupted(), nil
	case kind == "~":
		d, err := time.ParseDuration(rest)
		return Do(func() { time.Sleep(d) }), err // in a bubble: no time at all
	case kind == "!":
		return Raw(rest), nil
	case line == "exit":
		return Exit(1), nil
	}
	return Step{}, fmt.Errorf("not a line of a transcript: %q", line)
}
