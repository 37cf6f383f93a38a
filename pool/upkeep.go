package pool

import "time"

// upkeep is the pool's one background goroutine. It only decides: starts run in
// goroutines of their own, so that one slow child stops nothing. It looks when
// a child has gone, and every UpkeepEvery for those that grow old.
//
// Health probes will be decided here too.
func (p *Pool) upkeep() {
	ticker := time.NewTicker(p.cfg.UpkeepEvery)
	defer ticker.Stop()
	for {
		p.fill() // first, so that sweep sees what is being replaced
		p.sweep()
		select {
		case <-p.ctx.Done():
			return
		case <-p.wake:
		case <-ticker.C:
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

// sweep retires idle children that are dead, all of them, and that are worn
// out, one at a time. AcquireAllIdle takes them from callers, so nothing here
// may wait.
func (p *Pool) sweep() {
	p.sweeping.Lock()
	defer p.sweeping.Unlock()
	replacing := p.children.Stat().ConstructingResources() > 0 || p.filling.Load() > 0 || p.dying.Load() > 0
	for _, res := range p.children.AcquireAllIdle() {
		c := res.Value()
		if why := fault(c); why != "" {
			p.retire(res, why)
		} else if why := p.worn(c); why != "" && !replacing {
			replacing = true
			p.retire(res, why)
		} else {
			res.ReleaseUnused()
		}
	}
}

// fill starts as many children as MinIdle wants and Size allows.
func (p *Pool) fill() {
	s := p.children.Stat()
	starting := max(int64(s.ConstructingResources()), p.filling.Load())
	missing := min(
		int64(p.cfg.MinIdle)-int64(s.IdleResources())-starting,
		int64(p.cfg.Size)-int64(s.IdleResources()+s.AcquiredResources())-starting,
	)
	for range missing {
		p.filling.Add(1)
		p.tasks.Go(func() { // ends with a child, or with the pool
			defer p.filling.Add(-1)
			// Not available means that a caller in line got the slot first.
			_ = p.children.CreateResource(p.ctx)
		})
	}
}
