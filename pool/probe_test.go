package pool_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex/codextest"
	"codexpool/pool"
)

// asked answers one probe after a delay, with what the child says of itself.
func asked(after time.Duration, gauges ...any) []codextest.Step {
	return []codextest.Step{
		codextest.Expect("server/diagnostics"), codextest.Do(func() { time.Sleep(after) }),
		codextest.Reply(map[string]any{"process": map[string]any{"residentMemoryBytes": 7}, "gauges": append([]any{}, gauges...)}),
	}
}

// born is a script of a child that is warm, then does the steps.
func born(steps ...codextest.Step) codextest.Script {
	return append(codextest.Script{codextest.Handshake(), codextest.Thread()}, steps...)
}

// raise has the children play these scripts in turn; those that come after are
// healthy.
func (n *nursery) raise(scripts ...codextest.Script) {
	healthy := n.script
	n.script = func() codextest.Script {
		if len(scripts) == 0 {
			return healthy()
		}
		first := scripts[0]
		scripts = scripts[1:]
		return first
	}
}

func TestProbeIsForIdleChildrenOnly(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		child := &codextest.Child{}
		n.script = func() codextest.Script { return codextest.Script{codextest.Handshake(), codextest.Serve(child)} }
		p := n.start(pool.Config{Size: 1, MinIdle: 1, ProbeEvery: 10 * time.Second})
		time.Sleep(time.Minute + time.Second)
		idle := child.Calls("server/diagnostics")
		l := acquire(t, p)
		time.Sleep(time.Minute)
		if leased := child.Calls("server/diagnostics") - idle; idle < 5 || idle > 6 || leased != 0 {
			t.Errorf("%d probes in an idle minute, %d in a leased one", idle, leased)
		}
		l.Release()
		expect(t, "counts", n.counts(), "spawned 1 failed 0 retired map[]")
	})
}

func TestProbeIsSparedToAChildThatServes(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		child := &codextest.Child{}
		n.script = func() codextest.Script { return codextest.Script{codextest.Handshake(), codextest.Serve(child)} }
		p := n.start(pool.Config{Size: 1, MinIdle: 1, ProbeEvery: 10 * time.Second})
		for range 12 {
			time.Sleep(5 * time.Second)
			acquire(t, p).Release()
		}
		if got := child.Calls("server/diagnostics"); got != 0 {
			t.Errorf("%d probes of a child that has just answered", got)
		}
	})
}

func TestProbeIsOffWithoutAnInterval(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(codextest.Hang()))
		n.start(pool.Config{Size: 1, MinIdle: 1})
		time.Sleep(time.Hour)
		expect(t, "counts", n.counts(), "spawned 1 failed 0 retired map[]")
	})
}

func TestProbeThatIsAnsweredLateCostsNoChild(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(append(asked(3900*time.Millisecond), codextest.Serve(&codextest.Child{}))...))
		p := n.start(pool.Config{Size: 1, MinIdle: 1, ProbeEvery: 10 * time.Second, ProbeTimeout: 2 * time.Second})
		time.Sleep(13 * time.Second)
		expect(t, "after the first look", string(p.Children()[0].State), "late")
		time.Sleep(3 * time.Second)
		probe := p.Children()[0].Probe
		if probe == nil || probe.Took != 3900*time.Millisecond || probe.Err != nil || probe.Health.ResidentBytes != 7 {
			t.Errorf("the probe: %+v", probe)
		}
		time.Sleep(time.Minute)
		acquire(t, p).Release()
		expect(t, "counts", n.counts(), "spawned 1 failed 0 retired map[]")
	})
}

func TestProbeThatIsNotAnsweredReplacesTheChild(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(codextest.Hang()))
		outcomes := make(chan error, 100)
		p := n.startWith(pool.Config{Size: 1, MinIdle: 1, ProbeEvery: 10 * time.Second, ProbeTimeout: 2 * time.Second}, pool.Hooks{
			Probed: func(_ context.Context, _ time.Duration, err error) { outcomes <- err },
		})
		time.Sleep(13900 * time.Millisecond)
		expect(t, "before", n.counts(), "spawned 1 failed 0 retired map[]")
		time.Sleep(time.Second)
		synctest.Wait()
		if d := p.Deaths()[0]; len(outcomes) != 1 || <-outcomes == nil || d.Why != pool.Unresponsive || d.Err == nil {
			t.Errorf("death %+v", d)
		}
		time.Sleep(time.Minute)
		expect(t, "replaced", shape(p), "starting 0 idle 1 leased 0 waiting 0")
	})
}

