// Package pool keeps a bounded set of warm children and lends them one at a time.
//
// The api admits a request, acquires a [Lease] for it, runs one turn on the lease
// and releases it. It never says what should become of the child: release
// inspects the child and decides. One upkeep goroutine keeps the set warm.
// Everything else that runs in the background is short, at most one goroutine a
// child and one for its end, and joined by Close.
//
// Two things end a child: a fault, at once, and a limit that it has reached, by
// which it is worn. A worn child serves on until it may be retired, see
// retireIfWorn.
//
// On puddle: it has a slot for each child, from its start until it is reaped, so that
// Size bounds processes, and Close waits for all. Its Acquire would start a child for
// a caller that finds none idle, and bind the caller to that start and its failure.
// So callers wait in a queue of our own, and upkeep alone starts children. It lends
// only the child that came back last. So idle children lie in a list of our own,
// where upkeep finds that which has been silent for longest, and a child that dies.
package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"codexpool/codex"

	"github.com/jackc/puddle/v2"
)

// Why no lease is given, apart from the end of the caller's context.
var (
	ErrFull        = errors.New("pool: the queue is full")
	ErrTimeout     = errors.New("pool: waited too long in the queue")
	ErrDraining    = errors.New("pool: draining")
	ErrClosed      = errors.New("pool: closed")
	ErrUnavailable = errors.New("pool: no child can be started") // wraps the failure of the last start
)

// Config says how the pool behaves. A limit of 0 means no limit, except for Size,
// which must be more than 0, and MaxWaiting, where it means no queue.
type Config struct {
	Size       int // most children, each one process
	MinIdle    int // children kept idle while there is room
	MaxWaiting int // most callers in the queue, beyond Size that hold a lease; 0 = no queue

	AcquireTimeout time.Duration // longest time in the queue, for the first child of an admission

	MaxTurns  int           // turns of a child before it is replaced; jittered
	MaxAge    time.Duration // age of a child before it is replaced; jittered
	MaxMemory int64         // private memory of a child's process group before it is replaced, bytes; on Linux only
	MinLife   time.Duration // age below which neither turns nor age nor memory replace a child
	Jitter    float64       // fraction, from 0 to less than 1, by which MaxTurns and MaxAge vary, so that children are not all replaced at once

	ProbeEvery   time.Duration // a child that was idle and silent for that long is probed; 0 = never
	ProbeTimeout time.Duration // first deadline of a probe; the child is replaced 2 s after it; 0 means 2 s

	UpkeepEvery time.Duration // how often ages and memory are looked at; 0 means 1 s
	BackoffMin  time.Duration // pause after a failed start; 0 means 0.5 s
	BackoffMax  time.Duration // longest pause between failed starts; 0 means 30 s

	// Spawn starts one child, which the pool then owns. It sets its own deadline:
	// ctx ends only with the pool.
	Spawn func(ctx context.Context) (*codex.Client, error)

	Hooks Hooks
	Log   *slog.Logger
}

// Hooks are called as things happen. Any may be nil; none may block. The ctx of
// Acquired is the caller's, so that a tracer finds its span there; that of the
// others ends with the pool.
type Hooks struct {
	Spawned  func(ctx context.Context, took time.Duration, err error)
	Acquired func(ctx context.Context, waited time.Duration, ahead int, err error) // once for each call of Admission.Acquire, and once for each Admit that failed; ahead is how many were in the queue when it was called
	Probed   func(ctx context.Context, took time.Duration, err error)
	Released func(ctx context.Context, held time.Duration) // once for each lease, when its child can be lent again or is to be stopped
	Retired  func(ctx context.Context, d Death)            // exactly once for every child that was started
}

// Reason says why a child is gone.
type Reason string

// The closed list of reasons.
const (
	Exited       Reason = "exited"       // it exited by itself, or was killed from outside
	Unresponsive Reason = "unresponsive" // it did not answer, or its turn did not end
	Protocol     Reason = "protocol"     // it wrote what the protocol does not allow
	Failing      Reason = "failing"      // its turns failed again and again, by its own fault, or it could not be made ready for another
	Turns        Reason = "turns"        // it reached MaxTurns
	Age          Reason = "age"          // it reached MaxAge
	Memory       Reason = "memory"       // it reached MaxMemory
	Recycled     Reason = "recycled"     // Recycle was called
	Shutdown     Reason = "shutdown"     // the pool closed
)

// Reasons lists all of them, for whoever counts.
var Reasons = []Reason{Exited, Unresponsive, Protocol, Failing, Turns, Age, Memory, Recycled, Shutdown}

// Pool is a set of children. Its methods may be called by any goroutine.
type Pool struct {
	cfg    Config
	state  state
	starts *starts

	ctx    context.Context // the pool's life; ended by Close. It is no request's.
	cancel context.CancelFunc
	wake   chan struct{} // buffer 1; makes upkeep look now

	closed   sync.Once
	deciding sync.WaitGroup // upkeep
	growing  sync.WaitGroup // starts
	tasks    sync.WaitGroup // the ends of leases, probes, deaths
}

