// Package pool keeps a bounded set of warm children and lends them one at a time.
//
// The api asks for a [Lease], runs one turn on it and releases it; it never says
// what should become of the child: release looks at it and decides. One upkeep
// goroutine keeps the set warm. Everything else that runs in the background is
// short, at most one goroutine a child and one for its end, and joined by Close.
//
// On puddle: it holds the children, and a slot from the start of each until it is
// reaped, so that Size bounds processes. Its Acquire would start a child for a
// caller who finds none idle, and bind the caller to that start and its failure.
// So callers first queue for a ticket, of which there is one for each idle child,
// and upkeep alone starts children.
package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"codexpool/codex"

	"github.com/jackc/puddle/v2"
	"golang.org/x/sync/semaphore"
)

// Why Acquire gives no lease, apart from the end of its context.
var (
	ErrFull        = errors.New("pool: the line is full")
	ErrDraining    = errors.New("pool: draining")
	ErrClosed      = errors.New("pool: closed")
	ErrUnavailable = errors.New("pool: no child can be started") // wraps the failure of the last start
)

// crashAge is the age below which a child that dies before any turn counts as a
// failed start.
const crashAge = 30 * time.Second

// Config says how the pool behaves. The zero value of a limit means no limit.
type Config struct {
	Size       int           // children at most
	MinIdle    int           // children kept idle while there is room
	MaxWaiting int           // callers in line at most, beyond those that hold a lease
	MaxTurns   int           // turns of a child before it is replaced; jittered
	MaxAge     time.Duration // age of a child before it is replaced; jittered
	MinLife    time.Duration // age below which neither turns nor age replace a child
	Jitter     float64       // fraction by which MaxTurns and MaxAge vary, so that children do not all leave at once

	UpkeepEvery time.Duration // how often ages are looked at; 0 means 1 s
	BackoffMin  time.Duration // after a failed start; 0 means 0.5 s
	BackoffMax  time.Duration // after many; 0 means 30 s

	// Spawn starts one child. It sets its own deadline: ctx ends only with the pool.
	Spawn func(ctx context.Context) (*codex.Client, error)

	Hooks Hooks
	Log   *slog.Logger
}

// Hooks are told numbers as things happen. Any may be nil; none may block.
type Hooks struct {
	Spawned  func(took time.Duration, err error)
	Acquired func(waited time.Duration, err error)
	Retired  func(why Reason) // exactly once for every child that was started
}

// Reason says why a child is gone.
type Reason string

// The closed list of reasons.
const (
	Exited       Reason = "exited"       // it died by itself, or was killed by others
	Unresponsive Reason = "unresponsive" // it did not answer, or its turn did not end
	Protocol     Reason = "protocol"     // it wrote what the protocol does not allow
	Turns        Reason = "turns"        // it reached MaxTurns
	Age          Reason = "age"          // it reached MaxAge
	Shutdown     Reason = "shutdown"     // the pool closed
)

// Reasons are all of them, for whoever counts.
var Reasons = []Reason{Exited, Unresponsive, Protocol, Turns, Age, Shutdown}

// Pool is a set of children.
type Pool struct {
	cfg      Config
	children *puddle.Pool[*child]
	tickets  *semaphore.Weighted // one for each idle child; callers queue for them, first come first served
	starts   *starts
	line     line

	ctx    context.Context // the pool's life; ended by Close. It is no request's.
	cancel context.CancelFunc
	wake   chan struct{} // buffer 1; asks upkeep to look now

	admitted atomic.Int64 // leases out and callers in line
	waiting  atomic.Int64 // callers in line
	alive    atomic.Int64 // children that run
	starting atomic.Int64 // starts that upkeep asked for, until they end
	dying    atomic.Int64 // children that are being retired
	fallen   atomic.Bool  // a child has gone since the last sweep

	sweeping sync.Mutex     // held by sweep while it holds idle children, so that Stat does not call them leased
	deciding sync.WaitGroup // upkeep; Close waits for it first, then for the starts, then for the rest
	growing  sync.WaitGroup // the starts
	tasks    sync.WaitGroup // all other goroutines of the pool
	closed   sync.Once
}

