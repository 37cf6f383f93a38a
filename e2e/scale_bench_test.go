package e2e

import (
	"bufio"
	"cmp"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"codexpool/codex/codextest"
)

const (
	scaleVar = "SCALE" // the number of children

	spare        = 10                     // children without a stream
	tokenEvery   = 200 * time.Millisecond // of each stream
	tokensTimed  = 30
	idleFor      = 20 * time.Second // two rounds of probes
	warmAChild   = time.Second      // at most, on average
	filesAChild  = 16               // descriptors of this process and of the daemon, at most
	settlingTime = 3 * time.Second  // of children that have just started
)

// figures are what one pool costs.
type figures struct {
	warm         time.Duration // until all children are idle
	rest, loaded time.Duration // to the first token, medians: at rest, and beside streams
	idle         time.Duration // CPU time of the daemon in a second without requests
	idleChildren time.Duration // of all children
	scrape       time.Duration // CPU time of the daemon for a scrape of its metrics
	daemon       cost          // at rest, its children's part included
	child        cost          // what one more child costs the daemon
	stream       cost          // what one more stream costs the daemon
	own          cost          // what a child has itself
}

// cost is bytes of memory and descriptors.
type cost struct{ bytes, descriptors float64 }

// BenchmarkScale shows what a pool of many children costs, and beside it what it
// costs the daemon of a base commit. Only 127.0.0.1 is called. Run it with make
// scale N=200, or make scale N=200 BASE=COMMIT.
func BenchmarkScale(b *testing.B) {
	size := os.Getenv(scaleVar)
	if size == "" {
		b.Skip("needs a number of children: run make scale")
	}
	n, err := strconv.Atoi(size)
	if err != nil || n <= spare {
		b.Fatalf("N=%s is no number above %d", size, spare)
	}
	raiseFiles(b, uint64(1000+n*filesAChild))
	for b.Loop() {
		began := time.Now()
		var was *figures
		if base := os.Getenv(baseProgramVar); base != "" {
			f := measure(b, base, n)
			was = &f
		}
		is := measure(b, program, n)
		printScale(n, is, was, time.Since(began))
	}
	b.ReportMetric(0, "ns/op")
}

// raiseFiles raises this process's limit of descriptors, which the daemon inherits.
func raiseFiles(b *testing.B, need uint64) {
	b.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	limit.Cur, limit.Max = max(limit.Cur, need), max(limit.Max, need)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatalf("%d descriptors are needed: %v", need, err)
	}
}

// measure runs a daemon with n children, and stops it.
func measure(b testing.TB, binary string, n int) (f figures) {
	b.Helper()
	up := codextest.NewUpstream(b, codextest.Text("token"))
	begin := func(size int) *daemon {
		d := launch(b, binary, fmt.Sprintf("POOL_SIZE=%d", size), fmt.Sprintf("POOL_MIN_IDLE=%d", size),
			"POOL_MAX_TURNS=0", "POOL_MAX_AGE_MS=0", "CODEX_UPSTREAM="+up.URL+"/v1")
		d.warm(time.Minute + time.Duration(size)*warmAChild)
		return d
	}
	end := func(d *daemon) {
		d.cmd.Process.Signal(syscall.SIGTERM)
		<-d.ended
	}
	small := begin(1)
	small.timeToken(b, helloBody)
	least := small.holds()
	end(small)

	began := time.Now()
	d := begin(n)
	f.warm = time.Since(began)
	time.Sleep(settlingTime)
	f.idle, f.idleChildren = d.idleCPU(b)
	f.scrape = d.scrapeCPU(b)

	d.timeToken(b, helloBody) // connections and buffers that are made only once
	var tokens []time.Duration
	for range tokensTimed {
		tokens = append(tokens, d.firstToken(b, helloBody))
	}
	f.rest = median(tokens)
	f.daemon = d.holds()
	f.child = f.daemon.minus(least).over(n - 1)
	f.own = d.childrenHold().over(n)

	stop := make(chan struct{})
	up.Script(endless(stop))
	streams := d.openStreams(b, n-spare)
	up.Script(codextest.Text("token"))
	f.stream = d.holds().minus(f.daemon).over(n - spare)
	tokens = nil
	for range tokensTimed {
		d.idleChildren(b, spare)
		tokens = append(tokens, d.timeToken(b, helloBody))
	}
	f.loaded = median(tokens)
	close(stop)
	if ended := streams(); ended != n-spare {
		b.Errorf("%d of %d streams ended well", ended, n-spare)
	}
	end(d)
	return f
}

// endless is a model that writes a token every tokenEvery, until stop is closed.
func endless(stop <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		ticks := time.NewTicker(tokenEvery)
		defer ticks.Stop()
		for {
			s.Delta("word ")
			select {
			case <-ticks.C:
			case <-stop:
				s.End()
				return
			case <-r.Context().Done():
				return
			}
		}
	}
}

