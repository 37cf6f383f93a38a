package pool

import (
	"fmt"
	"time"

	"codexpool/codex"

	"github.com/jackc/puddle/v2"
)

// lateAfter is the time without an answer after which a probed child is late. It is
// many times what a healthy child needs, so that a busy machine makes none late. It
// is a fraction of the deadline, so that callers and the next probe do not wait for
// a wedged child.
func (p *Pool) lateAfter() time.Duration { return p.cfg.ProbeTimeout / 10 }

// probe probes a child that upkeep has taken for it. Nobody can lease it meanwhile, so the
// children are probed one by one: a healthy one answers within a millisecond, for
// which callers may wait. One that takes longer is late: it no longer counts as
// idle, and the next is probed.
func (p *Pool) probe(res *puddle.Resource[*child]) {
	c := res.Value()
	p.tasks.Go(func() { // ends within the probe's deadline and the call's own
		late := time.AfterFunc(p.lateAfter(), func() {
			if p.state.markLate(c) {
				p.look()
			}
		})
		why := p.ping(c)
		late.Stop()
		if why != "" {
			p.retire(res, why)
		} else {
			p.giveBack(res)
		}
		p.look() // for the next probe
	})
}

// ping sends the probe and waits twice: one late answer can be a starved machine.
// The first wait is ProbeTimeout; the second is what a call is given beyond its
// context, and a child that is silent for that long too is spoilt.
func (p *Pool) ping(c *child) Reason {
	ctx, cancel := codex.Patience(p.ctx, p.cfg.ProbeTimeout)
	defer cancel()
	began := time.Now()
	health, err := c.Ping(ctx)
	probe := &Probe{At: began, Took: time.Since(began), Health: health, Err: err}
	p.state.update(c, func() { c.probe = probe })
	if p.cfg.Hooks.Probed != nil {
		p.cfg.Hooks.Probed(p.ctx, probe.Took, err)
	}
	if why := fault(c); why != "" {
		return why
	}
	if health.ActiveTurns > 0 {
		c.odd = fmt.Errorf("%d turns run in an idle child", health.ActiveTurns)
		return Protocol
	}
	c.answered = time.Now() // an error is an answer too: other versions of the CLI may not have this method
	return ""
}
