package e2e

import (
	"cmp"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"codexpool/codex/codextest"
)

const (
	baseProgramVar = "BASE_PROGRAM" // the daemon that was built from the base commit
	baseNameVar    = "BASE"         // the name of that commit, for the output

	answerVar = "TOKENS" // tokens of an answer; 3 if it is not set
	promptVar = "KB"     // kilobytes of a prompt; 0 if it is not set

	slicesPerRound = 6  // of each round: both daemons serve in each slice
	tokensPerSlice = 16 // first tokens that each daemon serves in a slice
	clientsAtOnce  = 16 // that send the completions of a slice
)

// load is what the clients of [BenchmarkAgainstBase] send and get.
type load struct {
	prompt   string
	tokens   []string // of each answer
	requests int      // completions that each daemon serves in a slice
}

func newLoad(b *testing.B) load {
	number := func(variable string, otherwise int) int {
		value := os.Getenv(variable)
		if value == "" {
			return otherwise
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			b.Fatalf("%s=%q is not a number", variable, value)
		}
		return n
	}
	tokens, kb := number(answerVar, 3), number(promptVar, 0)
	l := load{prompt: "hello " + strings.Repeat("word ", kb*1024/5), tokens: slices.Repeat([]string{"token "}, max(1, tokens)), requests: 96}
	if tokens > 50 || kb > 50 {
		l.requests = 32
	}
	return l
}

// contender is one of the two daemons that [BenchmarkAgainstBase] compares.
type contender struct {
	*daemon
	binary   string
	children []int // their pids; no child is replaced meanwhile

	// Of this round:
	tokens   []time.Duration // each until the first token
	requests int             // completions at full load
	elapsed  time.Duration   // of those: wall clock
	own      time.Duration   // the daemon's CPU
	theirs   time.Duration   // the children's CPU
}

// costs names what is compared, in the order of [contender.costs]. Less is
// better for each of them.
var costs = [5]string{"first token over HTTP", "time a completion", "daemon's CPU a completion", "children's CPU a completion", "daemon's CPU a scrape"}

