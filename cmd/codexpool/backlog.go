package main

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxBacklog = 1 << 20     // bytes, a few thousand lines; as many again are held while they are written
	lastWrite  = time.Second // for what is left when the program ends
)

// backlog holds the lines of the log until out takes them, so that nobody waits for
// whoever reads the log. Lines beyond maxBacklog are dropped and counted.
type backlog struct {
	out     io.Writer
	report  func(lost int64) // writes to out, where the lines that were dropped would be
	dropped atomic.Int64     // lines, since the start
	written chan struct{}    // closed when all is written, after close

	mu      sync.Mutex
	changed sync.Cond // of mu
	lines   []byte    // guarded by mu
	lost    int64     // dropped lines that would follow lines; guarded by mu
	closed  bool      // guarded by mu
}

// newBacklog writes to out in the background. Close it after use.
func newBacklog(out io.Writer, report func(lost int64)) *backlog {
	b := &backlog{out: out, report: report, written: make(chan struct{})}
	b.changed.L = &b.mu
	go b.pass() // ends with close, which waits for it unless out blocks
	return b
}

// Write takes whole lines. It does not block, nor fail.
func (b *backlog) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost > 0 || len(b.lines)+len(line) > maxBacklog { // after one that is lost no other follows, so that the report has one place
		b.lost++
		b.dropped.Add(1)
	} else {
		b.lines = append(b.lines, line...)
	}
	b.changed.Signal()
	return len(line), nil
}

func (b *backlog) pass() {
	defer close(b.written)
	for {
		lines, lost := b.take()
		if len(lines) == 0 && lost == 0 {
			return
		}
		if n, err := b.out.Write(lines); err != nil { // its reader is gone, or its disk is full
			b.dropped.Add(int64(bytes.Count(lines[n:], []byte("\n"))))
		}
		if lost > 0 {
			b.report(lost)
		}
	}
}

// take waits for lines. It returns nothing when the backlog is empty and closed.
func (b *backlog) take() (lines []byte, lost int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.lines) == 0 && b.lost == 0 && !b.closed {
		b.changed.Wait()
	}
	lines, lost = b.lines, b.lost
	b.lines, b.lost = nil, 0
	return lines, lost
}

// close gives out a moment for what is left. It does not wait for a reader that is not
// there.
func (b *backlog) close() {
	b.mu.Lock()
	b.closed = true
	b.changed.Signal()
	b.mu.Unlock()
	select {
	case <-b.written:
	case <-time.After(lastWrite):
	}
}
