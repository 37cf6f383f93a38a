package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/codex/lean"
)

// BenchmarkThroughput measures completions per second at 3, 50 and 500 tokens, sixteen at
// a time over eight children, beside one bare lean child that is driven in sequence, in
// turns and against one endpoint; and the CPU time of the daemon and of the children for
// each, with that of the children beside what they use at 3 tokens. The clients and the
// endpoint are this process, which runs on the same machine: both sides lack the CPU that
// these use. As many requests of the Responses API are served in turns with those of chat,
// for the CPU time of the children beside chat's.
func BenchmarkThroughput(b *testing.B) {
	const atOnce, total = 16, 64
	up := codextest.NewUpstream(b, codextest.Text("ok"))
	d := start(b, "POOL_SIZE=8", "POOL_MIN_IDLE=8", "CODEX_UPSTREAM="+up.URL+"/v1")
	child := warmChild(b, codextest.Real(b, up.URL+"/v1"))
	defer child.Close()
	// Clients keep their connections.
	transport := http.DefaultTransport.(*http.Transport)
	defer func(n int) { transport.MaxIdleConnsPerHost = n }(transport.MaxIdleConnsPerHost)
	transport.MaxIdleConnsPerHost = atOnce

	pooled := func() {
		d.spread(total, atOnce, func(int) error {
			chunks, err := d.stream("hello")
			if err == nil {
				_, err = wholeText(chunks)
			}
			return err
		})
	}
	natively := func() {
		d.spread(total, atOnce, func(int) error {
			res, answer, err := d.respond([]byte(`{"model":"codex-5","stream":true,"input":"hello"}`))
			if err == nil && !bytes.Contains(answer, []byte("event: response.completed")) {
				err = fmt.Errorf("%s: %.300s", res.Status, answer)
			}
			return err
		})
	}
	pooled() // connections and buffers that are made only once
	natively()
	children := d.children()
	fewest := 0.0 // CPU time of the children at 3 tokens
	for _, tokens := range []int{3, 50, 500} {
		b.Run(fmt.Sprintf("%d tokens", tokens), func(b *testing.B) {
			up.Script(codextest.Text(slices.Repeat([]string{"token "}, tokens)...))
			var overHTTP, bare, own, theirs, its, beside time.Duration
			for b.Loop() {
				beside -= cpu(b, children...)
				natively()
				d.rest(b) // what children do after their turns is a part of its cost
				beside += cpu(b, children...)

				own -= cpu(b, d.cmd.Process.Pid)
				theirs -= cpu(b, children...)
				began := time.Now()
				pooled()
				overHTTP += time.Since(began)
				d.rest(b)
				own += cpu(b, d.cmd.Process.Pid)
				theirs += cpu(b, children...)

				its -= cpu(b, child.Pid())
				began = time.Now()
				for range total {
					turnOf(b, child, codextest.UserItem("hello"))
				}
				bare += time.Since(began)
				its += cpu(b, child.Pid())
			}
			n := float64(b.N * total)
			b.ReportMetric(0, "ns/op") // the time of a whole round means nothing
			b.ReportMetric(n/overHTTP.Seconds(), "completions/s-pool")
			b.ReportMetric(n/bare.Seconds(), "completions/s-child")
			b.ReportMetric(bare.Seconds()/overHTTP.Seconds(), "pool/child")
			b.ReportMetric(ms(own)/n, "cpu-ms-daemon")
			b.ReportMetric(ms(theirs)/n, "cpu-ms-children")
			b.ReportMetric(ms(its)/n, "cpu-ms-child")
			b.ReportMetric(ms(beside)/ms(theirs), "cpu-children-responses/chat")
			fewest = cmp.Or(fewest, ms(theirs)/n)
			b.ReportMetric(ms(theirs)/n/fewest, "cpu-children/3-tokens")
		})
	}
}

