package main

import (
	"container/list"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What the process needs descriptors for, beside connections of the public listener.
const (
	filesAtRest  = 16 // the log, listeners, what Go's runtime has
	filesAChild  = 10 // its pipes, process and lock; in a turn its connection to the relay and two to the provider, of which the echo model has the other ends
	filesAdmin   = 16 // connections of the admin listener
	filesReserve = 32 // what is open for a moment: files, a start's pipes, a connection that is being closed

	fewestConnections = 16   // with fewer, nothing is served
	moreConnections   = 1024 // than requests that run or wait: for other routes, and for clients that keep theirs open
)

// descriptors returns the process's limit of descriptors, which Go has raised as far as
// it may, and how many connections the public listener may have of them.
func descriptors(children, waiting int) (limit, connections int, err error) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 0, 0, err
	}
	limit = int(min(files.Cur, math.MaxInt32))
	needed := filesNeeded(children)
	if limit-needed < fewestConnections {
		return 0, 0, fmt.Errorf("the limit of %d descriptors is too low: %d children need %d, and connections at least %d more",
			limit, children, needed, fewestConnections)
	}
	return limit, min(limit-needed, moreConnections+children+waiting), nil
}

// filesNeeded is how many descriptors the process needs beside connections.
func filesNeeded(children int) int {
	return filesAtRest + filesAChild*children + filesAdmin + filesReserve
}

const (
	maxHeaders = 16                     // request headers that are read at once: each may take half a megabyte
	settle     = 500 * time.Millisecond // a connection is not closed before: the request of a busy client may be on its way
	warnEvery  = time.Minute
)

// door is a listener that bounds the connections that are open. When all are taken, it
// closes the one on which nothing has been sent for longest. Where there is none, others
// wait in the kernel's queue. netutil.LimitListener, the alternative, closes none: silent
// clients could keep all others out.
//
// It also bounds the request headers that net/http reads at once, for it has no bound on
// their memory in total. Others wait, and for them the oldest of those is closed whose
// header did not come in one piece.
type door struct {
	net.Listener
	most, mostHeaders int
	log               *slog.Logger

	mu        sync.Mutex
	mayAccept sync.Cond // of mu; only Accept waits for it
	mayBegin  sync.Cond // of mu
	open      int       // guarded by mu, like all that follows
	quiet     list.List // of *visitor that have sent nothing of their next request; the first for longest
	headers   int       // that are being read
	beginning int       // connections that wait for mayBegin
	partial   list.List // of *visitor whose header did not come in one piece; the first for longest
	leaving   int       // connections that were closed here, and still count
	closed    bool
	failed    int64                // connections that were not accepted, by a failure of the machine
	warned    map[string]time.Time // when each message was last logged
}

// openDoor listens on a TCP address. The server's ConnState must be [door.watch].
func openDoor(addr string, most int, log *slog.Logger) (*door, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	d := &door{Listener: l, most: most, mostHeaders: min(maxHeaders, most/2), log: log, warned: map[string]time.Time{}}
	d.mayAccept.L, d.mayBegin.L = &d.mu, &d.mu
	return d, nil
}

// visitor is a connection of a door.
type visitor struct {
	*net.TCPConn
	door  *door
	phase atomic.Int32 // changed under door.mu

	in      *list.List    // quiet, partial or nil; guarded by door.mu, like all that follows
	place   *list.Element // in it
	since   time.Time     // when it came there
	header  bool          // counted in headers
	leaving bool
}

// The phases of a visitor, as far as Read must know them.
const (
	busy  = iota
	quiet // what is read next begins a request
	begun // a request has begun; more is read only if its header is not whole
)

