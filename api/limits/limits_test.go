package limits_test

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api/limits"
)

func TestRequestsAreAdmittedUpToTheLimitAndRegainedEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := limits.NewAccount("k", nil)
		a.Set(limits.Rate{Most: 3, Per: time.Minute}, limits.Rate{})
		for _, want := range []struct {
			remaining   int
			reset, wait time.Duration
		}{{2, 20 * time.Second, 0}, {1, 40 * time.Second, 0}, {0, time.Minute, 0}, {0, time.Minute, 20 * time.Second}} {
			v := a.Take(t.Context())
			if q := v.Requests; q.Limit != 3 || q.Remaining != want.remaining || q.Reset != want.reset || v.Wait != want.wait || v.Tokens != nil {
				t.Errorf("%+v, %+v; want %+v", v, *q, want)
			}
		}
		time.Sleep(20 * time.Second)
		if v := a.Take(t.Context()); v.Wait != 0 || v.Requests.Remaining != 0 {
			t.Errorf("%+v, %+v", v, *v.Requests)
		}
		time.Sleep(time.Hour)
		if v := a.Take(t.Context()); v.Wait != 0 || v.Requests.Remaining != 2 {
			t.Errorf("after an hour: %+v, %+v", v, *v.Requests)
		}
	})
}

// TestDebtOfTokensRejectsUntilItIsPaid: the last answer may have cost more than there was.
func TestDebtOfTokensRejectsUntilItIsPaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := limits.NewAccount("k", nil)
		a.Set(limits.Rate{Most: 2, Per: time.Minute}, limits.Rate{Most: 60, Per: time.Minute})
		if v := a.Take(t.Context()); v.Wait != 0 || v.Tokens.Remaining != 60 {
			t.Fatalf("%+v", v)
		}
		a.Charge(t.Context(), 90)
		v := a.Take(t.Context())
		if v.Wait != 30*time.Second || v.Tokens.Remaining != 0 || v.Tokens.Reset != 90*time.Second || v.Requests.Remaining != 1 {
			t.Errorf("in debt: %+v, %+v, %+v", v, *v.Tokens, *v.Requests) // no request was taken
		}
		time.Sleep(v.Wait)
		if v := a.Take(t.Context()); v.Wait != 0 {
			t.Errorf("after the wait: %+v", v)
		}
		a.Charge(t.Context(), 1<<40)
		if v := a.Take(t.Context()); v.Wait <= 0 {
			t.Errorf("in endless debt: %+v", v)
		}
	})
}

// TestWaitIsExact: who waits as long as was said is admitted, whatever the limits, and who
// comes a second earlier is not.
func TestWaitIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		for range 2000 {
			r := limits.Rate{Most: 1 + random.IntN(1000), Per: time.Duration(1 + random.IntN(int(time.Hour)))}
			a := limits.NewAccount("k", nil)
			a.Set(r, limits.Rate{Most: 1 + random.IntN(100000), Per: time.Minute})
			for a.Take(t.Context()).Wait == 0 {
				time.Sleep(time.Duration(random.IntN(int(r.Per)/r.Most+1)) / 2)
				a.Charge(t.Context(), random.IntN(2000))
			}
			v := a.Take(t.Context())
			time.Sleep(v.Wait - min(v.Wait, time.Second))
			if early := a.Take(t.Context()); v.Wait > time.Second && early.Wait == 0 {
				t.Fatalf("%+v: admitted a second before %v", r, v.Wait)
			} else if v.Wait <= time.Second {
				continue
			}
			time.Sleep(time.Second)
			if late := a.Take(t.Context()); late.Wait != 0 {
				t.Fatalf("%+v: told to wait %v, then %v", r, v.Wait, late.Wait)
			}
		}
	})
}

func TestLimitsChangeWithoutForgettingWhatWasUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := limits.NewAccount("k", nil)
		if v := a.Take(t.Context()); v.Requests != nil || v.Wait != 0 {
			t.Errorf("without limits %+v", v)
		}
		a.Set(limits.Rate{Most: 2, Per: time.Minute}, limits.Rate{})
		a.Take(t.Context())
		a.Take(t.Context())
		a.Set(limits.Rate{Most: 4, Per: time.Minute}, limits.Rate{})
		if v := a.Take(t.Context()); v.Wait != 15*time.Second || v.Requests.Limit != 4 {
			t.Errorf("%+v, %+v", v, *v.Requests)
		}
		a.Set(limits.Rate{}, limits.Rate{})
		if v := a.Take(t.Context()); v.Requests != nil || v.Wait != 0 {
			t.Errorf("when the limit is gone %+v", v)
		}
	})
}
