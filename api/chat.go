package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"codexpool/codex"
	"codexpool/pool"
	"codexpool/upstream"

	"golang.org/x/sync/errgroup"
)

// chatCompletions serves POST /v1/chat/completions.
func (s *Server) chatCompletions(res *response, r *http.Request) error {
	req, err := s.decode(res, r, "messages", chatFields)
	if err != nil {
		return err
	}
	return s.complete(res, r, req, chatShape)
}

// complete runs the turns of a request and passes their events on as they come.
func (s *Server) complete(res *response, r *http.Request, req *chatRequest, as shape) error {
	idle := s.cfg.IdleTimeout
	if req.Stream {
		leave, err := s.openStream()
		if err != nil {
			return err
		}
		defer leave()
		idle = s.cfg.StreamIdleTimeout
	}
	places, err := s.pool.Admit(req.choices())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.cfg.Timeout, errTimeout)
	defer cancel()
	reply := s.newReplier(res, r, req, as)
	c := completion{s: s, req: req, caller: r.Header.Get("Authorization"), idle: idle, places: places}
	if len(places) == 1 {
		c.line = s.cfg.AcquireTimeout
		err = c.run(ctx, 0, func(child int) { res.child = child }, func(e any) error { return reply.write(0, e) })
	} else {
		err = c.runAll(ctx, reply)
	}
	if err != nil {
		return err
	}
	return reply.finish() // without a lease: a client that reads slowly keeps its answer, not a child
}

// completion is one request on its way through the pool.
type completion struct {
	s      *Server
	req    *chatRequest
	caller string        // tells callers apart
	idle   time.Duration // of a turn, at most
	line   time.Duration // in line for a child, at most; 0 = as long as the request may take
	places []*pool.Place // one for each choice
}

// runAll runs several choices, each when its own lease comes, and writes their
// events as they come. The first that fails ends the others.
func (c *completion) runAll(ctx context.Context, reply replier) error {
	type said struct {
		choice int
		event  any
	}
	events := make(chan said)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// The limit is for the first: the others may be waiting for that one's turn.
	served := time.AfterFunc(c.s.cfg.AcquireTimeout, func() { stop(errAcquireTimeout) })
	defer served.Stop()
	group, ctx := errgroup.WithContext(ctx)
	for i := range c.places {
		group.Go(func() (err error) { // ends with its turn; the loop below waits for it
			defer func() {
				if p := recover(); p != nil {
					err = panicked(p)
				}
			}()
			return c.run(ctx, i, func(int) { served.Stop() }, func(e any) error {
				select {
				case events <- said{i, e}:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			})
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }() // ends with the last choice
	for {
		select {
		case err := <-ended:
			return err
		case e := <-events:
			if err := reply.write(e.choice, e.event); err != nil {
				stop(err)
				<-ended
				return err
			}
		}
	}
}

// run runs one choice and gives its events to write.
func (c *completion) run(ctx context.Context, choice int, served func(child int), write func(any) error) error {
	conversation := c.req.conversation(choice)
	params := turnParams(c.req, conversation)
	params.Tick = c.s.tick(c.idle)
	var call *upstream.Call
	if c.s.relay != nil {
		call = c.s.relay.Prepare(overrides(c.req, conversation, c.caller), details(conversation)...)
		defer call.Done()
		params.Meta = map[string]string{upstream.MetaKey: call.Key}
		params.Model = c.s.cfg.Models().listed(params.Model) // the relay tells the provider the caller's
		for i := range params.Tools {
			// The relay tells the provider of the tools as they are. The child need
			// only know their names, and is not asked to understand their schemas.
			params.Tools[i] = codex.Tool{Name: params.Tools[i].Name}
		}
	}
	err := c.turn(ctx, c.places[choice], params, call, served, write)
	if childDied(err) && call != nil && !call.Asked() && ctx.Err() == nil {
		// The request was not asked of anybody: once more, with another child.
		if places, full := c.s.pool.Admit(1); full == nil {
			err = c.turn(ctx, places[0], params, call, served, write)
		}
	}
	return err
}

// childDied says that a turn failed because its child did.
func childDied(err error) bool {
	var exit *codex.ExitError
	var protocol *codex.ProtocolError
	return errors.As(err, &exit) || errors.As(err, &protocol) || errors.Is(err, codex.ErrUnresponsive)
}

// turn runs a turn on a child that it waits for in its place in line.
func (c *completion) turn(ctx context.Context, place *pool.Place, params codex.TurnParams, call *upstream.Call, served func(child int), write func(any) error) error {
	lease, err := c.lease(ctx, place)
	if err != nil {
		return err
	}
	defer lease.Release()
	served(lease.Child())

	out := cutter{stop: c.req.Stop, to: func(e codex.Event) error { return write(e) }}
	for e, err := range lease.Turn(ctx, params) {
		if err != nil {
			if childToBlame(err, call) {
				lease.Blame(err)
			}
			return explained(err, call)
		}
		if t, ok := e.(codex.Tick); ok && t.Silent >= c.idle {
			return errIdle
		}
		if _, over := e.(codex.Completed); over && call != nil && call.Refusal() != "" {
			if err := write(refusal{call.Refusal()}); err != nil {
				return err
			}
		}
		if err := out.pass(e); err == errCut {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// lease stands in line.
func (c *completion) lease(ctx context.Context, place *pool.Place) (*pool.Lease, error) {
	if c.line > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, c.line, errAcquireTimeout)
		defer cancel()
		ctx = limited
	}
	return place.Acquire(ctx)
}

// explained is a turn's error, or what the provider really said to cause it.
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

// childToBlame says that a turn failed for the child's own reasons: its request
// did not even reach the relay, or it refused a call that was not wrong. Whatever
// came later may be the provider's doing.
func childToBlame(err error, call *upstream.Call) bool {
	var turn *codex.TurnError
	var refused *codex.RPCError
	switch {
	case errors.As(err, &turn):
		return call != nil && !call.Asked() && turn.Info != codex.InfoContextWindow
	case errors.As(err, &refused):
		return !refused.Invalid()
	}
	return false
}

// openStream admits a stream: add, then compare, then undo.
func (s *Server) openStream() (leave func(), err error) {
	leave = func() { s.streams.Add(-1) }
	if n := s.streams.Add(1); s.cfg.MaxStreams > 0 && n > int64(s.cfg.MaxStreams) {
		leave()
		return nil, errTooManyStreams
	}
	return leave, nil
}

// tick is how often the turn must wake the handler so that no timer is late by
// more than a second.
func (s *Server) tick(idle time.Duration) time.Duration {
	tick := time.Second
	for _, d := range []time.Duration{s.cfg.Commit, s.cfg.Keepalive, idle} {
		if d > 0 {
			tick = min(tick, d)
		}
	}
	return tick
}
