package pool

import (
	"errors"
	"testing"
)

// A child may be born between the look that found none and the dismissal.
func TestQueueIsNotDismissedWhileAChildLives(t *testing.T) {
	s := &state{cfg: &Config{}, alive: 1}
	w := &waiter{done: make(chan struct{})}
	s.queue.push(w)
	s.dismissUnlessAlive(ErrUnavailable)
	if w.err != nil || s.queue.length != 1 {
		t.Errorf("dismissed with %v", w.err)
	}
	s.exited()
	s.dismissUnlessAlive(ErrUnavailable)
	if !errors.Is(w.err, ErrUnavailable) || s.queue.length != 0 {
		t.Errorf("not dismissed: %v", w.err)
	}
}
