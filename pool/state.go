package pool

import (
	"container/list"
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/jackc/puddle/v2"
)

// state is the children, the queue and the counters of a pool, under one lock, so
// that every decision is made from one consistent picture. Only the pacing of starts
// has a lock of its own (starts.go).
//
// What happens for each request, each probe and each death costs the same however
// many children there are. Only upkeep's look at all of them, every UpkeepEvery, and
// what an operator asks for go through them.
type state struct {
	cfg   *Config              // never changes
	slots *puddle.Pool[*child] // see the package's comment

	mu         sync.Mutex
	counts     census         // of listed; guarded by mu, like all that follows
	listed     list.List      // of *child: those that have a slot, oldest first
	free       list.List      // of *puddle.Resource[*child]: idle children that can be lent now; that which answered last is at the back
	deaths     []Death        // newest first, at most deathsKept
	queue      queue          // callers that wait for a child
	admitted   int            // callers that wait or will wait, and leases
	held       map[string]int // the same, of each tenant that has any
	alive      int            // children that run
	generation int64          // raised by Recycle; children of an older one are worn
	closed     error          // why nobody is admitted, or nil
	closedAt   time.Time      // since when
	largest    int64          // private bytes of the largest child, when it was last looked at
	cpu        time.Duration  // that children have used, the dead included
}

// census counts the children by what they are doing. Counting costs the same
// however many children there are: each change of a child corrects the counters.
type census struct {
	total    int   // children that have a slot
	idle     int   // of them, those that a caller may have now or within a moment
	idleWorn int   // of the idle ones, those that have reached a limit
	worn     int   // all that have reached a limit
	probing  int   // those that are being probed, and count as idle
	late     int   // those that have not answered a probe in time
	leaving  int   // those that are being stopped
	starting int   // starts that upkeep decided on and that have not ended
	memory   int64 // private bytes of all children, as far as measured
}

// add counts a child once more (by = 1) or once less (by = -1).
func (n *census) add(c *child, by int) {
	n.total += by
	n.memory += int64(by) * c.memory
	idle := c.state == Idle || c.state == Probing
	switch {
	case c.state == Probing:
		n.probing += by
	case c.state == Late:
		n.late += by
	case c.state == Leaving:
		n.leaving += by
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

// recheck finds out anew whether a child has reached a limit. The caller holds mu.
func (s *state) recheck(c *child) { s.change(c, func() {}) }

// set changes what a child is doing.
func (s *state) set(c *child, to State) { s.update(c, func() { c.state = to }) }

// add lists a child that has just been started.
func (s *state) add(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.starting--
	s.alive++
	c.entry = s.listed.PushBack(c)
	c.worn = s.limit(c)
	s.counts.add(c, 1)
}

// remove takes a child off the list: it is gone, and its slot is free.
func (s *state) remove(c *child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.add(c, -1)
	s.listed.Remove(c.entry)
}

// children iterates over those that are listed, oldest first. The caller holds mu.
func (s *state) children() iter.Seq[*child] {
	return func(yield func(*child) bool) {
		for e := s.listed.Front(); e != nil; e = e.Next() {
			if !yield(e.Value.(*child)) {
				return
			}
		}
	}
}

// exited notes that a child's process has ended.
func (s *state) exited() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.alive--; s.alive == 0 && s.closed == ErrClosed {
		s.dismissAll(ErrClosed) // no other child will be started
	}
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
	for c := range s.children() {
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
	s.spent(c, c.CPU())
	s.deaths = slices.Insert(s.deaths, 0, d)
	s.deaths = s.deaths[:min(len(s.deaths), deathsKept)]
	return d
}

// enter lends w an idle child at once, or puts it into the queue.
func (s *state) enter(w *waiter) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.admission.holds == 0 {
		return ErrFull
	}
	if s.closed != nil && (!w.admission.kept || s.alive == 0) {
		w.admission.away = s.closed
		return s.closed
	}
	if last := s.free.Back(); last != nil { // it has the warmest caches, and the others may rest
		s.lend(w, s.take(last))
		return nil
	}
	s.queue.push(w)
	return nil
}

// waiting is how many callers are in the queue.
func (s *state) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.length
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
	for _, w := range s.queue.all() {
		s.dismiss(w, err)
	}
}

func (s *state) dismiss(w *waiter, err error) {
	s.queue.remove(w)
	w.err = err
	close(w.done)
}

