package pool

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"codexpool/codex"

	"github.com/cenkalti/backoff/v5"
)

// manyFailures is the number of failed starts in a row after which callers no
// longer wait for the outcome of the next start, which may take its whole timeout.
const manyFailures = 5

// startsAtOnce bounds the children that start at the same time: one for each core that
// the daemon may use, for a start is CPU time. Alone it takes 0.1 to 0.3 s; sixteen at
// once on two cores took 0.6 to 1.8 s each, and callers had no core meanwhile. Two
// start even on one core, so that one that hangs does not hold up the other.
func startsAtOnce() int { return max(2, runtime.GOMAXPROCS(0)) }

// starts paces the starting of children: a few at a time, and after a failure only
// after a pause. The pause grows until a child has proven itself.
//
// The pause limits the rate of restarts. hopeless is the circuit breaker for
// callers while no child lives. It needs no window of time: the pause spreads the
// failures, and a success resets their count.
type starts struct {
	permits chan struct{} // one is taken by each start under way
	most    time.Duration // longest pause; never changes

	mu        sync.Mutex
	curve     *backoff.ExponentialBackOff // guarded by mu
	notBefore time.Time                   // guarded by mu
	underway  int                         // starts past their pause; guarded by mu
	err       error                       // of the last start, or of a child that died young since; guarded by mu
	failedAt  time.Time                   // when one last failed; guarded by mu
	failures  int                         // since a child has proven itself; guarded by mu
}

func newStarts(least, most time.Duration) *starts {
	curve := backoff.NewExponentialBackOff()
	curve.InitialInterval, curve.MaxInterval, curve.Multiplier = least, most, 2
	curve.Reset()
	return &starts{permits: make(chan struct{}, startsAtOnce()), most: most, curve: curve}
}

// enter waits until the caller may start a child. done is called with the
// outcome of the start.
func (s *starts) enter(ctx context.Context) (done func(error), err error) {
	select {
	case s.permits <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for ctx.Err() == nil {
		wait := s.pause()
		if wait <= 0 {
			return s.done, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	<-s.permits
	return nil, context.Cause(ctx)
}

// pause is the rest of the pause. Where none remains, the caller's start begins.
func (s *starts) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := time.Until(s.notBefore)
	if wait <= 0 {
		s.underway++
	}
	return wait
}

func (s *starts) done(err error) {
	s.mu.Lock()
	s.underway--
	if err == nil {
		s.err = nil // the pause stays: that a child could be started proves little
	}
	s.mu.Unlock()
	if err != nil {
		s.failed(err)
	}
	<-s.permits
}

// failed postpones the next start. Another failure within the same pause belongs
// to the same incident, and does not make the pause longer.
func (s *starts) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.failedAt = err, time.Now()
	s.failures++
	if time.Until(s.notBefore) <= 0 {
		s.notBefore = s.failedAt.Add(min(s.curve.NextBackOff(), s.most)) // the curve varies by half, beyond its own longest
	}
}

// pauseOnce postpones the next start, and counts no failure: a child was ended
// from outside, as by a system without memory, which may happen again at once.
func (s *starts) pauseOnce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Until(s.notBefore) <= 0 {
		s.notBefore = time.Now().Add(s.curve.InitialInterval)
	}
}

// proven notes that a child works: it came back well from a lease, or grew older
// than crashAge. A child that was born before the last failure proves nothing about
// those that would be started now.
func (s *starts) proven(born time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if born.After(s.failedAt) {
		s.curve.Reset()
		s.failures = 0
	}
}

// failure is the error of the last start, or of a child that died young since; nil
// after a start that succeeded.
func (s *starts) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// hopeless is failure, but nil while another start is under way that may
// succeed soon. Where the last one hung, the next takes its whole timeout too.
func (s *starts) hopeless() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underway > 0 && s.failures < manyFailures && !errors.Is(s.err, codex.ErrUnresponsive) {
		return nil
	}
	return s.err
}
