package api

import (
	"context"
	"iter"
	"sync"

	"codexpool/codex"
	"codexpool/upstream"

	"golang.org/x/sync/errgroup"
)

// maxBacklog bounds, in bytes, what the answers to one request are ahead of its
// client. So the child of a shorter answer does not wait for a client that reads
// slowly.
const maxBacklog = 1 << 20

// choiceEvent is an event of one choice.
type choiceEvent struct {
	choice int
	more   bool // another event follows at once
	codex.Event
}

// merge runs n answers at once, each in a goroutine of its own, and yields their
// events as they come. The first error ends the others. All goroutines have ended when
// merge returns; that of an answer which is over has ended before, with its lease.
func merge(ctx context.Context, n int, answer func(context.Context, int) events) iter.Seq2[choiceEvent, error] {
	return func(yield func(choiceEvent, error) bool) {
		ctx, stop := context.WithCancel(ctx)
		group, ctx := errgroup.WithContext(ctx)
		b := newBacklog()
		for i := range n {
			group.Go(func() (err error) { // ends with its answer, or with ctx
				defer func() {
					if p := recover(); p != nil {
						err = panicked(p)
					}
				}()
				for e, err := range answer(ctx, i) {
					if err != nil {
						return err
					}
					if !b.put(ctx, choiceEvent{choice: i, Event: e}) {
						return context.Cause(ctx)
					}
				}
				return nil
			})
		}
		var failure error
		ended := make(chan struct{})
		go func() { // ends with the last answer
			defer close(ended)
			failure = group.Wait()
		}()
		defer func() { // also where the reader of the events panics
			stop()
			<-ended
		}()
		for over := false; ; {
			batch := b.takeAll()
			for i, e := range batch {
				e.more = i < len(batch)-1
				if !yield(e, nil) {
					return
				}
			}
			if over {
				break
			}
			select {
			case <-b.wake:
			case <-ended:
				over = true // but for what was put before
			}
		}
		if failure != nil {
			yield(choiceEvent{}, failure)
		}
	}
}

// backlog holds the events that the client has not been sent yet.
type backlog struct {
	wake chan struct{} // buffer 1: something was put

	mu     sync.Mutex
	events []choiceEvent // guarded by mu
	bytes  int           // of events; guarded by mu
	room   chan struct{} // closed when events are taken; guarded by mu
}

func newBacklog() *backlog {
	return &backlog{wake: make(chan struct{}, 1), room: make(chan struct{})}
}

// put adds an event. It waits while the backlog is full, and then returns false if ctx
// ends.
func (b *backlog) put(ctx context.Context, e choiceEvent) bool {
	for {
		full := b.tryPut(e)
		if full == nil {
			return true
		}
		select {
		case <-full:
		case <-ctx.Done():
			return false
		}
	}
}

// tryPut adds an event, or returns what is closed when there is room again. A tick is
// dropped where the client has other events to wait for.
func (b *backlog) tryPut(e choiceEvent) (full <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes >= maxBacklog {
		return b.room
	}
	if _, tick := e.Event.(codex.Tick); tick && len(b.events) > 0 {
		return nil
	}
	b.events = append(b.events, e)
	b.bytes += size(e.Event)
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return nil
}

// takeAll takes all events.
func (b *backlog) takeAll() []choiceEvent {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.events
	if all != nil {
		b.events, b.bytes = nil, 0
		close(b.room)
		b.room = make(chan struct{})
	}
	return all
}

// size is about what an event takes in memory, in bytes.
func size(e codex.Event) int { return overhead + content(e) }

// overhead is about what an event takes beside its content, or a call.
const overhead = 64

// content is about what an event adds to an answer, in bytes.
func content(e codex.Event) (sum int) {
	switch e := e.(type) {
	case codex.TextDelta:
		return len(e.Text)
	case codex.ReasoningDelta:
		return len(e.Text)
	case codex.Refusal:
		return len(e.Text)
	case codex.ToolCallDelta:
		if e.Name != "" {
			sum = overhead
		}
		return sum + len(e.ID) + len(e.Name) + len(e.Arguments)
	case upstream.Raw:
		return len(e.Bytes) + len(e.Response)
	case codex.ToolCalls:
		for _, c := range e.Calls {
			sum += overhead + len(c.ID) + len(c.Name) + len(c.Arguments)
		}
	}
	return sum
}
