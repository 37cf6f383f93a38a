package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// thinking is how long the provider takes before it answers a good client. So the time of
// a completion is not that of a child alone, and can be compared with that of a server
// without children.
const thinking = 200 * time.Millisecond

// goodKey is the key of the good clients: the attackers have another, so that the pool's
// queue can tell them apart.
const goodKey = "k-good"

// TestAttack runs a campaign against the daemon: shapes of connections, of bodies and of
// answers, faults of children, pauses of the daemon, a log that nobody reads, and a file of
// 5,000 keys that changes all the time and is broken now and then. Good
// clients get their answers meanwhile, and afterwards nothing is left. ATTACK=5m makes it
// that long, SEED=n repeats its choices.
func TestAttack(t *testing.T) {
	t.Parallel()
	length := lengthOf(t, "ATTACK", 8*time.Second)
	up := newVictim()
	server := httptest.NewServer(up)
	t.Cleanup(server.Close)
	const size = 8 // more than there are clients at once
	keys := keysFile(t, append(manyKeys(4999), keyBlock(goodKey))...)
	a := &attack{
		keys: keys,
		soak: newSoak(t, start(t, "POOL_SIZE=8", "POOL_MIN_IDLE=8", "POOL_MAX_WAITING=32", "PROXY_API_KEYS_FILE="+keys, "PROXY_TRUSTED_PROXIES=127.0.0.1", "CODEX_UPSTREAM="+server.URL+"/v1", "POOL_PROBE_MS=1000", "POOL_PROBE_TIMEOUT_MS=1000",
			"PROXY_IDLE_TIMEOUT_MS=5000", "PROXY_STREAM_IDLE_TIMEOUT_MS=5000", "PROXY_TIMEOUT_MS=15000", "POOL_BACKOFF_MAX_MS=1000")),
		bare: bareServer(t),
	}
	a.bearer = goodKey
	a.good(time.Second, 2) // connections and buffers that are made only once
	a.rest(size)
	before := a.weigh()

	over := make(chan struct{})
	var all sync.WaitGroup
	for i, kind := range []func(*rand.Rand){a.shapes, a.shapes, a.bodies, a.bodies, a.answers, a.answers, a.guess, a.harmChild, a.pause, a.holdLog, a.rewriteKeys} {
		rng := rand.New(rand.NewPCG(a.seed, uint64(i)))
		all.Go(func() { // ends with over
			for {
				select {
				case <-over:
					return
				default:
					kind(rng)
				}
			}
		})
	}
	a.good(length, 2)
	close(over)
	all.Wait()

	eventually(t, time.Minute, "a daemon at rest", func() bool { return a.metrics()["codexpool_pool_waiting"] == 0 })
	a.rest(size)
	after := a.weigh()
	if after.heap > before.heap+64<<20 {
		t.Errorf("the daemon grew: %+v before, %+v after", before, after)
	}
	for text, n := range up.asked() {
		if n > 1 {
			t.Errorf("%q reached the provider %d times", text, n)
		}
	}
	if got := a.outcomes["wrong"]; got > 0 || a.outcomes["whole"] == 0 {
		t.Errorf("outcomes of good clients: %v", a.outcomes)
	}
	if log := a.logged(); strings.Contains(log, "canary-") || strings.Contains(log, "internal_error") || strings.Contains(log, "panic") {
		t.Error("the log quotes a prompt, or tells of an internal error")
	}
	ours, theirs := percentile(a.times, 95), percentile(a.bareTimes, 95)
	t.Logf("SEED=%d ATTACK=%v: %v", a.seed, length, a.outcomes)
	t.Logf("a good client's p50 %v and p95 %v, of a bare server under the same attack %v and %v (%.2f)",
		percentile(a.times, 50), ours, percentile(a.bareTimes, 50), theirs, ours.Seconds()/theirs.Seconds())
	if os.Getenv("ATTACK") != "" && ours > 2*theirs {
		t.Error("that is more than twice")
	}
}