// child is one resource of the pool. But for the client's own promises, only
// the holder of the resource touches it.
type child struct {
	*codex.Client
	born     time.Time
	turns    int
	maxTurns int
	maxAge   time.Duration
	why      Reason // set before it is destroyed
}

// New starts a pool; its children come up in the background.
func New(cfg Config) (*Pool, error) {
	switch {
	case cfg.Size < 1:
		return nil, fmt.Errorf("pool: Size is %d, less than 1", cfg.Size)
	case cfg.MinIdle < 0 || cfg.MinIdle > cfg.Size:
		return nil, fmt.Errorf("pool: MinIdle is %d, not between 0 and Size (%d)", cfg.MinIdle, cfg.Size)
	case cfg.Jitter < 0 || cfg.Jitter >= 1:
		return nil, fmt.Errorf("pool: Jitter is %v, not at least 0 and less than 1", cfg.Jitter)
	}
	cfg.UpkeepEvery = cmp.Or(cfg.UpkeepEvery, time.Second)
	cfg.BackoffMin = cmp.Or(cfg.BackoffMin, 500*time.Millisecond)
	cfg.BackoffMax = cmp.Or(cfg.BackoffMax, 30*time.Second)

	p := &Pool{
		cfg:     cfg,
		tickets: semaphore.NewWeighted(int64(cfg.Size)),
		starts:  newStarts(cfg.BackoffMin, cfg.BackoffMax),
		wake:    make(chan struct{}, 1),
	}
	p.tickets.TryAcquire(int64(cfg.Size)) // no child yet, no ticket
	p.ctx, p.cancel = context.WithCancel(context.Background())
	var err error
	if p.children, err = puddle.NewPool(&puddle.Config[*child]{
		Constructor: p.construct,
		Destructor:  p.bury,
		MaxSize:     int32(cfg.Size),
	}); err != nil {
		return nil, err
	}
	p.deciding.Go(p.upkeep) // ends with ctx
	return p, nil
}

// Place is the right of one caller to stand in line. Acquire uses it up.
type Place struct{ pool *Pool }

// Admit gives n places, or ErrFull and none: who needs several children must not
// hold some while the line has no room for him to wait for the others. Acquire
// must be called on each.
func (p *Pool) Admit(n int) ([]*Place, error) {
	if p.admitted.Add(int64(n)) > int64(p.cfg.Size+p.cfg.MaxWaiting) {
		p.admitted.Add(int64(-n))
		p.acquired(time.Now(), ErrFull)
		return nil, ErrFull
	}
	places := make([]*Place, n)
	for i := range places {
		places[i] = &Place{p}
	}
	return places, nil
}

// Acquire lends a child, waiting for one in line, first come first served. It
// returns ErrDraining, ErrClosed, an error that wraps ErrUnavailable, or the
// cause of ctx's end.
func (pl *Place) Acquire(ctx context.Context) (*Lease, error) {
	p := pl.pool
	if p == nil {
		panic("BUG: a place that was used before")
	}
	pl.pool = nil
	began := time.Now()
	lease, err := p.acquire(ctx)
	if err != nil {
		p.admitted.Add(-1)
	}
	p.acquired(began, err)
	return lease, err
}

// Acquire is Admit and Acquire for one.
func (p *Pool) Acquire(ctx context.Context) (*Lease, error) {
	places, err := p.Admit(1)
	if err != nil {
		return nil, err
	}
	return places[0].Acquire(ctx)
}

// acquired reports an end of waiting.
func (p *Pool) acquired(began time.Time, err error) {
	if p.cfg.Hooks.Acquired != nil {
		p.cfg.Hooks.Acquired(time.Since(began), err)
	}
}

