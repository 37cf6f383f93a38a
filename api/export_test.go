package api

import (
	"encoding/json"
	"net/http"
	"time"

	"codexpool/codex"
)

// Decoded is what a request's body comes to: what goes to the child and to the
// provider for its first choice, or the error that the caller gets.
func Decoded(body []byte, legacy bool, cfg Config) (items []json.RawMessage, fields map[string]json.RawMessage, ignored string, err error) {
	known := chatFields
	if legacy {
		known = completionFields
	}
	req := &chatRequest{N: 1, Tuned: map[string]json.RawMessage{}}
	if err := req.decode(body, known); err != nil {
		return nil, nil, "", err
	}
	if req.Conversations == nil {
		return nil, nil, "", nil
	}
	if err := req.check(cfg); err != nil {
		return nil, nil, "", err
	}
	conversation := req.conversation(req.choices() - 1)
	return turnParams(req, conversation).Items, overrides(req, conversation, "caller"), headerList(req.Ignored), nil
}

// StreamText streams deltas of one choice.
func StreamText(w http.ResponseWriter, deltas []string) error {
	res := newResponse(w, time.Minute)
	s := &stream{reply: reply{shape: chatShape, res: res, req: &chatRequest{Stream: true}, usage: make([]*codex.Usage, 1)}}
	for _, d := range deltas {
		if err := s.write(0, codex.TextDelta{Text: d}); err != nil {
			return err
		}
	}
	if err := s.write(0, codex.Completed{Finish: codex.FinishStop}); err != nil {
		return err
	}
	return s.finish()
}

// Cut passes deltas through a cutter and joins what comes out.
func Cut(deltas, stop []string) (text string) {
	c := cutter{stop: stop, to: func(e codex.Event) error {
		if d, ok := e.(codex.TextDelta); ok {
			text += d.Text
		}
		return nil
	}}
	for _, d := range deltas {
		if c.pass(codex.TextDelta{Text: d}) == errCut {
			return text
		}
	}
	c.pass(codex.Completed{}) // to never fails
	return text
}
