package pool

import (
	"syscall"
	"time"

	"github.com/prometheus/procfs"
)

// CPU is the processor time that all children have used since the pool began: the dead
// until their end, as the kernel reported it, the living until now. It never decreases.
// Without Linux's /proc the living are not counted, and a child that never became warm is not
// either.
//
// Unlike that of Stat, its cost grows with the number of children (20 us each).
func (p *Pool) CPU() time.Duration {
	s := &p.state
	used := map[int]time.Duration{}
	for _, pid := range s.pids() {
		used[pid] = cpuOf(pid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.children() {
		s.spent(c, used[c.Pid()])
	}
	return s.cpu
}

// spent notes what a child has used in all. The caller holds mu.
func (s *state) spent(c *child, cpu time.Duration) {
	if more := cpu - c.cpu; more > 0 { // it may have died, and been counted, since it was looked at
		c.cpu += more
		s.cpu += more
	}
}

// tick is the unit of the times in /proc, on every machine that runs Go.
const tick = time.Second / 100

// cpuOf is what a process has used, with the helpers that it waited for. It is 0 for a
// process that has gone, or whose id is another's by now.
func cpuOf(pid int) time.Duration {
	if group, err := syscall.Getpgid(pid); err != nil || group != pid {
		return 0
	}
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return 0
	}
	stat, err := proc.Stat()
	if err != nil {
		return 0
	}
	return tick * time.Duration(int(stat.UTime+stat.STime)+stat.CUTime+stat.CSTime)
}