// BenchmarkStart measures the start of a child until it is warm, with the template
// and without, in turns; and the CPU time that the child has used until then.
func BenchmarkStart(b *testing.B) {
	cmd := codextest.Real(b, "http://127.0.0.1:1/v1") // no turn is run
	template := databases(b, cmd)
	warm := func(files map[string][]byte) (took, used time.Duration) {
		cmd := cmd
		cmd.Files = maps.Clone(cmd.Files)
		maps.Copy(cmd.Files, files)
		began := time.Now()
		child := warmChild(b, cmd)
		defer child.Close()
		return time.Since(began), cpu(b, child.Pid())
	}
	var took, used [2][]time.Duration // without, with
	for round := 0; b.Loop(); round++ {
		for i := range 2 {
			i ^= round % 2
			t, u := warm([]map[string][]byte{nil, template}[i])
			took[i], used[i] = append(took[i], t), append(used[i], u)
		}
	}
	without, with := median(took[0]), median(took[1])
	cpuWithout, cpuWith := median(used[0]), median(used[1])
	b.ReportMetric(0, "ns/op") // the time of a whole round means nothing
	b.ReportMetric(ms(without), "ms-without")
	b.ReportMetric(ms(with), "ms-with")
	b.ReportMetric(ms(with)/ms(without), "with/without")
	b.ReportMetric(ms(cpuWithout), "cpu-ms-without")
	b.ReportMetric(ms(cpuWith), "cpu-ms-with")
	b.ReportMetric(ms(cpuWith)/ms(cpuWithout), "cpu-with/without")
}

// databases are what the daemon's template consists of.
func databases(b *testing.B, cmd codex.Command) map[string][]byte {
	b.Helper()
	child := warmChild(b, cmd)
	defer child.Close()
	files, err := lean.Databases(cmd.CodexHome())
	if err != nil {
		b.Fatal(err)
	}
	return files
}

// BenchmarkRecovery measures how long a pool of one child is without: from the
// moment at which something happens to the child. The probes come every second
// here, and not every ten; their deadline is the default.
func BenchmarkRecovery(b *testing.B) {
	d := start(b, "POOL_SIZE=1", "POOL_PROBE_MS=1000", "CODEX_ECHO_DELAY_MS=20")
	// until measures from an end of the child until another is idle.
	until := func(signal syscall.Signal) time.Duration {
		d.full(1)
		if _, err := d.stream("hi"); err != nil { // a child that did nothing yet would count as a failed start, and cost a pause
			b.Fatal(err)
		}
		d.full(1)
		old := d.children()[0]
		syscall.Kill(old, signal)
		began := time.Now()
		eventually(b, 30*time.Second, "another child", func() bool {
			children := d.pool().Children
			return len(children) == 1 && children[0].PID != old && children[0].State == "idle"
		})
		return time.Since(began)
	}
	for name, measure := range map[string]func() time.Duration{
		"killed idle child until replaced":                       func() time.Duration { return until(syscall.SIGKILL) },
		"stopped idle child until replaced with probes every 1s": func() time.Duration { return until(syscall.SIGSTOP) },
		"killed in its turn until the next answer":               func() time.Duration { return d.crash(b) },
	} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				took = append(took, measure())
			}
			b.ReportMetric(0, "ns/op") // the waiting for rest is no part of it
			b.ReportMetric(ms(median(took)), "ms")
			b.ReportMetric(ms(took[len(took)-1]), "ms-worst") // median has sorted them
		})
	}
}

// crash kills the only child in its turn, and measures until the next client has
// its answer.
func (d *daemon) crash(b *testing.B) (took time.Duration) {
	d.full(1)
	res, err := d.post(chatBody(strings.Repeat("word ", 100), true))
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	var killed time.Time
	var last chunk
	readStream(res.Body, func(c chunk) {
		if last = c; c.text != "" && killed.IsZero() {
			killed = time.Now()
			syscall.Kill(d.children()[0], syscall.SIGKILL)
		}
	})
	if last.error != "child_exited" {
		b.Fatalf("the turn ended with %+v", last)
	}
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		b.Fatal(err)
	}
	return time.Since(killed)
}