// close dismisses everybody with err, but for those that are kept, and admits nobody any
// more. ErrClosed is for ever: puddle gets the idle children, which it stops when it
// closes.
func (s *state) close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == nil {
		s.closedAt = time.Now()
	}
	if s.closed != ErrClosed {
		s.closed = err
	}
	for _, w := range s.queue.all() {
		if a := w.admission; !a.kept {
			a.away = s.closed
			s.dismiss(w, s.closed)
		}
	}
	if s.closed == ErrClosed {
		for e := s.free.Front(); e != nil; e = s.free.Front() {
			s.take(e).ReleaseUnused()
		}
	}
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
	w.child, w.admission.begun = res, true
	close(w.done)
}

// take takes a child out of free. The caller holds mu, and then the child.
func (s *state) take(place *list.Element) *puddle.Resource[*child] {
	res := s.free.Remove(place).(*puddle.Resource[*child])
	res.Value().place = nil
	return res
}

// takeIfFaulty takes c out of free, if it is there and cannot serve, and returns why.
func (s *state) takeIfFaulty(c *child) (*puddle.Resource[*child], Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.place == nil {
		return nil, ""
	}
	why := fault(c)
	if why == "" {
		return nil, ""
	}
	return s.take(c.place), why
}

// takeSilent takes the child out of free that has been silent for longest, if it is
// due for a probe and no other is being probed, and marks it as probing. Otherwise
// it returns nil.
func (s *state) takeSilent() *puddle.Resource[*child] {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.free.Front()
	if s.cfg.ProbeEvery <= 0 || s.counts.probing > 0 || first == nil {
		return nil
	}
	c := first.Value.(*puddle.Resource[*child]).Value()
	if time.Since(c.answered) < s.cfg.ProbeEvery {
		return nil
	}
	s.change(c, func() { c.state = Probing })
	return s.take(first)
}

// resting lists the children that can be lent now.
func (s *state) resting() (all []*child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.free.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*puddle.Resource[*child]).Value())
	}
	return all
}

// giveBack lends a child that the caller holds to the next in the queue, or makes it
// idle: it has just answered. Where the pool is closed, puddle stops the child.
func (s *state) giveBack(res *puddle.Resource[*child]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offer(res)
}

// offer is giveBack for a caller that holds mu.
func (s *state) offer(res *puddle.Resource[*child]) {
	c := res.Value()
	if w := s.queue.pop(); w != nil {
		s.lend(w, res)
		return
	}
	s.change(c, func() { c.state = Idle })
	if s.closed == ErrClosed {
		res.ReleaseUnused()
		return
	}
	c.place = s.free.PushBack(res)
}

// grown takes a child that has just been started out of puddle, and offers it.
func (s *state) grown() *child {
	s.mu.Lock()
	defer s.mu.Unlock()
	res, err := s.slots.Acquire(context.Background()) // returns at once: it has an idle child for each caller of grown
	if err != nil {
		panic("BUG: puddle has closed during a start: " + err.Error())
	}
	c := res.Value()
	s.offer(res)
	return c
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
// now, and marks c as leaving. The caller holds c, which is not idle.
func (s *state) retireIfWorn(c *child) Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recheck(c) // its age may have reached its limit only now
	if c.worn == "" || !s.mayRetire(s.counts.idle) {
		return ""
	}
	s.change(c, func() { c.state = Leaving })
	return c.worn
}

// takeWorn takes a worn child out of free, if one may be retired now, marks it as
// leaving, and returns the limit that it has reached. Otherwise it returns nil.
func (s *state) takeWorn() (*puddle.Resource[*child], Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts.idleWorn == 0 || !s.mayRetire(s.counts.idle-1) {
		return nil, ""
	}
	for e := s.free.Front(); e != nil; e = e.Next() {
		c := e.Value.(*puddle.Resource[*child]).Value()
		if c.worn != "" {
			s.change(c, func() { c.state = Leaving })
			return s.take(e), c.worn
		}
	}
	return nil, "" // it is being probed
}

// mayRetire reports whether a worn child may be retired now. others is how many idle
// children there would be without it. The caller holds mu.
//
// Worn children are retired one at a time, each when the replacement of the one
// before is warm: so as many as possible serve under load, and where one cannot
// be replaced no other follows.
func (s *state) mayRetire(others int) bool {
	n := s.counts
	settled := n.starting == 0 && n.late == 0 && n.leaving == 0                 // no other child is on its way in or out
	enough := others >= s.queue.length+s.cfg.MinIdle || n.room(s.cfg.Size) <= 0 // else upkeep has yet to plan a replacement
	return settled && enough
}
