package pool_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/pool"
)

// nursery starts children in memory and counts what the pool reports.
type nursery struct {
	t *testing.T

	mu      sync.Mutex
	broken  error         // what Spawn returns, if anything
	slow    time.Duration // how long Spawn takes
	pipes   []io.Closer   // the children's ends, oldest first
	spawned int
	failed  int
	atOnce  int // starts under way
	most    int // the most of them
	retired map[pool.Reason]int
	script  func() codextest.Script
}

func newNursery(t *testing.T) *nursery {
	return &nursery{t: t, retired: map[pool.Reason]int{}, script: func() codextest.Script {
		return codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Second})}
	}}
}

func (n *nursery) spawn(ctx context.Context) (*codex.Client, error) {
	n.mu.Lock()
	n.atOnce++
	n.most = max(n.most, n.atOnce)
	broken, slow, script := n.broken, n.slow, n.script()
	n.mu.Unlock()
	time.Sleep(slow) // in a bubble: no time at all
	n.mu.Lock()
	n.atOnce--
	n.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	pipe := codextest.Pipe(n.t, script)
	n.mu.Lock()
	n.pipes = append(n.pipes, pipe)
	n.mu.Unlock()
	return codex.Connect(ctx, pipe, codextest.Log(n.t))
}

func (n *nursery) hooks(own pool.Hooks) pool.Hooks {
	return pool.Hooks{
		Probed:   own.Probed,
		Acquired: own.Acquired,
		Released: own.Released,
		Spawned: func(_ context.Context, _ time.Duration, err error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if err != nil {
				n.failed++
			} else {
				n.spawned++
			}
		},
		Retired: func(ctx context.Context, d pool.Death) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.retired[d.Why]++
			if own.Retired != nil {
				own.Retired(ctx, d)
			}
		},
	}
}

func (n *nursery) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// kill ends the i-th child that was spawned.
func (n *nursery) kill(i int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pipes[i].Close()
}

func (n *nursery) counts() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprintf("spawned %d failed %d retired %v", n.spawned, n.failed, n.retired)
}

func (n *nursery) start(cfg pool.Config) *pool.Pool {
	n.t.Helper()
	return n.startWith(cfg, pool.Hooks{})
}

