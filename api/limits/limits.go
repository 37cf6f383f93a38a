// Package limits says how much a key may use, and what it may still use: requests and
// tokens, each from a bucket that refills evenly.
package limits

import (
	"context"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate is the size of a bucket, and the time in which an empty one is full again. The
// zero Rate is no limit.
type Rate struct {
	Most int
	Per  time.Duration
}

// Quota is a bucket at one moment.
type Quota struct {
	Limit     int
	Remaining int
	Reset     time.Duration // until it is full
}

// Verdict says whether a request is admitted.
type Verdict struct {
	Requests, Tokens *Quota        // after the request; nil = no limit
	Wait             time.Duration // 0 = admitted; else another is, after this
}

// Account has the buckets of one key. Its methods may be called by several goroutines.
type Account struct {
	mu               sync.Mutex
	requests, tokens bucket // guarded by mu
}

// Set changes the limits. What was used stays used.
func (a *Account) Set(requests, tokens Rate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests.set(requests)
	a.tokens.set(tokens)
}

// Take admits a request and takes it from its bucket, or rejects it and takes nothing: it
// is rejected where no request remains, and while the tokens are in debt.
func (a *Account) Take(context.Context) Verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	wait := max(a.requests.until(now, 1), a.tokens.until(now, 0))
	if wait == 0 {
		a.requests.take(now, 1)
	}
	return Verdict{Requests: a.requests.quota(now), Tokens: a.tokens.quota(now), Wait: wait}
}

// Charge takes tokens from their bucket, more than it has if need be: that is a debt.
func (a *Account) Charge(_ context.Context, tokens int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens.take(time.Now(), tokens)
}

const year = 365 * 24 * time.Hour

// bucket is a bucket of this process. Its owner guards it with a lock.
type bucket struct {
	Rate
	limiter *rate.Limiter // nil = no limit
}

func (b *bucket) set(r Rate) {
	if r == b.Rate {
		return
	}
	b.Rate = r
	limit := rate.Limit(float64(r.Most) / r.Per.Seconds())
	switch {
	case r == Rate{}:
		b.limiter = nil
	case b.limiter == nil:
		b.limiter = rate.NewLimiter(limit, r.Most)
	default:
		b.limiter.SetLimit(limit)
		b.limiter.SetBurst(r.Most)
	}
}

// until is how long it takes until the bucket has n.
func (b *bucket) until(now time.Time, n float64) time.Duration {
	if b.limiter == nil {
		return 0
	}
	return b.lasts(n - b.limiter.TokensAt(now))
}

// lasts is how long the bucket takes to refill by n, in whole microseconds: what is less
// is an error of rounding.
func (b *bucket) lasts(n float64) time.Duration {
	if n <= 0 {
		return 0
	}
	seconds := min(n/float64(b.limiter.Limit()), year.Seconds()) // a Duration holds no more than centuries
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond)
}

// take takes n, and more than there is if need be.
func (b *bucket) take(now time.Time, n int) {
	if b.limiter == nil {
		return
	}
	b.limiter.SetBurstAt(now, max(n, b.Most)) // it lends no more than that at once
	b.limiter.ReserveN(now, n)
	b.limiter.SetBurstAt(now, b.Most)
}

func (b *bucket) quota(now time.Time) *Quota {
	if b.limiter == nil {
		return nil
	}
	has := b.limiter.TokensAt(now)
	return &Quota{Limit: b.Most, Remaining: max(0, int(math.Floor(has+1e-6))), Reset: b.lasts(float64(b.Most) - has)}
}
