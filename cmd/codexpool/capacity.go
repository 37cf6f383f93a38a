package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
)

// demand is a load, and how long one in twenty of its requests may wait for a child.
type demand struct {
	rate float64 // completions a second
	hold float64 // seconds that each holds a child
	wait float64 // seconds
}

// advice are the settings that a demand needs, and what they take.
type advice struct {
	busy                                  float64 // children, on average
	size, waiting, streams                int
	memoryMB, descriptors, threads, cores float64
}

const (
	late           = 0.05 // part of the requests that may wait longer
	acquireSeconds = 30   // POOL_ACQUIRE_TIMEOUT_MS
	queueAChild    = 16   // places that are of use for each child, as in the defaults
	streamMB       = 0.2  // that runs, as measured: see runbooks/Capacity.md; one that waits takes less
	cpuSeconds     = 0.02 // of a completion, its child and ours
)

// size is the smallest pool in which at most one request in twenty waits too long, and
// what belongs to it.
func (d demand) size() advice {
	a := advice{busy: d.rate * d.hold}
	for a.size = int(a.busy) + 1; d.waitsLonger(a.size, d.wait) > late; a.size++ {
	}
	served := float64(a.size) / d.hold * acquireSeconds // while the last of the queue waits
	a.waiting = int(math.Ceil(min(served, float64(queueAChild*a.size))))
	a.streams = a.size + a.waiting
	a.memoryMB = float64(a.size*childMB+sharedMB) + float64(a.streams)*streamMB
	a.descriptors = float64(filesNeeded(a.size) + a.streams)
	a.threads = float64(a.size*childThreads + daemonThreads)
	a.cores = d.rate * cpuSeconds
	return a
}

// waitsLonger is the part of the requests that wait longer than so many seconds, with so
// many children: of requests that come independently of each other (M/M/c).
func (d demand) waitsLonger(children int, than float64) float64 {
	busy := d.rate * d.hold
	if float64(children) <= busy {
		return 1 // the queue grows without end
	}
	return erlangC(children, busy) * math.Exp(-(float64(children)-busy)*than/d.hold)
}

// erlangC is the part of the requests that find all children busy. The sum is Erlang's
// B formula as a recursion, which does not overflow.
func erlangC(children int, busy float64) float64 {
	blocked := 1.0
	for n := 1; n <= children; n++ {
		blocked = busy * blocked / (float64(n) + busy*blocked)
	}
	idle := 1 - busy/float64(children)
	return blocked / (idle + blocked*(1-idle))
}

// capacity prints what a load needs, and what this machine lacks for it.
func capacity(ctx context.Context, line commandLine, stdout, stderr io.Writer) int {
	d := line.demand
	if line.from != "" {
		seen, err := watchLoad(ctx, line.from, stderr)
		if err != nil {
			fmt.Fprintf(stderr, "codexpool: capacity: %v\n", err)
			return exitFailed
		}
		seen.print(stdout)
		d.rate, d.hold = cmp.Or(d.rate, seen.rate), cmp.Or(d.hold, seen.hold)
		if d.rate == 0 || d.hold == 0 {
			return exitOK // there is nothing to compute with
		}
	}
	if err := d.check(); err != nil {
		fmt.Fprintf(stderr, "codexpool: capacity: %v\n", err)
		return exitBadUsage
	}
	d.print(stdout)
	return exitOK
}

const maxSize = 1024 // of POOL_SIZE

// check finds demands that no pool can meet, or that are no demand.
func (d demand) check() error {
	switch {
	case !(d.rate > 0) || !(d.hold > 0): // NaN too
		return errors.New("--rps and --hold must be more than 0, or --from must name a daemon")
	case !(d.wait >= 0):
		return errors.New("--wait must be 0 or more seconds")
	case d.rate*d.hold >= maxSize || d.size().size > maxSize:
		return fmt.Errorf("%g completions a second that hold a child for %g s need more than %d children, which is the most of a daemon: share them between several", d.rate, d.hold, maxSize)
	}
	return nil
}

// print says what a demand needs, and what of it is not here.
func (d demand) print(w io.Writer) {
	a := d.size()
	limit, _, _ := descriptors(0, 0) // it only fails where there is no room for children
	machine := os.DirFS("/")
	fmt.Fprintf(w, "%g completions a second that hold a child for %g s each keep %.1f children busy, on average.\n\n", round(d.rate), round(d.hold), a.busy)
	table(w,
		[]any{fmt.Sprint("POOL_SIZE=", a.size), fmt.Sprintf("%.1f %% of the requests wait for longer than %g s", 100*d.waitsLonger(a.size, d.wait), d.wait)},
		[]any{fmt.Sprint("POOL_MIN_IDLE=", a.size), "all of them are warm"},
		[]any{fmt.Sprint("POOL_MAX_WAITING=", a.waiting), fmt.Sprintf("of a peak, those that get a child within %d s (POOL_ACQUIRE_TIMEOUT_MS)", acquireSeconds)},
		[]any{fmt.Sprint("PROXY_SSE_MAX_CONCURRENCY=", a.streams), "all that run or wait; with less, streams are refused that the queue would take"},
	)
	fmt.Fprintln(w)
	table(w,
		[]any{"memory", fmt.Sprintf("%.0f MB, and a moment's large bodies", a.memoryMB), fmt.Sprintf("here: %s", orNone(memory(machine).value, "MB"))},
		[]any{"descriptors", fmt.Sprintf("%.0f, and one for each idle connection", a.descriptors), fmt.Sprintf("here: %d (ulimit -Hn)", limit)},
		[]any{"threads", fmt.Sprintf("%.0f", a.threads), "here: " + orNone(userLimit(machine).value, "(ulimit -u)")},
		[]any{"CPU", fmt.Sprintf("%.2f cores", a.cores), fmt.Sprintf("here: %d", runtime.NumCPU())},
	)
	for _, problem := range a.lacks(limit, tooSmall(machine, os.Getuid(), a.size)) {
		fmt.Fprintln(w, "too small here:", problem)
	}
}

// lacks says what is too small on this machine. pool is what is too small for the pool.
func (a advice) lacks(files int, pool []string) []string {
	if a.descriptors > float64(files) {
		pool = append(pool, fmt.Sprintf("%.0f descriptors are needed, and the limit is %d", a.descriptors, files))
	}
	if cores := float64(runtime.NumCPU()); a.cores > 0.8*cores {
		pool = append(pool, fmt.Sprintf("%.1f cores are needed, and %.0f of which a fifth should be free are here", a.cores, cores))
	}
	return pool
}

func orNone(n int64, unit string) string {
	if n == none {
		return "no limit is known"
	}
	return fmt.Sprint(n, " ", unit)
}

// round keeps three digits.
func round(f float64) float64 {
	rounded, _ := strconv.ParseFloat(strconv.FormatFloat(f, 'g', 3, 64), 64)
	return rounded
}