// startWith has hooks of its own called too.
func (n *nursery) startWith(cfg pool.Config, own pool.Hooks) *pool.Pool {
	n.t.Helper()
	cfg.Spawn, cfg.Hooks, cfg.Log = n.spawn, n.hooks(own), codextest.Log(n.t)
	p, err := pool.New(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(p.Close)
	return p
}

func acquire(t *testing.T, p *pool.Pool) *pool.Lease {
	t.Helper()
	l, err := p.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// complete runs a whole turn and returns its text.
func complete(ctx context.Context, l *pool.Lease, text string) (string, error) {
	var answer strings.Builder
	for e, err := range l.Turn(ctx, codex.TurnParams{Items: []json.RawMessage{codextest.UserItem(text)}}) {
		if err != nil {
			return answer.String(), err
		}
		if d, ok := e.(codex.TextDelta); ok {
			answer.WriteString(d.Text)
		}
	}
	return answer.String(), nil
}

// queue has n callers wait, one after the other, each for a whole turn. It
// returns their numbers as they are served.
func queue(t *testing.T, p *pool.Pool, n int) (served <-chan int) {
	t.Helper()
	numbers := make(chan int, n)
	for i := range n {
		wait(t, p, "", func() { numbers <- i })
	}
	return numbers
}

// wait has one caller of a tenant wait for a whole turn. served is called when it
// has its child.
func wait(t *testing.T, p *pool.Pool, tenant string, served func()) {
	t.Helper()
	go func() {
		a, err := p.Admit(t.Context(), tenant, 1)
		if err != nil {
			t.Error(err)
			return
		}
		defer a.Close()
		l, err := a.Acquire(t.Context())
		if err != nil {
			t.Error(err)
			return
		}
		served()
		complete(t.Context(), l, "x")
		l.Release()
	}()
	synctest.Wait()
}

func expectInOrder(t *testing.T, served <-chan int, n int) {
	t.Helper()
	for i := range n {
		if got := <-served; got != i {
			t.Errorf("%d was served when it was the turn of %d", got, i)
		}
	}
}

// shape is Stat without what a test does not compare.
func shape(p *pool.Pool) string {
	s := p.Stat()
	return fmt.Sprintf("starting %d idle %d leased %d waiting %d", s.Starting, s.Idle, s.Leased, s.Waiting)
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// bubble runs f where time is free and a leaked goroutine is a failure.
func bubble(t *testing.T, f func(t *testing.T, n *nursery)) {
	synctest.Test(t, func(t *testing.T) { f(t, newNursery(t)) })
}

func TestStartsAtOnceAreOneForEachCoreAndAtLeastTwo(t *testing.T) {
	defer runtime.SetDefaultGOMAXPROCS()
	for cores, want := range map[int]int{1: 2, 2: 2, 5: 5} {
		runtime.GOMAXPROCS(cores)
		bubble(t, func(t *testing.T, n *nursery) {
			n.slow = time.Second
			p := n.start(pool.Config{Size: 8, MinIdle: 8})
			synctest.Wait()
			expect(t, "at first", shape(p), "starting 8 idle 0 leased 0 waiting 0")
			time.Sleep(time.Minute)
			synctest.Wait()
			expect(t, "warm", shape(p), "starting 0 idle 8 leased 0 waiting 0")
			if n.most != want {
				t.Errorf("%d starts at once on %d cores", n.most, cores)
			}
		})
	}
}

func TestChildServesOneLeaseAfterAnother(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		for i := range 5 {
			l := acquire(t, p)
			text := fmt.Sprintf("turn %d", i)
			if got, err := complete(t.Context(), l, text); err != nil || got != text {
				t.Errorf("got %q, %v", got, err)
			}
			l.Release()
			l.Release() // the second does nothing
		}
		synctest.Wait()
		expect(t, "afterwards", shape(p), "starting 0 idle 1 leased 0 waiting 0")
		expect(t, "counts", n.counts(), "spawned 1 failed 0 retired map[]")
	})
}

func TestReleaseReturnsAtOnceAndWarmsTheNextThreadBeforeTheNextLease(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		child := &codextest.Child{}
		n.script = func() codextest.Script { return codextest.Script{codextest.Handshake(), codextest.Serve(child)} }
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		l := acquire(t, p)
		if _, err := complete(t.Context(), l, "a"); err != nil {
			t.Fatal(err)
		}
		l.Release()
		l = acquire(t, p)
		if got := child.Calls("thread/start"); got != 2 {
			t.Errorf("%d threads were started before the second turn", got)
		}
		l.Release()
	})
}

func TestReleaseRetiresChildThatDiedInItsTurn(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 2})
		time.Sleep(time.Minute) // one that dies at once counts as a failed start
		l := acquire(t, p)
		time.AfterFunc(1500*time.Millisecond, func() { n.kill(0); n.kill(1) })
		_, err := complete(t.Context(), l, "one two three")
		if exit := (*codex.ExitError)(nil); !errors.As(err, &exit) {
			t.Errorf("got %v", err)
		}
		l.Release()
		synctest.Wait()
		expect(t, "replaced at once", shape(p), "starting 0 idle 2 leased 0 waiting 0")
		expect(t, "counts", n.counts(), "spawned 4 failed 0 retired map[exited:2]")
	})
}

func TestReleaseRetiresChildWhoseTurnDoesNotEnd(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.script = func() codextest.Script {
			return codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Delta("a"), codextest.Hang()}
		}
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		l := acquire(t, p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		complete(ctx, l, "a")
		l.Release()
		time.Sleep(time.Second)
		expect(t, "counts", n.counts(), "spawned 2 failed 0 retired map[unresponsive:1]")
	})
}

func TestReleaseRetiresChildThatBreaksTheProtocol(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.script = func() codextest.Script {
			return codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Raw("oops")}
		}
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		l := acquire(t, p)
		if _, err := complete(t.Context(), l, "a"); err == nil {
			t.Error("no error")
		}
		l.Release()
		time.Sleep(time.Second)
		expect(t, "counts", n.counts(), "spawned 2 failed 0 retired map[protocol:1]")
	})
}

func TestIdleChildThatDiesIsReplacedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 2, UpkeepEvery: time.Hour})
		time.Sleep(time.Minute) // one that dies at once counts as a failed start
		n.kill(0)
		synctest.Wait()
		expect(t, "without time passing", shape(p), "starting 0 idle 2 leased 0 waiting 0")
		expect(t, "counts", n.counts(), "spawned 3 failed 0 retired map[exited:1]")
	})
}

