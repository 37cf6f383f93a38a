package pool_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/pool"
)

// admit admits n children of a tenant.
func admit(t *testing.T, p *pool.Pool, tenant string, n int) *pool.Admission {
	t.Helper()
	a, err := p.Admit(t.Context(), tenant, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func TestTenantsAreServedInTurn(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 100})
		l := acquire(t, p)
		order := make(chan string, 100)
		for range 40 {
			wait(t, p, "a", func() { order <- "a" })
		}
		wait(t, p, "b", func() { order <- "b" })
		wait(t, p, "c", func() { order <- "c" })
		wait(t, p, "b", func() { order <- "b" })
		l.Release()
		time.Sleep(time.Minute) // a second each
		synctest.Wait()
		close(order)
		var served strings.Builder
		for tenant := range order {
			served.WriteString(tenant)
		}
		expect(t, "order", served.String(), "abcab"+strings.Repeat("a", 38))
	})
}

func TestTenantWithOneRequestIsServedAmongTheNextTwo(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 100})
		l := acquire(t, p)
		time.AfterFunc(time.Second, l.Release)
		before := 0
		for range 40 {
			wait(t, p, "a", func() { before++ })
		}
		at := -1
		time.Sleep(10500 * time.Millisecond) // the queue has moved on for a while
		synctest.Wait()                      // so that before may be read
		began := before
		wait(t, p, "b", func() { at = before - began })
		time.Sleep(time.Minute)
		synctest.Wait()
		if at < 0 || at > 1 {
			t.Errorf("%d of the other tenant were served before", at)
		}
	})
}

func TestAdmissionThatPanicsBeforeAcquireLeavesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 2})
		for range 10 {
			func() {
				defer func() { recover() }()
				a, err := p.Admit(t.Context(), "", 3)
				if err != nil {
					t.Fatal(err)
				}
				defer a.Close()
				panic("between Admit and Acquire")
			}()
		}
		synctest.Wait()
		if s := p.Stat(); s.Admitted != 0 || s.Leased != 0 || s.Waiting != 0 {
			t.Errorf("%+v", s)
		}
		acquire(t, p).Release()
	})
}

func TestAdmissionCloseIsIdempotentAndKeepsLeases(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 2, MaxWaiting: 1})
		a := admit(t, p, "", 3)
		l, err := a.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		a.Close()
		expect(t, "the lease", fmt.Sprint(p.Stat().Admitted), "1")
		if got, err := complete(t.Context(), l, "x"); err != nil || got != "x" {
			t.Errorf("%q, %v", got, err)
		}
		l.Release()
		l.Release()
		expect(t, "nothing", fmt.Sprint(p.Stat().Admitted), "0")
	})
}

func TestAdmitAdmitsAllOrNone(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 2, MinIdle: 2, MaxWaiting: 1})
		if _, err := p.Admit(t.Context(), "", 4); !errors.Is(err, pool.ErrFull) {
			t.Errorf("got %v", err)
		}
		admit(t, p, "", 3)
		if _, err := p.Admit(t.Context(), "", 1); !errors.Is(err, pool.ErrFull) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAcquireTimeoutEndsTheWait(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1, AcquireTimeout: 3 * time.Second})
		l := acquire(t, p)
		began := time.Now()
		if _, err := p.Acquire(t.Context()); !errors.Is(err, pool.ErrTimeout) || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if s := p.Stat(); s.Waiting != 0 || s.Admitted != 1 {
			t.Errorf("%+v", s)
		}
		l.Release()
		acquire(t, p).Release()
	})
}

func TestAcquireTimeoutIsForTheFirstChildOfAnAdmission(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1, AcquireTimeout: 3 * time.Second})
		a := admit(t, p, "", 2)
		l, err := a.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Minute, l.Release)
		second, err := a.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		second.Release()
	})
}

