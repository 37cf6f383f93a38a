package pool

import (
	"context"
	"sync"
)

// line knows everybody who waits for a child, to tell them when waiting has
// become pointless. Their order is that of the tickets.
type line struct {
	mu      sync.Mutex
	members map[*member]struct{} // guarded by mu
	closed  error                // why nobody may join any more; guarded by mu
}

type member struct{ dismiss context.CancelCauseFunc }

// join puts the caller in line. The context ends when the caller's does, or
// when the line has something to tell; its cause is what.
func (l *line) join(ctx context.Context) (_ context.Context, leave func()) {
	ctx, dismiss := context.WithCancelCause(ctx)
	m := &member{dismiss: dismiss}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed != nil {
		dismiss(l.closed)
	} else {
		if l.members == nil {
			l.members = map[*member]struct{}{}
		}
		l.members[m] = struct{}{}
	}
	return ctx, func() {
		l.mu.Lock()
		delete(l.members, m)
		l.mu.Unlock()
		dismiss(nil)
	}
}

// tell sends everybody away with err.
func (l *line) tell(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for m := range l.members {
		m.dismiss(err)
	}
}

// refuse sends everybody away and lets nobody join. ErrClosed is for ever.
func (l *line) refuse(err error) {
	l.mu.Lock()
	if l.closed != ErrClosed {
		l.closed = err
	}
	l.mu.Unlock()
	l.tell(err)
}

// readmit lets callers join again who are refused with err.
func (l *line) readmit(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed == err {
		l.closed = nil
	}
}

func (l *line) refuses() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}
