package pool

import (
	"cmp"
	"container/list"
	"errors"
	"slices"
	"time"

	"codexpool/codex"
)

// child is one resource of the pool. The goroutine that holds the resource owns
// it: a lessee, upkeep, a probe, or the end of a lease.
type child struct {
	*codex.Client
	born       time.Time
	generation int64 // of the pool, when the child's start began
	maxTurns   int   // 0 = no limit
	maxAge     time.Duration

	answered time.Time // when it last proved that it answers; holder only
	failures int       // turns in a row that failed by the child's own fault; holder only
	odd      error     // what the pool found wrong with it and its client cannot know; holder only
	why      Reason    // why it is retired; holder only
	inTurn   bool      // it failed while it was leased; holder only

	place  *list.Element // in state.free, nil while it is not there; guarded by state.mu, like all that follows
	entry  *list.Element // in state.listed
	state  State
	worn   Reason // the limit that it has reached, or ""
	turns  int
	memory int64         // private bytes of its process group, 0 where not measured
	probe  *Probe        // the last one, or nil
	cpu    time.Duration // that is in state.cpu
}

// State is what a child is doing.
type State string

// The states of a child.
const (
	Idle    State = "idle"
	Probing State = "probing" // it was sent a probe, which takes a moment
	Late    State = "late"    // it has not answered the probe in time
	Leased  State = "leased"  // or being made ready after a lease
	Leaving State = "leaving" // it is being stopped
)

// err returns what is wrong with the child, or nil.
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
	Worn    Reason // the limit that it has reached, for which it will be replaced; "" = none
	Probe   *Probe // the last one, nil where there was none
}

// Death is the end of one child.
type Death struct {
	Pid    int
	Why    Reason
	At     time.Time
	Age    time.Duration
	Turns  int
	InTurn bool  // it failed while it was leased, so that it took a turn with it
	Err    error // nil where nothing was wrong with the child
}

// deathsKept is how many deaths are remembered.
const deathsKept = 20

// Children lists the children, oldest first.
func (p *Pool) Children() []ChildStat {
	p.state.mu.Lock()
	defer p.state.mu.Unlock()
	var stats []ChildStat
	for c := range p.state.children() {
		stats = append(stats, ChildStat{
			Pid:     c.Pid(),
			Version: c.Version(),
			State:   c.state,
			Born:    c.born,
			Turns:   c.turns,
			Memory:  c.memory,
			Worn:    c.worn,
			Probe:   c.probe,
		})
	}
	return stats
}

// Deaths lists the last children that died, newest first.
func (p *Pool) Deaths() []Death {
	p.state.mu.Lock()
	defer p.state.mu.Unlock()
	return slices.Clone(p.state.deaths)
}

// fault returns why a child cannot serve, or "".
func fault(c *child) Reason {
	if c.Reusable() {
		return ""
	}
	if errors.Is(c.Err(), errTooLarge) {
		return Memory
	}
	switch codex.ChildFault(c.Err()) {
	case codex.FaultExited:
		return Exited
	case codex.FaultUnresponsive:
		return Unresponsive
	}
	return Protocol
}

// limit returns the limit that a child has reached, or "". The caller holds mu.
func (s *state) limit(c *child) Reason {
	age := time.Since(c.born)
	switch {
	case c.generation < s.generation:
		return Recycled
	case age < s.cfg.MinLife:
		return ""
	case c.maxTurns > 0 && c.turns >= c.maxTurns:
		return Turns
	case c.maxAge > 0 && age >= c.maxAge:
		return Age
	case s.tooLarge(c):
		return Memory
	}
	return ""
}
