package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"codexpool/api/limits"
	"codexpool/codex"
	"codexpool/upstream"
)

// admit takes a request from its key's limits, and says in the response what remains.
func (s *Server) admit(res *response, r *http.Request) error {
	v := res.caller.account.limits.Take(r.Context())
	quota(res.Header(), "requests", v.Requests)
	quota(res.Header(), "tokens", v.Tokens)
	if v.Wait > 0 {
		return limited(v.Wait)
	}
	res.result.Admitted = true
	return nil
}

// quota sets the headers of a limit, as OpenAI names them.
func quota(h http.Header, unit string, q *limits.Quota) {
	if q == nil {
		return
	}
	h.Set("X-Ratelimit-Limit-"+unit, strconv.Itoa(q.Limit))
	h.Set("X-Ratelimit-Remaining-"+unit, strconv.Itoa(q.Remaining))
	h.Set("X-Ratelimit-Reset-"+unit, q.Reset.Round(time.Millisecond).String())
}

// limited is what a client gets at a limit of its key. One that comes after Retry-After,
// which is in whole seconds, is admitted.
func limited(wait time.Duration) *Error {
	seconds := (wait + time.Second - 1) / time.Second
	return &Error{
		Status: 429, Type: rateLimit, Code: "rate_limited", Retry: true, Wait: strconv.Itoa(int(seconds)),
		Message: fmt.Sprintf("The rate limit of this API key is reached. Try again in %d s.", seconds),
	}
}

// openStream admits a stream: add, then compare, then undo.
func (s *Server) openStream(a *account) (closed func(), err error) {
	closed = func() {
		s.streams.Add(-1)
		a.streams.Add(-1)
	}
	all, own := s.streams.Add(1), a.streams.Add(1)
	switch {
	case a.Streams > 0 && own > int64(a.Streams):
		err = errOwnStreams
	case s.cfg.MaxStreams > 0 && all > int64(s.cfg.MaxStreams):
		err = errTooManyStreams
	default:
		return closed, nil
	}
	closed()
	return nil, err
}

// tally counts what one turn costs.
type tally struct {
	answered int   // bytes of the answer
	begun    bool  // the model has begun to answer
	reported int64 // tokens, as the provider counted them; 0 where it did not
}

// note counts an event of the turn.
func (t *tally) note(e codex.Event) {
	switch e := e.(type) {
	case codex.Usage:
		t.reported = e.Total
	case codex.Tick, upstream.Opening, upstream.Raw, nil: // what a Raw says of the answer follows it
	default:
		t.begun = true
		t.answered += content(e)
	}
}

// counted passes on the events of a turn and adds what it costs. Where the provider does
// not count the tokens, because the turn is cut, four bytes count as one: those of the
// request, once it was sent, and those of the answer. A turn that fails before its answer
// costs nothing.
func (c *completion) counted(ctx context.Context, turn events, choice int, call *upstream.Call) events {
	return func(yield func(codex.Event, error) bool) {
		var t tally
		failed := false
		defer func() {
			sent := call == nil || call.Arrived()
			if t.reported == 0 && sent && (t.begun || !failed) {
				t.reported = tokensOf(c.req.Lengths[choice]) + tokensOf(t.answered)
			}
			c.spent.Add(t.reported)
		}()
		for e, err := range turn {
			t.note(e)
			failed = err != nil && ctx.Err() == nil
			if !yield(e, err) {
				return
			}
		}
	}
}

// charge takes the tokens of a request from its key's limit.
func (c *completion) charge(ctx context.Context) {
	if spent := c.spent.Load(); spent > 0 {
		c.res.caller.account.limits.Charge(context.WithoutCancel(ctx), int(spent))
	}
}