func TestProbeOfAWedgedChildDelaysNobody(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(codextest.Hang()), born(codextest.Hang()))
		p := n.start(pool.Config{Size: 4, MinIdle: 4, ProbeEvery: 10 * time.Second, ProbeTimeout: 2 * time.Second})
		began := time.Now()
		time.Sleep(11 * time.Second)
		synctest.Wait()
		probed := 0
		for _, c := range p.Children() {
			if c.Probe != nil && c.Probe.At.Sub(began) < 11*time.Second {
				probed++
			}
		}
		expect(t, "states", fmt.Sprint(probed, " probed, ", shape(p)), "2 probed, starting 0 idle 2 leased 2 waiting 0")
		asking := time.Now()
		for range 2 {
			l := acquire(t, p)
			if _, err := complete(t.Context(), l, "x"); err != nil {
				t.Error(err)
			}
			l.Release()
		}
		if waited := time.Since(asking); waited != 2*time.Second { // a second's turn each
			t.Errorf("two turns took %v", waited)
		}
	})
}

func TestAcquireDoesNotWaitForAWedgedChildWhereThereIsRoom(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(codextest.Hang()))
		p := n.start(pool.Config{Size: 2, MinIdle: 1, MaxWaiting: 1, ProbeEvery: 10 * time.Second, ProbeTimeout: 2 * time.Second})
		time.Sleep(10*time.Second + time.Millisecond)
		began := time.Now()
		l := acquire(t, p)
		if _, err := complete(t.Context(), l, "x"); err != nil {
			t.Error(err)
		}
		l.Release()
		if waited := time.Since(began) - time.Second; waited > 500*time.Millisecond {
			t.Errorf("waited %v", waited)
		}
	})
}

func TestProbeCostsACallerMilliseconds(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(append(asked(time.Millisecond), codextest.Serve(&codextest.Child{}))...))
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1, ProbeEvery: time.Second})
		for p.Children() == nil || p.Children()[0].State != pool.Probing {
			time.Sleep(100 * time.Microsecond)
		}
		expect(t, "under a probe", shape(p), "starting 0 idle 1 leased 0 waiting 0")
		began := time.Now()
		l := acquire(t, p)
		if waited := time.Since(began); waited == 0 || waited > time.Millisecond {
			t.Errorf("waited %v", waited)
		}
		l.Release()
	})
}

func TestProbesAreOneByOne(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		var scripts []codextest.Script
		for range 4 {
			scripts = append(scripts, born(append(asked(time.Millisecond), codextest.Serve(&codextest.Child{}))...))
		}
		n.raise(scripts...)
		p := n.start(pool.Config{Size: 4, MinIdle: 4, ProbeEvery: 10 * time.Second})
		time.Sleep(9 * time.Second)
		seen := 0
		for range 20_000 {
			time.Sleep(100 * time.Microsecond)
			probing := 0
			for _, c := range p.Children() {
				if c.State == pool.Probing {
					probing++
				}
			}
			seen = max(seen, probing)
		}
		if seen != 1 {
			t.Errorf("%d at once", seen)
		}
		for _, c := range p.Children() {
			if c.Probe == nil || c.Probe.Err != nil {
				t.Errorf("%+v", c)
			}
		}
	})
}

