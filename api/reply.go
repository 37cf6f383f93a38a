package api

import (
	"crypto/rand"
	"net/http"
	"strings"
	"time"

	"codexpool/codex"
)

// replier turns the events of a turn into a response.
type replier interface {
	write(codex.Event) error
	finish() error // called once, after the last event
}

func (s *Server) newReplier(res *response, r *http.Request, req chatRequest) replier {
	base := reply{res: res, id: "chatcmpl-" + rand.Text(), created: time.Now().Unix(), model: req.Name, end: codex.FinishStop}
	if !req.Stream {
		return &whole{reply: base}
	}
	st := &stream{reply: base, includeUsage: req.IncludeUsage, commitAfter: s.cfg.Commit, keepalive: s.cfg.Keepalive}
	if refusesComments(r) {
		st.keepalive = 0
	}
	return st
}

// refusesComments says that the client chokes on SSE comments, or says so.
func refusesComments(r *http.Request) bool {
	agent := r.UserAgent()
	return r.Header.Get("X-No-Keepalive") == "1" || r.URL.Query().Get("no_keepalive") == "1" ||
		strings.Contains(agent, "Obsidian") || strings.Contains(agent, "Electron")
}

// reply is what both kinds of response share.
type reply struct {
	res     *response
	id      string
	created int64
	model   string
	usage   *usageBody // nil where none arrived: it is never invented
	end     codex.Finish
}

// note takes the events that both treat alike.
func (b *reply) note(e codex.Event) {
	switch e := e.(type) {
	case codex.TextDelta:
		b.res.token()
	case codex.Usage:
		b.usage, b.res.tokens = usage(e), e
	case codex.Completed:
		b.end = e.Finish
	}
}

// whole is a response in one piece.
type whole struct {
	reply
	text strings.Builder
}

func (w *whole) write(e codex.Event) error {
	w.note(e)
	if d, ok := e.(codex.TextDelta); ok {
		w.text.WriteString(d.Text)
	}
	return nil
}

func (w *whole) finish() error {
	return w.res.json(http.StatusOK, completionBody{
		ID: w.id, Object: "chat.completion", Created: w.created, Model: w.model, Usage: w.usage,
		Choices: []completionChoice{{
			Message:      messageBody{Role: "assistant", Content: w.text.String()},
			FinishReason: finishedReason(w.end),
		}},
	})
}

// stream is a response as server-sent events. Its 200 is sent with the first
// text, or commitAfter after the turn began: until then a failure is a real
// HTTP status, which SDKs retry or raise.
type stream struct {
	reply
	includeUsage bool
	commitAfter  time.Duration
	keepalive    time.Duration // 0 = none

	turn  time.Time // when it began
	wrote time.Time // when anything was last sent
	buf   []byte    // frames that go out with the next write
}

func (s *stream) write(e codex.Event) error {
	s.note(e)
	switch e := e.(type) {
	case codex.Tick:
		return s.tick()
	case codex.ReasoningDelta:
		if !s.res.stream {
			s.commit() // the model is at work; what it thinks is not sent yet
			return s.flush()
		}
	case codex.TextDelta:
		s.commit()
		s.chunk(deltaBody{Content: &e.Text}, "")
		return s.flush()
	}
	return nil
}

// tick does what time asks for.
func (s *stream) tick() error {
	now := time.Now()
	if s.turn.IsZero() {
		s.turn = now
	}
	switch {
	case !s.res.stream && now.Sub(s.turn) >= s.commitAfter:
		s.commit()
		return s.flush()
	case s.res.stream && s.keepalive > 0 && now.Sub(s.wrote) >= s.keepalive:
		s.buf = append(s.buf, ": keepalive\n\n"...)
		return s.flush()
	}
	return nil
}

// commit sends the 200, with the role chunk.
func (s *stream) commit() {
	if s.res.stream {
		return
	}
	s.res.sse()
	empty := ""
	s.chunk(deltaBody{Role: "assistant", Content: &empty}, "")
}

func (s *stream) finish() error {
	s.commit()
	s.chunk(deltaBody{}, finishedReason(s.end))
	if s.includeUsage {
		last := s.body()
		last.Choices, last.Usage.usage = []chunkChoice{}, s.usage
		s.frame(last)
	}
	s.buf = append(s.buf, "data: [DONE]\n\n"...)
	return s.flush()
}

// body is what every chunk of the stream repeats.
func (s *stream) body() chunkBody {
	return chunkBody{
		ID: s.id, Object: "chat.completion.chunk", Created: s.created, Model: s.model,
		Usage: usageField{present: s.includeUsage},
	}
}

func (s *stream) chunk(delta deltaBody, end finishedReason) {
	b := s.body()
	b.Choices = []chunkChoice{{Delta: delta, FinishReason: end}}
	s.frame(b)
}

func (s *stream) frame(b chunkBody) {
	line, err := encode(b)
	if err != nil {
		panic("BUG: a chunk that JSON cannot hold: " + err.Error())
	}
	s.buf = frame(s.buf, line)
}

// flush sends what is buffered in one write.
func (s *stream) flush() error {
	err := s.res.send(s.buf)
	s.buf, s.wrote = s.buf[:0], time.Now()
	return err
}
