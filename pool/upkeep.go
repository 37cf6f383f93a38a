package pool

import (
	"slices"
	"time"

	"github.com/jackc/puddle/v2"
)

// upkeep is the pool's one background goroutine. It only decides: starts, probes
// and ends run in goroutines of their own, so that one slow child stops nothing.
// It looks when a child is gone or a caller has come, and every UpkeepEvery for
// children that grow old or large, or have been silent.
func (p *Pool) upkeep() {
	ticker := time.NewTicker(p.cfg.UpkeepEvery)
	defer ticker.Stop()
	for due := true; ; {
		if due {
			p.weigh()
		}
		p.fill() // first, so that sweep sees what is being replaced
		if p.stale.Swap(false) || due {
			p.sweep()
		}
		due = false
		select {
		case <-p.ctx.Done():
			return
		case <-p.wake:
		case <-ticker.C:
			due = true
		}
	}
}

// look makes upkeep look now whether children must be started.
func (p *Pool) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// lookAtAll makes upkeep look at the idle children too.
func (p *Pool) lookAtAll() {
	p.stale.Store(true)
	p.look()
}

// fill starts as many children as are needed.
func (p *Pool) fill() {
	for range p.state.plan(p.starts.hopeless() != nil) {
		p.growing.Go(func() { // ends with a child, or with the pool
			p.grow()
			p.lookAtAll() // the new child may replace a worn one
		})
	}
}

// retireWorn retires a child that the caller holds, if it is worn and may be
// retired now.
func (p *Pool) retireWorn(res *puddle.Resource[*child]) bool {
	why := p.state.retireIfWorn(res.Value())
	if why != "" {
		p.retire(res, why)
	}
	return why != ""
}

// sweep looks at the idle children. It retires those that are dead, all of them,
// and those that are worn, as far as they may be retired, and has one probed. It
// holds them all for a moment, so nothing here may wait.
func (p *Pool) sweep() {
	idle := p.state.takeAll()
	probing := p.state.probing()
	for _, res := range slices.Backward(idle) { // so that puddle still lends the one first that was used last
		c := res.Value()
		if time.Since(c.born) >= crashAge {
			p.starts.proven(c.born)
		}
		why := fault(c)
		switch {
		case why != "":
			p.retire(res, why)
		case p.retireWorn(res): // it is gone
		case p.dueForProbe(c) && !probing:
			probing = true
			p.probe(res)
		default:
			p.state.giveBack(res)
		}
	}
}
