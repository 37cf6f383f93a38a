package api

import (
	"cmp"
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"time"

	"codexpool/codex"
)

// replier turns the events of the turns, one for each choice, into a response.
// One goroutine uses it.
type replier interface {
	write(e choiceEvent) error
	finish() error // called once, after the last event of all
}

// newReplier calls begin before anything is sent while answers are still to come. With
// an error nothing is sent.
func (s *Server) newReplier(res *response, r *http.Request, req *chatRequest, f form, begin func() error) replier {
	base := reply{
		res: res, req: req, form: f, id: f.prefix + rand.Text(), created: time.Now().Unix(),
		usage: make([]*codex.Usage, req.choices()), estimates: make([]*codex.Usage, req.choices()), said: make([]bool, req.choices()),
	}
	switch {
	case req.Stream && f.exact:
		return newExactStream(s.newFlow(base, r, begin))
	case req.Stream:
		return newStream(s.newFlow(base, r, begin))
	case f.exact:
		return &exactWhole{reply: base}
	}
	return &whole{reply: base, choices: make([]message, req.choices())}
}

// reply is the common part of both kinds of response.
type reply struct {
	form
	res       *response
	req       *chatRequest
	id        string
	created   int64
	usage     []*codex.Usage // of each choice; nil where none has arrived
	estimates []*codex.Usage // of each choice that we cut; nil for the others
	said      []bool         // of each choice: it has text
}

// note handles the events that both treat alike. Bare text has no place for a call: an
// answer that has nothing else is an error.
func (b *reply) note(choice int, e codex.Event) error {
	if codex.Visible(e) {
		b.res.token()
	}
	switch e := e.(type) {
	case codex.TextDelta, codex.Refusal:
		b.said[choice] = true
	case codex.Usage:
		b.usage[choice] = &e
		b.res.result.Tokens = total(b.usage)
	case estimate:
		e.Input = tokensOf(b.req.Lengths[choice])
		e.Total = e.Input + e.Output
		b.estimates[choice] = &e.Usage
		b.res.result.Estimated = total(b.estimates)
	case codex.Completed:
		if len(b.usage) == 1 {
			b.res.access.finish = string(e.Finish)
		}
		if b.text && e.Finish == codex.FinishToolCalls && !b.said[choice] {
			return foreign("function_call")
		}
	}
	return nil
}

// total is the usage of all choices so far.
func total(usage []*codex.Usage) (sum codex.Usage) {
	for _, u := range usage {
		if u != nil {
			sum.Input, sum.Cached = sum.Input+u.Input, sum.Cached+u.Cached
			sum.Output, sum.Reasoning = sum.Output+u.Output, sum.Reasoning+u.Reasoning
			sum.Total += u.Total
		}
	}
	return sum
}

// used is the usage for the caller. It is never invented: nil where the usage of a
// choice is missing. It is an estimate where we cut a choice, and says so.
func (b *reply) used() *usageBody {
	all, estimated := slices.Clone(b.usage), false
	for i, u := range b.estimates {
		if u != nil {
			all[i], estimated = u, true
		}
	}
	if slices.Contains(all, nil) {
		return nil
	}
	body := usage(total(all))
	body.Estimated = estimated
	return body
}

// finished is the reason why a choice ended, in the words of the caller's form.
func (b *reply) finished(end codex.Finish) finishedReason {
	if end == codex.FinishToolCalls && b.req.LegacyCalls {
		return "function_call"
	}
	return finishedReason(end)
}

// reasons reports whether the caller requested the reasoning.
func (b *reply) reasons() bool {
	return b.req.Summary != "" && b.req.Summary != "none" && !b.text
}

// message is the answer of one choice, in one piece.
type message struct {
	text, refusal, reasoning strings.Builder
	calls                    []*callSoFar
	end                      codex.Finish
}

type callSoFar struct {
	id, name  string
	arguments strings.Builder
}

// call adds the next piece of a call.
func (m *message) call(e codex.ToolCallDelta) {
	for len(m.calls) <= e.Index {
		m.calls = append(m.calls, &callSoFar{})
	}
	c := m.calls[e.Index]
	c.id, c.name = cmp.Or(c.id, e.ID), cmp.Or(c.name, e.Name)
	c.arguments.WriteString(e.Arguments)
}

// pieces are whole calls as a model writes them: the name of each, then its
// arguments.
func pieces(whole codex.ToolCalls) (list []codex.ToolCallDelta) {
	for i, c := range whole.Calls {
		list = append(list, codex.ToolCallDelta{Index: i, ID: c.ID, Name: c.Name}, codex.ToolCallDelta{Index: i, Arguments: c.Arguments})
	}
	return list
}

// maxAnswer bounds what a response in one piece holds of all its choices, in bytes.
const maxAnswer = 64 << 20

// whole is a response in one piece.
type whole struct {
	reply
	choices []message
	bytes   int // about what choices take
}

func (w *whole) write(e choiceEvent) error {
	if err := w.note(e.choice, e.Event); err != nil {
		return err
	}
	if w.bytes += content(e.Event); w.bytes > maxAnswer {
		return errLongAnswer
	}
	m := &w.choices[e.choice]
	switch e := e.Event.(type) {
	case codex.TextDelta:
		m.text.WriteString(e.Text)
	case codex.ReasoningDelta:
		m.reasoning.WriteString(e.Text)
	case codex.Refusal:
		m.refusal.WriteString(e.Text)
	case codex.ToolCallDelta:
		m.call(e)
	case codex.ToolCalls:
		for _, piece := range pieces(e) {
			m.call(piece)
		}
	case codex.Completed:
		m.end = e.Finish
	}
	return nil
}