func TestAcquireWithAnEndedContextTakesNoChild(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1})
		synctest.Wait()
		cause := errors.New("the client disconnected")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		if _, err := p.Acquire(ctx); !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		expect(t, "afterwards", shape(p), "starting 0 idle 1 leased 0 waiting 0")
	})
}

func TestHooksGetTheContextOfTheCaller(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		type key struct{}
		seen := make(chan string, 2)
		p := n.startWith(pool.Config{Size: 1, MinIdle: 1}, pool.Hooks{
			Acquired: func(ctx context.Context, _ time.Duration, _ int, err error) {
				seen <- fmt.Sprint(ctx.Value(key{}), " ", err)
			},
		})
		ctx := context.WithValue(t.Context(), key{}, "mine")
		l, err := p.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "served", <-seen, "mine <nil>")
		if _, err := p.Admit(ctx, "", 1); err == nil {
			t.Error("admitted")
		}
		expect(t, "full", <-seen, "mine "+pool.ErrFull.Error())
		l.Release()
	})
}

func TestHooksLearnHowManyWereInTheQueue(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		seen := make(chan string, 4)
		p := n.startWith(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 2}, pool.Hooks{
			Acquired: func(_ context.Context, _ time.Duration, ahead int, err error) { seen <- fmt.Sprint(ahead, " ", err) },
		})
		l := acquire(t, p)
		for range 2 {
			go func() { acquire(t, p).Release() }()
			synctest.Wait()
		}
		if _, err := p.Admit(t.Context(), "", 1); err == nil {
			t.Error("admitted")
		}
		l.Release()
		for _, want := range []string{"0 <nil>", "2 " + pool.ErrFull.Error(), "0 <nil>", "1 <nil>"} {
			expect(t, "ahead", <-seen, want)
		}
	})
}

// TestKeptCallerWaitsOnWhilePoolCloses has one that keeps its place and one that does not
// wait behind a lease.
func TestKeptCallerWaitsOnWhilePoolCloses(t *testing.T) {
	for name, stop := range map[string]func(*pool.Pool){"drain": (*pool.Pool).Drain, "close": (*pool.Pool).Close} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *nursery) {
				p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 2})
				l := acquire(t, p)
				kept, other := admit(t, p, "a", 1), admit(t, p, "b", 1)
				if err := kept.Keep(); err != nil {
					t.Error(err)
				}
				answers, errs := make(chan string, 1), make(chan error, 1)
				go func() {
					l, err := kept.Acquire(t.Context())
					if err != nil {
						t.Error(err)
						answers <- ""
						return
					}
					defer l.Release()
					answer, err := complete(t.Context(), l, "served")
					if err != nil {
						t.Error(err)
					}
					answers <- answer
				}()
				go func() {
					_, err := other.Acquire(t.Context())
					errs <- err
				}()
				synctest.Wait()
				go stop(p)
				if err := <-errs; !errors.Is(err, pool.ErrDraining) && !errors.Is(err, pool.ErrClosed) || !errors.Is(other.Keep(), err) {
					t.Errorf("%v, then %v", err, other.Keep())
				}
				synctest.Wait()
				l.Release()
				expect(t, "answer", <-answers, "served")
			})
		})
	}
}

func TestKeptCallerIsDismissedWhenTheLastChildOfAClosingPoolDies(t *testing.T) {
	bubble(t, func(t *testing.T, n *nursery) {
		p := n.start(pool.Config{Size: 1, MinIdle: 1, MaxWaiting: 1})
		l := acquire(t, p)
		kept := admit(t, p, "", 1)
		if err := kept.Keep(); err != nil {
			t.Error(err)
		}
		errs := make(chan error, 1)
		go func() {
			_, err := kept.Acquire(t.Context())
			errs <- err
		}()
		synctest.Wait()
		go p.Close()
		synctest.Wait()
		n.kill(0)
		if err := <-errs; !errors.Is(err, pool.ErrClosed) {
			t.Error(err)
		}
		l.Release()
	})
}