func TestStartsSlowDownWhileChildrenFailBeforeAnyTurn(t *testing.T) {
	for name, last := range map[string]codextest.Step{"they die": codextest.Exit(1), "they write garbage": codextest.Raw("oops")} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *nursery) {
				n.script = func() codextest.Script {
					return codextest.Script{codextest.Handshake(), codextest.Thread(), last}
				}
				n.start(pool.Config{Size: 4, MinIdle: 4, BackoffMin: 500 * time.Millisecond, BackoffMax: 30 * time.Second})
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				n.mu.Lock()
				defer n.mu.Unlock()
				if n.spawned < 15 || n.spawned > 200 { // at half a second each it would be thousands
					t.Errorf("%d starts in ten minutes", n.spawned)
				}
			})
		})
	}
}

func TestStartsPauseNoLongerThanBackoffMax(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		var starts []time.Time
		p, err := pool.New(pool.Config{
			Size: 1, MinIdle: 1, BackoffMin: time.Second, BackoffMax: 4 * time.Second, Log: codextest.Log(t),
			Spawn: func(context.Context) (*codex.Client, error) {
				starts = append(starts, time.Now())
				return nil, errors.New("disk full")
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		p.Close()
		var longest time.Duration
		for i := range len(starts) - 1 {
			longest = max(longest, starts[i+1].Sub(starts[i]))
		}
		if longest != 4*time.Second { // half of all pauses at the end of the curve are cut to it
			t.Errorf("the longest of %d pauses was %v", len(starts)-1, longest)
		}
	})
}

func TestStartThatFailsIsLoggedWithWhatTheChildSaid(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		var log bytes.Buffer
		p, err := pool.New(pool.Config{
			Size: 1, MinIdle: 1, Log: slog.New(slog.NewTextHandler(&log, nil)),
			Spawn: func(context.Context) (*codex.Client, error) {
				return nil, &codex.RPCError{Code: -32600, Message: "unknown profile"}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.Close()
		if !strings.Contains(log.String(), `said="unknown profile"`) {
			t.Errorf("logged %s", log.String())
		}
	})
}

func TestStartsSlowDownThoughAnOldChildServes(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 2, MaxWaiting: 5})
		time.Sleep(time.Minute)
		n.set(func() { n.broken = errors.New("disk full") })
		n.kill(0)
		synctest.Wait()
		for range 10 * 60 { // a second each
			l := acquire(t, p)
			if got, err := complete(t.Context(), l, "x"); err != nil || got != "x" {
				t.Errorf("%q, %v", got, err)
			}
			l.Release()
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.failed < 15 || n.failed > 60 { // at half a second each it would be a thousand
			t.Errorf("%d failed starts in ten minutes", n.failed)
		}
	})
}

func TestStartsPauseOnceForOneIncident(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 16, MinIdle: 16, BackoffMin: time.Second, BackoffMax: time.Hour})
		time.Sleep(time.Second)
		for i := range 16 {
			n.kill(i)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		expect(t, "two seconds later", shape(p), "starting 0 idle 16 leased 0 waiting 0")
	})
}

func TestStartsGoOnAfterAnEarlyDeathWithoutMinIdle(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 0, MaxWaiting: 1})
		acquire(t, p).Release()
		synctest.Wait()
		n.kill(0)
		time.Sleep(time.Minute)
		acquire(t, p).Release()
		synctest.Wait()
		expect(t, "no more than is asked for", shape(p), "starting 0 idle 1 leased 0 waiting 0")
	})
}

func TestAcquireDoesNotWaitForAPauseWhileAChildIsIdle(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 8, MinIdle: 1, MaxWaiting: 20, BackoffMin: time.Minute, BackoffMax: time.Minute, UpkeepEvery: time.Hour})
		synctest.Wait()
		n.set(func() { n.broken = errors.New("disk full") })
		l := acquire(t, p)
		time.AfterFunc(time.Second, l.Release)
		began := time.Now()
		var callers sync.WaitGroup
		for i := range 7 {
			callers.Go(func() {
				l := acquire(t, p)
				if waited := time.Since(began); waited > 2*time.Second {
					t.Errorf("caller %d waited %v", i, waited)
				}
				l.Release()
			})
		}
		callers.Wait()
	})
}

func TestQueueKeepsItsOrderWhenAStartFails(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 1, MaxWaiting: 20, BackoffMin: time.Hour, BackoffMax: time.Hour, UpkeepEvery: time.Hour})
		synctest.Wait()
		n.set(func() { n.broken, n.slow = errors.New("disk full"), 5*time.Second })
		l := acquire(t, p)
		served := queue(t, p, 3)
		time.Sleep(10 * time.Second)
		l.Release()
		expectInOrder(t, served, 3)
	})
}

