package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestSoakKeepsNothing lets twice as many clients as there are children
// do what clients do, while children are killed, stopped and recycled. SOAK bounds
// how long, SEED selects their choices: the choices repeat with it, the timing does not.
func TestSoakKeepsNothing(t *testing.T) {
	t.Parallel()
	const size = 4
	s := newSoak(t, start(t, "POOL_SIZE=4", "CODEX_ECHO_DELAY_MS=5", "POOL_PROBE_MS=300", "POOL_PROBE_TIMEOUT_MS=500",
		"PROXY_IDLE_TIMEOUT_MS=1000", "PROXY_STREAM_IDLE_TIMEOUT_MS=1000", "POOL_BACKOFF_MAX_MS=1000"))
	length := soakLength(t)

	s.run(time.Second, false) // connections and buffers that are made only once
	s.rest(size)
	first := s.weigh()
	s.run(length/2, true)
	s.rest(size)
	half := s.weigh()
	s.run(length/2, true)
	s.rest(size)

	// What a connection at rest holds: for each child that of its own to the relay,
	// and that of the relay to the echo model, of which the daemon is both ends; each
	// end is a descriptor and at most two goroutines. The first load opened most.
	var last weight
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) { // connections whose children died are closed by and by
		if last = s.weigh(); last.goroutines <= first.goroutines+2*size && last.descriptors <= first.descriptors+2*size {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Errorf("the daemon keeps something: %+v at first, %+v now\n%s", first, last, s.goroutines())
			break
		}
	}
	// The connections that happen to be open hold buffers, which come to some hundred
	// kilobytes; in five minutes a megabyte is a few hundred bytes for each request.
	if last.heap > half.heap+1<<20 {
		t.Errorf("the daemon grows: %+v at half time, %+v at the end", half, last)
	}
	s.accounts(size)
	s.agreesWithClients()
	t.Logf("SEED=%d SOAK=%v: %v", s.seed, length, s.outcomes)
	t.Logf("first %+v\nhalf %+v\nlast %+v", first, half, last)
}

// lengthOf is the value of a variable, or as long as a run of all tests can afford.
func lengthOf(t *testing.T, variable string, otherwise time.Duration) time.Duration {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		return otherwise
	}
	length, err := time.ParseDuration(value)
	if err != nil {
		t.Fatal(variable, ": ", err)
	}
	return length
}

// soakLength is what remains of SOAK for load, or as long as a run of all tests can
// afford.
func soakLength(t *testing.T) time.Duration {
	t.Helper()
	const load, rests = 10 * time.Second, 10 * time.Second // the rests may take less
	whole := soakWhole(t)
	if whole == 0 {
		return load
	}
	remains := whole - time.Since(runBegan) - rests
	if remains < load {
		t.Fatalf("SOAK: %v is too short: %v remain for load", whole, remains.Round(time.Second))
	}
	return remains
}

var runBegan = time.Now() // of this test binary

// soakWhole is SOAK, which bounds all tests of a soak together; 0 in a run of all tests.
func soakWhole(t *testing.T) time.Duration { return lengthOf(t, "SOAK", 0) }

// soak is a daemon under load.
type soak struct {
	*daemon
	seed   uint64
	phase  uint64
	narrow *http.Client // whose connections hold little
	bearer string       // the key of its clients

	mu       sync.Mutex
	outcomes map[string]int // guarded by mu
}

func newSoak(t *testing.T, d *daemon) *soak {
	t.Helper()
	s := &soak{daemon: d, bearer: key, seed: chosenSeed(t), outcomes: map[string]int{}}
	t.Logf("SEED=%d", s.seed)
	s.narrow = &http.Client{Transport: &http.Transport{DialContext: narrow.DialContext, DisableKeepAlives: true}}
	return s
}

// chosenSeed is SEED, or a random one.
func chosenSeed(t *testing.T) uint64 {
	t.Helper()
	given := os.Getenv("SEED")
	if given == "" {
		return uint64(time.Now().UnixNano()) % 1e6
	}
	seed, err := strconv.ParseUint(given, 10, 64)
	if err != nil {
		t.Fatal("SEED: ", err)
	}
	return seed
}

// run has eight clients send request after request. With suffer, children get faults.
func (s *soak) run(length time.Duration, suffer bool) {
	s.phase++
	over := make(chan struct{})
	defer time.AfterFunc(length, func() { close(over) }).Stop()
	var all sync.WaitGroup
	if suffer {
		all.Go(func() { s.harm(rand.New(rand.NewPCG(s.seed, s.phase<<8)), over) })
	}
	for client := range uint64(8) {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(s.seed, s.phase<<8+1+client))
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				s.play(newWish(rng, fmt.Sprintf("canary-%d-%d-%d", s.phase, client, i)))
			}
		})
	}
	all.Wait()
}

