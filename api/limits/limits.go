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
	key    string // of its buckets in shared
	shared *Redis

	mu               sync.Mutex
	requests, tokens bucket // guarded by mu
}

// NewAccount makes an account without limits. Where shared is not nil, all accounts of
// this name share their buckets there, and those here are for the times when it cannot be
// used.
func NewAccount(name string, shared *Redis) *Account {
	return &Account{key: "codexpool:{" + name + "}:", shared: shared} // a cluster keeps both buckets together
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
func (a *Account) Take(ctx context.Context) Verdict {
	requests, tokens := a.rates()
	if v, ok := a.takeShared(ctx, requests, tokens); ok {
		return v
	}
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
func (a *Account) Charge(ctx context.Context, tokens int) {
	_, limit := a.rates()
	if limit == (Rate{}) {
		return
	}
	if _, _, ok := a.shared.take(ctx, true, ask{a.key + "tokens", limit, tokens}); ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tokens.take(time.Now(), tokens)
}

func (a *Account) rates() (requests, tokens Rate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests.Rate, a.tokens.Rate
}

// takeShared is Take where the buckets are shared, and there are any.
func (a *Account) takeShared(ctx context.Context, requests, tokens Rate) (v Verdict, ok bool) {
	var asks []ask
	if requests != (Rate{}) {
		asks = append(asks, ask{a.key + "requests", requests, 1})
	}
	if tokens != (Rate{}) {
		asks = append(asks, ask{a.key + "tokens", tokens, 0})
	}
	if len(asks) == 0 {
		return Verdict{}, true
	}
	wait, has, ok := a.shared.take(ctx, false, asks...)
	if !ok {
		return Verdict{}, false
	}
	v.Wait = wait
	if requests != (Rate{}) {
		v.Requests = requests.quota(has[0])
	}
	if tokens != (Rate{}) {
		v.Tokens = tokens.quota(has[len(has)-1])
	}
	return v, true
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
func (r Rate) lasts(n float64) time.Duration {
	if n <= 0 {
		return 0
	}
	seconds := min(n/float64(r.Most)*r.Per.Seconds(), year.Seconds()) // a Duration holds no more than centuries
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond)
}

// quota is a bucket that has so much.
func (r Rate) quota(has float64) *Quota {
	return &Quota{Limit: r.Most, Remaining: max(0, int(math.Floor(has+1e-6))), Reset: r.lasts(float64(r.Most) - has)}
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
	return b.Rate.quota(b.limiter.TokensAt(now))
}
