package pool_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex/codextest"
	"codexpool/pool"
)

// guard counts, at every death, the children that live on, and keeps the least.
type guard struct {
	pool  *pool.Pool
	mu    sync.Mutex
	least int // guarded by mu
}

func (g *guard) start(n *nursery, cfg pool.Config) *pool.Pool {
	n.t.Helper()
	g.least = cfg.Size
	g.pool = n.startWith(cfg, pool.Hooks{Retired: func(_ context.Context, d pool.Death) {
		if d.Why == pool.Shutdown {
			return
		}
		alive := 0
		for _, c := range g.pool.Children() {
			if c.State != pool.Leaving {
				alive++
			}
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.least = min(g.least, alive)
	}})
	return g.pool
}

func TestJitterSpreadsTheAgesOfRetirement(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 8, MinIdle: 8, MaxAge: time.Hour, Jitter: 0.2})
		time.Sleep(73 * time.Minute)
		youngest, oldest := time.Hour, time.Hour
		deaths := p.Deaths()
		for _, d := range deaths {
			youngest, oldest = min(youngest, d.Age), max(oldest, d.Age)
		}
		// Eight at random in 24 minutes: all within one is one run in 500 million.
		if len(deaths) != 8 || youngest < 48*time.Minute || oldest > 73*time.Minute || oldest-youngest < time.Minute {
			t.Errorf("%d went, aged %v to %v", len(deaths), youngest, oldest)
		}
	})
}

func TestJitterSpreadsTheTurnsBeforeRetirement(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.script = func() codextest.Script {
			return codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{})}
		}
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxTurns: 50, Jitter: 0.2})
		for len(p.Deaths()) < 12 {
			turnBy(t, p, nil)
		}
		least, most := 50, 50
		for _, d := range p.Deaths() {
			least, most = min(least, d.Turns), max(most, d.Turns)
		}
		if least < 40 || most > 60 || least == most {
			t.Errorf("they went after %d to %d turns", least, most)
		}
	})
}

// wornTogether starts a full pool whose children reach their last turn together.
func wornTogether(t *testing.T, n *nursery, g *guard, cfg pool.Config) *pool.Pool {
	t.Helper()
	n.slow = time.Second
	cfg.MaxTurns = 1
	p := g.start(n, cfg)
	time.Sleep(time.Minute)
	var turns sync.WaitGroup
	for range cfg.MinIdle {
		turns.Go(func() { turnBy(t, p, nil) })
	}
	turns.Wait()
	synctest.Wait()
	return p
}

func TestWornChildrenAreRetiredOneAtATime(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		g := &guard{}
		p := wornTogether(t, n, g, pool.Config{Size: 4, MinIdle: 4})
		if s := p.Stat(); s.Idle < 3 || s.Worn < 3 {
			t.Errorf("when their turns are over: %+v", s)
		}
		time.Sleep(time.Minute)
		expect(t, "counts", n.counts(), "spawned 8 failed 0 retired map[turns:4]")
		if g.least != 3 {
			t.Errorf("only %d of 4 lived", g.least)
		}
	})
}

func TestWornChildIsRetiredAfterItsReplacementIsWarmWhereThereIsRoom(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		g := &guard{}
		p := wornTogether(t, n, g, pool.Config{Size: 5, MinIdle: 4})
		for range 60 {
			time.Sleep(time.Second)
			if idle := p.Stat().Idle; idle < 4 {
				t.Errorf("only %d idle", idle)
			}
		}
		if g.least != 4 {
			t.Errorf("only %d lived", g.least)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.retired[pool.Turns] < 4 {
			t.Errorf("retired %v", n.retired)
		}
	})
}

func TestWornChildrenStayWhileNoReplacementCanBeStarted(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		g := &guard{}
		p := g.start(n, pool.Config{Size: 4, MinIdle: 4, MaxAge: time.Hour})
		time.Sleep(time.Minute)
		n.set(func() { n.broken = errors.New("disk full") })
		time.Sleep(2 * time.Hour)
		expect(t, "one has gone", fmt.Sprint(p.Stat().Idle, g.least), "3 3")
		n.set(func() { n.broken = nil })
		time.Sleep(10 * time.Minute)
		expect(t, "then the others", n.counts(), "spawned 8 failed "+fmt.Sprint(n.failed)+" retired map[age:4]")
	})
}

