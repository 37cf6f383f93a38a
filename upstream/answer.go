package upstream

import (
	"context"
	"sync"
	"time"

	"codexpool/codex"
)

// maxAhead bounds, in bytes, how far a provider's stream may be ahead of the reader
// of its events. One event may exceed it.
const maxAhead = 64 << 10

// answer carries a call's events from the relay, which reads the provider's stream,
// to the lessee. There is one goroutine on each side.
type answer struct {
	wake chan struct{} // buffer 1: there may be something to read
	room chan struct{} // buffer 1: something was read

	mu    sync.Mutex
	queue []queued  // guarded by mu, like all that follows
	bytes int       // of the queue
	ended bool      // nothing more is put
	fail  *Failure  // comes after the queue, once
	heard time.Time // when the provider last sent anything; zero before the first event
}

type queued struct {
	event codex.Event
	bytes int
}

func newAnswer() *answer {
	return &answer{wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// put queues what one event of the provider delivers, which had so many bytes. It
// waits while the reader is far behind, and then returns false if ctx ends.
func (a *answer) put(ctx context.Context, events []codex.Event, bytes int) bool {
	a.mu.Lock()
	a.heard = time.Now()
	for _, e := range events {
		a.queue = append(a.queue, queued{e, bytes})
		a.bytes += bytes
		bytes = 0 // counted once
	}
	a.mu.Unlock()
	if len(events) == 0 {
		return true
	}
	signal(a.wake)
	for a.full() {
		select {
		case <-a.room:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (a *answer) full() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes > maxAhead
}

// end ends the answer, with f where it is not whole. Only the first end counts.
func (a *answer) end(f *Failure) {
	a.mu.Lock()
	if !a.ended {
		a.ended, a.fail = true, f
	}
	a.mu.Unlock()
	signal(a.wake)
}

func (a *answer) next() (codex.Event, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		if f := a.fail; f != nil {
			a.fail = nil
			return nil, f
		}
		return nil, nil
	}
	q := a.queue[0]
	a.queue[0] = queued{}
	if a.queue = a.queue[1:]; len(a.queue) == 0 {
		a.queue = nil // frees the array that many events grew
	}
	a.bytes -= q.bytes
	signal(a.room)
	return q.event, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