// openStreams opens n streams and waits for the first token of each. ended waits for
// their ends, and counts those that were not cut.
func (d *daemon) openStreams(b testing.TB, n int) (ended func() int) {
	b.Helper()
	var running sync.WaitGroup
	var whole atomic.Int64
	opened := make(chan error, n)
	for range n {
		running.Go(func() {
			res, err := d.post(chatBody("hello", true))
			if err != nil {
				opened <- err
				return
			}
			defer res.Body.Close()
			spoke, last := false, ""
			for lines := bufio.NewScanner(res.Body); lines.Scan(); {
				if !spoke && strings.Contains(lines.Text(), "word") {
					spoke = true
					opened <- nil
				}
				if lines.Text() != "" {
					last = lines.Text()
				}
			}
			switch {
			case !spoke:
				opened <- fmt.Errorf("a stream ended before its first token: %d, %s", res.StatusCode, last)
			case last == "data: [DONE]":
				whole.Add(1)
			}
		})
		time.Sleep(tokenEvery / 20) // or all tokens of all streams would come at the same moment
	}
	for range n {
		if err := <-opened; err != nil {
			b.Fatal(err)
		}
	}
	return func() int {
		running.Wait()
		return int(whole.Load())
	}
}

// idleChildren waits until so many children are idle.
func (d *daemon) idleChildren(b testing.TB, n int) {
	b.Helper()
	eventually(b, 10*time.Second, fmt.Sprintf("%d idle children", n), func() bool {
		return d.metrics()[`codexpool_pool_children{state="idle"}`] == float64(n)
	})
}

// idleCPU is the CPU time in a second in which nobody asks for anything: that of the
// daemon, and that of its children.
func (d *daemon) idleCPU(b testing.TB) (own, theirs time.Duration) {
	b.Helper()
	children := d.children()
	own, theirs = -cpu(b, d.cmd.Process.Pid), -cpu(b, children...)
	time.Sleep(idleFor)
	own += cpu(b, d.cmd.Process.Pid)
	theirs += cpu(b, children...)
	return own / time.Duration(idleFor/time.Second), theirs / time.Duration(idleFor/time.Second)
}

// holds is what the daemon has: its heap after a collection with its stacks, and its
// descriptors.
func (d *daemon) holds() cost {
	w := d.weigh()
	return cost{w.heap + d.metrics()["go_memstats_stack_inuse_bytes"], float64(w.descriptors)}
}

// childrenHold is what the children have themselves.
func (d *daemon) childrenHold() (c cost) {
	c.bytes = d.weigh().children
	for _, pid := range d.children() {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		c.descriptors += float64(len(files))
	}
	return c
}

func (c cost) minus(other cost) cost {
	return cost{c.bytes - other.bytes, c.descriptors - other.descriptors}
}

func (c cost) over(n int) cost { return cost{c.bytes / float64(n), c.descriptors / float64(n)} }

// printScale prints the figures of this tree's daemon, beside those of the base where
// there is one.
func printScale(n int, is figures, was *figures, took time.Duration) {
	var out strings.Builder
	fmt.Fprintf(&out, "\n\n%d children, this tree (%s)", n, describe())
	if was != nil {
		fmt.Fprintf(&out, " against base %s. Ratio = this tree / base; less is better. They ran one after the other, so times need a quiet machine", cmp.Or(os.Getenv(baseNameVar), os.Getenv(baseProgramVar)))
	}
	fmt.Fprintf(&out, ". It took %v.\n", took.Round(time.Second))
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	if was != nil {
		fmt.Fprintln(table, "\tbase\tthis tree\tRATIO")
	} else {
		fmt.Fprintln(table, "\tthis tree")
	}
	row := func(name, unit string, of func(figures) float64) {
		now := of(is)
		if was == nil {
			fmt.Fprintf(table, "%s\t%.2f %s\n", name, now, unit)
			return
		}
		before, ratio := of(*was), math.NaN()
		if before > 0 {
			ratio = now / before
		}
		fmt.Fprintf(table, "%s\t%.2f %s\t%.2f %s\t%.3f\n", name, before, unit, now, unit, ratio)
	}
	row("all children warm", "s", func(f figures) float64 { return f.warm.Seconds() })
	row("first token at rest", "ms", func(f figures) float64 { return ms(f.rest) })
	row(fmt.Sprintf("first token beside %d streams", n-spare), "ms", func(f figures) float64 { return ms(f.loaded) })
	row("beside streams / at rest", "", func(f figures) float64 { return ms(f.loaded) / ms(f.rest) })
	row("daemon's idle CPU in a second", "ms", func(f figures) float64 { return ms(f.idle) })
	row("daemon's CPU for a scrape", "ms", func(f figures) float64 { return ms(f.scrape) })
	row("children's idle CPU in a second", "ms", func(f figures) float64 { return ms(f.idleChildren) })
	for _, c := range []struct {
		name string
		of   func(figures) cost
	}{
		{"the daemon", func(f figures) cost { return f.daemon }},
		{"a child, in the daemon", func(f figures) cost { return f.child }},
		{"a child, itself", func(f figures) cost { return f.own }},
		{"a stream, in the daemon", func(f figures) cost { return f.stream }},
	} {
		row("memory of "+c.name, "KB", func(f figures) float64 { return c.of(f).bytes / 1000 })
		row("descriptors of "+c.name, "", func(f figures) float64 { return c.of(f).descriptors })
	}
	table.Flush()
	fmt.Fprintln(os.Stdout, out.String())
}
