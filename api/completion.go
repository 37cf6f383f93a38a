package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"codexpool/codex"
	"codexpool/pool"
	"codexpool/upstream"
)

// complete serves a route of completions: it admits the request to the pool, runs
// a turn for each choice, and passes their events on as they come.
func (s *Server) complete(res *response, r *http.Request, f form) error {
	held := &share{of: &s.bodies}
	defer held.giveBack()
	req, err := s.decode(res, r, f, held)
	if err != nil {
		return err
	}
	res.access.effort, res.access.choices = req.Effort, req.choices()
	res.result.Stream, res.result.Model = req.Stream, s.cfg.Models().label(req.Model)
	idle, begun := s.cfg.IdleTimeout, func() {}
	if req.Stream {
		closed, err := s.openStream(res.caller.account)
		if err != nil {
			return err
		}
		defer closed()
		s.queued.Add(1)
		begun = sync.OnceFunc(func() { s.queued.Add(-1) })
		defer begun()
		idle = s.cfg.StreamIdleTimeout
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.cfg.Timeout, errTimeout)
	defer cancel()
	res.end = time.Now().Add(s.cfg.Timeout + s.cfg.WriteTimeout) // the time-out itself must be told
	admission, err := s.pool.Admit(ctx, res.caller.Key, req.choices())
	if err != nil {
		return err
	}
	defer admission.Close()
	res.access.admitted = true
	out := s.newReplier(res, r, req, f, admission.Keep)
	c := completion{s: s, res: res, req: req, text: f.text, choices: req.choices(), idle: idle, begun: begun, admission: admission, body: held}
	c.unsent.Store(int32(c.choices))
	if err := c.run(ctx, out); err != nil {
		return f.named(err)
	}
	return out.finish() // without a lease: a client that reads slowly keeps its answer, not a child
}

// events are what a turn yields: an error is the last pair.
type events = iter.Seq2[codex.Event, error]

// completion is one request on its way through the pool. Its events come
// through a pipeline of iterators, each of which reads the one before:
//
//	lease.Turn -> answered -> counted -> turn -> try -> retry -> cutAt -> merge -> replier
type completion struct {
	s         *Server
	res       *response
	req       *chatRequest
	text      bool // the answers are bare text
	choices   int
	idle      time.Duration // longest silence of the model
	begun     func()        // called with each child that the request gets
	admission *pool.Admission
	spent     atomic.Int64 // tokens, of all turns

	unsent atomic.Int32 // choices whose request is not with the provider yet
	body   *share       // what the request holds until then
}

// run passes on the events of all choices as they come, and charges the key for them.
func (c *completion) run(ctx context.Context, out replier) error {
	defer c.charge(ctx)
	for e, err := range merge(ctx, c.choices, c.answer) {
		if err != nil {
			return err
		}
		if err := out.write(e); err != nil {
			return err
		}
	}
	return nil
}

// answer yields the events of one choice.
func (c *completion) answer(ctx context.Context, choice int) events {
	return func(yield func(codex.Event, error) bool) {
		cutAt(c.req.Stop, c.retry(ctx, choice))(yield)
	}
}

