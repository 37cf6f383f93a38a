package upstream

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"sync/atomic"
)

// MetaKey is the name under which a call's key travels through the child. It is
// given to a turn as client metadata, and arrives at the relay in the header
// X-Codex-Turn-Metadata of the turn's request.
const MetaKey = "codexpool_call"

// Call is the provider's request of one turn, as the API prepared it. Its owner
// must call Done. All methods may be called from any goroutine.
type Call struct {
	Key       string          // for the child, under MetaKey
	values    context.Context // of the caller's request; it never ends
	relay     *Relay
	overrides Overrides
	details   []string // of the conversation's images
	arrived   atomic.Bool
	failure   atomic.Pointer[Failure]
	refusal   atomic.Pointer[string]
}

// Prepare makes a call. A child that sends its key is forwarded to the provider
// until Done. The values of ctx, the context of the caller's request, are in the
// context of [Hooks]; the end of ctx ends nothing here.
//
// A call is for one turn. A child may answer a function call by itself and send a
// second request with the result; that request is rejected (see package codex).
//
// details are the caller's values of detail, one for each image of the
// conversation, "" where the caller gave none. They replace those of Codex.
func (r *Relay) Prepare(ctx context.Context, o Overrides, details ...string) *Call {
	c := &Call{Key: rand.Text(), values: context.WithoutCancel(ctx), relay: r, overrides: o, details: details}
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

// Arrived reports whether a child has sent a request for this call.
func (c *Call) Arrived() bool { return c.arrived.Load() }

// Failure returns the provider's own error, or why there was no answer. It
// returns nil where the provider did not fail.
func (c *Call) Failure() *Failure { return c.failure.Load() }

// Refusal returns the model's refusal, "" where there was none. Codex does not
// report it.
func (c *Call) Refusal() string {
	if said := c.refusal.Load(); said != nil {
		return *said
	}
	return ""
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