// harm does each kind of harm to the children, everything once in each
// round, at times of its own.
func (s *soak) harm(rng *rand.Rand, over <-chan struct{}) {
	kill := func(pid int) { syscall.Kill(pid, syscall.SIGKILL) }
	stop := func(pid int) { syscall.Kill(pid, syscall.SIGSTOP) }
	pause := func(pid int) {
		stop(pid)
		time.AfterFunc(time.Duration(rng.IntN(400))*time.Millisecond, func() { syscall.Kill(pid, syscall.SIGCONT) })
	}
	recycle := func(int) { s.operate("recycle") }
	acts := []func(pid int){kill, kill, kill, stop, pause, recycle}
	for {
		rng.Shuffle(len(acts), func(i, j int) { acts[i], acts[j] = acts[j], acts[i] })
		for _, act := range acts {
			select {
			case <-over:
				eventually(s.t, time.Minute, "end of the recycling", func() bool { return s.pool().Worn == 0 })
				stop(s.children()[0]) // one that nothing else will end
				return
			case <-time.After(time.Duration(rng.IntN(800)) * time.Millisecond):
			}
			if pids := s.children(); len(pids) > 0 {
				act(pids[rng.IntN(len(pids))])
			}
		}
	}
}

// wish is one request, and the behaviour of its client.
type wish struct {
	text   string // which is also the answer
	n      int
	stream bool
	native bool          // over /v1/responses
	slow   bool          // reads slowly
	leaves time.Duration // after that time, 0 = stays
}

// request is the path and the body.
func (w wish) request() (path string, body any) {
	if w.native {
		content := []any{map[string]any{"type": "input_text", "text": w.text}}
		return "/v1/responses", map[string]any{"stream": w.stream, "input": []any{map[string]any{"role": "user", "content": content}}}
	}
	return "/v1/chat/completions", map[string]any{"stream": w.stream, "n": w.n, "messages": []any{map[string]any{"role": "user", "content": w.text}}}
}

func newWish(rng *rand.Rand, canary string) wish {
	words := rng.IntN(20)
	if rng.IntN(4) == 0 {
		words += 150 // so that children meet their end in the middle of an answer
	}
	w := wish{text: canary + strings.Repeat(" "+canary, words), n: 1, stream: rng.IntN(3) > 0}
	switch rng.IntN(12) {
	case 0, 1, 2:
		w.n = 2
	case 3, 4, 5:
		w.leaves = 1 + time.Duration(rng.IntN(200_000))*time.Microsecond
	case 6: // more than the buffers on the way hold
		w.slow, w.text = true, canary+strings.Repeat(" "+canary+strings.Repeat("x", 8<<10), 24)
	}
	w.native = w.n == 1 && rng.IntN(2) == 0
	return w
}

