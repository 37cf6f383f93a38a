package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// What the runbook has between these lines was measured.
const (
	capacityPage = "Capacity.md"
	sheetBegin   = "<!-- from here on make capacity writes -->\n"
	sheetEnd     = "<!-- to here -->\n"
)

const (
	drawnRequests = 2000
	drawnTime     = 200 * time.Millisecond // of the provider, on average
	steadyTime    = time.Second            // of the provider, where throughput is measured
	waitTolerance = 0.15                   // between the mean wait and the simulated one
)

// sheet is what make capacity measures, as Markdown.
type sheet struct {
	strings.Builder
	cpu time.Duration // of a completion: the daemon's and its children's
}

func (s *sheet) line(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

// TestCapacitySheet measures what the runbook shows, and writes it there, unless a figure
// is not what the runbook says. It needs a machine that does nothing else, and about twelve
// minutes. make capacity runs it.
func TestCapacitySheet(t *testing.T) {
	if os.Getenv("CAPACITY") == "" {
		t.Skip("make capacity runs it")
	}
	s := &sheet{}
	s.line("%s\n", surroundings(t))
	t.Run("memory", s.memory)
	t.Run("queue", s.queues)
	t.Run("replicas", s.replicas)
	s.computed()
	t.Log("\n" + s.String())
	if checkSheet(t, s.String()); t.Failed() {
		return
	}
	before, _, after := sheetOf(t)
	if err := os.WriteFile(filepath.Join(books, capacityPage), []byte(before+s.String()+after), 0o666); err != nil {
		t.Fatal(err)
	}
}

// sheetOf is the runbook in three parts; the second was measured.
func sheetOf(t *testing.T) (before, sheet, after string) {
	t.Helper()
	page := readBook(t, capacityPage)
	before, rest, begins := strings.Cut(page, sheetBegin)
	sheet, after, ends := strings.Cut(rest, sheetEnd)
	if !begins || !ends || strings.Contains(after, sheetBegin) {
		t.Fatalf("%s has not one part between %q and %q", capacityPage, sheetBegin, sheetEnd)
	}
	return before + sheetBegin, sheet, sheetEnd + after
}

// surroundings say on what and with what it was measured.
func surroundings(t *testing.T) string {
	t.Helper()
	info, err := os.ReadFile("/proc/meminfo")
	total := 0.0
	if _, rest, _ := strings.Cut(string(info), "MemTotal:"); err != nil {
		t.Fatal(err)
	} else if _, err := fmt.Sscan(rest, &total); err != nil {
		t.Fatal(err)
	}
	proxy, err := exec.Command(installed(t, "haproxy"), "-v").Output()
	release := regexp.MustCompile(`version ([0-9.]+)`).FindSubmatch(proxy)
	if err != nil || release == nil {
		t.Fatalf("no version of HAProxy: %v in %s", err, proxy)
	}
	return fmt.Sprintf("Measured on %s: %d cores, %.0f GB of memory; codexpool %s, Codex CLI %s, %s, HAProxy %s. The provider and the clients ran on the same machine.",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), total/(1<<20), describe(), codex.Pinned, runtime.Version(), release[1])
}

// memory shows what a child and a stream take.
func (s *sheet) memory(t *testing.T) {
	f := measure(t, program, 30)
	s.line("| | memory | descriptors |\n|---|---|---|")
	row := func(what string, c cost) { s.line("| %s | %.2f MB | %.1f |", what, c.bytes/1e6, c.descriptors) }
	row("a child itself, fresh", f.own)
	row("a child, in the daemon", f.child)
	row("a stream that runs, in the daemon", f.stream)

	provider := newMoody(t)
	provider.be(mute)
	const waiting = 200
	d := start(t, "POOL_SIZE=1", fmt.Sprint("POOL_MAX_WAITING=", waiting), "CODEX_UPSTREAM="+provider.URL+"/v1")
	d.keepBusy("hi", 1)
	eventually(t, time.Minute, "turn", func() bool { return d.pool().in("leased") == 1 })
	before := d.holds()
	d.keepBusy("hi", waiting)
	eventually(t, time.Minute, "full queue", func() bool { return d.metrics()["codexpool_pool_waiting"] == waiting })
	row("a stream that waits, in the daemon", d.holds().minus(before).over(waiting))
	s.line("")
}

// station is a daemon before a provider that takes as long as each request says.
type station struct {
	*daemon
	size int
	own  time.Duration // for which a completion holds a child beside the provider's time, one at a time
}

