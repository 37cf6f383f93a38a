package pool

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/jackc/puddle/v2"
)

// state is the children, the queue and the counters of a pool, under one lock, so
// that every decision is made from one consistent picture. Only the pacing of starts
// has a lock of its own (starts.go).
//
// Idle children are lent under this lock too: free is never more than the
// children that puddle has idle, so puddle neither waits nor starts one.
type state struct {
	cfg      *Config // never changes
	children *puddle.Pool[*child]

	mu         sync.Mutex
	counts     census   // of listed; guarded by mu, like all that follows
	listed     []*child // children that have a slot, oldest first
	deaths     []Death  // newest first, at most deathsKept
	queue      queue    // callers that wait for a child
	free       int      // idle children that can be lent now
	admitted   int      // callers that wait or will wait, and leases
	alive      int      // children that run
	generation int64    // raised by Recycle; children of an older one are worn
	closed     error    // why nobody is admitted, or nil
}

// census counts the children by what they are doing. Counting costs the same
// however many children there are: each change of a child corrects the counters.
type census struct {
	total     int   // children that have a slot
	idle      int   // of them, those that a caller may have now or within a moment
	idleWorn  int   // of the idle ones, those that have reached a limit
	worn      int   // all that have reached a limit
	probing   int   // those that are being probed, and count as idle
	uncertain int   // those that have not answered a probe yet, or are being stopped
	starting  int   // starts that upkeep decided on and that have not ended
	memory    int64 // private bytes of all children, as far as measured
}

// add counts a child once more (by = 1) or once less (by = -1).
func (n *census) add(c *child, by int) {
	n.total += by
	n.memory += int64(by) * c.memory
	idle := c.state == Idle || c.state == Probing
	switch {
	case c.state == Probing:
		n.probing += by
	case c.state == Late, c.state == Leaving:
		n.uncertain += by
	}
	if idle {
		n.idle += by
	}
	if c.worn != "" {
		n.worn += by
	}
	if c.worn != "" && idle {
		n.idleWorn += by
	}
}

// room is how many more children may be started.
func (n census) room(size int) int { return size - n.total - n.starting }

// update changes a listed child and corrects the counters. Whether the child has
// reached a limit is found out anew.
func (s *state) update(c *child, change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(c, change)
}

// change is update for a caller that holds mu.
func (s *state) change(c *child, change func()) {
	s.counts.add(c, -1)
	change()
	c.worn = s.limit(c)
	s.counts.add(c, 1)
}

// recheck finds out anew whether c has reached a limit. The caller holds mu.
func (s *state) recheck(c *child) { s.change(c, func() {}) }

// set changes what a child is doing.
func (s *state) set(c *child, to State) { s.update(c, func() { c.state = to }) }

// add lists a child that has just been started.
func (s *state) add(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.starting--
	s.alive++
	s.listed = append(s.listed, c)
	c.worn = s.limit(c)
	s.counts.add(c, 1)
}

// remove takes a child off the list: it is gone, and its slot is free.
func (s *state) remove(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.add(c, -1)
	s.listed = slices.DeleteFunc(s.listed, func(other *child) bool { return other == c })
}

// exited notes that a child's process has ended.
func (s *state) exited() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alive--
}

// markLate changes the state of a child from Probing to Late. It returns false
// if the probe has ended.
func (s *state) markLate(c *child) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.state != Probing {
		return false
	}
	s.change(c, func() { c.state = Late })
	return true
}

// recycle makes every child of now worn.
func (s *state) recycle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.generation++
	for _, c := range s.listed {
		s.recheck(c)
	}
}

func (s *state) currentGeneration() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.generation
}

// died completes the death of a child and remembers it.
func (s *state) died(c *child, d Death) Death {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.Turns = c.turns
	s.deaths = slices.Insert(s.deaths, 0, d)
	s.deaths = s.deaths[:min(len(s.deaths), deathsKept)]
	return d
}

// admit admits n children for a caller, or returns ErrFull and admits none.
func (s *state) admit(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.admitted+n > s.cfg.Size+s.cfg.MaxWaiting {
		return ErrFull
	}
	s.admitted += n
	return nil
}

// release ends what admit began, for one child.
func (s *state) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.admitted--
}

// enter lends w an idle child at once, or puts it into the queue.
func (s *state) enter(w *waiter) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return s.closed
	}
	if s.free == 0 {
		s.queue.push(w)
		return nil
	}
	res, err := s.take()
	if err == nil {
		s.lend(w, res)
	}
	return err
}

