package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	stdimage "image"
	"image/png"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
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

// BenchmarkFirstToken measures the time to the first token in four ways, one
// after the other in each round, against one endpoint: over the daemon's HTTP, by
// either API, from a warm lean child over stdio, and from a codex exec that is started
// for the request. Only the medians and their ratios count: machines are shared and
// noisy. Run it with -benchtime 100x.
func BenchmarkFirstToken(b *testing.B) {
	up := codextest.NewUpstream(b, codextest.Text("token"))
	d := start(b, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	child := warmChild(b, codextest.Real(b, up.URL+"/v1"))
	defer child.Close()
	run := execution(b, up.URL+"/v1")

	var overHTTP, native, direct, started []time.Duration
	for b.Loop() {
		overHTTP = append(overHTTP, d.firstToken(b, helloBody))
		d.rest(b)
		native = append(native, d.timeRequest(b, d.newNative([]byte(`{"model":"codex-5","stream":true,"input":"hello"}`))))
		direct = append(direct, firstToken(b, child, codextest.UserItem("hello")))
		started = append(started, run())
	}
	h, r, c, e := median(overHTTP), median(native), median(direct), median(started)
	b.ReportMetric(0, "ns/op") // the time of a whole round means nothing
	b.ReportMetric(ms(h), "ms-http")
	b.ReportMetric(ms(r)/ms(h), "responses/chat")
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

// helloBody is the streamed request that is measured where another does not matter.
var helloBody = chatBody("hello", true)

// firstToken is the time to the first token of one streamed request, at a time when the
// pool is at rest.
func (d *daemon) firstToken(b testing.TB, body string) time.Duration {
	b.Helper()
	d.rest(b)
	return d.timeToken(b, body)
}

// timeToken is firstToken whatever the other children do.
func (d *daemon) timeToken(b testing.TB, body string) time.Duration {
	b.Helper()
	return d.timeRequest(b, d.newRequest(body))
}

// timeRequest is timeToken of any request for a stream.
func (d *daemon) timeRequest(b testing.TB, req *http.Request) time.Duration {
	b.Helper()
	began := time.Now()
	res, err := cmp.Or(d.client, http.DefaultClient).Do(req)
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
func (d *daemon) rest(b testing.TB) {
	b.Helper()
	eventually(b, 5*time.Second, "rest", func() bool {
		m := d.metrics()
		return m[`codexpool_pool_children{state="idle"}`] == m["codexpool_pool_size"]
	})
}

// warmChild is a bare child whose thread is ready, as in the pool. The caller closes it.
func warmChild(b *testing.B, cmd codex.Command) *codex.Client {
	b.Helper()
	child, err := codex.Start(b.Context(), cmd)
	if err != nil {
		b.Fatal(err)
	}
	if err := child.Warm(b.Context()); err != nil {
		child.Close()
		b.Fatal(err)
	}
	return child
}

// turnOf runs one turn on a bare child whose thread is ready, and measures until its
// first token and until its end.
func turnOf(b *testing.B, child *codex.Client, items ...json.RawMessage) (first, whole time.Duration) {
	b.Helper()
	if err := child.Warm(b.Context()); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	for e, err := range child.Turn(b.Context(), codex.TurnParams{Items: items}) {
		if err != nil {
			b.Fatal(err)
		}
		if _, ok := e.(codex.TextDelta); ok && first == 0 {
			first = time.Since(began)
		}
	}
	return first, time.Since(began)
}

// firstToken is the time to the first token of such a turn.
func firstToken(b *testing.B, child *codex.Client, items ...json.RawMessage) time.Duration {
	b.Helper()
	first, _ := turnOf(b, child, items...)
	return first
}

// execution makes the function that runs codex exec once, with the same lean
// configuration, and measures until it prints the token: its end is no part of that.
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
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		var took time.Duration
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if took == 0 && strings.Contains(lines.Text(), "token") {
				took = time.Since(began)
			}
		}
		if err := cmd.Wait(); err != nil || took == 0 {
			b.Fatal("codex exec:", err)
		}
		return took
	}
}

