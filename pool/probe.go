package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/puddle/v2"
)

// silent says that the child is due for a probe.
func (p *Pool) silent(c *child) bool {
	return p.cfg.ProbeEvery > 0 && time.Since(c.answered) >= p.cfg.ProbeEvery
}

// probe asks a child that upkeep holds how it is. Nobody can lease it meanwhile,
// so the children are asked one by one: that takes a healthy one less than a
// millisecond, for which callers may wait. One that takes longer is late: it no
// longer counts as idle, and the next is asked.
func (p *Pool) probe(res *puddle.Resource[*child]) {
	c := res.Value()
	p.roster.set(c, Probing)
	p.tasks.Go(func() { // ends within the deadline and the call's own
		late := time.AfterFunc(p.cfg.ProbeTimeout/10, func() {
			if p.roster.late(c) {
				p.lookAtAll()
			}
		})
		why := p.ask(c)
		late.Stop()
		if why != "" {
			p.retire(res, why)
		} else {
			p.giveBack(res)
		}
		p.lookAtAll() // it is the next one's turn
	})
}

// ask looks at a child twice: one late answer can be a starved machine. The
// first look is the deadline; the second is what a call is given beyond it, and
// a child that is silent for that long too is spoilt, and killed at once.
func (p *Pool) ask(c *child) Reason {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.ProbeTimeout)
	defer cancel()
	began := time.Now()
	health, err := c.Ping(ctx)
	probe := &Probe{At: began, Took: time.Since(began), Health: health, Err: err}
	c.probe.Store(probe)
	if p.cfg.Hooks.Probed != nil {
		p.cfg.Hooks.Probed(probe.Took, err)
	}
	if why := fault(c); why != "" {
		return why
	}
	if health.ActiveTurns > 0 {
		c.odd = fmt.Errorf("%d turns run in an idle child", health.ActiveTurns)
		return Protocol
	}
	c.answered = time.Now() // a refusal is an answer too: other versions of the CLI may not know the question
	return ""
}
