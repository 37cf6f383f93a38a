package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"codexpool/codex"
	"codexpool/pool"
	"codexpool/upstream"
)

// chatCompletions serves POST /v1/chat/completions: decode, stand in line, run
// one turn, and pass its events on as they come.
func (s *Server) chatCompletions(res *response, r *http.Request) error {
	req, err := s.decodeChat(res, r)
	if err != nil {
		return err
	}
	idle := s.cfg.IdleTimeout
	if req.Stream {
		leave, err := s.openStream()
		if err != nil {
			return err
		}
		defer leave()
		idle = s.cfg.StreamIdleTimeout
	}
	params := turnParams(req)
	params.Tick = s.tick(idle)
	call := s.prepare(r, req)
	if call != nil {
		defer call.Done()
		params.Meta = map[string]string{upstream.MetaKey: call.Key}
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), s.cfg.Timeout, errTimeout)
	defer cancel()
	lease, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer lease.Release()
	res.child = lease.Child()

	reply := s.newReplier(res, r, req)
	for e, err := range lease.Turn(ctx, params) {
		if err != nil {
			return explained(err, call)
		}
		if t, ok := e.(codex.Tick); ok && t.Silent >= idle {
			return errIdle
		}
		if err := reply.write(e); err != nil {
			return err
		}
	}
	lease.Release() // a client that reads slowly keeps its answer, not a child
	return reply.finish()
}

// prepare tells the relay what the caller wants of the provider.
func (s *Server) prepare(r *http.Request, req chatRequest) *upstream.Call {
	if s.relay == nil {
		return nil
	}
	return s.relay.Prepare(overrides(req, r.Header.Get("Authorization")))
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

// openStream admits a stream: add, then compare, then undo.
func (s *Server) openStream() (leave func(), err error) {
	leave = func() { s.streams.Add(-1) }
	if n := s.streams.Add(1); s.cfg.MaxStreams > 0 && n > int64(s.cfg.MaxStreams) {
		leave()
		return nil, errTooManyStreams
	}
	return leave, nil
}

// acquire stands in line for at most AcquireTimeout.
func (s *Server) acquire(ctx context.Context) (*pool.Lease, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.AcquireTimeout, errAcquireTimeout)
	defer cancel()
	return s.pool.Acquire(ctx)
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
