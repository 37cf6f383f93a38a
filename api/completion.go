package api

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"time"

	"codexpool/codex"
	"codexpool/pool"
	"codexpool/upstream"

	"golang.org/x/sync/errgroup"
)

// complete serves a route of completions: it admits the request to the pool, runs
// a turn for each choice, and passes their events on as they come.
func (s *Server) complete(res *response, r *http.Request, f form) error {
	req, err := s.decode(res, r, f)
	if err != nil {
		return err
	}
	idle := s.cfg.IdleTimeout
	if req.Stream {
		closed, err := s.openStream()
		if err != nil {
			return err
		}
		defer closed()
		idle = s.cfg.StreamIdleTimeout
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.cfg.Timeout, errTimeout)
	defer cancel()
	admission, err := s.pool.Admit(ctx, res.caller.Key, req.choices())
	if err != nil {
		return err
	}
	defer admission.Close()
	out := s.newReplier(res, r, req, f)
	c := completion{s: s, res: res, req: req, idle: idle, admission: admission}
	for e, err := range c.run(ctx) {
		if err != nil {
			return err
		}
		if err := out.write(e.choice, e.Event); err != nil {
			return err
		}
	}
	return out.finish() // without a lease: a client that reads slowly keeps its answer, not a child
}

// openStream admits a stream: add, then compare, then undo.
func (s *Server) openStream() (closed func(), err error) {
	closed = func() { s.streams.Add(-1) }
	if n := s.streams.Add(1); s.cfg.MaxStreams > 0 && n > int64(s.cfg.MaxStreams) {
		closed()
		return nil, errTooManyStreams
	}
	return closed, nil
}

// events are what a turn yields: an error is the last pair.
type events = iter.Seq2[codex.Event, error]

// completion is one request on its way through the pool. Its events come
// through a pipeline of iterators, each of which reads the one before:
//
//	lease.Turn -> turn -> retry -> withRefusal -> cutAt -> merge -> replier
type completion struct {
	s         *Server
	res       *response
	req       *chatRequest
	idle      time.Duration // longest silence of the model
	admission *pool.Admission
}

// run yields the events of all choices.
func (c *completion) run(ctx context.Context) iter.Seq2[choiceEvent, error] {
	if n := c.req.choices(); n > 1 {
		return merge(ctx, n, c.answer)
	}
	return func(yield func(choiceEvent, error) bool) {
		for e, err := range c.answer(ctx, 0) {
			if !yield(choiceEvent{0, e}, err) {
				return
			}
		}
	}
}

// choiceEvent is an event of one choice.
type choiceEvent struct {
	choice int
	codex.Event
}

