package pool

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	"codexpool/codex"

	"github.com/jackc/puddle/v2"
)

// maxFailures is how many turns in a row may fail by the child's own fault. One
// can be bad luck, and costs only a turn.
const maxFailures = 3

// Lease is the right to use one child. It belongs to one goroutine, which
// releases it.
type Lease struct {
	pool      *Pool
	admission *Admission
	res       *puddle.Resource[*child]
	began     time.Time
	turns     int   // that the child has had, with that of the lease
	failure   error // of the turn, where the child is to blame
	released  atomic.Bool
}

// Turn runs one turn on the child; see [codex.Client.Turn].
func (l *Lease) Turn(ctx context.Context, p codex.TurnParams) iter.Seq2[codex.Event, error] {
	if l.released.Load() {
		panic("BUG: a turn on a lease that was released")
	}
	c := l.res.Value()
	l.pool.state.update(c, func() { c.turns++; l.turns = c.turns })
	return c.Turn(ctx, p)
}

// Child is the process id of the child, for the log.
func (l *Lease) Child() int { return l.res.Value().Pid() }

// Turns is how many turns the child has had, with that of the lease.
func (l *Lease) Turns() int { return l.turns }

// Blame reports that the turn failed with err by the child's own fault: neither
// the provider nor the caller caused it. The pool cannot find that out by itself.
func (l *Lease) Blame(err error) { l.failure = err }

// Release gives the child back. It returns at once: what the child needs before
// the next lease is done in the background. It is idempotent.
func (l *Lease) Release() {
	if l.released.Swap(true) {
		return
	}
	l.pool.state.releaseOne(l.admission)
	l.pool.tasks.Go(func() { l.pool.takeBack(l) }) // ends within the calls' deadlines
}

// takeBack inspects a child that was released, and keeps or retires it.
func (p *Pool) takeBack(l *Lease) {
	c := l.res.Value()
	defer func() {
		if p.cfg.Hooks.Released != nil {
			p.cfg.Hooks.Released(p.ctx, time.Since(l.began))
		}
	}()
	c.inTurn = fault(c) != ""
	if why := cmp.Or(fault(c), failing(c, l.failure)); why != "" {
		p.retire(l.res, why)
		return
	}
	if c.failures == 0 {
		p.starts.proven(c.born)
	}
	if why := p.state.retireIfWorn(c); why != "" {
		p.retire(l.res, why)
		return
	}
	if p.ctx.Err() == nil {
		if err := c.Warm(p.ctx); err != nil {
			c.odd = err
			p.retire(l.res, cmp.Or(fault(c), Failing))
			return
		}
		c.answered = time.Now()
	}
	p.giveBack(l.res)
}

// failing counts the turns in a row that failed by the child's own fault, and
// returns Failing when they are too many.
func failing(c *child, failure error) Reason {
	if failure == nil {
		c.failures = 0
		return ""
	}
	if c.failures++; c.failures < maxFailures {
		return ""
	}
	c.odd = fmt.Errorf("%d turns failed in a row, the last with: %w", c.failures, failure)
	return Failing
}
