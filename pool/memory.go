package pool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"syscall"

	"github.com/prometheus/procfs"
)

// helpersEvery is how many looks at the memory of children share one search for
// their helpers.
const helpersEvery = 10

// meter measures what process groups keep for themselves. Only upkeep uses it.
//
// A child leads its process group, and is read at each look. Its helpers, which it
// rarely has, are read at each look once they are found. To find them takes the
// group of every process of the machine (1 us each), also of those whose parent has
// gone. So they are sought at one look of helpersEvery, 10 s apart by default.
// /proc/PID/task/*/children would be read instead for every thread of every
// child, 25 times 8 us, and not name those whose parent has gone.
type meter struct {
	looks   int
	helpers []helper // as of the last search
}

type helper struct{ pid, group int }

// errTooLarge is the fault of a child that outgrows the limit in its turn.
var errTooLarge = errors.New("child outgrew its memory limit in its turn")

// weigh measures the memory of all children, of those that are leased too: it
// reads what the system knows of them. Ages are looked at on the way. An idle child that
// is too large is worn; one that becomes too large in its turn is killed, for it may go on
// growing.
func (p *Pool) weigh(m *meter) {
	for _, c := range p.state.weighed(m.read(p.state.pids())) {
		c.Kill(errTooLarge)
	}
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
// bytes. It returns those that are leased and have become too large.
func (s *state) weighed(groups map[int]int64) (large []*child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.largest = 0
	for c := range s.children() {
		before := s.tooLarge(c)
		s.change(c, func() { c.memory = groups[c.Pid()] })
		s.largest = max(s.largest, c.memory)
		if c.state == Leased && s.tooLarge(c) && !before {
			large = append(large, c)
		}
	}
	return large
}

func (s *state) tooLarge(c *child) bool { return s.cfg.MaxMemory > 0 && c.memory > s.cfg.MaxMemory }

// read returns what the process groups that these children lead keep for
// themselves. Without Linux's /proc there are no figures, and so no limit.
func (m *meter) read(children []int) map[int]int64 {
	groups := make(map[int]int64, len(children))
	swap := swapInUse()
	for _, pid := range children {
		groups[pid] = private(pid, pid, swap)
	}
	if m.looks%helpersEvery == 0 {
		m.helpers = helpersOf(groups)
	}
	m.looks++
	for _, h := range m.helpers {
		if _, lives := groups[h.group]; lives {
			groups[h.group] += private(h.pid, h.group, swap)
		}
	}
	return groups
}

// helpersOf finds the members of these process groups that do not lead them.
func helpersOf(groups map[int]int64) (found []helper) {
	if len(groups) == 0 {
		return nil
	}
	procs, err := procfs.AllProcs()
	if err != nil {
		return nil
	}
	for _, proc := range procs {
		group, err := syscall.Getpgid(proc.PID)
		if _, ours := groups[group]; err == nil && ours && group != proc.PID {
			found = append(found, helper{proc.PID, group})
		}
	}
	return found
}

// swapInUse reports whether this machine may have swapped anything out.
func swapInUse() bool {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return true
	}
	swaps, err := fs.Swaps()
	return err != nil || slices.ContainsFunc(swaps, func(s *procfs.Swap) bool { return s.Used > 0 })
}

// private is what a process keeps for itself, in bytes: its anonymous memory, in RAM
// and swapped out. It is 0 for a process that has gone, or whose id is another's by
// now. RSS would count the 100 MB of file pages that all children share in each of
// them; PSS would be a walk over all pages, and a share of those that shrinks with
// every other child.
//
// /proc/PID/statm takes 9 us and /proc/PID/status 50, but statm does not count
// what is swapped out.
func private(pid, group int, swap bool) int64 {
	if g, err := syscall.Getpgid(pid); err != nil || g != group {
		return 0
	}
	if swap {
		return privateOfStatus(pid)
	}
	return privateOfStatm(pid)
}

func privateOfStatus(pid int) int64 {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return 0
	}
	status, err := proc.NewStatus()
	if err != nil {
		return 0
	}
	return int64(status.RssAnon + status.VmSwap)
}

// privateOfStatm subtracts the pages of files and of shared memory from all that are
// in RAM. It is read without package os, which would ask the poller about the file.
func privateOfStatm(pid int) int64 {
	fd, err := syscall.Open("/proc/"+strconv.Itoa(pid)+"/statm", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer syscall.Close(fd)
	var line [128]byte // seven numbers
	n, err := syscall.Read(fd, line[:])
	if err != nil {
		return 0
	}
	var size, resident, shared int64
	if _, err := fmt.Fscan(bytes.NewReader(line[:n]), &size, &resident, &shared); err != nil {
		return 0
	}
	return (resident - shared) * int64(os.Getpagesize())
}
