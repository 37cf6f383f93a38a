package pool

import (
	"slices"
	"time"

	"github.com/jackc/puddle/v2"
)

// upkeep is the pool's one background goroutine. It only decides: starts, probes
// and ends run in goroutines of their own, so that one slow child stops nothing.
// It looks when a child has gone or a caller has come, and every UpkeepEvery for
// children that grow old or fat, or have been silent for long.
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

// look asks upkeep to look now whether children must be started.
func (p *Pool) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// lookAtAll asks upkeep to look at the idle children too.
func (p *Pool) lookAtAll() {
	p.stale.Store(true)
	p.look()
}

// fill starts as many children as those in line and MinIdle want, and Size
// allows. One that is worn does not count: where there is room, its replacement
// is warm before it goes.
func (p *Pool) fill() {
	n := p.census()
	want := n.waiting + p.cfg.MinIdle + min(n.idleWorn, 1)
	if p.unavailable() != nil {
		want = max(want, 1) // those who want one are sent away: recovery must not wait for them
	}
	for range min(want-n.idle-n.starting, n.room(p.cfg.Size)) {
		p.starting.Add(1)
		p.growing.Go(func() { // ends with a child, or with the pool
			defer p.lookAtAll() // it may replace a worn one
			defer p.starting.Add(-1)
			p.grow()
		})
	}
}

// retireWorn retires a worn child that the caller holds, if it may go now.
func (p *Pool) retireWorn(res *puddle.Resource[*child]) bool {
	c := res.Value()
	why := p.worn(c)
	if why == "" || !p.mayGo(c) {
		return false
	}
	p.retire(res, why)
	return true
}

// mayGo says whether a worn child may go now, and marks it as leaving if so. They
// go one at a time, each when the replacement of the one before is warm, so that
// under load as many as possible serve, and where one cannot be started no other
// follows.
func (p *Pool) mayGo(c *child) bool {
	p.roster.mu.Lock()
	defer p.roster.mu.Unlock()
	n := p.count()
	others := n.idle
	if c.state == Idle {
		others--
	}
	calm := n.starting == 0 && n.uncertain == 0
	full := others >= n.waiting+p.cfg.MinIdle || n.room(p.cfg.Size) <= 0 // else fill has not looked since one went
	if calm && full {
		c.state = Leaving
	}
	return calm && full
}

// sweep looks at the idle children. It retires those that are dead, all of them,
// and those that are worn, as far as they may go, and has one probed. It holds
// them all for a moment, so nothing here may wait.
func (p *Pool) sweep() {
	var idle []*puddle.Resource[*child]
	for p.tickets.TryAcquire(1) {
		res, err := p.take()
		if err != nil {
			break // closed, which Close does not do before upkeep has ended
		}
		idle = append(idle, res)
	}
	probing := p.census().probing > 0
	for _, res := range slices.Backward(idle) { // so that puddle still lends the one first that was used last
		c := res.Value()
		if time.Since(c.born) >= crashAge {
			p.starts.proven(c.born)
		}
		if why := fault(c); why != "" {
			p.retire(res, why)
		} else if p.retireWorn(res) {
			continue
		} else if p.silent(c) && !probing {
			probing = true
			p.probe(res)
		} else {
			p.giveBack(res)
		}
	}
}
