package pool_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/codex/codextest"
	"codexpool/pool"
)

func TestReleaseReportsHowLongTheChildWasHeld(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		var held []time.Duration
		p := n.startWith(pool.Config{Size: 1, MinIdle: 1}, pool.Hooks{Released: func(_ context.Context, d time.Duration) { held = append(held, d) }})
		for _, words := range []string{"one two", "one"} {
			l := acquire(t, p)
			complete(t.Context(), l, words) // a second for each word
			l.Release()
			l.Release()
			synctest.Wait()
		}
		expect(t, "held", fmt.Sprint(held), "[2s 1s]")
	})
}

func TestDeathSaysWhetherItTookATurnWithIt(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		var inTurn []bool
		p := n.startWith(pool.Config{Size: 1, MinIdle: 1, MaxTurns: 2}, pool.Hooks{Retired: func(_ context.Context, d pool.Death) { inTurn = append(inTurn, d.InTurn) }})
		time.Sleep(time.Minute)
		l := acquire(t, p)
		time.AfterFunc(1500*time.Millisecond, func() { n.kill(0) })
		complete(t.Context(), l, "one two three")
		l.Release()
		time.Sleep(time.Minute)
		n.kill(1) // it is idle
		time.Sleep(time.Minute)
		for range 2 { // the third reaches its limit
			l := acquire(t, p)
			complete(t.Context(), l, "x")
			l.Release()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		expect(t, "in a turn", fmt.Sprint(inTurn), "[true false false]")
	})
}

func TestStatTellsChildrenThatAreLateOrLeaveFromThoseThatServe(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		n.raise(born(codextest.Hang()))
		p := n.start(pool.Config{Size: 2, MinIdle: 2, ProbeEvery: 10 * time.Second, ProbeTimeout: 2 * time.Second})
		figures := func() string {
			s := p.Stat()
			return fmt.Sprintf("leased %d late %d leaving %d", s.Leased, s.Late, s.Leaving)
		}
		expect(t, "at rest", figures(), "leased 0 late 0 leaving 0")
		time.Sleep(11 * time.Second)
		expect(t, "in the probe", figures(), "leased 1 late 1 leaving 0")
		l := acquire(t, p)
		expect(t, "in the probe, with a lease", figures(), "leased 2 late 1 leaving 0")
		l.Release()
		time.Sleep(time.Minute)
		expect(t, "after it", figures(), "leased 0 late 0 leaving 0")
	})
}

func TestStatSaysSinceWhenCallersAreTurnedAway(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1})
		if s := p.Stat(); !s.Closed.IsZero() {
			t.Errorf("at the start: %+v", s)
		}
		p.Drain()
		began := time.Now()
		time.Sleep(time.Minute)
		p.Drain() // a second time changes nothing
		if s := p.Stat(); !s.Closed.Equal(began) {
			t.Errorf("since %v, not %v", s.Closed, began)
		}
		p.Resume()
		if s := p.Stat(); !s.Closed.IsZero() {
			t.Errorf("resumed: %+v", s)
		}
	})
}