// BenchmarkLongAnswer measures the tokens in a second of one answer of 20,000, over HTTP
// and from a bare child, in turns.
func BenchmarkLongAnswer(b *testing.B) {
	const tokens = 20_000
	answer := httptest.NewRecorder()
	codextest.Text(slices.Repeat([]string{"token "}, tokens)...)(answer, nil)
	up := codextest.NewUpstream(b, func(w http.ResponseWriter, _ *http.Request) { // without a system call for each token
		w.Header().Set("Content-Type", "text/event-stream")
		w.Write(answer.Body.Bytes())
	})
	d := start(b, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	child := warmChild(b, codextest.Real(b, up.URL+"/v1"))
	defer child.Close()
	var overHTTP, direct []time.Duration
	for b.Loop() {
		d.rest(b)
		began := time.Now()
		if chunks, err := d.stream("hello"); err != nil || len(chunks) < tokens {
			b.Fatal(len(chunks), err)
		}
		overHTTP = append(overHTTP, time.Since(began))
		_, whole := turnOf(b, child, codextest.UserItem("hello"))
		direct = append(direct, whole)
	}
	h, c := median(overHTTP), median(direct)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(tokens/h.Seconds(), "tokens/s-http")
	b.ReportMetric(tokens/c.Seconds(), "tokens/s-child")
	b.ReportMetric(c.Seconds()/h.Seconds(), "http/child")
}

// BenchmarkLargeRequest measures the time to the first token of large requests, over
// HTTP and from a bare child that gets the same items, in turns.
func BenchmarkLargeRequest(b *testing.B) {
	text := strings.Repeat("a word, ", 900) // 7 KB
	large := base64.StdEncoding.EncodeToString(noise(b, 1_000_000))
	for name, messages := range map[string][]any{
		"200 messages of 1.4 MB": slices.Repeat([]any{map[string]any{"role": "user", "content": text}}, 200),
		"200 messages of 7 MB":   slices.Repeat([]any{map[string]any{"role": "user", "content": strings.Repeat(text, 5)}}, 200),
		"3 images of 1 MB": slices.Repeat([]any{map[string]any{"role": "user", "content": []any{
			map[string]any{"type": "image_url", "image_url": map[string]any{"url": "data:image/png;base64," + large}},
		}}}, 3),
	} {
		b.Run(name, func(b *testing.B) {
			up := codextest.NewUpstream(b, codextest.Text("token"))
			d := start(b, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
			child := warmChild(b, codextest.Real(b, up.URL+"/v1"))
			defer child.Close()
			body, err := json.Marshal(map[string]any{"model": "codex-5", "stream": true, "messages": messages})
			if err != nil {
				b.Fatal(err)
			}
			items := itemsOf(b, messages)
			var overHTTP, direct []time.Duration
			for b.Loop() {
				overHTTP = append(overHTTP, d.firstToken(b, string(body)))
				direct = append(direct, firstToken(b, child, items...))
			}
			h, c := median(overHTTP), median(direct)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ms(h), "ms-http")
			b.ReportMetric(ms(c), "ms-child")
			b.ReportMetric(ms(h)/ms(c), "http/child")
		})
	}
}

// noise is a PNG of about size bytes that does not compress.
func noise(b *testing.B, size int) []byte {
	side := int(math.Sqrt(float64(size) / 4))
	picture := stdimage.NewNRGBA(stdimage.Rect(0, 0, side, side))
	random := rand.NewChaCha8([32]byte{})
	random.Read(picture.Pix)
	var out bytes.Buffer
	if err := png.Encode(&out, picture); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

// itemsOf is the messages of users as items of the Responses API.
func itemsOf(b *testing.B, messages []any) (items []json.RawMessage) {
	for _, m := range messages {
		switch content := m.(map[string]any)["content"].(type) {
		case string:
			items = append(items, codextest.UserItem(content))
		case []any:
			var parts []any
			for _, p := range content {
				parts = append(parts, map[string]any{"type": "input_image", "image_url": p.(map[string]any)["image_url"].(map[string]any)["url"]})
			}
			item, err := json.Marshal(map[string]any{"type": "message", "role": "user", "content": parts})
			if err != nil {
				b.Fatal(err)
			}
			items = append(items, item)
		}
	}
	return items
}
