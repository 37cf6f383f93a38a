package pool

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"time"

	"codexpool/codex"

	"github.com/jackc/puddle/v2"
)

// Lease is the right to use one child. It belongs to one goroutine.
type Lease struct {
	pool     *Pool
	res      *puddle.Resource[*child]
	released atomic.Bool
}

// Turn runs one turn on the child; see [codex.Client.Turn].
func (l *Lease) Turn(ctx context.Context, p codex.TurnParams) iter.Seq2[codex.Event, error] {
	if l.released.Load() {
		panic("BUG: a turn on a lease that was released")
	}
	l.res.Value().turns++
	return l.res.Value().Turn(ctx, p)
}

// Child is the process id of the child, for the log.
func (l *Lease) Child() int { return l.res.Value().Pid() }

// Release gives the child back. It returns at once: what the child needs before
// the next lease happens in the background. It is idempotent.
func (l *Lease) Release() {
	if l.released.Swap(true) {
		return
	}
	l.pool.admitted.Add(-1)
	l.pool.tasks.Go(func() { l.pool.takeBack(l.res) }) // ends within the calls' deadlines
}

// takeBack looks at a child that was released, and keeps or retires it.
func (p *Pool) takeBack(res *puddle.Resource[*child]) {
	c := res.Value()
	if why := cmp.Or(fault(c), p.worn(c)); why != "" {
		p.retire(res, why)
		return
	}
	p.starts.proven(c.born)
	if p.ctx.Err() == nil {
		if err := c.Warm(p.ctx); err != nil {
			p.retire(res, cmp.Or(fault(c), Protocol))
			return
		}
	}
	p.giveBack(res)
}

// fault says why a child cannot serve, or "".
func fault(c *child) Reason {
	if c.Reusable() {
		return ""
	}
	err := c.Err()
	switch exit := (*codex.ExitError)(nil); {
	case errors.As(err, &exit):
		return Exited
	case errors.Is(err, codex.ErrUnresponsive):
		return Unresponsive
	default:
		return Protocol
	}
}

// worn says which limit a child has reached, or "". While no child can be
// started an old one is better than none.
func (p *Pool) worn(c *child) Reason {
	age := time.Since(c.born)
	switch {
	case age < p.cfg.MinLife, p.starts.failure() != nil:
		return ""
	case c.maxTurns > 0 && c.turns >= c.maxTurns:
		return Turns
	case c.maxAge > 0 && age >= c.maxAge:
		return Age
	}
	return ""
}