func TestQueueIsDismissedWhenTheLastChildDiesInAPause(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 1, MaxWaiting: 5, BackoffMin: time.Hour, BackoffMax: time.Hour})
		time.Sleep(time.Minute)
		n.set(func() { n.broken = errors.New("disk full") })
		l := acquire(t, p)
		waiting := make(chan error, 1)
		go func() {
			_, err := p.Acquire(t.Context())
			waiting <- err
		}()
		time.Sleep(2 * time.Second) // the second start has failed
		began := time.Now()
		n.kill(0)
		if err := <-waiting; !errors.Is(err, pool.ErrUnavailable) || time.Since(began) > time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		l.Release()
	})
}

func TestWornChildIsKeptWhileNoOtherCanBeStarted(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 2, MaxAge: time.Hour, MaxTurns: 2})
		time.Sleep(time.Minute)
		n.set(func() { n.broken = errors.New("binary gone") })
		n.kill(0)
		time.Sleep(3 * time.Hour)
		for range 5 {
			l := acquire(t, p)
			complete(t.Context(), l, "x")
			l.Release()
		}
		synctest.Wait()
		expect(t, "the last one", fmt.Sprint(p.Stat().Idle), "1")
	})
}

func TestCloseDuringAStartLeavesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.script = func() codextest.Script {
			return codextest.Script{codextest.Handshake(), codextest.Do(func() { time.Sleep(time.Second) }), codextest.Thread()}
		}
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		synctest.Wait()
		p.Close()
		expect(t, "closed", shape(p), "starting 0 idle 0 leased 0 waiting 0")
		expect(t, "counts", n.counts(), "spawned 0 failed 0 retired map[]")
	})
}

func TestLeaseCannotBeUsedAfterItsRelease(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		l := acquire(t, p)
		l.Release()
		defer func() {
			if recover() == nil {
				t.Error("a turn on a child that may be another's")
			}
		}()
		l.Turn(t.Context(), codex.TurnParams{})
	})
}

func TestQueueServesATenantInOrder(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 10})
		l := acquire(t, p)
		served := queue(t, p, 10)
		expect(t, "queued", shape(p), "starting 0 idle 0 leased 1 waiting 10")
		l.Release()
		expectInOrder(t, served, 10)
	})
}

func TestAcquireFailsAtOnceWhenTheQueueIsFull(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1})
		l := acquire(t, p)
		go func() { acquire(t, p).Release() }()
		synctest.Wait()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrFull) {
			t.Errorf("got %v", err)
		}
		l.Release()
		synctest.Wait()
		acquire(t, p).Release()
	})
}

func TestAcquireReturnsTheCauseOfItsContextAndFreesItsPlace(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1})
		l := acquire(t, p)
		cause := errors.New("waited too long")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, cause)
		defer cancel()
		if _, err := p.Acquire(ctx); !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		expect(t, "afterwards", shape(p), "starting 0 idle 0 leased 1 waiting 0")
		l.Release()
	})
}

func TestAcquireFailsAtOnceWhenNoChildCanBeStarted(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.broken = errors.New("no such binary")
		p := n.start(pool.Config{Size: 2, MinIdle: 2, BackoffMin: time.Second, BackoffMax: time.Minute})
		synctest.Wait()
		began := time.Now()
		_, err := p.Acquire(t.Context())
		if !errors.Is(err, pool.ErrUnavailable) || !errors.Is(err, n.broken) || time.Since(began) != 0 {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		time.Sleep(10 * time.Minute)
		n.mu.Lock()
		if n.failed < 10 || n.failed > 60 {
			t.Errorf("%d failed starts in ten minutes", n.failed)
		}
		n.broken = nil
		n.mu.Unlock()
		time.Sleep(2 * time.Minute)
		expect(t, "it recovers by itself", shape(p), "starting 0 idle 2 leased 0 waiting 0")
		acquire(t, p).Release()
	})
}

func TestAcquireFailsAtOnceAfterManyFailedStarts(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.broken, n.slow = errors.New("it hangs"), 10*time.Second
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1})
		time.Sleep(12 * time.Second)
		began := time.Now()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrUnavailable) || time.Since(began) < time.Second {
			t.Errorf("the second try was not waited for: %v after %v", err, time.Since(began))
		}
		time.Sleep(5 * time.Minute)
		for range 100 {
			time.Sleep(time.Second)
			began := time.Now()
			if _, err := p.Acquire(t.Context()); !errors.Is(err, n.broken) || time.Since(began) > 0 {
				t.Fatalf("%v after %v", err, time.Since(began))
			}
		}
		n.set(func() { n.broken = nil })
		time.Sleep(2 * time.Minute)
		acquire(t, p).Release()
	})
}

