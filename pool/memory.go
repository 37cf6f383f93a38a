package pool

import (
	"syscall"

	"github.com/prometheus/procfs"
)

// weigh measures the memory of all children, of those that are leased too: it
// reads what the system knows of them. Ages are looked at on the way.
func (p *Pool) weigh() {
	groups := map[int]int64{}
	for _, pid := range p.state.pids() {
		groups[pid] = 0
	}
	addPrivate(groups)
	p.state.weighed(groups)
}

// pids lists the process ids of the children.
func (s *state) pids() (pids []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.children() {
		if pid := c.Pid(); pid != 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// weighed notes what the children's process groups keep for themselves, in
// bytes.
func (s *state) weighed(groups map[int]int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.children() {
		s.change(c, func() { c.memory = groups[c.Pid()] })
	}
}

// addPrivate adds to each process group what its members keep for themselves:
// their anonymous memory, in RAM and swapped out. RSS would count the 100 MB of
// file pages that all children share in each of them; PSS would be a walk over
// all pages, and a share of those that shrinks with every other child. Without
// Linux's /proc there are no figures, and so no limit.
func addPrivate(groups map[int]int64) {
	if len(groups) == 0 {
		return
	}
	procs, err := procfs.AllProcs()
	if err != nil {
		return
	}
	for _, proc := range procs {
		group, err := syscall.Getpgid(proc.PID)
		if _, ours := groups[group]; err != nil || !ours {
			continue
		}
		if status, err := proc.NewStatus(); err == nil { // else it has just gone
			groups[group] += int64(status.RssAnon + status.VmSwap)
		}
	}
}
