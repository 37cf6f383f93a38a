package upstream

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"codexpool/codex"
)

// MetaKey is the name under which a call's key travels through the child. It is
// given to a turn as client metadata, and arrives at the relay in the header
// X-Codex-Turn-Metadata of the turn's request.
const MetaKey = "codexpool_call"

// Call is the provider's request of one turn, and its answer. Its owner must call
// Done. Next may be called by one goroutine at a time, the other methods by any.
type Call struct {
	Key     string          // for the child, under MetaKey
	values  context.Context // of the caller's request; it never ends
	relay   *Relay
	request func() Request
	sent    func()
	arrived atomic.Bool
	child   identity     // that has set it off; the relay's goroutine only
	posted  time.Time    // when the relay sent it; the relay's goroutine only
	exact   bool         // its answer is passed on as it is; the relay's goroutine only
	first   atomic.Int64 // nanoseconds from then to the first piece of the answer; 0 before it
	reply   atomic.Pointer[reply]
	report  func(Answered) // of Hooks.Sending, until it was called; the relay's goroutine only
	result  Answered       // what it is told; the relay's goroutine only
	answer  *answer
}

// reply is what the header of the provider's answer says.
type reply struct {
	status  int
	request string
}

// Request is what a call sends to the provider: a conversation, or a body of the
// caller's own. With a body of its own the answer is exact: it begins with an [Opening],
// and each event of the provider comes as a [Raw].
type Request struct {
	Model     string            // for Hooks.Sending, like Text
	Text      bool              // bare text was asked for, not a message
	Input     []json.RawMessage // the conversation, as Responses items
	Overrides Overrides         // the other fields, model among them

	Body   []byte      // all but Overrides, which it has none of; then there is no Input
	Header http.Header // that goes with it
}

// Prepare makes a call. A child that sends its key sets it off: the request goes to
// the provider, and its answer comes out of Next. The values of ctx, the context of the
// caller's request, are in the context of [Hooks]; the end of ctx ends nothing here.
//
// request makes what is sent. It is called when a child has set off the call, and its
// result is not kept: a conversation may have megabytes. sent is called when the
// provider has answered or failed, so that request is not called again.
//
// A call is for one request. A child that sends its key again is rejected.
func (r *Relay) Prepare(ctx context.Context, request func() Request, sent func()) *Call {
	c := &Call{Key: rand.Text(), values: context.WithoutCancel(ctx), relay: r, request: request, sent: sent, answer: newAnswer()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls[c.Key] = c
	return c
}

// Done forgets the call: its key is not accepted any more. It may be called more
// than once.
func (c *Call) Done() {
	c.relay.mu.Lock()
	defer c.relay.mu.Unlock()
	delete(c.relay.calls, c.Key)
}

// Answered is the status of the provider's answer and its own id of the request, which
// its support asks for. They are 0 and "" where it did not answer, or gave none.
func (c *Call) Answered() (status int, request string) {
	if r := c.reply.Load(); r != nil {
		return r.status, r.request
	}
	return 0, ""
}

// Arrived reports whether a child has sent a request for this call.
func (c *Call) Arrived() bool { return c.arrived.Load() }

// FirstToken is the time from the request to the first piece of the answer: text, a
// refusal or a call. It is 0 before that.
func (c *Call) FirstToken() time.Duration { return time.Duration(c.first.Load()) }

// ended tells of the end of a call whose beginning was told of.
func (c *Call) ended(failure *Failure) {
	if c.report == nil {
		return
	}
	c.result.Status, _ = c.Answered()
	c.result.FirstToken, c.result.Failure = c.FirstToken(), failure
	c.report(c.result)
	c.report = nil
}

// keep keeps what the last event says of the whole answer: data is the event, and delivered
// what came of it.
func (c *Call) keep(data []byte, delivered []codex.Event) {
	if c.report == nil {
		return
	}
	var last struct{ Response struct{ ID, Model string } }
	_ = json.Unmarshal(data, &last)
	c.result.ID, c.result.Model = bounded(last.Response.ID), bounded(last.Response.Model)
	for _, e := range delivered {
		switch e := e.(type) {
		case codex.Usage:
			c.result.Usage = e
		case codex.Completed:
			c.result.Finish = e.Finish
		}
	}
}

// note notes when the first piece of the answer has come, and reports it.
func (c *Call) note(ctx context.Context, delivered []codex.Event) {
	if c.first.Load() != 0 || !slices.ContainsFunc(delivered, codex.Visible) {
		return
	}
	took := max(time.Since(c.posted), 1)
	c.first.Store(int64(took))
	if c.relay.hooks.FirstToken != nil {
		c.relay.hooks.FirstToken(ctx, took)
	}
}

// Wake receives a value when Next may have something to return.
func (c *Call) Wake() <-chan struct{} { return c.answer.wake }

// Next returns the next event of the answer that has come from the provider, or nil
// where there is none at the moment. The last event is Completed; an error instead is
// a [*Failure]. Both come once.
func (c *Call) Next() (codex.Event, error) { return c.answer.next() }

// Heard is when the provider last sent anything; zero before its first event.
func (c *Call) Heard() time.Time {
	c.answer.mu.Lock()
	defer c.answer.mu.Unlock()
	return c.answer.heard
}

// callContext is the context of a child's request for a call: it ends when the child
// disconnects, and has the values of the caller's request. So a tracer finds the
// caller's span, though the child is between the two requests.
type callContext struct {
	context.Context
	values context.Context
}

func (c callContext) Value(key any) any {
	if v := c.values.Value(key); v != nil {
		return v
	}
	return c.Context.Value(key)
}

// call finds the call that a child's metadata names, nil if there is none.
func (r *Relay) call(metadata string) *Call {
	var m map[string]any
	if json.Unmarshal([]byte(metadata), &m) != nil {
		return nil
	}
	key, _ := m[MetaKey].(string)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[key]
}