func TestAcquireFailsAtOnceWhenTheLastStartHung(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.broken, n.slow = fmt.Errorf("codex handshake: %w", codex.ErrUnresponsive), 15*time.Second
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1})
		time.Sleep(20 * time.Second)
		expect(t, "the second start", shape(p), "starting 1 idle 0 leased 0 waiting 0")
		began := time.Now()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrUnavailable) || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		n.set(func() { n.broken, n.slow = nil, 0 })
		time.Sleep(time.Minute)
		acquire(t, p).Release()
	})
}

func TestQueueIsDismissedWhenTheOnlyStartFails(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.broken, n.slow = errors.New("no such binary"), time.Second
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 5})
		failures := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := p.Acquire(t.Context())
				failures <- err
			}()
		}
		for range 3 {
			if err := <-failures; !errors.Is(err, pool.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		}
	})
}

func TestFailedStartFailsNoCallerWhileAChildLives(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 1, MaxWaiting: 5, BackoffMin: time.Minute})
		l := acquire(t, p)
		n.set(func() { n.broken = errors.New("disk full") })
		time.AfterFunc(10*time.Second, l.Release)
		// The second slot is empty, its start fails, and stays empty for a minute.
		second := acquire(t, p)
		if got, err := complete(t.Context(), second, "served"); err != nil || got != "served" {
			t.Errorf("got %q, %v", got, err)
		}
		second.Release()
	})
}

func TestMaxTurnsReplacesAChild(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxTurns: 3})
		time.Sleep(time.Minute)
		for range 7 {
			l := acquire(t, p)
			complete(t.Context(), l, "x")
			l.Release()
		}
		synctest.Wait()
		expect(t, "counts", n.counts(), "spawned 3 failed 0 retired map[turns:2]")
	})
}

func TestMaxTurnsOfOneIsOneOrTwoTurnsWithJitter(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxTurns: 1, Jitter: 0.5})
		for range 50 {
			l := acquire(t, p)
			complete(t.Context(), l, "x")
			l.Release()
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.spawned < 25 { // ceil(1 ± 0.5) is 1 or 2
			t.Errorf("%d children for 50 turns", n.spawned)
		}
		if err := p.Stat().Failure; err != nil {
			t.Errorf("a start was tried where there was no room: %v", err)
		}
	})
}

func TestMinLifeKeepsAYoungChild(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxTurns: 1, MinLife: 10 * time.Second})
		for range 9 { // a second each
			l := acquire(t, p)
			complete(t.Context(), l, "x")
			l.Release()
		}
		synctest.Wait()
		expect(t, "counts", n.counts(), "spawned 1 failed 0 retired map[]")
	})
}

func TestMaxAgeReplacesIdleChildrenOneAtATime(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 4, MinIdle: 4, MaxAge: time.Hour, Jitter: 0.2})
		for range 3 * 60 * 60 {
			time.Sleep(time.Second)
			if s := p.Stat(); s.Idle < 3 {
				t.Fatalf("only %d idle", s.Idle)
			}
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if got := n.retired[pool.Age]; got < 8 || got > 16 || len(n.retired) != 1 {
			t.Errorf("retired %v in three hours", n.retired)
		}
	})
}

func TestDrainDismissesTheQueueAndLetsLeasesFinish(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1})
		l := acquire(t, p)
		waited := make(chan error, 1)
		go func() {
			_, err := p.Acquire(t.Context())
			waited <- err
		}()
		synctest.Wait()
		p.Drain()
		if err := <-waited; !errors.Is(err, pool.ErrDraining) {
			t.Errorf("in the queue: %v", err)
		}
		if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrDraining) {
			t.Errorf("new: %v", err)
		}
		if got, err := complete(t.Context(), l, "still served"); err != nil || got != "still served" {
			t.Errorf("got %q, %v", got, err)
		}
		l.Release()
	})
}