// play sends one request and counts its outcome.
func (s *soak) play(w wish) {
	outcome, err := s.try(w)
	if err != nil {
		s.t.Errorf("SEED=%d: %.20q…, n=%d, stream %v, native %v, slow %v, disconnects after %v: %s %v", s.seed, w.text, w.n, w.stream, w.native, w.slow, w.leaves, outcome, err)
		outcome = "wrong"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes[outcome]++
}

func (s *soak) try(w wish) (outcome string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // far more than any has to wait
	defer cancel()
	if w.leaves > 0 {
		defer time.AfterFunc(w.leaves, cancel).Stop()
	}
	path, fields := w.request()
	body, err := json.Marshal(fields)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", s.url+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+s.bearer)
	req.Header.Set("Content-Type", "application/json")
	client := http.DefaultClient
	if w.slow {
		client = s.narrow
	}
	res, err := client.Do(req)
	if err == nil {
		defer res.Body.Close()
		outcome, err = s.judge(w, res)
	}
	if w.leaves > 0 && errors.Is(err, context.Canceled) {
		return "left", nil
	}
	return outcome, err
}

// judge returns the outcome that an answer is, and an error if the answer is wrong.
func (s *soak) judge(w wish, res *http.Response) (string, error) {
	var body io.Reader = res.Body
	if w.slow {
		body = slowly{body}
	}
	if res.StatusCode == http.StatusOK && w.stream {
		return w.judgeStream(body)
	}
	all, err := io.ReadAll(body)
	if err != nil {
		return "", err
	}
	if res.StatusCode == http.StatusOK {
		return w.judgeWhole(all)
	}
	res.Body = io.NopCloser(bytes.NewReader(all))
	told := failure(s.t, res)
	for _, excuse := range excuses {
		if told == excuse {
			return told, nil
		}
	}
	return told, errors.New("it has no excuse")
}

// excuses are the errors that a request may get when its child, or the child that it
// waits for, is harmed.
var excuses = map[string]string{
	"child_exited":        "502 server_error child_exited -",
	"idle_timeout":        "504 timeout_error idle_timeout -",
	"pool_saturated":      "503 server_error pool_saturated - *",
	"backend_unavailable": "503 server_error backend_unavailable - *",
}

func (w wish) judgeStream(body io.Reader) (string, error) {
	said, finished := map[int]string{}, 0
	var last chunk
	late := false
	err := readStream(body, func(c chunk) {
		late = late || last.done || last.error != ""
		said[c.choice] += c.text
		if c.finish == "stop" {
			finished++
		}
		last = c
	})
	whole := len(said) == w.n && finished == w.n
	for _, text := range said {
		if !strings.HasPrefix(w.text, text) {
			return "", fmt.Errorf("not the answer to its request: %.500q", text)
		}
		whole = whole && text == w.text
	}
	switch {
	case late:
		return "", errors.New("something came after the end")
	case err == nil && last.done && whole:
		return "whole", nil
	case errors.Is(err, io.ErrUnexpectedEOF) && excuses[last.error] != "":
		return "cut " + last.error, nil
	case err == nil:
		return "", fmt.Errorf("it ended as if it were whole, with %+v after %.500s", last, fmt.Sprint(said))
	}
	return "", fmt.Errorf("%w after %+v", err, last)
}

func (w wish) judgeWhole(body []byte) (string, error) {
	var answer struct {
		Choices []struct {
			Message      struct{ Content string }
			FinishReason string `json:"finish_reason"`
		}
		Status string // of the Responses API
		Output []struct{ Content []struct{ Text string } }
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "", err
	}
	if w.native {
		if text := fmt.Sprint(answer.Output); answer.Status != "completed" || text != "[{[{"+w.text+"}]}]" {
			return "", fmt.Errorf("not the answer to its request: %.500q, %s", text, answer.Status)
		}
		return "whole", nil
	}
	if len(answer.Choices) != w.n {
		return "", fmt.Errorf("%d choices", len(answer.Choices))
	}
	for _, c := range answer.Choices {
		if c.Message.Content != w.text || c.FinishReason != "stop" {
			return "", fmt.Errorf("not the answer to its request: %.500q, %s", c.Message.Content, c.FinishReason)
		}
	}
	return "whole", nil
}

// slowly reads as a client does that has other things to do.
type slowly struct{ io.Reader }

func (r slowly) Read(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return r.Reader.Read(p[:min(len(p), 4<<10)])
}

// rest waits until nobody has a child or waits for one, and there is neither a
// process nor a home too many.
func (s *soak) rest(size int) {
	s.t.Helper()
	var processes, homes []string
	var m map[string]float64
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		m, processes = s.metrics(), s.processes()
		homes, _ = filepath.Glob(filepath.Join(s.workdir, "daemon-*", "child-*"))
		stopped := slices.ContainsFunc(processes, func(name string) bool { return strings.HasSuffix(name, " T") }) // and soon replaced
		if !stopped && m[`codexpool_pool_children{state="idle"}`] == float64(size) && m[`codexpool_pool_children{state="leased"}`] == 0 &&
			m["codexpool_pool_waiting"] == 0 && m[`codexpool_sse_streams{state="open"}`] == 0 && len(processes) == size && len(homes) == size {
			return
		}
		if time.Since(began) > 20*time.Second {
			s.t.Fatalf("SEED=%d: no rest: pool %+v, %v waiting, %v streams, processes %q, homes %q",
				s.seed, s.pool(), m["codexpool_pool_waiting"], m[`codexpool_sse_streams{state="open"}`], processes, homes)
		}
	}
}

// processes are the daemon's children, also the dead that it did not reap, and
// all others whose working directory is one of its homes.
func (s *soak) processes() (names []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cwd, _ := os.Readlink(dir + "/cwd")
		state, parent := stateOf(dir)
		if parent == s.cmd.Process.Pid || strings.HasPrefix(cwd, s.workdir) {
			names = append(names, filepath.Base(dir)+" "+state)
		}
	}
	return names
}

