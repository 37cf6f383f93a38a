package pool

import (
	"syscall"

	"github.com/prometheus/procfs"
)

// weigh measures the children, those that are leased too: it asks the system,
// not them.
func (p *Pool) weigh() {
	groups := map[int]int64{}
	children := p.roster.all()
	for _, c := range children {
		if pid := c.Pid(); pid != 0 {
			groups[pid] = 0
		}
	}
	addPrivate(groups)
	for _, c := range children {
		c.memory.Store(groups[c.Pid()])
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
