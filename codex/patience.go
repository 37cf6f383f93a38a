package codex

import (
	"context"
	"sync/atomic"
	"time"
)

// Patience returns a context that ends after d with [ErrUnresponsive]: the deadline of a
// child. Time in which this process was stopped, as by SIGSTOP, does not count. What a
// child has sent meanwhile is still in its pipe, and is read before the child is judged.
func Patience(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(parent)
	expire(ctx, d, end)
	return ctx, func() { end(context.Canceled) }
}

// expire calls end when this process has run for d, unless ctx has ended by then. again
// makes it begin anew.
//
// When a stopped process goes on, all its timers fire, late, before anything is read. So d
// is waited for in parts, and a part that took twice as long as it should does not count.
func expire(ctx context.Context, d time.Duration, end context.CancelCauseFunc) (again func()) {
	const parts = 10
	part := d / parts
	var left atomic.Int32
	left.Store(parts)
	var wait func()
	wait = func() {
		began := time.Now()
		time.AfterFunc(part, func() {
			switch {
			case ctx.Err() != nil:
			case time.Since(began) <= 2*part && left.Add(-1) <= 0:
				end(ErrUnresponsive)
			default:
				wait()
			}
		})
	}
	wait()
	return func() { left.Store(parts + 1) } // a part is under way
}
