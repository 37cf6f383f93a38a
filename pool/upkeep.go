package pool

import (
	"time"

	"github.com/jackc/puddle/v2"
)

// upkeep is the pool's one background goroutine. It only decides: starts and
// ends run in goroutines of their own, so that one slow child stops nothing. It
// looks when a child has gone or a caller has come, and every UpkeepEvery for
// children that grow old.
//
// Health probes will be decided here too.
func (p *Pool) upkeep() {
	ticker := time.NewTicker(p.cfg.UpkeepEvery)
	defer ticker.Stop()
	for due := true; ; {
		p.fill() // first, so that sweep sees what is being replaced
		if p.fallen.Swap(false) || due {
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

// look asks upkeep to look now.
func (p *Pool) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// fill starts as many children as those in line and MinIdle want, and Size
// allows.
func (p *Pool) fill() {
	s := p.Stat()
	want := s.Waiting + p.cfg.MinIdle
	if p.unavailable() != nil {
		want = max(want, 1) // those who want one are sent away: recovery must not wait for them
	}
	for range min(want-s.Idle-s.Starting, s.Size-s.Idle-s.Leased-s.Starting) {
		p.starting.Add(1)
		p.growing.Go(func() { // ends with a child, or with the pool
			defer p.look()
			defer p.starting.Add(-1)
			p.grow()
		})
	}
}

// sweep retires idle children that are dead, all of them, and that are worn
// out, one at a time. It holds them all for a moment, so nothing here may wait.
func (p *Pool) sweep() {
	p.sweeping.Lock()
	defer p.sweeping.Unlock()
	var idle []*puddle.Resource[*child]
	for p.tickets.TryAcquire(1) {
		res, err := p.take()
		if err != nil {
			break // closed, which Close does not do before upkeep has ended
		}
		idle = append(idle, res)
	}
	replacing := p.starting.Load() > 0 || p.dying.Load() > 0
	for _, res := range idle {
		c := res.Value()
		if time.Since(c.born) >= crashAge {
			p.starts.proven(c.born)
		}
		if why := fault(c); why != "" {
			p.retire(res, why)
		} else if why := p.worn(c); why != "" && !replacing {
			replacing = true
			p.retire(res, why)
		} else {
			p.giveBack(res)
		}
	}
}