// merge runs n answers at once, each in a goroutine of its own, and yields their
// events as they come. The first error ends the others. All goroutines have
// ended when merge returns.
func merge(ctx context.Context, n int, answer func(context.Context, int) events) iter.Seq2[choiceEvent, error] {
	return func(yield func(choiceEvent, error) bool) {
		ctx, stop := context.WithCancel(ctx)
		group, ctx := errgroup.WithContext(ctx)
		all := make(chan choiceEvent)
		for i := range n {
			group.Go(func() (err error) { // ends with its answer, or with ctx
				defer func() {
					if p := recover(); p != nil {
						err = panicked(p)
					}
				}()
				for e, err := range answer(ctx, i) {
					if err != nil {
						return err
					}
					select {
					case all <- choiceEvent{i, e}:
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				}
				return nil
			})
		}
		ended := make(chan error, 1)
		go func() { // ends with the last answer
			ended <- group.Wait()
			close(ended)
		}()
		defer func() { // also where the reader of the events panics
			stop()
			for range ended {
			}
		}()
		for {
			select {
			case err := <-ended:
				if err != nil {
					yield(choiceEvent{}, err)
				}
				return
			case e := <-all:
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// answer yields the events of one choice.
func (c *completion) answer(ctx context.Context, choice int) events {
	return func(yield func(codex.Event, error) bool) {
		params, call := c.prepare(ctx, choice)
		if call != nil {
			defer call.Done()
		}
		cutAt(c.req.Stop, withRefusal(call, c.retry(ctx, params, call)))(yield)
	}
}

// prepare makes the turn of a choice and, where there is a relay, the call that
// it will bring there. The caller ends the call.
func (c *completion) prepare(ctx context.Context, choice int) (codex.TurnParams, *upstream.Call) {
	conversation := c.req.conversation(choice)
	params := turnParams(c.req, conversation)
	params.Tick = c.s.tick(c.idle)
	if c.s.relay == nil {
		return params, nil
	}
	call := c.s.relay.Prepare(ctx, overrides(c.req, conversation, c.res.caller), details(conversation)...)
	params.Meta = map[string]string{upstream.MetaKey: call.Key}
	params.Model = c.s.cfg.Models().listed(params.Model) // the relay writes the caller's
	for i := range params.Tools {
		// The relay writes the tools as the caller gave them. The child needs only
		// their names, and does not have to understand their schemas.
		params.Tools[i] = codex.Tool{Name: params.Tools[i].Name}
	}
	return params, call
}

// retry runs a turn and, where its child died before anybody received the
// request, once more with another child.
func (c *completion) retry(ctx context.Context, params codex.TurnParams, call *upstream.Call) events {
	return func(yield func(codex.Event, error) bool) {
		var died error
		for e, err := range c.turn(ctx, c.admission, params, call) {
			if codex.ChildFault(err).Fatal() && call != nil && !call.Arrived() && ctx.Err() == nil {
				died = err
				break
			}
			if !yield(e, err) {
				return
			}
		}
		if died == nil {
			return
		}
		second, err := c.s.pool.Admit(ctx, c.res.caller.Key, 1)
		if err != nil {
			yield(nil, died)
			return
		}
		defer second.Close()
		c.turn(ctx, second, params, call)(yield)
	}
}

// turn runs a turn on a child that it waits for.
func (c *completion) turn(ctx context.Context, admission *pool.Admission, params codex.TurnParams, call *upstream.Call) events {
	return func(yield func(codex.Event, error) bool) {
		lease, err := admission.Acquire(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		defer lease.Release()
		if c.req.choices() == 1 {
			c.res.child = lease.Child()
		}
		for e, err := range lease.Turn(ctx, params) {
			if err != nil && childToBlame(err, call) {
				lease.Blame(err)
			}
			if t, ok := e.(codex.Tick); ok && t.Silent >= c.idle {
				e, err = nil, errIdle
			}
			if !yield(e, explained(err, call)) || err != nil {
				return
			}
		}
	}
}

// explained returns a turn's error, or what the provider reported as its cause.
func explained(err error, call *upstream.Call) error {
	var turn *codex.TurnError
	if call == nil || !errors.As(err, &turn) {
		return err
	}
	if f := call.Failure(); f != nil {
		return providerFailed(f)
	}
	return err
}

// childToBlame reports whether a turn failed by the child's own fault, though
// the child lives: its request did not even reach the relay, or it answered a
// correct call with an error. Whatever came later may be the provider's doing.
func childToBlame(err error, call *upstream.Call) bool {
	if turn := (*codex.TurnError)(nil); errors.As(err, &turn) {
		return call != nil && !call.Arrived() && turn.Info != codex.InfoContextWindow
	}
	return codex.ChildFault(err) == codex.FaultCall
}

// withRefusal adds the model's refusal, which Codex drops and only the relay has
// seen, before the end of the answer.
func withRefusal(call *upstream.Call, turn events) events {
	if call == nil {
		return turn
	}
	return func(yield func(codex.Event, error) bool) {
		for e, err := range turn {
			if _, over := e.(codex.Completed); over && call.Refusal() != "" && !yield(codex.Refusal{Text: call.Refusal()}, nil) {
				return
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// tick is how often a turn must yield a Tick so that no timer is late by more
// than a second.
func (s *Server) tick(idle time.Duration) time.Duration {
	tick := time.Second
	for _, d := range []time.Duration{s.cfg.Commit, s.cfg.Keepalive, idle} {
		if d > 0 {
			tick = min(tick, d)
		}
	}
	return tick
}