// New starts a pool; its children come up in the background. The caller closes
// the pool. An error says which field of cfg is wrong.
func New(cfg Config) (*Pool, error) {
	switch {
	case cfg.Size < 1:
		return nil, fmt.Errorf("pool: Size is %d, less than 1", cfg.Size)
	case cfg.MinIdle < 0 || cfg.MinIdle > cfg.Size:
		return nil, fmt.Errorf("pool: MinIdle is %d, not between 0 and Size (%d)", cfg.MinIdle, cfg.Size)
	case !(cfg.Jitter >= 0 && cfg.Jitter < 1): // nor is NaN
		return nil, fmt.Errorf("pool: Jitter is %v, not at least 0 and less than 1", cfg.Jitter)
	}
	cfg.ProbeTimeout = cmp.Or(cfg.ProbeTimeout, 2*time.Second)
	cfg.UpkeepEvery = cmp.Or(cfg.UpkeepEvery, time.Second)
	cfg.BackoffMin = cmp.Or(cfg.BackoffMin, 500*time.Millisecond)
	cfg.BackoffMax = cmp.Or(cfg.BackoffMax, 30*time.Second)

	p := &Pool{
		cfg:    cfg,
		starts: newStarts(cfg.BackoffMin, cfg.BackoffMax),
		wake:   make(chan struct{}, 1),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	slots, err := puddle.NewPool(&puddle.Config[*child]{
		Constructor: p.construct,
		Destructor:  p.destroy,
		MaxSize:     int32(cfg.Size),
	})
	if err != nil {
		return nil, err
	}
	p.state.cfg, p.state.slots = &p.cfg, slots
	p.deciding.Go(p.upkeep) // ends with ctx
	return p, nil
}

// Drain turns away new callers and those in the queue with ErrDraining, until
// Resume. Leases go on, and so do the callers of [Admission.Keep].
func (p *Pool) Drain() { p.state.close(ErrDraining) }

// Resume ends what Drain began.
func (p *Pool) Resume() { p.state.reopen(ErrDraining) }

// Err returns why all callers are turned away: ErrDraining, ErrClosed, or nil
// where they are not.
func (p *Pool) Err() error { return p.state.err() }

// Recycle has every child of now replaced, one after another, each between its
// turns. It returns at once; those that remain are Stat's Worn.
func (p *Pool) Recycle() {
	p.state.recycle()
	p.look()
}

// Close turns callers away with ErrClosed, waits until every lease is released, also
// those that the callers of [Admission.Keep] still get, and stops every child. It is
// idempotent.
func (p *Pool) Close() {
	p.closed.Do(func() {
		p.state.close(ErrClosed)
		p.cancel()
		p.deciding.Wait()
		p.growing.Wait() // puddle miscounts a child that is born while it closes
		p.state.slots.Close()
	})
	p.tasks.Wait()
}

// Stat is a snapshot. Starting, Idle and Leased add up to the children that the
// pool has now. A child that is being made ready after a lease, has not answered
// its probe, or is being stopped, counts as leased.
type Stat struct {
	Size     int
	Starting int // starts that were decided on; a start may wait for its time
	Idle     int
	Leased   int
	Late     int       // of the leased, those that have not answered their probe in time
	Leaving  int       // of the leased, those that are being stopped
	Waiting  int       // callers in the queue
	Admitted int       // callers that wait or will wait, and leases
	Alive    int       // children whose process runs, idle or leased
	Worn     int       // children that have reached a limit and will be replaced, idle or leased
	Memory   int64     // private bytes of all children, as far as measured
	Largest  int64     // of the largest child
	Closed   time.Time // since when callers are turned away; zero where they are not
	Failure  error     // of the last start, or of a child that died young since; nil after a start that succeeded
}

// Waiting is how many callers each tenant has in the queue, if any.
func (p *Pool) Waiting() map[string]int {
	s := &p.state
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := map[string]int{}
	for tenant, waiters := range s.queue.tenants {
		waiting[tenant] = waiters.Len()
	}
	return waiting
}

// Stat returns the pool's figures. Its cost does not depend on Size.
func (p *Pool) Stat() Stat {
	s := &p.state
	s.mu.Lock()
	n, waiting, admitted, alive, largest := s.counts, s.queue.length, s.admitted, s.alive, s.largest
	var closed time.Time
	if s.closed != nil {
		closed = s.closedAt
	}
	s.mu.Unlock()
	return Stat{
		Size:     p.cfg.Size,
		Starting: n.starting,
		Idle:     n.idle,
		Leased:   n.total - n.idle,
		Late:     n.late,
		Leaving:  n.leaving,
		Waiting:  waiting,
		Admitted: admitted,
		Alive:    alive,
		Worn:     n.worn,
		Memory:   n.memory,
		Largest:  largest,
		Closed:   closed,
		Failure:  p.starts.failure(),
	}
}
