// Package pool keeps a bounded set of warm children and lends them one at a time.
//
// The api asks for a [Lease], runs one turn on it and releases it; it never says
// what should become of the child: release looks at it and decides. One upkeep
// goroutine keeps the set warm. Everything else that runs in the background is
// short, at most one goroutine a child and one for its end, and joined by Close.
//
// Two things end a child: a fault, at once, and a limit that it has reached, by
// which it is worn: then it serves on until it is its turn to go, see retireWorn.
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
	MaxMemory  int64         // private memory of a child's process group before it is replaced, bytes; on Linux
	MinLife    time.Duration // age below which neither turns nor age nor memory replace a child
	Jitter     float64       // fraction by which MaxTurns and MaxAge vary, so that children do not all leave at once

	ProbeEvery   time.Duration // an idle child that said nothing for that long is asked how it is; 0 = never
	ProbeTimeout time.Duration // after which it gets a second chance, of 2 s; 0 means 2 s

	UpkeepEvery time.Duration // how often ages and memory are looked at; 0 means 1 s
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
	Probed   func(took time.Duration, err error)
	Retired  func(why Reason) // exactly once for every child that was started
}

// Reason says why a child is gone.
type Reason string

// The closed list of reasons.
const (
	Exited       Reason = "exited"       // it died by itself, or was killed by others
	Unresponsive Reason = "unresponsive" // it did not answer, or its turn did not end
	Protocol     Reason = "protocol"     // it wrote what the protocol does not allow
	Failing      Reason = "failing"      // its turns failed again and again, by its own fault
	Turns        Reason = "turns"        // it reached MaxTurns
	Age          Reason = "age"          // it reached MaxAge
	Memory       Reason = "memory"       // it reached MaxMemory
	Recycled     Reason = "recycled"     // Recycle was called
	Shutdown     Reason = "shutdown"     // the pool closed
)

// Reasons are all of them, for whoever counts.
var Reasons = []Reason{Exited, Unresponsive, Protocol, Failing, Turns, Age, Memory, Recycled, Shutdown}

// Pool is a set of children.
type Pool struct {
	cfg      Config
	children *puddle.Pool[*child]
	tickets  *semaphore.Weighted // one for each idle child; callers queue for them, first come first served
	starts   *starts
	line     line
	roster   roster

	ctx    context.Context // the pool's life; ended by Close. It is no request's.
	cancel context.CancelFunc
	wake   chan struct{} // buffer 1; asks upkeep to look now

	admitted   atomic.Int64 // leases out and callers in line
	waiting    atomic.Int64 // callers in line
	alive      atomic.Int64 // children that run
	starting   atomic.Int64 // starts that upkeep asked for, until they end
	generation atomic.Int64 // children of an older one are to be replaced
	stale      atomic.Bool  // something has happened since the last sweep that one should see

	deciding sync.WaitGroup // upkeep; Close waits for it first, then for the starts, then for the rest
	growing  sync.WaitGroup // the starts
	tasks    sync.WaitGroup // all other goroutines of the pool
	closed   sync.Once
}

// New starts a pool; its children come up in the background.
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
		Destructor:  p.entomb,
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
	if n < 1 {
		panic(fmt.Sprintf("BUG: %d callers", n))
	}
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
		p.roster.set(res.Value(), Leased)
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
	p.roster.set(res.Value(), Idle)
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
	began, generation := time.Now(), p.generation.Load()
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
		p.dismissAll()
		p.lookAtAll()
	})
	c := &child{
		Client:     client,
		born:       time.Now(),
		state:      Idle,
		generation: generation,
		maxTurns:   int(math.Ceil(p.jittered(float64(p.cfg.MaxTurns)))),
		maxAge:     time.Duration(p.jittered(float64(p.cfg.MaxAge))),
	}
	c.answered = c.born
	p.roster.add(c)
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
	c := res.Value()
	c.why = why
	p.roster.set(c, Leaving)
	p.tasks.Go(func() { // ends within the steps of stopping
		p.bury(c)
		res.Hijack()
		p.roster.remove(c)
		p.lookAtAll()
	})
}