// withdraw removes w from the queue. It returns false if w has its child, or its
// error, already.
func (s *state) withdraw(w *waiter) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.remove(w)
}

// dismissUnlessAlive ends the waiting of everybody in the queue with err. It does
// nothing while a child lives, which will be lent to them.
func (s *state) dismissUnlessAlive(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.alive == 0 {
		s.dismissAll(err)
	}
}

// dismissAll ends the waiting of everybody in the queue with err. The caller holds
// mu.
func (s *state) dismissAll(err error) {
	for w := s.queue.pop(); w != nil; w = s.queue.pop() {
		w.err = err
		close(w.done)
	}
}

// close dismisses everybody with err, and admits nobody any more. ErrClosed is
// for ever.
func (s *state) close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != ErrClosed {
		s.closed = err
	}
	s.dismissAll(s.closed)
}

// reopen ends what close(err) began.
func (s *state) reopen(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == err {
		s.closed = nil
	}
}

func (s *state) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// lend gives w a child. The caller holds mu.
func (s *state) lend(w *waiter, res *puddle.Resource[*child]) {
	s.change(res.Value(), func() { res.Value().state = Leased })
	w.child = res
	close(w.done)
}

// take takes an idle child out of puddle. The caller holds mu, and free is
// more than 0.
func (s *state) take() (*puddle.Resource[*child], error) {
	res, err := s.children.Acquire(context.Background()) // returns at once, see state
	if errors.Is(err, puddle.ErrClosedPool) {
		return nil, ErrClosed
	}
	if err == nil {
		s.free--
	}
	return res, err
}

// takeAll takes all the children that are idle. Their states stay.
func (s *state) takeAll() (all []*puddle.Resource[*child]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.free > 0 {
		res, err := s.take()
		if err != nil {
			break // closed, which Close does not do before upkeep has ended
		}
		all = append(all, res)
	}
	return all
}

// probing reports whether a probe is under way that is not late.
func (s *state) probing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts.probing > 0
}

// giveBack lends a child that the caller holds to the next in the queue, or
// makes it idle. Where the pool is closed, puddle stops the child.
func (s *state) giveBack(res *puddle.Resource[*child]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.queue.pop(); w != nil {
		s.lend(w, res)
		return
	}
	s.change(res.Value(), func() { res.Value().state = Idle })
	res.ReleaseUnused()
	s.free++
}

// grown says that puddle has one more idle child, and lends it to the next in
// the queue.
func (s *state) grown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.queue.length == 0 {
		return
	}
	if res, err := s.take(); err == nil {
		s.lend(s.queue.pop(), res)
	}
}

// plan decides how many children are started now, and counts them as starting:
// as many as the queue and MinIdle need, and Size allows. A worn child does not
// count: where there is room, its replacement is warm before it is retired.
// Where callers are turned away because no child can be started (hopeless, and none
// lives), one is started all the same: recovery must not wait for them.
func (s *state) plan(hopeless bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.counts
	need := s.queue.length + s.cfg.MinIdle + min(n.idleWorn, 1)
	if hopeless && s.alive == 0 {
		need = max(need, 1)
	}
	more := max(0, min(need-n.idle-n.starting, n.room(s.cfg.Size)))
	s.counts.starting += more
	return more
}

// startGivenUp counts a start that plan decided on and that made no child.
func (s *state) startGivenUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.starting--
}

// retireIfWorn returns the limit that c has reached, if c may be retired for it
// now, and marks c as leaving. The caller holds c.
//
// Worn children are retired one at a time, each when the replacement of the one
// before is warm: so as many as possible serve under load, and where one cannot
// be replaced no other follows.
func (s *state) retireIfWorn(c *child) Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recheck(c) // its age may have reached its limit only now
	if c.worn == "" {
		return ""
	}
	n := s.counts
	others := n.idle
	if c.state == Idle {
		others--
	}
	settled := n.starting == 0 && n.uncertain == 0                              // no other child is on its way in or out
	enough := others >= s.queue.length+s.cfg.MinIdle || n.room(s.cfg.Size) <= 0 // else upkeep has yet to plan a replacement
	if !settled || !enough {
		return ""
	}
	s.change(c, func() { c.state = Leaving })
	return c.worn
}
