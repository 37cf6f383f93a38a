package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/term"
)

// hangups are SIGHUPs. They ask to stop, as a terminal does that closes, until they are
// claimed.
type hangups struct {
	claimed  atomic.Bool
	signals  chan os.Signal // what claim has the program notified on
	received chan struct{}  // buffer 1
}

// claim makes SIGHUP a message that arrives at the channel. Where standard input is a
// terminal it returns nil: then SIGHUP says that this terminal is gone.
func (h *hangups) claim() <-chan struct{} {
	if term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	h.claimed.Store(true)
	signal.Notify(h.signals, syscall.SIGHUP) // also under nohup
	return h.received
}

// sameRequest is how soon after the first a signal is the same request to stop. timeout
// and supervisord signal a process and then its group. Only CTRL-C is pressed twice.
const sameRequest = time.Second

// untilSignal returns a context that ends with the first signal to stop: SIGINT,
// SIGTERM, or SIGHUP, unless nohup ignores it or it is claimed. A second request ends
// the program at once. Both work also where our parent ignores such signals, as shells do
// for what they start in the background.
func untilSignal() (context.Context, *hangups) {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	h := &hangups{signals: signals, received: make(chan struct{}, 1)}
	go func() { // lives as long as the program
		h.next()
		stop()
		for began := time.Now(); h.next() != syscall.SIGINT && time.Since(began) < sameRequest; {
		}
		last := newBacklog(os.Stderr, nil) // nobody may read it
		fmt.Fprintln(last, "codexpool: second signal, stopping at once")
		last.close()
		os.Exit(exitFailed)
	}()
	return ctx, h
}

// next waits for a signal that asks to stop, and passes on those that do not.
func (h *hangups) next() os.Signal {
	for {
		s := <-h.signals
		if s != syscall.SIGHUP || !h.claimed.Load() {
			return s
		}
		select {
		case h.received <- struct{}{}:
		default: // one is enough
		}
	}
}