func (p *Pool) acquire(ctx context.Context) (*Lease, error) {
	defer p.look() // MinIdle may want another in the place of the one that was lent
	for {
		res, err := p.stand(ctx)
		if err != nil {
			return nil, err
		}
		if why := fault(res.Value()); why != "" {
			p.retire(res, why)
			continue
		}
		return &Lease{pool: p, res: res}, nil
	}
}

// stand stands in line for an idle child.
func (p *Pool) stand(ctx context.Context) (*puddle.Resource[*child], error) {
	ctx, leave := p.line.join(ctx)
	defer leave()
	if err := p.unavailable(); err != nil {
		return nil, err
	}
	p.waiting.Add(1)
	p.look() // who waits may want another child to be started
	err := p.tickets.Acquire(ctx, 1)
	p.waiting.Add(-1) // before take: nobody is to be counted as waiting beside the child that he takes
	if err != nil {
		return nil, context.Cause(ctx)
	}
	return p.take()
}

// take takes the idle child that the caller's ticket stands for. It does not
// wait, and puddle need not construct.
func (p *Pool) take() (*puddle.Resource[*child], error) {
	res, err := p.children.Acquire(context.Background())
	if errors.Is(err, puddle.ErrClosedPool) {
		return nil, ErrClosed
	}
	return res, err
}

// giveBack makes a child that the caller holds idle, or lets puddle destroy it
// when the pool is closed.
func (p *Pool) giveBack(res *puddle.Resource[*child]) {
	res.ReleaseUnused()
	p.tickets.Release(1)
}

