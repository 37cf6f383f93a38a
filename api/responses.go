package api

import (
	"maps"
	"net/http"
	"strings"

	"codexpool/codex"
	"codexpool/upstream"
)

// responsesForm is the Responses API: the provider gets the caller's body, and the caller
// the provider's answer.
var responsesForm = form{input: "input", exact: true}

// responses serves POST /v1/responses.
func (s *Server) responses(res *response, r *http.Request) error {
	if s.relay == nil {
		return errNoResponses
	}
	return s.complete(res, r, responsesForm)
}

// noWebSocket answers those who would have the Responses API over a WebSocket. The Codex
// CLI turns to HTTP at once after this status, and after others only when it has tried
// several times. With it a server must name the protocol to turn to.
func noWebSocket(res *response, r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		res.Header().Set("Allow", "HEAD, OPTIONS, POST")
		return errMethod
	}
	res.Header().Set("Upgrade", "HTTP/1.1")
	res.Header().Add("Connection", "Upgrade") // it may be "close" already
	return errWebSocket
}

// exactWhole is an exact answer in one piece: the response in the provider's last event.
type exactWhole struct {
	reply
	response []byte
}

func (w *exactWhole) write(e choiceEvent) error {
	switch e := e.Event.(type) {
	case upstream.Opening:
		maps.Copy(w.res.Header(), e.Header)
	case upstream.Raw:
		w.response = e.Response
	}
	return w.note(e.choice, e.Event)
}

func (w *exactWhole) finish() error {
	if w.response == nil {
		return upstreamFailed("The upstream's last event has no response.")
	}
	return w.res.rawJSON(http.StatusOK, w.response)
}

// exactStream is an exact answer as it comes.
type exactStream struct {
	flow
	next int64 // the number of the next event
}

func newExactStream(f flow) *exactStream {
	s := &exactStream{flow: f}
	s.res.failed = s.failed
	return s
}

func (s *exactStream) write(e choiceEvent) error {
	if err := s.note(e.choice, e.Event); err != nil {
		return err
	}
	switch e := e.Event.(type) {
	case codex.Tick:
		return s.tick()
	case upstream.Opening:
		s.clock()
		maps.Copy(s.res.Header(), e.Header)
	case upstream.Raw:
		if err := s.add(e); err != nil {
			return err
		}
	}
	if !s.res.stream || len(s.buf) == 0 || (e.more && len(s.buf) < maxUnsent) {
		return nil
	}
	return s.flush()
}

// add adds an event to those that go out with the next write. The first events say
// nothing of the answer, so they wait for another: a failure that comes first is a real
// status.
func (s *exactStream) add(e upstream.Raw) error {
	s.next = max(s.next, e.Sequence+1)
	switch e.Type {
	case "response.created", "response.in_progress", "response.queued":
	case "response.failed", "error":
		s.res.told = s.res.stream // else it is not sent: the failure that follows is a status
	default:
		if err := s.commit(); err != nil {
			return err
		}
	}
	s.buf = append(s.buf, e.Bytes...)
	return nil
}

func (s *exactStream) finish() error {
	if err := s.commit(); err != nil {
		return err
	}
	if len(s.buf) == 0 {
		return nil
	}
	return s.flush()
}

// failed is the event that tells of an error of ours. The published reference has its
// fields flat, and OpenAI sends them in an object: clients read one or the other.
func (s *exactStream) failed(e *Error) []byte {
	body := e.body().Error
	return frame([]byte("event: error\n"), append(marshal(errorEvent{
		Type: "error", Sequence: s.next, Message: body.Message, Code: body.Code, Param: body.Param, Error: body,
	}), '\n'))
}