// try runs the turn of a choice on a child that it waits for. Its call has a key of its
// own, which ends with it: a request of this child that comes late finds no call.
func (c *completion) try(ctx context.Context, admission *pool.Admission, choice int) events {
	return func(yield func(codex.Event, error) bool) {
		var call *upstream.Call // that the turn will set off, where there is a relay
		if c.s.relay != nil {
			call = c.s.relay.Prepare(ctx, func() upstream.Request { return c.request(choice) }, c.sent)
			defer call.Done()
		}
		exact := c.req.Exact != nil
		for e, err := range c.turn(ctx, admission, choice, call) {
			if exact && codex.ChildFault(err).Fatal() && !call.Arrived() {
				err = fmt.Errorf("%w: %w", codex.ErrUnsent, err) // a child never gets any of it
			}
			if _, piece := e.(codex.TextDelta); exact && piece {
				e = codex.TextDelta{} // its text is counted, and in the Raw before it
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// request is what the relay sends for a choice.
func (c *completion) request(choice int) upstream.Request {
	if e := c.req.Exact; e != nil {
		if e.apart != nil && e.apart["prompt_cache_key"] == nil && c.s.cfg.CacheKey {
			e.apart["prompt_cache_key"] = marshal(e.cacheKey(c.res.caller))
		}
		return upstream.Request{Model: c.req.Model, Body: e.body, Overrides: e.apart, Header: e.header}
	}
	conversation := c.req.conversation(choice)
	return upstream.Request{Model: c.req.Model, Text: c.text, Input: items(conversation), Overrides: c.s.overrides(c.req, conversation, c.res.caller)}
}

// params makes the turn of a choice. That may be megabytes, so it is done when there is
// a child for them.
func (c *completion) params(choice int, call *upstream.Call) codex.TurnParams {
	conversation := c.req.conversation(choice)
	if call == nil {
		params := turnParams(c.req, conversation)
		params.Tick = c.s.tick(c.idle)
		return params
	}
	// The relay sends the provider all that the caller wrote. The child is only told of
	// the conversation, without tools, images and the caller's model.
	return codex.TurnParams{
		Items: standIns(conversation),
		Meta:  map[string]string{upstream.MetaKey: call.Key},
		Tick:  c.s.tick(c.idle),
		Wake:  call.Wake(),
	}
}

// sent is called for each choice when its request is with the provider and cannot be
// tried again. After the last, nothing needs the body any more.
func (c *completion) sent() {
	if c.unsent.Add(-1) == 0 {
		c.req.forget()
		c.body.giveBack()
	}
}

// retry runs the turn of a choice and, where its child died before it got any of the
// conversation, once more with another child. Of what came later the conversation may be
// the cause: it must not kill another child.
func (c *completion) retry(ctx context.Context, choice int) events {
	return func(yield func(codex.Event, error) bool) {
		var died error
		for e, err := range c.try(ctx, c.admission, choice) {
			if errors.Is(err, codex.ErrUnsent) && ctx.Err() == nil {
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
		c.res.retried.Store(true)
		c.try(ctx, second, choice)(yield)
	}
}

// turn runs a turn on a child that it waits for.
func (c *completion) turn(ctx context.Context, admission *pool.Admission, choice int, call *upstream.Call) events {
	return func(yield func(codex.Event, error) bool) {
		alone, began := c.choices == 1, time.Now()
		lease, err := admission.Acquire(ctx)
		if alone {
			c.res.result.Wait += time.Since(began)
		}
		if err != nil {
			if errors.Is(err, errTimeout) {
				err = errTimeout.by(FaultCapacity)
			}
			yield(nil, err)
			return
		}
		defer lease.Release()
		c.begun()
		run := c.s.turns.begin(lease.Child(), c.res)
		defer c.ended(ctx, run, lease)
		if alone {
			c.res.child = lease.Child()
			if call != nil {
				defer func() {
					c.res.result.Upstream = call.FirstToken()
					c.res.access.status, c.res.access.request = call.Answered()
				}()
			}
		}
		source := lease.Turn(ctx, c.params(choice, call))
		if call != nil {
			source = answered(source, call)
		}
		begun := call != nil
		for e, err := range c.counted(ctx, source, choice, call) {
			// A child that calls the provider itself has the request once it tells anything of
			// the turn. A tick tells nothing: the child may not have read it.
			if _, tick := e.(codex.Tick); !begun && err == nil && !tick {
				begun = true
				c.sent()
			}
			if err != nil && childToBlame(err, call) {
				lease.Blame(err)
			}
			if silent := run.note(e); silent >= c.idle {
				e, err = nil, errIdle
			}
			if late := (*Error)(nil); errors.As(err, &late) && call != nil && !call.Arrived() {
				err = late.by(FaultChild)
			}
			run.failed = err != nil
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// ended notes that a turn is over.
func (c *completion) ended(ctx context.Context, run *running, lease *pool.Lease) {
	c.s.turns.end(run)
	if c.s.cfg.Turned != nil {
		c.s.cfg.Turned(ctx, Turn{Child: run.child, Turns: lease.Turns(), Began: run.began, Failed: run.failed})
	}
}

// endOfTurn is how long a child's turn may last after its answer is over: the child
// has nothing left to do. It takes milliseconds.
const endOfTurn = time.Second

// answered yields the answer of a call while the turn that has set it off runs. Of the
// turn itself only its ticks and its failure count: a turn that fails after its answer
// is over has failed nobody.
func answered(turn events, call *upstream.Call) events {
	return func(yield func(codex.Event, error) bool) {
		var end codex.Event // the last event of the answer, or
		var failure error   // why it is not whole; kept until the turn is over
		var over time.Time
		for e, turnErr := range turn {
			for over.IsZero() {
				event, err := call.Next()
				if event == nil && err == nil {
					break
				}
				if _, last := event.(codex.Completed); last || err != nil {
					end, failure, over = event, explained(err), time.Now()
				} else if !yield(event, nil) {
					return
				}
			}
			tick, isTick := e.(codex.Tick)
			switch {
			case !over.IsZero() && (!isTick || time.Since(over) > endOfTurn):
				yield(end, failure)
				return
			case turnErr != nil:
				yield(nil, turnErr)
				return
			case isTick && over.IsZero():
				if heard := call.Heard(); !heard.IsZero() {
					tick.Silent = min(tick.Silent, time.Since(heard))
				}
				if !yield(tick, nil) {
					return
				}
			}
		}
		yield(nil, &codex.ProtocolError{Problem: "a turn ended without a request"})
	}
}

// named names the field that an error about the conversation is about.
func (f form) named(err error) error {
	if told := (*Error)(nil); f.exact && errors.As(err, &told) && told.Code == "context_length_exceeded" {
		other := *told
		other.Param = f.input
		return &other
	}
	return err
}

// explained is what a caller is told of the provider's failure.
func explained(err error) error {
	if f := (*upstream.Failure)(nil); errors.As(err, &f) {
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