// attack is a daemon under attack, beside a server that is nothing but net/http.
type attack struct {
	*soak
	bare string // address
	keys string // path of the keys file

	times, bareTimes []time.Duration // of good clients; guarded by soak.mu
}

// bareServer answers after the same time as the provider, and has the daemon's limit of
// headers.
func bareServer(t *testing.T) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		time.Sleep(thinking)
		io.WriteString(w, "ok")
	}))
	s.Config.MaxHeaderBytes = 32 << 10
	s.Config.ReadHeaderTimeout = 10 * time.Second
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// good has clients send marked prompts, one after the other, and measures both servers.
func (a *attack) good(length time.Duration, clients int) {
	a.phase++
	end := time.Now().Add(length)
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				text := fmt.Sprintf("canary-%d-%d-%d", a.phase, client, i)
				began := time.Now()
				a.play(wish{text: text, n: 1, stream: i%2 == 0, native: i%4 < 2})
				ours := time.Since(began)
				began = time.Now()
				if res, err := http.Post("http://"+a.bare, "text/plain", strings.NewReader(text)); err == nil {
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				a.mu.Lock()
				a.times, a.bareTimes = append(a.times, ours), append(a.bareTimes, time.Since(began))
				a.mu.Unlock()
			}
		})
	}
	all.Wait()
}