func TestCloseWaitsForLeasesAndStopsEveryChild(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 3, MinIdle: 3})
		synctest.Wait()
		l := acquire(t, p)
		time.AfterFunc(5*time.Second, l.Release)
		began := time.Now()
		p.Close()
		if time.Since(began) != 5*time.Second {
			t.Errorf("closed after %v", time.Since(began))
		}
		if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrClosed) {
			t.Errorf("got %v", err)
		}
		expect(t, "counts", n.counts(), "spawned 3 failed 0 retired map[shutdown:3]")
	})
}

func TestCloseDoesNotWaitForAFailingStart(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.broken = errors.New("no")
		p := n.start(pool.Config{Size: 2, MinIdle: 2, BackoffMin: time.Hour, BackoffMax: time.Hour})
		synctest.Wait()
		began := time.Now()
		p.Close()
		if time.Since(began) != 0 {
			t.Errorf("closed after %v", time.Since(began))
		}
	})
}

func TestNewRejectsWhatCannotWork(t *testing.T) {
	for _, cfg := range []pool.Config{{}, {Size: 1, MinIdle: 2}, {Size: 1, MinIdle: -1}, {Size: 1, Jitter: 1}} {
		if _, err := pool.New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

// TestPoolUnderStressEndsClean does everything at once, in real time, from a printed seed, and
// then wants the pool as it was: no lease, nobody in line, every death counted.
func TestPoolUnderStressEndsClean(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n := newNursery(t)
	n.script = func() codextest.Script {
		return codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: 100 * time.Microsecond})}
	}
	p := n.start(pool.Config{
		Size: 4, MinIdle: 2, MaxWaiting: 100, MaxTurns: 20, Jitter: 0.5,
		BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond, UpkeepEvery: time.Millisecond,
		ProbeEvery: 5 * time.Millisecond, ProbeTimeout: time.Second,
	})
	acquire(t, p).Release() // there is a child to kill
	var callers sync.WaitGroup
	outcomes := make(chan string, 8*200)
	for i := range 8 {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		callers.Go(func() {
			for j := range 200 {
				outcomes <- visit(t, n, p, random, fmt.Sprintf("canary %d %d one two three", i, j))
			}
		})
	}
	callers.Wait()
	close(outcomes)
	tally := map[string]int{}
	for o := range outcomes {
		tally[o]++
	}
	p.Close()
	t.Logf("%v, %s", tally, n.counts())
	if tally["answered"] < 800 {
		t.Errorf("only %d answers", tally["answered"])
	}
	expect(t, "closed", shape(p), "starting 0 idle 0 leased 0 waiting 0")
	deaths := 0
	for c := range maps.Values(n.retired) {
		deaths += c
	}
	if deaths != n.spawned {
		t.Errorf("%d children were started, %d deaths counted", n.spawned, deaths)
	}
}

// visit is one caller: an ordinary one, one who leaves, or a murderer.
func visit(t *testing.T, n *nursery, p *pool.Pool, random *rand.Rand, canary string) string {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	switch random.IntN(10) {
	case 0:
		time.AfterFunc(time.Duration(random.IntN(1000))*time.Microsecond, cancel)
	case 1:
		if random.IntN(10) == 0 {
			p.Recycle()
		}
		if random.IntN(3) == 0 {
			n.mu.Lock()
			n.pipes[random.IntN(len(n.pipes))].Close()
			n.mu.Unlock()
		}
	}
	l, err := p.Acquire(ctx)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, pool.ErrUnavailable) {
			t.Errorf("acquire: %v", err)
		}
		time.Sleep(time.Millisecond) // as a client does that was told to come again
		return "no lease"
	}
	defer l.Release()
	got, err := complete(ctx, l, canary)
	switch {
	case err != nil && !strings.HasPrefix(canary, got):
		t.Errorf("half an answer %q to %q", got, canary)
	case err != nil:
		return "failed"
	case got != canary:
		t.Errorf("answer %q to %q", got, canary)
	}
	return "answered"
}

// The child that was used last has the warmest caches, and the others may rest.
func TestAcquireLendsTheChildThatServedLast(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 3, MinIdle: 3})
		time.Sleep(100 * time.Millisecond) // upkeep looks on the second, a turn takes one: nothing happens at once
		for range 5 {
			l := acquire(t, p)
			complete(t.Context(), l, "x")
			l.Release()
			time.Sleep(1400 * time.Millisecond) // upkeep has looked at them meanwhile
		}
		turns := 0
		for _, c := range p.Children() {
			turns = max(turns, c.Turns)
		}
		if turns != 5 {
			t.Errorf("%d of 5 turns were one child's", turns)
		}
	})
}