func newStation(t *testing.T, size int) *station {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/responses", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		takes, err := time.ParseDuration(codextest.LastUserText(body))
		if err != nil {
			t.Error(err)
		}
		late(codextest.Text("ok"), takes)(w, r)
	})
	provider := httptest.NewServer(mux)
	t.Cleanup(provider.Close)
	// Only what is measured happens to the children.
	d := start(t, fmt.Sprint("POOL_SIZE=", size), fmt.Sprint("POOL_MIN_IDLE=", size), fmt.Sprint("POOL_MAX_WAITING=", drawnRequests),
		"POOL_MAX_TURNS=0", "POOL_MAX_AGE_MS=0", "CODEX_UPSTREAM="+provider.URL+"/v1")
	d.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: drawnRequests}}
	st := &station{daemon: d, size: size}
	st.run(make([]arrival, 10*size)) // connections and buffers that are made only once
	alone, at := arrivals(50, 0, drawnTime), time.Duration(0)
	for i := range alone {
		alone[i].at = at
		at += alone[i].takes + 50*time.Millisecond // the one before has ended
	}
	st.own = st.run(alone).own
	return st
}

// outcome is what came of some requests.
type outcome struct {
	waits    []time.Duration // in the queue, as the daemon logs them
	own, cpu time.Duration   // as in station and in sheet, on average
	quick    float64         // part of them to which codexpool added less than 50 ms
}

// run sends each request at its time, whether earlier ones have ended or not.
func (st *station) run(list []arrival) (o outcome) {
	st.t.Helper()
	pids := append(st.children(), st.cmd.Process.Pid)
	logged, before := len(st.logged()), st.metrics()
	o.cpu = -cpu(st.t, pids...)
	began := time.Now()
	var running sync.WaitGroup
	for _, a := range list {
		time.Sleep(time.Until(began.Add(a.at)))
		running.Go(func() { st.ask(a.takes) })
		o.own -= a.takes / time.Duration(len(list))
	}
	running.Wait()
	st.full(st.size)
	o.cpu = (o.cpu + cpu(st.t, pids...)) / time.Duration(len(list))
	after := st.metrics()
	grew := func(series string) float64 { return after[series] - before[series] }
	o.own += time.Duration(grew("codexpool_pool_lease_seconds_sum") / grew("codexpool_pool_lease_seconds_count") * float64(time.Second))
	o.quick = grew(`codexpool_overhead_seconds_bucket{le="0.05"}`) / grew("codexpool_overhead_seconds_count")
	eventually(st.t, time.Minute, "line in the log for each request", func() bool {
		o.waits = waitsIn(st.logged()[logged:])
		return len(o.waits) == len(list)
	})
	return o
}