func (w *whole) finish() error {
	body := completionBody{ID: w.id, Object: w.form.whole, Created: w.created, Model: w.req.Name, Usage: w.used()}
	for i := range w.choices {
		m := &w.choices[i]
		if w.text {
			body.Choices = append(body.Choices, textChoice{Index: i, Text: m.text.String() + m.refusal.String(), FinishReason: w.finished(m.end)})
			continue
		}
		body.Choices = append(body.Choices, completionChoice{Index: i, Message: w.message(m), FinishReason: w.finished(m.end)})
	}
	return w.res.json(http.StatusOK, body)
}

func (w *whole) message(m *message) messageBody {
	body := messageBody{Role: "assistant"}
	if text := m.text.String(); text != "" || (len(m.calls) == 0 && m.refusal.Len() == 0) {
		body.Content = &text
	}
	if text := m.refusal.String(); text != "" {
		body.Refusal = &text
	}
	if w.reasons() {
		body.Reasoning = m.reasoning.String()
	}
	for _, c := range m.calls {
		f := functionBody{Name: c.name, Arguments: c.arguments.String()}
		if w.req.LegacyCalls {
			body.FunctionCall = &f
			break // it has room for one
		}
		body.ToolCalls = append(body.ToolCalls, callBody{ID: c.id, Type: "function", Function: f})
	}
	return body
}

// stream is a response as server-sent events.
type stream struct {
	flow
	ended int // choices
}

func newStream(f flow) *stream {
	s := &stream{flow: f}
	s.opening = s.open
	return s
}

// write adds the frames of an event. Those of events that come at once go out in one
// write: a provider may be faster than a system call for each token.
func (s *stream) write(e choiceEvent) error {
	if err := s.note(e.choice, e.Event); err != nil {
		return err
	}
	if _, tick := e.Event.(codex.Tick); tick {
		return s.tick()
	}
	committed := s.res.stream
	if s.shows(e.Event) {
		if err := s.commit(); err != nil {
			return err
		}
		s.add(e.choice, e.Event)
	}
	switch {
	case e.more && len(s.buf) < maxUnsent:
		return nil
	case s.ended == len(s.usage): // goes out with the end of the stream
		return nil
	case len(s.buf) == 0 && s.res.stream == committed: // nothing was added
		return nil
	}
	return s.flush()
}

// shows reports whether the client sees something of an event, if only that the model is
// at work.
func (s *stream) shows(e codex.Event) bool {
	switch e.(type) {
	case codex.Usage:
		return false
	case codex.ToolCallDelta, codex.ToolCalls:
		return !s.text // it has no place for one
	}
	return true
}

// add adds the frames of an event to those that go out with the next write.
func (s *stream) add(choice int, e codex.Event) {
	switch e := e.(type) {
	case codex.ReasoningDelta:
		if !s.reasons() {
			return
		}
		s.delta(choice, deltaBody{Reasoning: e.Text})
	case codex.Refusal:
		if s.text { // it has no other place for it
			s.delta(choice, deltaBody{Content: &e.Text})
		} else {
			s.delta(choice, deltaBody{Refusal: e.Text})
		}
	case codex.TextDelta:
		s.delta(choice, deltaBody{Content: &e.Text})
	case codex.ToolCallDelta:
		s.call(choice, e)
	case codex.ToolCalls:
		for _, piece := range pieces(e) {
			s.call(choice, piece)
		}
	case codex.Completed:
		s.chunk(choice, deltaBody{}, s.finished(e.Finish))
		s.ended++
	}
}

// call sends the next piece of a call: first its name, then its arguments.
func (s *stream) call(choice int, e codex.ToolCallDelta) {
	f := functionBody{Name: e.Name, Arguments: e.Arguments}
	switch {
	case s.req.LegacyCalls && e.Index == 0:
		s.delta(choice, deltaBody{FunctionCall: &f})
	case s.req.LegacyCalls: // it has room for one
	case e.Name != "":
		s.delta(choice, deltaBody{ToolCalls: []callBody{{Index: &e.Index, ID: e.ID, Type: "function", Function: f}}})
	default:
		s.delta(choice, deltaBody{ToolCalls: []callBody{{Index: &e.Index, Function: f}}})
	}
}

// open adds the role of each choice.
func (s *stream) open() {
	if s.text {
		return
	}
	empty := ""
	for i := range s.usage {
		s.chunk(i, deltaBody{Role: "assistant", Content: &empty}, "")
	}
}

func (s *stream) finish() error {
	if err := s.commit(); err != nil {
		return err
	}
	if s.req.IncludeUsage {
		last := s.body()
		last.Choices, last.Usage.usage = []any{}, s.used()
		s.frame(last)
	}
	s.buf = append(s.buf, "data: [DONE]\n\n"...)
	return s.flush()
}

// body has the fields that every chunk of the stream repeats.
func (s *stream) body() chunkBody {
	return chunkBody{
		ID: s.id, Object: s.form.chunk, Created: s.created, Model: s.req.Name,
		Usage: usageField{present: s.req.IncludeUsage},
	}
}

// delta adds to a choice.
func (s *stream) delta(choice int, delta deltaBody) { s.chunk(choice, delta, "") }

func (s *stream) chunk(choice int, delta deltaBody, end finishedReason) {
	b := s.body()
	if s.text {
		text := textChoice{Index: choice, FinishReason: end}
		if delta.Content != nil {
			text.Text = *delta.Content
		}
		b.Choices = []any{text}
	} else {
		b.Choices = []any{chunkChoice{Index: choice, Delta: delta, FinishReason: end}}
	}
	s.frame(b)
}

func (s *stream) frame(b chunkBody) {
	line, err := encode(b)
	if err != nil {
		panic("BUG: a chunk that JSON cannot hold: " + err.Error())
	}
	s.buf = frame(s.buf, line)
}