// unavailable says why standing in line is pointless: nobody lives, the last
// start failed, and the next has to wait for its time.
func (p *Pool) unavailable() error {
	if err := p.starts.hopeless(); err != nil && p.alive.Load() == 0 {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// dismissAll tells those in line when it has become pointless.
func (p *Pool) dismissAll() {
	if err := p.unavailable(); err != nil {
		p.line.tell(err)
	}
}

// grow starts one child, when its time has come, and makes it idle. It does not
// give up while the pool lives: upkeep counts on it.
func (p *Pool) grow() {
	for p.ctx.Err() == nil {
		leave, err := p.starts.enter(p.ctx)
		if err != nil {
			return
		}
		err = p.children.CreateResource(p.ctx)
		leave(err)
		if err == nil {
			p.tickets.Release(1)
			return
		}
		p.dismissAll()
	}
}

// construct is puddle's constructor: it starts a child and warms it.
func (p *Pool) construct(ctx context.Context) (*child, error) {
	began := time.Now()
	client, err := p.cfg.Spawn(ctx)
	if err == nil {
		if err = client.Warm(ctx); err != nil {
			client.Close()
		}
	}
	took := time.Since(began)
	if p.ctx.Err() != nil { // nobody wants it any more
		if err == nil {
			client.Close()
		}
		return nil, ErrClosed
	}
	if p.cfg.Hooks.Spawned != nil {
		p.cfg.Hooks.Spawned(took, err)
	}
	if err != nil {
		p.logFailedStart(err, took)
		return nil, err
	}
	p.alive.Add(1)
	p.tasks.Go(func() { // ends with the child
		<-client.Done()
		p.alive.Add(-1)
		p.fallen.Store(true)
		p.dismissAll()
		p.look()
	})
	c := &child{
		Client:   client,
		born:     time.Now(),
		maxTurns: int(math.Ceil(p.jittered(float64(p.cfg.MaxTurns)))),
		maxAge:   time.Duration(p.jittered(float64(p.cfg.MaxAge))),
	}
	p.cfg.Log.Info("child started", "child", c.Pid(), "version", c.Version(), "took", took)
	return c, nil
}

// logFailedStart logs what a child said before it failed. No prompt has reached
// it yet, so its last words are safe to log.
func (p *Pool) logFailedStart(err error, took time.Duration) {
	attrs := []any{"err", err, "took", took}
	if exit := (*codex.ExitError)(nil); errors.As(err, &exit) && len(exit.Stderr) > 0 {
		attrs = append(attrs, "stderr", exit.Stderr)
	}
	p.cfg.Log.Error("child start failed", attrs...)
}

// jittered varies a limit.
func (p *Pool) jittered(limit float64) float64 {
	return limit * (1 + p.cfg.Jitter*(2*rand.Float64()-1))
}

// retire ends a child that the caller holds, in the background. It is Hijack and
// not Destroy that frees the slot: only so can upkeep be woken after that.
func (p *Pool) retire(res *puddle.Resource[*child], why Reason) {
	res.Value().why = why
	p.dying.Add(1)
	p.tasks.Go(func() { // ends within the steps of stopping
		p.bury(res.Value())
		res.Hijack()
		p.dying.Add(-1)
		p.look()
	})
}

// bury ends a child and reports it. It returns once the child is reaped. It is
// also puddle's destructor, for when the pool closes.
func (p *Pool) bury(c *child) {
	died := c.Err() // before Close adds an end of its own
	c.Close()
	if c.why == "" {
		c.why = Shutdown
	}
	level := slog.LevelInfo
	if c.why == Exited || c.why == Unresponsive || c.why == Protocol {
		level = slog.LevelWarn
		if c.turns == 0 && time.Since(c.born) < crashAge {
			p.diedYoung(c.Err())
		}
	}
	attrs := []any{"child", c.Pid(), "why", c.why, "turns", c.turns, "age", time.Since(c.born).Round(time.Millisecond)}
	if died != nil {
		attrs = append(attrs, "err", died)
	}
	p.cfg.Log.Log(context.Background(), level, "child gone", attrs...)
	if p.cfg.Hooks.Retired != nil {
		p.cfg.Hooks.Retired(c.why)
	}
}

// diedYoung takes note of a child that started only to fail: the next must not
// be started in a loop. One that others have ended proves nothing.
func (p *Pool) diedYoung(err error) {
	if exit := (*codex.ExitError)(nil); errors.As(err, &exit) && exit.Asked() {
		p.starts.pauseOnce()
		return
	}
	p.starts.failed(err)
	p.dismissAll()
}

// Drain refuses new callers and those in line with ErrDraining. Leases that are
// out are not touched.
func (p *Pool) Drain() { p.line.refuse(ErrDraining) }

// Close refuses callers, waits until every lease is back, and stops every child.
func (p *Pool) Close() {
	p.closed.Do(func() {
		p.line.refuse(ErrClosed)
		p.cancel()
		p.deciding.Wait()
		p.growing.Wait() // puddle miscounts a child that is born while it closes
		p.children.Close()
	})
	p.tasks.Wait()
}

// Stat is a snapshot. Starting, Idle and Leased add up to the children that the
// pool has now, but that one which has just become idle may count twice; a child
// that is made ready after a lease, or is being destroyed, counts as leased.
type Stat struct {
	Size     int
	Starting int // includes those that wait for another try
	Idle     int
	Leased   int
	Waiting  int   // callers in line
	Alive    int   // children that run, idle or leased
	Failure  error // of the last start, nil when it succeeded
}

// Stat reads the pool's figures.
func (p *Pool) Stat() Stat {
	// First, so that a child that has just become idle is counted twice and not
	// missed: fill must not start one for which there is no room.
	starting := p.starting.Load()
	p.sweeping.Lock()
	s := p.children.Stat()
	p.sweeping.Unlock()
	return Stat{
		Size:     p.cfg.Size,
		Starting: int(starting),
		Idle:     int(s.IdleResources()),
		Leased:   int(s.AcquiredResources()),
		Waiting:  int(p.waiting.Load()),
		Alive:    int(p.alive.Load()),
		Failure:  p.starts.failure(),
	}
}