func (s *soak) goroutines() []byte {
	res, err := http.Get(s.admin + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	page, _ := io.ReadAll(res.Body)
	return page
}

// accounts checks that all that was meant to happen did, and that each child that
// was started is there or was counted out.
func (s *soak) accounts(size int) {
	m := s.metrics()
	deaths := 0.0
	for _, why := range []string{"exited", "unresponsive", "recycled"} {
		n := m[`codexpool_child_deaths_total{reason="`+why+`"}`]
		if deaths += n; n == 0 {
			s.t.Errorf("no child went because of %q: this soak proves little", why)
		}
		s.outcomes["child "+why] = int(n)
	}
	for _, route := range []string{"chat", "responses"} {
		if s.total("codexpool_http_requests_total", `route="`+route+`"`, `code="200"`) == 0 {
			s.t.Errorf("no answer of %s: this soak proves little", route)
		}
	}
	if starts := m[`codexpool_child_starts_total{outcome="ok"}`]; starts != deaths+float64(size) {
		s.t.Errorf("%v children were started, %v are gone for the reasons that there are", starts, deaths)
	}
	if failed := s.outcomes["cut child_exited"] + s.outcomes[excuses["child_exited"]]; s.outcomes["whole"] == 0 || s.outcomes["left"] == 0 || failed == 0 {
		s.t.Errorf("%d requests failed, %d clients disconnected, %d answers were whole: this soak proves little", failed, s.outcomes["left"], s.outcomes["whole"])
	}
}

// agreesWithClients holds the log and the counters, which agree, against what the clients
// saw. One that left may have been served, or have failed, before the daemon noticed, or
// may not have sent its request.
func (s *soak) agreesWithClients() {
	booked := s.agrees()
	if lost := s.metrics()["codexpool_log_dropped_total"]; lost != 0 {
		s.t.Fatalf("%v lines of the log are lost", lost)
	}
	left := float64(s.outcomes["left"])
	within := func(what string, got, seen float64) {
		if got < seen || got > seen+left {
			s.t.Errorf("%s: %v are counted, clients saw %v, and %v left", what, got, seen, left)
		}
	}
	within("whole answers", booked["ok"], float64(s.outcomes["whole"]))
	all := float64(s.outcomes["whole"])
	for code, told := range excuses {
		seen, got := float64(s.outcomes[told]+s.outcomes["cut "+code]), 0.0
		for name, n := range booked {
			if _, what, _ := strings.Cut(name, " "); strings.HasPrefix(what, code+" by ") { // of both routes
				got += n
			}
		}
		within(code, got, seen)
		all += seen
	}
	within("completions", booked["ok"]+booked["failed"]+booked["left"]+booked["slow_reader"], all)
	if other := booked["refused"] + booked["limited"]; other != 0 {
		s.t.Errorf("%v completions were refused: %v", other, booked)
	}
}

// TestManyLeasesOverRecycledChildren replaces children all the time, and no
// client notices. A soak has ten thousand leases of real children, or as many as fit
// into a third of it; every run has fewer, of played ones, which are quick: the daemon is
// the real one.
func TestManyLeasesOverRecycledChildren(t *testing.T) {
	fault, most, whole := "none, and is quick", 3000, soakWhole(t)
	if whole > 0 {
		fault, most = "", 10_000
	}
	f := newFaulty(t)
	f.set(fault)
	d := start(t, "POOL_SIZE=4", "POOL_MAX_TURNS=50", "POOL_MIN_LIFE_MS=0", "CODEX_ECHO_DELAY_MS=0", "CODEX_BIN="+f.path)
	total := 0
	until := func(n int, share time.Duration) { // of the soak
		for total < n && (whole == 0 || time.Since(runBegan) < whole/share) {
			d.load(500, 8)
			total += 500
		}
	}
	until(most/2, 6)
	half := d.weigh()
	until(most, 3)
	last := d.weigh()

	// Worn children go one at a time, so that under load they serve some turns more.
	m := d.metrics()
	worn, started := m[`codexpool_child_deaths_total{reason="turns"}`], m[`codexpool_child_starts_total{outcome="ok"}`]
	if worn < float64(total)/200 || started != worn+4 {
		t.Errorf("%v children were worn, %v started", worn, started)
	}
	t.Logf("%d leases, %v children were worn; %+v at half time, %+v at the end", total, worn, half, last)
	// Unlike in a soak every connection lives, so that the same heap is weighed within
	// some ten kilobytes.
	if last.heap > half.heap+256<<10 || last.goroutines > half.goroutines+8 || last.descriptors > half.descriptors+8 || last.children > half.children*1.5 {
		t.Errorf("something is kept: %+v at half time, %+v at the end", half, last)
	}
}
