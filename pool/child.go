package pool

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"codexpool/codex"
)

// child is one resource of the pool. But for the client's own promises, the state
// and the atomics, only the holder of the resource touches it.
type child struct {
	*codex.Client
	born       time.Time
	generation int64 // of the pool, when its start began
	maxTurns   int
	maxAge     time.Duration

	answered time.Time // when it last proved that it does
	failures int       // turns in a row that failed by its own fault
	odd      error     // what the pool found wrong with it, which its client does not know
	why      Reason    // set before it is destroyed

	state  State        // set by the holder, but that a probe may become late; guarded by roster.mu
	turns  atomic.Int64 // set by the holder
	memory atomic.Int64 // private bytes of its process group, 0 where not measured; set by upkeep
	probe  atomic.Pointer[Probe]
}

// State is what a child is doing.
type State string

// The states of a child.
const (
	Idle    State = "idle"
	Probing State = "probing" // it is asked how it is, which takes a moment
	Late    State = "late"    // it has not answered that yet
	Leased  State = "leased"  // or being made ready after a lease
	Leaving State = "leaving" // it is being stopped
)

// err says what is wrong with the child, or nil.
func (c *child) err() error { return cmp.Or(c.Err(), c.odd) }

// Probe is the outcome of one health probe.
type Probe struct {
	At     time.Time
	Took   time.Duration
	Health codex.Health // zero where Err is not nil
	Err    error
}

// ChildStat is a snapshot of one child.
type ChildStat struct {
	Pid     int
	Version string // of the CLI
	State   State
	Born    time.Time
	Turns   int
	Memory  int64  // private bytes of its process group, 0 where not measured
	Worn    Reason // the limit that it has reached, "" = none: it will be replaced
	Probe   *Probe // the last one, nil where there was none
}

// Death is the end of one child.
type Death struct {
	Pid   int
	Why   Reason
	At    time.Time
	Age   time.Duration
	Turns int
	Err   error // nil where nothing was wrong with it
}

// deathsKept is how many deaths are remembered.
const deathsKept = 20

// roster lists the children that have a slot, and the last that went. A child
// is on it before it is idle for the first time, and until its slot is free.
type roster struct {
	mu       sync.Mutex
	children []*child // in the order of their births; guarded by mu
	deaths   []Death  // newest first; guarded by mu
}

func (r *roster) add(c *child) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.children = append(r.children, c)
}

func (r *roster) remove(c *child) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.children = slices.DeleteFunc(r.children, func(other *child) bool { return other == c })
}

// set changes a child's state.
func (r *roster) set(c *child, s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.state = s
}

// late says that the child is still under a probe, and marks it so.
func (r *roster) late(c *child) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.state != Probing {
		return false
	}
	c.state = Late
	return true
}

func (r *roster) all() []*child {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.children)
}

func (r *roster) died(d Death) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deaths = slices.Insert(r.deaths, 0, d)
	r.deaths = r.deaths[:min(len(r.deaths), deathsKept)]
}

// Children lists the children, oldest first.
func (p *Pool) Children() []ChildStat {
	p.roster.mu.Lock()
	defer p.roster.mu.Unlock()
	var stats []ChildStat
	for _, c := range p.roster.children {
		stats = append(stats, ChildStat{
			Pid:     c.Pid(),
			Version: c.Version(),
			State:   c.state,
			Born:    c.born,
			Turns:   int(c.turns.Load()),
			Memory:  c.memory.Load(),
			Worn:    p.worn(c),
			Probe:   c.probe.Load(),
		})
	}
	return stats
}

// Deaths lists the last children that went, newest first.
func (p *Pool) Deaths() []Death {
	p.roster.mu.Lock()
	defer p.roster.mu.Unlock()
	return slices.Clone(p.roster.deaths)
}

// fault says why a child cannot serve, or "".
func fault(c *child) Reason {
	if c.Reusable() {
		return ""
	}
	err := c.Err()
	switch exit := (*codex.ExitError)(nil); {
	case errors.As(err, &exit):
		return Exited
	case errors.Is(err, codex.ErrUnresponsive):
		return Unresponsive
	default:
		return Protocol
	}
}

// worn says which limit a child has reached, or "".
func (p *Pool) worn(c *child) Reason {
	age := time.Since(c.born)
	switch {
	case c.generation < p.generation.Load():
		return Recycled
	case age < p.cfg.MinLife:
		return ""
	case c.maxTurns > 0 && c.turns.Load() >= int64(c.maxTurns):
		return Turns
	case c.maxAge > 0 && age >= c.maxAge:
		return Age
	case p.cfg.MaxMemory > 0 && c.memory.Load() > p.cfg.MaxMemory:
		return Memory
	}
	return ""
}
