package pool

import "time"

// upkeep is the pool's one background goroutine. It only decides: starts, probes
// and ends run in goroutines of their own, so that one slow child stops nothing.
// It looks when something has happened to a child or a caller has come, which costs
// the same however many children there are; and at all of them every UpkeepEvery, for
// those that grow old or large, or write what nobody waits for.
func (p *Pool) upkeep() {
	ticker := time.NewTicker(p.cfg.UpkeepEvery)
	defer ticker.Stop()
	var m meter
	for due := true; ; {
		if due {
			p.weigh(&m)
			p.sweep()
		}
		p.fill() // first, so that retireWorn sees what is being replaced
		p.retireWorn()
		p.probeSilent()
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

// look makes upkeep look now.
func (p *Pool) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// sweep looks at all idle children, and retires those that cannot serve.
func (p *Pool) sweep() {
	for _, c := range p.state.resting() {
		if time.Since(c.born) >= crashAge {
			p.starts.proven(c.born)
		}
		p.retireIfFaulty(c)
	}
}

// fill starts as many children as are needed.
func (p *Pool) fill() {
	for range p.state.plan(p.starts.hopeless() != nil) {
		p.growing.Go(func() { // ends with a child, or with the pool
			p.grow()
			p.look() // the new child may replace a worn one
		})
	}
}

// retireWorn retires an idle child that is worn, if one may be retired now. Only one
// may at a time.
func (p *Pool) retireWorn() {
	if res, why := p.state.takeWorn(); res != nil {
		p.retire(res, why)
	}
}

// probeSilent has the next child probed that is due. Its end wakes upkeep for the
// one after it.
func (p *Pool) probeSilent() {
	if res := p.state.takeSilent(); res != nil {
		p.probe(res)
	}
}