// shapes opens a few connections to both servers, and sends what is no request, or none
// yet.
func (a *attack) shapes(rng *rand.Rand) {
	const head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key + "\r\nContent-Type: application/json\r\n"
	shapes := []string{
		"",
		"GET / HTTP/1.1\r\nHost: x\r\n",
		head + strings.Repeat("a: b\r\n", 95_000),
		head + "X: " + strings.Repeat("x", 1<<20),
		head + "Content-Length: 16000000\r\n\r\n{",
		head + "Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
		head + "Transfer-Encoding: chunked\r\n\r\n4\r\n{\"me\r\n",
		head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		head + "Expect: 100-continue\r\nContent-Length: 100\r\n\r\n",
		strings.Repeat("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 50),
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET " + strings.Repeat("/..", 5000) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		strings.Repeat("\x00", 5000),
	}
	shape := shapes[rng.IntN(len(shapes))]
	hold := time.Duration(rng.IntN(300)) * time.Millisecond
	for _, addr := range []string{strings.TrimPrefix(a.url, "http://"), a.bare} {
		for range 1 + rng.IntN(8) {
			conn, err := net.DialTimeout("tcp", addr, time.Second)
			if err != nil {
				continue
			}
			conn.SetDeadline(time.Now().Add(2 * time.Second))
			io.WriteString(conn, shape)
			time.AfterFunc(hold, func() { conn.Close() })
		}
	}
	time.Sleep(hold)
}

// bodies sends what is no request for an answer, and holds the answers to their form.
func (a *attack) bodies(rng *rand.Rand) {
	const one = `{"role":"user","content":"x"}`
	bodies := []string{
		``, `null`, `[]`, `"`, `{`, `{"messages":null}`, `{"messages":[` + one + `],"messages":1}`,
		`{"messages":` + strings.Repeat(`[`, 20_000), `{"messages":[` + strings.Repeat(one+",", 30_000) + one + `]}`,
		`{"n":1e400,"messages":[` + one + `]}`, `{"stop":["",null,{}],"messages":[` + one + `]}`,
		`{"model":"` + strings.Repeat("m", 2<<20) + `","messages":[` + one + `]}`,
		`{"tools":[` + strings.Repeat(`{"type":"function","function":{"name":"f"}},`, 5000) + `{}],"messages":[` + one + `]}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + strings.Repeat("A", 1<<20) + `"}}]}]}`,
		`{"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":` + strings.Repeat(`{"a":`, 2000) + `1` + strings.Repeat(`}`, 2000) + `}},"messages":[` + one + `]}`,
		"{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}", `{"messages":[{"role":"user","content":"\ud800"}]}`,
	}
	body := []byte(bodies[rng.IntN(len(bodies))])
	if len(body) > 0 && rng.IntN(2) == 0 {
		body[rng.IntN(len(body))] ^= byte(1 + rng.IntN(255))
	}
	a.hostile(rng, []string{"/v1/chat/completions", "/v1/responses"}[rng.IntN(2)], body)
}

// answers asks for something that the provider answers in a hostile way.
func (a *attack) answers(rng *rand.Rand) {
	path, fields := wish{text: fmt.Sprint("hostile ", rng.Uint32()), n: 1, stream: rng.IntN(2) == 0, native: rng.IntN(2) == 0}.request()
	body, _ := json.Marshal(fields)
	a.hostile(rng, path, body)
}

// hostile sends a body, and leaves at some time. No answer may be an internal error.
func (a *attack) hostile(rng *rand.Rand, path string, body []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(20+rng.IntN(1500))*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", a.url+path, bytes.NewReader(body))
	if err != nil {
		a.t.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	res, err := a.narrow.Do(req)
	if err != nil {
		return
	}
	defer res.Body.Close()
	got, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if res.StatusCode == http.StatusInternalServerError || bytes.Contains(got, []byte("internal_error")) || bytes.Contains(got, []byte("canary-")) {
		a.t.Errorf("SEED=%d: %.100q is answered with %d %.200s", a.seed, body, res.StatusCode, got)
	}
}

// guess tries keys at /verify, as one address and as many that a proxy names.
func (a *attack) guess(rng *rand.Rand) {
	for i := range 100 {
		req, err := http.NewRequest("GET", a.url+"/verify", nil)
		if err != nil {
			a.t.Error(err)
			return
		}
		req.Header.Set("Authorization", fmt.Sprint("Bearer guess-", rng.Uint64()))
		if i%3 == 0 {
			req.Header.Set("X-Forwarded-For", fmt.Sprintf("203.0.%d.%d", rng.IntN(256), rng.IntN(256)))
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			continue // the daemon may close a connection that it needs for others
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized {
			a.t.Errorf("SEED=%d: a guessed key is answered with %d", a.seed, res.StatusCode)
		}
	}
	time.Sleep(100 * time.Millisecond)
}

// harmChild kills, stops or pauses a child, once in a while. One in four serves a good
// client, which must feel it, and the bare server has no children: it is so rare that less
// than one in twenty of the good answers is harmed, and the 95th percentile is not.
func (a *attack) harmChild(rng *rand.Rand) {
	time.Sleep(time.Duration(rng.IntN(6000)) * time.Millisecond)
	pids := a.children()
	if len(pids) == 0 {
		return
	}
	pid := pids[rng.IntN(len(pids))]
	switch rng.IntN(3) {
	case 0:
		syscall.Kill(pid, syscall.SIGKILL)
	case 1:
		syscall.Kill(pid, syscall.SIGSTOP)
	default:
		syscall.Kill(pid, syscall.SIGSTOP)
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		syscall.Kill(pid, syscall.SIGCONT)
	}
}

// pause stops the daemon for a moment, which its good clients must feel. It is rare, so
// that it does not decide the comparison with a server that is not stopped.
func (a *attack) pause(rng *rand.Rand) {
	time.Sleep(time.Duration(3+rng.IntN(20)) * time.Second)
	a.cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
	a.cmd.Process.Signal(syscall.SIGCONT)
}

// holdLog leaves the daemon's log unread for a while: who reads it needs the lock.
func (a *attack) holdLog(rng *rand.Rand) {
	time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
	a.daemon.mu.Lock()
	defer a.daemon.mu.Unlock()
	time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
}

// rewriteKeys writes the keys file anew: in another order, with fewer keys but the good
// one, or broken.
func (a *attack) rewriteKeys(rng *rand.Rand) {
	blocks := append(manyKeys(rng.IntN(5000)), keyBlock(goodKey))
	rng.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
	if text := strings.Join(blocks, ""); rng.IntN(3) == 0 {
		blocks = []string{text[:len(text)-1-rng.IntN(100)] + "\nbroken"}
	}
	if err := os.WriteFile(a.keys, []byte(strings.Join(blocks, "")), 0o600); err != nil {
		a.t.Error(err)
	}
	time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
}

// victim is the provider: it answers marked prompts with themselves and counts them; all
// others it answers in a hostile way.
type victim struct {
	mu    sync.Mutex
	seen  map[string]int // guarded by mu
	count int            // of hostile answers
}

func newVictim() *victim { return &victim{seen: map[string]int{}} }

// asked is how often each marked prompt came.
func (v *victim) asked() map[string]int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen
}

func (v *victim) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	text := codextest.LastUserText(body)
	v.mu.Lock()
	v.count++
	turn := v.count
	if strings.HasPrefix(text, "canary-") {
		v.seen[text]++
	}
	v.mu.Unlock()
	if !strings.HasPrefix(text, "canary-") {
		hostileAnswers[turn%len(hostileAnswers)](w, r)
		return
	}
	select {
	case <-time.After(thinking):
	case <-r.Context().Done():
	}
	codextest.Text(text)(w, r)
}

// item answers with one finished item and nothing else.
func item(fields string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: {\"type\":\"response.output_item.done\",\"output_index\":0,\"item\":%s}\n\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\"}}\n\n", fields)
	}
}