// entomb is puddle's destructor, for the children that are there when the pool
// closes.
func (p *Pool) entomb(c *child) {
	c.why = cmp.Or(fault(c), Shutdown)
	p.bury(c)
	p.roster.remove(c)
}

// bury ends a child and reports it. It returns once the child is reaped.
func (p *Pool) bury(c *child) {
	err, age := c.err(), time.Since(c.born) // before Close adds an end of its own
	c.Close()
	d := Death{Pid: c.Pid(), Why: c.why, At: time.Now(), Age: age, Turns: int(c.turns.Load()), Err: err}
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelWarn
		if d.Turns == 0 && d.Age < crashAge {
			p.diedYoung(err)
		}
	}
	attrs := []any{"child", d.Pid, "why", d.Why, "turns", d.Turns, "age", d.Age.Round(time.Millisecond)}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	p.cfg.Log.Log(context.Background(), level, "child gone", attrs...)
	p.roster.died(d)
	if p.cfg.Hooks.Retired != nil {
		p.cfg.Hooks.Retired(d.Why)
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

// Drain refuses new callers and those in line with ErrDraining, until Resume.
// Leases that are out are not touched.
func (p *Pool) Drain() { p.line.refuse(ErrDraining) }

// Resume ends what Drain began.
func (p *Pool) Resume() { p.line.readmit(ErrDraining) }

// Refuses says why callers are refused, all of them: ErrDraining, ErrClosed, or
// nil.
func (p *Pool) Refuses() error { return p.line.refuses() }

// Recycle has every child of now replaced, one after another, each between its
// turns. It returns at once; those that are left are Stat's Worn.
func (p *Pool) Recycle() {
	p.generation.Add(1)
	p.lookAtAll()
}

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
// pool has now, but that one which has just become idle may count twice. A child
// that is being made ready after a lease, does not answer, or is being stopped,
// counts as leased.
type Stat struct {
	Size     int
	Starting int // includes those that wait for another try
	Idle     int
	Leased   int
	Waiting  int   // callers in line
	Alive    int   // children that run, idle or leased
	Worn     int   // children that have reached a limit and will be replaced, idle or leased
	Memory   int64 // private bytes of all children, as far as measured
	Failure  error // of the last start, or of a child that died young since; nil after a start that succeeded
}

// Stat reads the pool's figures.
func (p *Pool) Stat() Stat {
	c := p.census()
	return Stat{
		Size:     p.cfg.Size,
		Starting: c.starting,
		Idle:     c.idle,
		Leased:   c.total - c.idle,
		Waiting:  c.waiting,
		Alive:    int(p.alive.Load()),
		Worn:     c.worn,
		Memory:   c.memory,
		Failure:  p.starts.failure(),
	}
}

// census is what upkeep decides by.
type census struct {
	total     int // children with a slot
	idle      int // of them, those that a caller may have now, or in a moment
	idleWorn  int // of the idle ones, those that have reached a limit
	worn      int
	probing   int
	uncertain int // those that do not answer or are being stopped
	starting  int
	waiting   int
	memory    int64
}

// room is how many children could be started.
func (c census) room(size int) int { return size - c.total - c.starting }

func (p *Pool) census() census {
	p.roster.mu.Lock()
	defer p.roster.mu.Unlock()
	return p.count()
}

// count takes the census. The caller holds roster.mu.
func (p *Pool) count() census {
	// First, so that a child that has just become idle is counted twice and not
	// missed: fill must not start one for which there is no room.
	n := census{starting: int(p.starting.Load())}
	for _, c := range p.roster.children {
		n.total++
		n.memory += c.memory.Load()
		worn := p.worn(c) != ""
		if worn {
			n.worn++
		}
		switch c.state {
		case Probing:
			n.probing++
			fallthrough
		case Idle:
			n.idle++
			if worn {
				n.idleWorn++
			}
		case Late, Leaving:
			n.uncertain++
		}
	}
	n.waiting = int(p.waiting.Load()) // last: whoever takes a child has left the line before
	return n
}
