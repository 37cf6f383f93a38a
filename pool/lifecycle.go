package pool

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"time"

	"codexpool/codex"

	"github.com/jackc/puddle/v2"
)

// crashAge is the age below which a child that dies before any turn counts as a
// failed start.
const crashAge = 30 * time.Second

// grow starts one child, when its time has come, and makes it idle. It tries
// again after a failure, for as long as the pool lives: upkeep counts on it.
func (p *Pool) grow() {
	for p.ctx.Err() == nil {
		done, err := p.starts.enter(p.ctx)
		if err != nil {
			break
		}
		err = p.state.slots.CreateResource(p.ctx)
		done(err)
		if err == nil {
			p.retireIfFaulty(p.state.grown())
			return
		}
		p.dismissIfUnavailable()
	}
	p.state.startGivenUp()
}

// construct is puddle's constructor: it starts a child and warms it.
func (p *Pool) construct(ctx context.Context) (*child, error) {
	began, generation := time.Now(), p.state.currentGeneration()
	client, err := p.cfg.Spawn(ctx)
	if err == nil {
		if err = client.Warm(ctx); err != nil {
			client.Close()
		}
	}
	took := time.Since(began)
	if p.ctx.Err() != nil { // nobody needs it any more
		if err == nil {
			client.Close()
		}
		return nil, ErrClosed
	}
	if p.cfg.Hooks.Spawned != nil {
		p.cfg.Hooks.Spawned(p.ctx, took, err)
	}
	if err != nil {
		p.logFailedStart(err, took)
		return nil, err
	}
	c := &child{
		Client:     client,
		born:       time.Now(),
		state:      Idle,
		generation: generation,
		maxTurns:   int(math.Ceil(p.jittered(float64(p.cfg.MaxTurns)))),
		maxAge:     time.Duration(p.jittered(float64(p.cfg.MaxAge))),
	}
	c.answered = c.born
	p.state.add(c)
	p.tasks.Go(func() { // ends with the child
		<-client.Done()
		p.state.exited()
		p.dismissIfUnavailable()
		p.retireIfFaulty(c)
		p.look()
	})
	p.cfg.Log.Info("child started", "child", c.Pid(), "version", c.Version(), "took", took)
	return c, nil
}

// logFailedStart logs what a child wrote and said before it failed. No prompt has reached
// it yet, so both are safe to log.
func (p *Pool) logFailedStart(err error, took time.Duration) {
	attrs := []any{"err", err, "took", took}
	if exit := (*codex.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		attrs = append(attrs, "stderr", exit.Stderr)
	}
	if said := codex.Said(err); said != "" {
		attrs = append(attrs, "said", said)
	}
	p.cfg.Log.Error("child start failed", attrs...)
}

// jittered varies a limit.
func (p *Pool) jittered(limit float64) float64 {
	return limit * (1 + p.cfg.Jitter*(2*rand.Float64()-1))
}

// retire stops a child that the caller holds, in the background. It is Hijack and
// not Destroy that frees the slot: only so can upkeep be woken after that.
func (p *Pool) retire(res *puddle.Resource[*child], why Reason) {
	c := res.Value()
	c.why = why
	p.state.set(c, Leaving)
	p.tasks.Go(func() { // ends within the steps of stopping
		p.stop(c)
		res.Hijack()
		p.state.remove(c)
		p.look()
	})
}

// giveBack offers a child that the caller holds to others.
func (p *Pool) giveBack(res *puddle.Resource[*child]) {
	c := res.Value()
	p.state.giveBack(res)
	p.retireIfFaulty(c) // it may have ended while it was held
}

// retireIfFaulty retires a child that is idle and cannot serve.
func (p *Pool) retireIfFaulty(c *child) {
	if res, why := p.state.takeIfFaulty(c); res != nil {
		p.retire(res, why)
	}
}

// destroy is puddle's destructor, for the children that are idle when the pool
// closes or come back after that.
func (p *Pool) destroy(c *child) {
	c.why = cmp.Or(fault(c), Shutdown)
	p.stop(c)
	p.state.remove(c)
}

// stop stops a child and reports its death. It returns once the child is reaped.
func (p *Pool) stop(c *child) {
	err, age := c.err(), time.Since(c.born) // before Close adds an end of its own
	c.Close()
	d := p.state.died(c, Death{Pid: c.Pid(), Why: c.why, At: time.Now(), Age: age, InTurn: c.inTurn, Err: err})
	level := slog.LevelInfo
	attrs := []any{"child", d.Pid, "why", d.Why, "turns", d.Turns, "age", d.Age.Round(time.Millisecond)}
	if err != nil {
		level = slog.LevelWarn
		attrs = append(attrs, "err", err)
		if d.Turns == 0 && d.Age < crashAge {
			p.diedYoung(err)
		}
	}
	p.cfg.Log.Log(p.ctx, level, "child gone", attrs...)
	if p.cfg.Hooks.Retired != nil {
		p.cfg.Hooks.Retired(p.ctx, d)
	}
}

// diedYoung notes a child that died before it did anything: the next must not be
// started in a loop. A child that was killed from outside proves nothing.
func (p *Pool) diedYoung(err error) {
	if exit := (*codex.ExitError)(nil); errors.As(err, &exit) && exit.Killed() {
		p.starts.pauseOnce()
		return
	}
	p.starts.failed(err)
	p.dismissIfUnavailable()
}