// raw answers with bytes that are no stream of events, or a bad one.
func raw(stream string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, stream)
	}
}

// hostileAnswers are over every type of item that Codex knows, and over what is no answer.
var hostileAnswers = []http.HandlerFunc{
	item(`{"type":"local_shell_call","id":"i","call_id":"c","status":"completed","action":{"type":"exec","command":["touch","/tmp/owned"],"timeout_ms":1000}}`),
	item(`{"type":"function_call","id":"i","call_id":"c","name":"exec_command","arguments":"{\"cmd\":\"id\"}"}`),
	item(`{"type":"function_call","id":"i","call_id":"c","name":"update_plan","arguments":"{"}`),
	item(`{"type":"custom_tool_call","id":"i","call_id":"c","name":"apply_patch","input":"*** Begin Patch"}`),
	item(`{"type":"web_search_call","id":"i","status":"completed","action":{"type":"search","query":"x"}}`),
	item(`{"type":"image_generation_call","id":"i","status":"completed","result":"` + strings.Repeat("A", 1<<20) + `"}`),
	item(`{"type":"computer_call","id":"i"}`), item(`{"type":"mcp_call","id":"i"}`), item(`{"type":"compaction","id":"i","encrypted_content":"x"}`),
	item(`{"type":"reasoning","id":"i","summary":[],"encrypted_content":"x"}`), item(`{"type":"message","role":"assistant","content":null}`), item(`null`), item(`[]`), item(`{"type":7}`),
	raw("data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":-5,\"output_tokens\":-7,\"total_tokens\":-12}}}\n\n"),
	raw("data: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"end_turn\":false}}\n\n"),
	raw("data: " + strings.Repeat("[", 100_000) + "\n\n"), raw(strings.Repeat("\n", 100_000)), raw("\x00\xff\xfe"), raw(""),
	raw("data: {\"type\":\"response.output_text.delta\",\"delta\":\"" + strings.Repeat("x", 3<<20) + "\"}\n\n"),
	codextest.Status(499, ""), codextest.Status(302, ""), codextest.Status(429, `{"error":{"code":"insufficient_quota"}}`), codextest.Status(503, "<html>"), codextest.Status(200, `{"id":1}`),
	func(w http.ResponseWriter, _ *http.Request) {
		codextest.StartStream(w).Begin()
		panic(http.ErrAbortHandler)
	},
	func(w http.ResponseWriter, r *http.Request) { codextest.StartStream(w).Begin(); <-r.Context().Done() },
	func(w http.ResponseWriter, r *http.Request) {
		for s := codextest.StartStream(w); r.Context().Err() == nil; {
			s.Delta(strings.Repeat("x", 64<<10))
		}
	},
}

// percentile is the p-th percentile of these times.
func percentile(times []time.Duration, p int) time.Duration {
	slices.Sort(times)
	return times[(len(times)-1)*p/100]
}
