package main

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// What the daemon and its children take, as measured.
const (
	childThreads  = 38
	daemonThreads = 30
	childMB       = 35  // of its own, after some turns
	sharedMB      = 140 // what all children share, and the daemon
)

// limit is one of this process or its machine.
type limit struct {
	name  string
	value int64
}

// none is a limit that does not exist, or that cannot be read.
const none = math.MaxInt64

// tooSmall says which limits are too small for a pool of that size, with both numbers;
// that of descriptors is in door.go. root is the root of the file system.
func tooSmall(root fs.FS, user, size int) (problems []string) {
	compare := func(need int, what string, limits ...limit) {
		least := slices.MinFunc(limits, func(a, b limit) int { return cmp.Compare(a.value, b.value) })
		if least.value < int64(need) {
			problems = append(problems, fmt.Sprintf("POOL_SIZE=%d needs %d %s, and %s is %d", size, need, what, least.name, least.value))
		}
	}
	threads := []limit{group(root, "pids", "pids.max")}
	if user != 0 { // the limit is not for root
		threads = append(threads, userLimit(root))
	}
	compare(size*childThreads+daemonThreads, "processes and threads", threads...)
	compare(size*childMB+sharedMB, "MB of memory",
		megabytes(group(root, "memory", "memory.max")), megabytes(group(root, "memory", "memory.limit_in_bytes")), memory(root))
	return problems
}

// userLimit is how many processes the user may have.
func userLimit(root fs.FS) limit {
	l := limit{"the limit of the user (RLIMIT_NPROC)", none}
	text, _ := fs.ReadFile(root, "proc/self/limits")
	if m := regexp.MustCompile(`(?m)^Max processes +(\S+)`).FindSubmatch(text); m != nil { // the soft one
		l.value = number(m[1])
	}
	return l
}

// group reads the least limit of the control groups that this process is in. Both
// versions of control groups may be mounted, each at its usual place. In a container
// the path may be the host's: then the container's own group lies at the top.
func group(root fs.FS, controller, file string) limit {
	least := limit{"the limit of the control group (" + file + ")", none}
	text, _ := fs.ReadFile(root, "proc/self/cgroup")
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.SplitN(lines.Text(), ":", 3) // number, controllers, path
		if len(fields) < 3 || (fields[1] != "" && !slices.Contains(strings.Split(fields[1], ","), controller)) {
			continue
		}
		top := path.Join("sys/fs/cgroup", fields[1])
		for dir := path.Join(top, fields[2]); ; dir = path.Dir(dir) {
			if text, err := fs.ReadFile(root, path.Join(dir, file)); err == nil {
				least.value = min(least.value, number(text))
			}
			if len(dir) <= len(top) {
				break
			}
		}
	}
	return least
}

// memory is the size of the machine's memory, in MB.
func memory(root fs.FS) limit {
	text, _ := fs.ReadFile(root, "proc/meminfo")
	total := limit{"that of the machine", none}
	if m := regexp.MustCompile(`(?m)^MemTotal: +(\d+) kB`).FindSubmatch(text); m != nil {
		total.value = number(m[1]) / 1024
	}
	return total
}

func megabytes(l limit) limit { return limit{l.name, l.value >> 20} }

// number is a limit as the kernel writes it; "max" and "unlimited" are none.
func number(text []byte) int64 {
	if n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64); err == nil {
		return n
	}
	return none
}

// raiseFiles lets children open as many files as we may. Go gives them the soft limit
// from before our start, which may be too small for one, unless we set it ourselves.
func raiseFiles() {
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) == nil {
		files.Cur = files.Max
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files) // where it fails, children have what we were given
	}
}