// The bytes that are allocated stand for the work: they are the same on every machine.
func TestProbesCostTheSameHoweverManyChildrenThereAre(t *testing.T) {
	var costs []uint64
	for _, size := range []int{16, 512} {
		bubble(t, func(t *testing.T, n *nursery) {
			var probes atomic.Int64
			p := n.startWith(pool.Config{Size: size, MinIdle: size, ProbeEvery: time.Minute}, pool.Hooks{
				Probed: func(context.Context, time.Duration, error) { probes.Add(1) },
			})
			time.Sleep(61 * time.Second) // buffers have been made
			synctest.Wait()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			probes.Store(0)
			time.Sleep(time.Minute)
			synctest.Wait()
			runtime.ReadMemStats(&after)
			if got := probes.Load(); got != int64(size) {
				t.Errorf("%d probes of %d children in a minute", got, size)
			}
			costs = append(costs, (after.TotalAlloc-before.TotalAlloc)/uint64(size))
			p.Close()
		})
	}
	t.Logf("bytes a child: %v", costs)
	if costs[1] > costs[0]*2 {
		t.Errorf("a probe beside 15 others costs %d bytes, beside 511 it costs %d", costs[0], costs[1])
	}
}

func TestProbeThatIsNotLateStartsNoOtherChild(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(append(asked(150*time.Millisecond), codextest.Serve(&codextest.Child{}))...))
		n.start(pool.Config{Size: 2, MinIdle: 1, ProbeEvery: time.Second, ProbeTimeout: 2 * time.Second, UpkeepEvery: 10 * time.Millisecond})
		time.Sleep(1900 * time.Millisecond)
		expect(t, "counts", n.counts(), "spawned 1 failed 0 retired map[]")
	})
}

func TestProbeRetiresAnIdleChildThatRunsATurn(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(asked(0, map[string]any{"name": "core.turns.active", "value": 1})...))
		p := n.start(pool.Config{Size: 1, MinIdle: 1, ProbeEvery: 10 * time.Second})
		time.Sleep(12 * time.Second)
		if d := p.Deaths(); len(d) != 1 || d[0].Why != pool.Protocol || d[0].Err == nil {
			t.Errorf("deaths %+v", d)
		}
	})
}

func TestProbeThatIsAnsweredWithAnErrorIsAnswered(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(codextest.Expect("server/diagnostics"), codextest.ReplyError(-32601, "unknown method"), codextest.Serve(&codextest.Child{})))
		n.start(pool.Config{Size: 1, MinIdle: 1, ProbeEvery: 10 * time.Second})
		time.Sleep(time.Minute)
		expect(t, "counts", n.counts(), "spawned 1 failed 0 retired map[]")
	})
}

func TestCloseDoesNotWaitForAWedgedProbe(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(codextest.Hang()))
		p := n.start(pool.Config{Size: 1, MinIdle: 1, ProbeEvery: 10 * time.Second, ProbeTimeout: 5 * time.Second})
		time.Sleep(10*time.Second + time.Millisecond)
		began := time.Now()
		p.Close()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("closed after %v", took)
		}
	})
}

func TestIdleChildThatWritesGarbageIsReplacedAtTheNextLook(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(codextest.Do(func() { time.Sleep(time.Minute) }), codextest.Raw("oops"), codextest.Hang()))
		p := n.start(pool.Config{Size: 1, MinIdle: 1, UpkeepEvery: 10 * time.Second})
		time.Sleep(71 * time.Second) // its process runs on, so its end tells nothing
		expect(t, "counts", n.counts(), "spawned 2 failed 0 retired map[protocol:1]")
		expect(t, "replaced", shape(p), "starting 0 idle 1 leased 0 waiting 0")
	})
}

// turnBy runs a turn and blames the child for it, or does not.
func turnBy(t *testing.T, p *pool.Pool, failure error) {
	t.Helper()
	l := acquire(t, p)
	complete(t.Context(), l, "x")
	l.Blame(failure)
	l.Release()
}

func TestBlameForThreeTurnsInARowRetiresTheChild(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		failed := errors.New("turn failed")
		for _, outcome := range []error{failed, failed, nil, failed, failed} {
			turnBy(t, p, outcome)
		}
		synctest.Wait()
		expect(t, "never three in a row", n.counts(), "spawned 1 failed 0 retired map[]")
		turnBy(t, p, failed)
		synctest.Wait()
		expect(t, "counts", n.counts(), "spawned 2 failed 0 retired map[failing:1]")
		if d := p.Deaths()[0]; !errors.Is(d.Err, failed) {
			t.Errorf("died of %v", d.Err)
		}
		turnBy(t, p, failed)
		synctest.Wait()
		expect(t, "the next begins anew", n.counts(), "spawned 2 failed 0 retired map[failing:1]")
	})
}
