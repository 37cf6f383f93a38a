package pool

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/puddle/v2"
)

// Admission is a caller's right to wait for one or several children, and to be
// counted while it does. Acquire may be called by several goroutines.
type Admission struct {
	pool   *Pool
	tenant string

	// The time in the queue is limited for the first child only: the callers of
	// the others may be waiting for the first one's turn to end.
	timer   *time.Timer   // nil = no limit
	expired chan struct{} // closed by timer

	places int   // calls of Acquire that remain; guarded by pool.state.mu, like all that follows
	holds  int   // children that are counted as admitted: places, callers that wait, and leases; 0 = it was dismissed
	begun  bool  // a child was lent to it
	kept   bool  // see Keep
	away   error // why a call of Acquire was turned away by a drain or a close, or nil
}

// Admit admits a caller that needs n children at once, or returns [ErrFull]: a
// caller must not hold some of its children while the queue has no room to wait for
// the others. The caller waits in the queue of its tenant, any string: tenants
// are served in turn, however many children each of them waits for. Where there is no
// room, the newest callers of the tenant that has most in the queue make it, if that
// tenant has no fewer children after that than this one; their Acquire returns ErrFull.
// ctx is the request's, for Hooks.Acquired. The caller owns the Admission and closes it.
func (p *Pool) Admit(ctx context.Context, tenant string, n int) (*Admission, error) {
	if n < 1 {
		panic(fmt.Sprintf("BUG: %d children", n))
	}
	a := &Admission{pool: p, tenant: tenant, places: n, holds: n}
	if err := p.state.admit(a); err != nil {
		p.acquired(ctx, time.Now(), p.state.waiting(), err)
		return nil, err
	}
	if p.cfg.AcquireTimeout > 0 {
		a.expired = make(chan struct{})
		a.timer = time.AfterFunc(p.cfg.AcquireTimeout, func() { close(a.expired) })
	}
	return a, nil
}

// Room returns [ErrFull] if Admit would admit nobody of the tenant now: for a caller with
// work to do before it, which would be in vain. It counts as an Admit that failed.
func (p *Pool) Room(ctx context.Context, tenant string) error {
	err := p.state.room(tenant)
	if err != nil {
		p.acquired(ctx, time.Now(), p.state.waiting(), err)
	}
	return err
}

// Keep has the calls of Acquire wait on during a drain, and while the pool closes: for a
// caller that has begun its answer with a part of its children. It returns why such a
// call was turned away already, if one was.
func (a *Admission) Keep() error {
	s := &a.pool.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.away == nil {
		a.kept = true
	}
	return a.away
}

// Close gives up what was not acquired. It is idempotent. Leases stay.
func (a *Admission) Close() {
	a.stopTimer()
	s := &a.pool.state
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(a, a.places)
	a.places = 0
}

func (a *Admission) stopTimer() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// use takes one place.
func (a *Admission) use() {
	s := &a.pool.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.places == 0 {
		panic("BUG: more children than were admitted, or a closed admission")
	}
	a.places--
}

// Acquire lends a child, and waits for one in the queue. The caller releases the
// lease. The error is [ErrFull], [ErrTimeout], [ErrDraining], [ErrClosed], one that wraps
// [ErrUnavailable], or the cause of ctx's end. Each call uses up one of the
// admitted children, also if it fails.
func (a *Admission) Acquire(ctx context.Context) (*Lease, error) {
	a.use()
	p := a.pool
	began, ahead := time.Now(), p.state.waiting()
	lease, err := p.acquire(ctx, a)
	if err != nil {
		p.state.releaseOne(a)
	} else {
		a.stopTimer()
	}
	p.acquired(ctx, began, ahead, err)
	return lease, err
}

// Acquire is Admit and Acquire for one child and no tenant in particular.
func (p *Pool) Acquire(ctx context.Context) (*Lease, error) {
	a, err := p.Admit(ctx, "", 1)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	return a.Acquire(ctx)
}

// acquired reports that a caller's waiting has ended.
func (p *Pool) acquired(ctx context.Context, began time.Time, ahead int, err error) {
	if p.cfg.Hooks.Acquired != nil {
		p.cfg.Hooks.Acquired(ctx, time.Since(began), ahead, err)
	}
}

// acquire waits until it gets a child that is well.
func (p *Pool) acquire(ctx context.Context, a *Admission) (*Lease, error) {
	defer p.look() // MinIdle may need another in the place of the one that was lent
	for {
		res, err := p.wait(ctx, a)
		if err != nil {
			return nil, err
		}
		if why := fault(res.Value()); why != "" {
			p.retire(res, why)
			continue
		}
		return &Lease{pool: p, admission: a, res: res, began: time.Now()}, nil
	}
}

// wait waits in the queue for a child.
func (p *Pool) wait(ctx context.Context, a *Admission) (*puddle.Resource[*child], error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w := &waiter{tenant: a.tenant, admission: a, done: make(chan struct{})}
	if err := p.state.enter(w); err != nil {
		return nil, err
	}
	p.dismissIfUnavailable() // w too
	p.look()                 // the queue may need another child
	select {
	case <-w.done:
	case <-ctx.Done():
		if p.state.withdraw(w) {
			return nil, context.Cause(ctx)
		}
	case <-a.expired:
		if p.state.withdraw(w) {
			return nil, ErrTimeout
		}
	}
	<-w.done // where withdraw came too late
	if w.err != nil {
		return nil, w.err
	}
	if ctx.Err() != nil {
		p.state.giveBack(w.child) // nobody would use it
		return nil, context.Cause(ctx)
	}
	return w.child, nil
}

// dismissIfUnavailable ends the waiting of all callers where it is pointless: no
// child is alive, the last start failed, and the next has to wait for its time.
func (p *Pool) dismissIfUnavailable() {
	if err := p.starts.hopeless(); err != nil {
		p.state.dismissUnlessAlive(fmt.Errorf("%w: %w", ErrUnavailable, err))
	}
}