// BenchmarkAgainstBase compares this tree's daemon with that of a base commit: both
// serve in turns, against one endpoint, in this one run. Each round is cut into
// slices, in which the order of the two alternates, so that a machine that becomes
// slower meanwhile slows both alike. Each round has processes of its own: two of the
// same binary differ by some percent for as long as they run. Run it with make bench
// BASE=COMMIT.
func BenchmarkAgainstBase(b *testing.B) {
	base := os.Getenv(baseProgramVar)
	if base == "" {
		b.Skip("needs the daemon of a base commit: run make bench BASE=COMMIT")
	}
	work := newLoad(b)
	up := codextest.NewUpstream(b, codextest.Text(work.tokens...))
	transport := http.DefaultTransport.(*http.Transport)
	defer func(n int) { transport.MaxIdleConnsPerHost = n }(transport.MaxIdleConnsPerHost)
	transport.MaxIdleConnsPerHost = clientsAtOnce // clients keep their connections

	contend := func(binary string) *contender {
		d := startProgram(b, binary, "POOL_SIZE=8", "POOL_MIN_IDLE=8", "POOL_MAX_TURNS=0", "POOL_MAX_AGE_MS=0", "CODEX_UPSTREAM="+up.URL+"/v1")
		c := &contender{daemon: d, binary: binary, children: d.children()}
		c.work(b, work) // connections and buffers that are made only once
		c.endRound(b)
		return c
	}
	var ratios [len(costs)][]float64
	var baseCosts, nowCosts [len(costs)][]time.Duration
	began := time.Now()
	for round := 0; b.Loop(); round++ {
		binaries := []string{base, program}
		if round%2 == 1 {
			slices.Reverse(binaries)
		}
		pair := []*contender{contend(binaries[0]), contend(binaries[1])}
		for slice := range slicesPerRound {
			if slice > 0 {
				slices.Reverse(pair)
			}
			for range tokensPerSlice {
				for _, c := range pair {
					c.tokens = append(c.tokens, c.firstToken(b, chatBody(work.prompt, true)))
				}
			}
			for _, c := range pair {
				c.work(b, work)
			}
		}
		if pair[0].binary != base {
			slices.Reverse(pair)
		}
		was, is := pair[0].endRound(b), pair[1].endRound(b)
		for _, c := range pair {
			c.cmd.Process.Signal(syscall.SIGTERM)
			<-c.ended
		}
		for i := range costs {
			ratios[i] = append(ratios[i], ms(is[i])/ms(was[i]))
			baseCosts[i], nowCosts[i] = append(baseCosts[i], was[i]), append(nowCosts[i], is[i])
		}
	}

	b.ReportMetric(0, "ns/op") // the time of a whole round means nothing
	var out strings.Builder
	fmt.Fprintf(&out, "\n\nThis tree (%s) against base %s: %d tokens an answer, %d KB a prompt, %d rounds in turns, %v. Ratio = this tree / base; more than 1 is worse.\n",
		describe(), cmp.Or(os.Getenv(baseNameVar), base), len(work.tokens), len(work.prompt)>>10, len(ratios[0]), time.Since(began).Round(time.Second))
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tbase\tthis tree\tMEDIAN RATIO\tmin\tmax\t")
	for i, name := range costs {
		r := ratios[i]
		slices.Sort(r)
		verdict := "no worse"
		if r[len(r)/2] > 1.05 {
			verdict = "WORSE"
		}
		fmt.Fprintf(table, "%s\t%.2f ms\t%.2f ms\t%.3f\t%.3f\t%.3f\t%s\n", name, ms(median(baseCosts[i])), ms(median(nowCosts[i])), r[len(r)/2], r[0], r[len(r)-1], verdict)
	}
	table.Flush()
	fmt.Fprintln(&out, "No worse means: the median ratio of five rounds is at most 1.05.")
	fmt.Fprintln(os.Stdout, out.String())
}

// work serves the completions of one slice.
func (c *contender) work(b *testing.B, l load) {
	b.Helper()
	c.rest(b)
	c.own -= cpu(b, c.cmd.Process.Pid)
	c.theirs -= cpu(b, c.children...)
	began := time.Now()
	c.spread(l.requests, clientsAtOnce, func(int) error {
		chunks, err := c.stream(l.prompt)
		if err == nil {
			_, err = wholeText(chunks)
		}
		return err
	})
	c.elapsed += time.Since(began)
	c.rest(b) // what children do after their turns is a part of its cost
	c.own += cpu(b, c.cmd.Process.Pid)
	c.theirs += cpu(b, c.children...)
	c.requests += l.requests
}

// endRound returns what a first token and a completion cost in this round, in the
// order of [costs], and begins the next.
func (c *contender) endRound(b *testing.B) [len(costs)]time.Duration {
	b.Helper()
	n := time.Duration(c.requests)
	cost := [len(costs)]time.Duration{0, c.elapsed / n, c.own / n, c.theirs / n, c.scrapeCPU(b)}
	if len(c.tokens) > 0 { // there are none before the first round
		cost[0] = median(c.tokens)
	}
	c.tokens, c.elapsed, c.own, c.theirs, c.requests = nil, 0, 0, 0, 0
	return cost
}

// scrapeCPU is what a scrape of the metrics costs the daemon.
func (d *daemon) scrapeCPU(b testing.TB) time.Duration {
	b.Helper()
	const scrapes = 50
	own := -cpu(b, d.cmd.Process.Pid)
	for range scrapes {
		d.metrics()
	}
	return (own + cpu(b, d.cmd.Process.Pid)) / scrapes
}

// describe names the commit of this tree, and whether the tree has changes.
func describe() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "not in git"
	}
	return strings.TrimSpace(string(out))
}
