package pool_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/pool"
)

// queued has a request of a tenant for n children in the queue. ends receives its name
// and how it ended: "served", or the error.
func queued(t *testing.T, p *pool.Pool, tenant, name string, n int, ends chan<- string) error {
	t.Helper()
	a, err := p.Admit(t.Context(), tenant, n)
	if err != nil {
		return err
	}
	for range n {
		go func() {
			l, err := a.Acquire(t.Context())
			if err != nil {
				ends <- name + ": " + err.Error()
				return
			}
			time.Sleep(time.Second)
			l.Release()
			ends <- name + ": served"
		}()
	}
	synctest.Wait()
	return nil
}

func drained(ends chan string) (list []string) {
	for {
		select {
		case end := <-ends:
			list = append(list, end)
		default:
			return list
		}
	}
}

func TestFullQueueTakesARequestOfAnotherTenantAndDismissesTheNewestOfTheLongest(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 4})
		ends := make(chan string, 100)
		for i := range 4 {
			if err := queued(t, p, "a", fmt.Sprint("a", i), 1, ends); err != nil {
				t.Fatal(err)
			}
		}
		if err := queued(t, p, "c", "c0", 1, ends); err != nil {
			t.Fatal(err)
		}
		if err := p.Room(t.Context(), "a"); !errors.Is(err, pool.ErrFull) {
			t.Errorf("room for the one that fills the queue: %v", err)
		}
		if err := p.Room(t.Context(), "b"); err != nil {
			t.Errorf("room for another: %v", err)
		}
		if err := queued(t, p, "a", "a4", 1, ends); !errors.Is(err, pool.ErrFull) {
			t.Errorf("one more of the same tenant: %v", err)
		}
		if err := queued(t, p, "b", "b0", 1, ends); err != nil {
			t.Errorf("the first of another tenant: %v", err)
		}
		expect(t, "dismissed", fmt.Sprint(drained(ends)), "[a3: "+pool.ErrFull.Error()+"]")
		if s := p.Stat(); s.Admitted != 5 || s.Waiting != 4 {
			t.Errorf("%+v", s)
		}
		// a has one child and two that wait, b has one that waits.
		if err := queued(t, p, "b", "b1", 1, ends); err != nil {
			t.Errorf("the second of another tenant: %v", err)
		}
		expect(t, "dismissed", fmt.Sprint(drained(ends)), "[a2: "+pool.ErrFull.Error()+"]")
		for _, tenant := range []string{"a", "b"} { // both have as many now
			if err := queued(t, p, tenant, "late", 1, ends); !errors.Is(err, pool.ErrFull) {
				t.Errorf("one more of %s: %v", tenant, err)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		expect(t, "ends", fmt.Sprint(len(drained(ends))), "5")
		if s := p.Stat(); s.Admitted != 0 || s.Waiting != 0 {
			t.Errorf("in the end %+v", s)
		}
	})
}

// TestRequestOfSeveralChildrenIsDismissedAsAWhole, and only before it has one of them.
func TestRequestOfSeveralChildrenIsDismissedAsAWhole(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 5})
		ends := make(chan string, 100)
		for _, name := range []string{"a0", "a1"} { // the first has one child, and two that wait
			if err := queued(t, p, "a", name, 3, ends); err != nil {
				t.Fatal(err)
			}
		}
		if err := queued(t, p, "b", "b0", 4, ends); !errors.Is(err, pool.ErrFull) {
			t.Errorf("four of another tenant: %v", err)
		}
		expect(t, "dismissed in vain", fmt.Sprint(drained(ends)), "[]")
		if err := queued(t, p, "b", "b0", 1, ends); err != nil {
			t.Errorf("one of another tenant: %v", err)
		}
		all := "a1: " + pool.ErrFull.Error()
		expect(t, "dismissed", fmt.Sprint(drained(ends)), fmt.Sprint([]string{all, all, all}))
		if s := p.Stat(); s.Admitted != 4 || s.Waiting != 3 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := p.Stat(); s.Admitted != 0 || len(drained(ends)) != 4 {
			t.Errorf("in the end %+v", s)
		}
	})
}

// TestFloodsOfTwoTenantsShareTheCapacity: both keep the queue full, and the one request
// that a third sends now and then waits for no more than two others.
func TestFloodsOfTwoTenantsShareTheCapacity(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 8})
		served := map[string]int{}
		ctx, stop := context.WithCancel(t.Context())
		var floods sync.WaitGroup
		flood := func(tenant string) {
			for ctx.Err() == nil {
				if a, err := p.Admit(ctx, tenant, 1); err == nil {
					if l, err := a.Acquire(ctx); err == nil {
						served[tenant]++ // one lease at a time
						time.Sleep(time.Second)
						l.Release()
					}
					a.Close()
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		for range 12 {
			floods.Go(func() { flood("a") })
			floods.Go(func() { flood("b") })
		}
		time.Sleep(10 * time.Second)
		for range 20 {
			synctest.Wait()
			before := served["a"] + served["b"]
			a, err := p.Admit(t.Context(), "c", 1)
			if err != nil {
				t.Fatal("the third was rejected: ", err)
			}
			l, err := a.Acquire(t.Context())
			if err != nil {
				t.Fatal("the third was dismissed: ", err)
			}
			if others := served["a"] + served["b"] - before; others > 2 {
				t.Errorf("it waited for %d others", others)
			}
			time.Sleep(time.Second)
			l.Release()
			a.Close()
			time.Sleep(5 * time.Second)
		}
		stop()
		floods.Wait()
		if a, b := served["a"], served["b"]; a-b > 3 || b-a > 3 || a < 40 {
			t.Errorf("served %v", served)
		}
	})
}
