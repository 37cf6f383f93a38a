package pool

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// startsAtOnce bounds the children that start at the same time. Alone a start
// takes 0.1 to 0.3 s; sixteen at once on two cores took up to 1.8 s each.
const startsAtOnce = 2

// starts paces the starting of children: a few at a time, and after a failure
// not before a pause that grows.
type starts struct {
	places chan struct{} // a token for each start under way

	mu        sync.Mutex
	curve     *backoff.ExponentialBackOff // guarded by mu
	notBefore time.Time                   // guarded by mu
	err       error                       // of the last start; guarded by mu
}

func newStarts(least, most time.Duration) *starts {
	curve := backoff.NewExponentialBackOff()
	curve.InitialInterval, curve.MaxInterval, curve.Multiplier = least, most, 2
	curve.Reset()
	return &starts{places: make(chan struct{}, startsAtOnce), curve: curve}
}

// enter waits for the caller's time to start a child. leave takes the outcome.
func (s *starts) enter(ctx context.Context) (leave func(error), err error) {
	select {
	case s.places <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for {
		s.mu.Lock()
		wait := time.Until(s.notBefore)
		s.mu.Unlock()
		if wait <= 0 {
			return s.leave, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			<-s.places
			return nil, context.Cause(ctx)
		}
	}
}

func (s *starts) leave(err error) {
	<-s.places
	if err != nil {
		s.failed(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = nil
	s.curve.Reset()
}

// failed postpones the next start.
func (s *starts) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.notBefore = time.Now().Add(s.curve.NextBackOff())
}

// failure is the error of the last start, nil when it succeeded.
func (s *starts) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