func TestRecycleUnderLoadFailsNobody(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.slow = 3 * time.Second
		g := &guard{}
		p := g.start(n, pool.Config{Size: 4, MinIdle: 4, MaxWaiting: 100, MinLife: time.Hour, Jitter: 0.2})
		time.Sleep(time.Minute)
		var callers sync.WaitGroup
		stop := time.Now().Add(2 * time.Minute)
		for range 12 {
			callers.Go(func() {
				for time.Now().Before(stop) {
					l := acquire(t, p)
					if got, err := complete(t.Context(), l, "one two three"); err != nil || got != "one two three" {
						t.Errorf("%q, %v", got, err)
					}
					l.Release()
				}
			})
		}
		time.Sleep(10 * time.Second)
		p.Recycle()
		expect(t, "at once", fmt.Sprint(p.Stat().Worn), "4")
		callers.Wait()
		synctest.Wait()
		expect(t, "counts", n.counts(), "spawned 8 failed 0 retired map[recycled:4]")
		if s := p.Stat(); g.least != 3 || s.Worn != 0 || s.Idle != 4 {
			t.Errorf("%d lived at least; afterwards %+v", g.least, s)
		}
	})
}

func TestRecycleOfIdleChildrenNeedsOneMoreAndNoTick(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.slow = time.Second
		p := n.start(pool.Config{Size: 8, MinIdle: 4, UpkeepEvery: time.Hour})
		time.Sleep(time.Minute)
		p.Recycle()
		for range 45 {
			time.Sleep(100 * time.Millisecond)
			if s := p.Stat(); s.Idle < 4 || s.Idle+s.Starting > 5 {
				t.Errorf("%+v", s)
			}
		}
		expect(t, "counts", n.counts(), "spawned 8 failed 0 retired map[recycled:4]")
	})
}

func TestRecycleDoesNotCutATurn(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		l := acquire(t, p)
		time.AfterFunc(1500*time.Millisecond, p.Recycle)
		if got, err := complete(t.Context(), l, "one two three"); err != nil || got != "one two three" {
			t.Errorf("%q, %v", got, err)
		}
		l.Release()
		synctest.Wait()
		expect(t, "counts", n.counts(), "spawned 2 failed 0 retired map[recycled:1]")
	})
}

func TestRecycleReplacesAChildThatWasBeingStarted(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.slow = 10 * time.Second // what it was given at its start may be what the recycling is for
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		time.Sleep(5 * time.Second)
		p.Recycle()
		time.Sleep(time.Minute)
		expect(t, "counts", n.counts(), "spawned 2 failed 0 retired map[recycled:1]")
	})
}

func TestResumeEndsADrainButNotAClose(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		p.Drain()
		expect(t, "refuses", fmt.Sprint(p.Err()), pool.ErrDraining.Error())
		p.Resume()
		acquire(t, p).Release()
		p.Close()
		p.Resume()
		expect(t, "resumed after the end", fmt.Sprint(p.Err()), pool.ErrClosed.Error())
		p.Drain()
		expect(t, "drained after the end", fmt.Sprint(p.Err()), pool.ErrClosed.Error())
	})
}

func TestDeathsAreTheLastTwenty(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxTurns: 1})
		for range 24 {
			turnBy(t, p, nil)
		}
		time.Sleep(time.Minute) // a minute after the last was born
		n.kill(24)
		synctest.Wait()
		deaths := p.Deaths()
		if len(deaths) != 20 {
			t.Fatalf("%d deaths", len(deaths))
		}
		for i, want := range []string{"exited 0 1m0s true", "turns 1 1s false"} {
			d := deaths[i]
			expect(t, "newest first", fmt.Sprint(d.Why, " ", d.Turns, d.Age, d.Err != nil), want)
		}
		if since := time.Since(deaths[1].At); since != time.Minute {
			t.Errorf("the second died %v ago", since)
		}
	})
}