// ask has one completion, for which the provider takes a time.
func (st *station) ask(takes time.Duration) {
	res, err := st.post(chatBody(takes.String(), false))
	if err != nil {
		st.t.Error(err)
		return
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK {
		st.t.Errorf("%d: %v, %.300s", res.StatusCode, err, body)
	}
}

// waitsIn are the times in the queue of all completions in a log.
func waitsIn(log string) (waits []time.Duration) {
	for line := range strings.Lines(log) {
		var fields struct {
			Route string
			Wait  float64
		}
		if json.Unmarshal([]byte(line), &fields) == nil && fields.Route == "chat" {
			waits = append(waits, time.Duration(fields.Wait*float64(time.Second)))
		}
	}
	return waits
}

// queues compares the waits of real requests with those of a simulation that has the same
// draws, and measures the throughput of the larger pool.
func (s *sheet) queues(t *testing.T) {
	s.line("| children | load | mean wait, simulated | measured | ratio | 95 %% wait at most, simulated | measured |\n|---|---|---|---|---|---|---|")
	for _, size := range []int{4, 8} {
		t.Run(fmt.Sprint(size, " children"), func(t *testing.T) {
			st := newStation(t, size)
			for _, load := range []float64{0.5, 0.8} {
				s.compare(st, load)
			}
			if size == 8 {
				s.throughput(st)
			}
		})
	}
}

func (s *sheet) compare(st *station, load float64) {
	list := arrivals(drawnRequests, time.Duration(float64(drawnTime)/load/float64(st.size)), drawnTime)
	want, got := simulate(list, st.size, st.own), st.run(list)
	ratio := mean(got.waits).Seconds() / mean(want).Seconds()
	s.line("| %d | %v | %.1f ms | %.1f ms | %.2f | %.0f ms | %.0f ms |", st.size, load, ms(mean(want)), ms(mean(got.waits)), ratio, ms(most(want)), ms(most(got.waits)))
	st.t.Logf("load %v: own %v alone, %v in the run; %v of CPU; quick %v; with the run's own the simulated wait is %v", load, st.own, got.own, got.cpu, got.quick, mean(simulate(list, st.size, got.own)))
	if got.quick < 0.95 {
		st.t.Errorf("%d children, load %v: codexpool adds more than 50 ms to %v of the requests", st.size, load, 1-got.quick)
	}
	s.cpu = got.cpu
}

// throughput measures the most that codexpool capacity says the pool can take.
func (s *sheet) throughput(st *station) {
	rate, enough := float64(st.size), fmt.Sprintf("POOL_SIZE=%d ", st.size)
	for says := ""; !strings.Contains(says, enough); rate -= 0.1 {
		out, err := exec.Command(program, "capacity", "--rps", fmt.Sprintf("%.1f", rate-0.1), "--hold", fmt.Sprint((steadyTime + st.own).Seconds())).Output()
		if err != nil {
			st.t.Fatal(err)
		}
		says = string(out)
	}
	got, one := st.run(arrivals(300, time.Duration(float64(time.Second)/rate), steadyTime)), st.childrenHold().over(st.size)
	turns := 0
	for _, c := range st.pool().Children {
		turns += c.Turns / st.size
	}
	s.line("\nA completion holds its child for %.0f ms beside the provider's time, and takes %.0f ms of CPU. After %d turns a child itself has %.0f MB and %.0f descriptors.\n",
		ms(st.own), ms(s.cpu), turns, one.bytes/1e6, one.descriptors)
	s.line("**p95 throughput of one replica** of %d children, with a provider that takes %v on average: %.1f completions a second, of which 95 %% wait for at most %.2f s. `codexpool capacity` promises 1 s for that rate.\n",
		st.size, steadyTime, rate, most(got.waits).Seconds())
	s.line("While all children are busy and requests wait, 95 %% of the answers of `/v1/models`, `/verify`, `/healthz`, `/livez` and `/readyz` take at most %.1f ms.\n", ms(st.small()))
}

// small is the time that 95 % of the answers of small routes take at most, while the pool
// is full.
func (st *station) small() (worst time.Duration) {
	st.keepBusy("1h", 2*st.size)
	eventually(st.t, time.Minute, "full pool", func() bool { return st.metrics()["codexpool_pool_waiting"] == float64(st.size) })
	for _, path := range []string{"/v1/models", "/verify", "/healthz", "/livez", "/readyz"} {
		var took []time.Duration
		for range 100 {
			req := st.newRequest("")
			req.Method, req.URL.Path = http.MethodGet, path
			began := time.Now()
			res, err := st.client.Do(req)
			if err != nil {
				st.t.Fatal(err)
			}
			if got := statusOf(res); got != http.StatusOK {
				st.t.Errorf("%s answers %d", path, got)
			}
			took = append(took, time.Since(began))
		}
		worst = max(worst, most(took))
	}
	if worst > 50*time.Millisecond {
		st.t.Errorf("a small route takes %v", worst)
	}
	return worst
}

// replicas measures what one, two and three daemons do behind HAProxy.
func (s *sheet) replicas(t *testing.T) {
	r := sharingReplicas(t, edges[len(edges)-1])
	var rates [4]float64
	for n := 3; n > 0; n-- {
		rates[n] = r.throughput(2 * n * childrenOfReplica)
		last := r.daemons[n-1]
		last.operate("drain")
		eventually(t, time.Minute, "proxy that knows of the drain", func() bool {
			return last.metrics()[`codexpool_http_requests_total{code="503",route="readyz"}`] >= 2
		})
	}
	s.line("| replicas of %d children | completions a second | times that of one |\n|---|---|---|", childrenOfReplica)
	for n := 1; n <= 3; n++ {
		s.line("| %d | %.2f | %.2f |", n, rates[n], rates[n]/rates[1])
	}
	s.line("")
}

// throughput is how many completions end in a second, while so many clients send one after
// the other.
func (r *replicas) throughput(clients int) float64 {
	const settles, counted = 3 * time.Second, 20 * time.Second
	var ended atomic.Int64
	var running sync.WaitGroup
	began := time.Now()
	for i := range clients {
		running.Go(func() {
			for n := i; time.Since(began) < settles+counted; n++ {
				if err := r.whole(n%2 == 0); err != nil {
					r.t.Errorf("failed: %v", err)
					return
				}
				if after := time.Since(began); after > settles && after < settles+counted {
					ended.Add(1)
				}
			}
		})
		time.Sleep(time.Second / time.Duration(clients)) // or all answers would end at once
	}
	running.Wait()
	return float64(ended.Load()) / counted.Seconds()
}

// computed is what the formula says of machines that are not here.
func (s *sheet) computed() {
	s.line("| by the formula, not measured | the provider takes | children allow | CPU allows | so |\n|---|---|---|---|---|")
	const own, cpu = 0.02, 0.02 // as the page says
	row := func(what string, children, cores float64, takes time.Duration) {
		able, busy := 0.8*cores/cpu, children/(takes.Seconds()+own)
		s.line("| %s | %v | %.0f/s | %.0f/s | %.0f/s |", what, takes, busy, able, min(busy, able))
	}
	for _, takes := range []time.Duration{steadyTime, 8 * steadyTime} {
		row("64 cores, one daemon of 1,024 children", 1024, 64, takes)
		row("64 cores, three daemons of 1,024 children", 3*1024, 64, takes)
		row("20 replicas of 4 children and 2 cores", 20*4, 20*2, takes)
		row("20 replicas of 40 children and 2 cores", 20*40, 20*2, takes)
	}
}

func TestCapacityPageShowsWhatWasMeasured(t *testing.T) {
	t.Parallel()
	_, sheet, _ := sheetOf(t)
	checkSheet(t, sheet)
}

// checkSheet asserts that the figures are all there, and what they must be.
func checkSheet(t *testing.T, sheet string) {
	t.Helper()
	for _, want := range []string{
		`^Measured on 20\d\d-\d\d-\d\d: \d+ cores, \d+ GB of memory; codexpool \S+, Codex CLI [0-9.]+, go[0-9.]+, HAProxy [0-9.]+\. `,
		`(?m)^\| a child itself, fresh \| [0-9.]+ MB \| [0-9.]+ \|$`,
		`(?m)^\| a stream that runs, in the daemon \| [0-9.]+ MB \| [0-9.]+ \|$`,
		`(?m)^\*\*p95 throughput of one replica\*\* of 8 children, with a provider that takes 1s on average: [0-9.]+ completions a second, of which 95 % wait for at most (0\.\d\d|1\.00) s\.`,
		`(?m)^\| 3 \| [0-9.]+ \| (2\.[89]|3\.)\d* \|$`,
		`(?m)^\| 2 \| [0-9.]+ \| (1\.9|2\.)\d* \|$`,
		`(?m)^\| 64 cores, .*/s \|$`,
		`(?m)^\| 20 replicas .*/s \|$`,
	} {
		if !regexp.MustCompile(want).MatchString(sheet) {
			t.Errorf("nothing is like %s in\n%s", want, sheet)
		}
	}
	for _, wait := range regexp.MustCompile(`(?m)^\| ([48] \| 0\.[58]) \| [0-9.]+ ms \| [0-9.]+ ms \| ([0-9.]+) \|`).FindAllStringSubmatch(sheet, -1) {
		if ratio, _ := strconv.ParseFloat(wait[2], 64); math.Abs(ratio-1) > waitTolerance {
			t.Errorf("%s: the mean wait is %v of the simulated one", wait[1], ratio)
		}
	}
}

// TestCapacityPageHasTheTargetsOfTheAlerts compares the bounds in the page's table with those
// in the rules.
func TestCapacityPageHasTheTargetsOfTheAlerts(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile("../configs/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	page := section(t, capacityPage, "Fixes")
	for _, metric := range []string{"codexpool_time_to_first_token_seconds", "codexpool_short_answer_seconds"} {
		bound := regexp.MustCompile(metric + `_bucket\{[^}]*le=~"(\d+)`).FindSubmatch(rules)
		if bound == nil {
			t.Errorf("no rule has a bound for %s", metric)
		} else if !regexp.MustCompile(`(?m)^\|.* ` + string(bound[1]) + ` s \| ` + "`" + metric).MatchString(page) {
			t.Errorf("no target of %s s for %s:\n%s", bound[1], metric, page)
		}
	}
	for _, route := range completionRoutes {
		if !regexp.MustCompile(`(?m)^\| .POST /v1/.*` + "`" + route + "`").MatchString(page) {
			t.Errorf("no target for the route %s:\n%s", route, page)
		}
	}
}
