package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/codex/lean"
)

// BenchmarkFirstToken measures the time to the first token in three ways, one
// after the other in each round, against one endpoint: over the daemon's HTTP,
// from a warm lean child over stdio, and from a codex exec that is started for
// the request. Only the medians and their ratios count: machines are shared and
// noisy. Run it with -benchtime 100x.
func BenchmarkFirstToken(b *testing.B) {
	up := codextest.NewUpstream(b, codextest.Text("token"))
	d := start(b, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	child, err := codex.Start(b.Context(), codextest.Real(b, up.URL+"/v1"))
	if err != nil {
		b.Fatal(err)
	}
	defer child.Close()
	run := execution(b, up.URL+"/v1")

	var overHTTP, direct, started []time.Duration
	for b.Loop() {
		overHTTP = append(overHTTP, d.firstToken(b))
		direct = append(direct, firstToken(b, child))
		started = append(started, run())
	}
	h, c, e := median(overHTTP), median(direct), median(started)
	b.ReportMetric(0, "ns/op") // the time of a whole round means nothing
	b.ReportMetric(ms(h), "ms-http")
	b.ReportMetric(ms(c), "ms-child")
	b.ReportMetric(ms(e), "ms-exec")
	b.ReportMetric(ms(h)/ms(c), "http/child")
	b.ReportMetric(ms(h)/ms(e), "http/exec")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// firstToken is one streamed request at a time when the pool is at rest.
func (d *daemon) firstToken(b *testing.B) time.Duration {
	b.Helper()
	return d.firstTokenOf(b, "hello")
}

func (d *daemon) firstTokenOf(b *testing.B, prompt string) time.Duration {
	b.Helper()
	d.rest(b)
	return d.timeTokenOf(b, prompt)
}

// timeToken is firstToken whatever the other children do.
func (d *daemon) timeToken(b *testing.B) time.Duration {
	b.Helper()
	return d.timeTokenOf(b, "hello")
}

func (d *daemon) timeTokenOf(b *testing.B, prompt string) time.Duration {
	b.Helper()
	began := time.Now()
	res, err := d.post(chatBody(prompt, true))
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	var took time.Duration
	if err := readStream(res.Body, func(c chunk) {
		if c.text != "" && took == 0 {
			took = time.Since(began)
		}
	}); err != nil || took == 0 {
		b.Fatal("no token", err)
	}
	return took
}

// rest waits until each child is idle.
func (d *daemon) rest(b *testing.B) {
	b.Helper()
	eventually(b, 5*time.Second, "rest", func() bool {
		m := d.metrics()
		return m[`codexpool_pool_children{state="idle"}`] == m["codexpool_pool_size"]
	})
}

// firstToken is one turn on a child whose thread is ready, as in the pool.
func firstToken(b *testing.B, child *codex.Client) time.Duration {
	b.Helper()
	if err := child.Warm(b.Context()); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	var took time.Duration
	for e, err := range child.Turn(b.Context(), codex.TurnParams{Items: []json.RawMessage{codextest.UserItem("hello")}}) {
		if err != nil {
			b.Fatal(err)
		}
		if _, ok := e.(codex.TextDelta); ok && took == 0 {
			took = time.Since(began)
		}
	}
	return took
}

// execution makes the function that runs codex exec once, with the same lean
// configuration, until the token is out.
func execution(b *testing.B, baseURL string) func() time.Duration {
	b.Helper()
	real := codextest.Real(b, baseURL)
	home := filepath.Dir(real.Home)
	child := lean.Relayed(home, baseURL, real.Files["models.json"])
	for name, data := range child.Files {
		if err := os.WriteFile(filepath.Join(home, name), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return func() time.Duration {
		cmd := exec.Command(real.Path, "exec", "--skip-git-repo-check", "hello")
		cmd.Dir = home
		cmd.Env = append(slices.Clone(child.Env), "PATH="+os.Getenv("PATH"), "HOME="+home, "CODEX_HOME="+home)
		began := time.Now()
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "token") {
			b.Fatalf("codex exec: %v\n%s", err, out)
		}
		return time.Since(began)
	}
}