// Accept accepts one connection more than there may be, which waits until it may come in.
func (d *door) Accept() (net.Conn, error) {
	conn, err := d.Listener.Accept()
	if err != nil {
		d.fails(err)
		return nil, err
	}
	v := &visitor{TCPConn: conn.(*net.TCPConn), door: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	for !d.closed && !d.room() {
		d.mayAccept.Wait()
	}
	if d.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	d.open++
	d.move(v, &d.quiet, quiet)
	return v, nil
}

// fails counts a failure to accept. net/http tries again after those that pass, such
// as descriptors that have run out.
func (d *door) fails(err error) {
	if errors.Is(err, net.ErrClosed) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed++
	d.warn("a connection was not accepted", "err", err)
}

// room reports whether another connection may come in. If not, it closes one for it, if
// it can. The caller holds mu.
func (d *door) room() bool {
	if d.open < d.most {
		return true
	}
	d.warn("all connections are taken: those without a request are closed, others wait", "most", d.most)
	first := d.quiet.Front()
	if d.leaving > 0 || first == nil {
		return false // there will be room when one has left
	}
	v := first.Value.(*visitor)
	if age := time.Since(v.since); age < settle {
		time.AfterFunc(settle-age, d.look)
		return false
	}
	d.dismiss(v)
	return false
}

// look makes Accept look again.
func (d *door) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mayAccept.Signal()
}

// Read notes when a request begins, and when its header is not whole.
func (v *visitor) Read(b []byte) (int, error) {
	if v.phase.Load() == begun {
		v.door.incomplete(v)
	}
	n, err := v.TCPConn.Read(b)
	if n > 0 && v.phase.Load() == quiet {
		v.door.begin(v)
	}
	return n, err
}

// begin waits until another header may be read.
func (d *door) begin(v *visitor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.leaving {
		return // it is closed, and nobody else would be while this waits
	}
	d.move(v, nil, begun)
	d.beginning++
	for d.headers >= d.mostHeaders {
		d.hurry()
		d.mayBegin.Wait()
	}
	d.beginning--
	d.headers++
	v.header = true
}

func (d *door) incomplete(v *visitor) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.move(v, &d.partial, busy)
	d.hurry()
}

// hurry closes a connection whose header takes long, if others wait for it. The caller
// holds mu.
func (d *door) hurry() {
	if first := d.partial.Front(); first != nil && d.beginning > 0 && d.headers >= d.mostHeaders && d.leaving == 0 {
		d.warn("too many request headers are incomplete: the oldest connections are closed", "most", d.mostHeaders)
		d.dismiss(first.Value.(*visitor))
	}
}

// watch is the server's ConnState. A connection is active once it has sent a whole header.
func (d *door) watch(conn net.Conn, now http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := conn.(*visitor)
	switch now {
	case http.StateNew:
		return
	case http.StateIdle:
		d.move(v, &d.quiet, quiet)
	case http.StateActive:
		d.move(v, nil, busy)
	case http.StateClosed:
		d.move(v, nil, busy)
		d.open--
		if v.leaving {
			d.leaving--
		}
	}
	if v.header {
		v.header = false
		d.headers--
		d.mayBegin.Signal()
	}
	d.hurry()
	d.mayAccept.Signal()
}

// dismiss closes a connection. It counts until its server has noticed. The caller holds mu.
func (d *door) dismiss(v *visitor) {
	d.move(v, nil, busy)
	v.leaving = true
	d.leaving++
	v.Close()
}

// move puts a connection into a list, or into none. The caller holds mu.
func (d *door) move(v *visitor, to *list.List, phase int32) {
	if v.leaving {
		return
	}
	if v.in != nil {
		v.in.Remove(v.place)
	}
	if v.in = to; to != nil {
		v.place, v.since = to.PushBack(v), time.Now()
	}
	v.phase.Store(phase)
}

// warn logs, but not always. The caller holds mu.
func (d *door) warn(message string, attrs ...any) {
	if time.Since(d.warned[message]) >= warnEvery {
		d.warned[message] = time.Now()
		d.log.Warn(message, attrs...)
	}
}

// Close ends Accept too.
func (d *door) Close() error {
	err := d.Listener.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.mayAccept.Signal()
	return err
}

// doors are the listeners, by their names in metrics.
type doors map[string]*door

// opened returns how many connections are open on each.
func (all doors) opened() map[string]int {
	open := map[string]int{}
	for name, d := range all {
		d.mu.Lock()
		open[name] = d.open
		d.mu.Unlock()
	}
	return open
}

// notAccepted returns how many connections were not accepted, by a failure of the machine.
func (all doors) notAccepted() (n int64) {
	for _, d := range all {
		d.mu.Lock()
		n += d.failed
		d.mu.Unlock()
	}
	return n
}
