package codex

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// maxInbox bounds the messages that the lessee has not read yet, in bytes. They add up
// while the lessee waits for a slow client, for at most PROXY_WRITE_TIMEOUT_MS.
const maxInbox = 2 * maxLine

// inbox carries messages from the reader to the lessee. put never blocks.
//
// While nobody uses the child the inbox is shut: notifications are dropped, and any
// other message is a breach of the protocol.
type inbox struct {
	wake chan struct{} // buffer 1; holds a token when something has changed

	mu     sync.Mutex
	opened bool          // guarded by mu
	queue  []message     // guarded by mu
	bytes  int           // sum of the sizes in queue; guarded by mu
	end    error         // set once, by finish; guarded by mu
	odd    error         // the first message that arrived while shut and was not a notification; guarded by mu
	over   chan struct{} // closed by finish
}

func newInbox() *inbox {
	return &inbox{wake: make(chan struct{}, 1), over: make(chan struct{})}
}

// open is called by the lessee before its first write.
func (b *inbox) open() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.opened {
		panic("BUG: child used by two goroutines")
	}
	b.opened = true
}

// shut ends the lessee's use. The error names the first unexpected message.
func (b *inbox) shut() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened = false
	for _, m := range b.queue {
		b.unexpected(m)
	}
	b.queue, b.bytes = nil, 0
	return b.odd
}

// unexpected notes a message that nobody waits for. The caller holds mu.
func (b *inbox) unexpected(m message) {
	if !m.isNotification() && b.odd == nil {
		b.odd = &ProtocolError{Problem: fmt.Sprintf("unexpected message between turns (method %q, id %s)", m.Method, m.ID)}
	}
}

// put is called by the reader.
func (b *inbox) put(m message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.opened {
		b.unexpected(m)
		return nil
	}
	if b.bytes+m.size > maxInbox {
		return &ProtocolError{Problem: fmt.Sprintf("more than %d bytes ahead of its reader", maxInbox)}
	}
	b.queue = append(b.queue, m)
	b.bytes += m.size
	b.signal()
	return nil
}

// finish is called by the reader, once. next returns err after the queued messages.
func (b *inbox) finish(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end = err
	close(b.over)
	b.signal()
}

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// next waits for a message. It returns the cause of ctx's end, what ended the
// child, or errTick when tick or wake fires first.
func (b *inbox) next(ctx context.Context, tick <-chan time.Time, wake <-chan struct{}) (message, error) {
	for {
		if ctx.Err() != nil {
			return message{}, context.Cause(ctx)
		}
		if m, ok, err := b.pop(); ok || err != nil {
			return m, err
		}
		select {
		case <-b.wake:
		case <-ctx.Done():
		case <-tick:
			return message{}, errTick
		case <-wake:
			return message{}, errTick
		}
	}
}

func (b *inbox) pop() (message, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return message{}, false, b.end
	}
	m := b.queue[0]
	b.queue[0] = message{}
	if b.queue = b.queue[1:]; len(b.queue) == 0 {
		b.queue = nil // free the array, which deltas may have grown
	}
	b.bytes -= m.size
	return m, true, nil
}

// waitEnd waits for the end of the child or of ctx, and reports whether it was the
// child's.
func (b *inbox) waitEnd(ctx context.Context) bool {
	select {
	case <-b.over:
		return true
	case <-ctx.Done():
		return false
	}
}

// fault is why the child must not be used again: its end, or an unexpected message.
func (b *inbox) fault() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.end != nil {
		return b.end
	}
	return b.odd
}

// resting reports that nobody uses the child.
func (b *inbox) resting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.opened
}
