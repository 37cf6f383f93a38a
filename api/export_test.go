package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"codexpool/codex"
	"codexpool/upstream"
)

// Decoded is what a request's body comes to: what goes to the child and to the
// provider for its last choice, or the error that the caller gets.
func Decoded(body []byte, legacy bool, cfg Config, relay *upstream.Relay) (items []json.RawMessage, fields map[string]json.RawMessage, ignored string, err error) {
	f := chatForm
	if legacy {
		f = textForm
	}
	s := &Server{cfg: cfg, relay: relay}
	req, err := s.parse(context.Background(), body, f)
	if err != nil {
		return nil, nil, "", err
	}
	conversation := req.conversation(req.choices() - 1)
	return turnParams(req, conversation).Items, s.overrides(req, conversation, Caller{Key: "1"}), headerList(req.Ignored), nil
}

// Decode decodes a request whose client leaves when ctx ends.
func Decode(ctx context.Context, body []byte, cfg Config) error {
	_, err := (&Server{cfg: cfg, relay: &upstream.Relay{}}).parse(ctx, body, chatForm)
	return err
}

// OverridesOf is what a caller's request sets in the provider's.
func OverridesOf(body []byte, caller Caller, cfg Config) (map[string]json.RawMessage, error) {
	s := &Server{cfg: cfg}
	req, err := s.parse(context.Background(), body, chatForm)
	if err != nil {
		return nil, err
	}
	return s.overrides(req, req.conversation(0), caller), nil
}

// StreamText streams deltas of one choice.
func StreamText(w http.ResponseWriter, deltas []string) error {
	res := newResponse(w, time.Minute)
	s := newStream(flow{reply: reply{form: chatForm, res: res, req: &chatRequest{Stream: true}, usage: make([]*codex.Usage, 1), said: make([]bool, 1)}, begin: func() error { return nil }})
	for _, d := range deltas {
		if err := s.write(choiceEvent{Event: codex.TextDelta{Text: d}}); err != nil {
			return err
		}
	}
	if err := s.write(choiceEvent{Event: codex.Completed{Finish: codex.FinishStop}}); err != nil {
		return err
	}
	return s.finish()
}

// AnswerInOnePiece answers with one event, so many times in each choice.
func AnswerInOnePiece(w http.ResponseWriter, choices int, e codex.Event, times int) error {
	req := &chatRequest{Conversations: make([][]chatMessage, choices), N: 1}
	out := (&Server{}).newReplier(newResponse(w, time.Minute), nil, req, chatForm, nil)
	for i := range choices {
		for range times {
			if err := out.write(choiceEvent{choice: i, Event: e}); err != nil {
				return err
			}
		}
	}
	return out.finish()
}

// Cut passes deltas through cutAt and joins what comes out.
func Cut(deltas, stop []string) (text string) {
	answer := func(yield func(codex.Event, error) bool) {
		for _, d := range deltas {
			if !yield(codex.TextDelta{Text: d}, nil) {
				return
			}
		}
		yield(codex.Completed{}, nil)
	}
	for e := range cutAt(stop, answer) {
		if d, ok := e.(codex.TextDelta); ok {
			text += d.Text
		}
	}
	return text
}

// Unmarshal decodes the fields of a body.
var Unmarshal = unmarshal

// RightFor is the right that a path needs.
func (s *Server) RightFor(path string) string { return s.rightFor(path) }

// Watch returns what watches the events of a turn.
func Watch() func(codex.Event) {
	run, t := &running{began: time.Now()}, new(tally)
	return func(e codex.Event) {
		run.note(e)
		t.note(e)
	}
}

// Remembered is how many addresses, and keys of addresses, the limit on wrong keys holds.
func (s *Server) Remembered() (wrong, proven int) { return len(s.guesses.wrong), len(s.guesses.proven) }

// PageOf are the runbooks of states and deaths.
var PageOf = pageOf
