package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// keyBlock is an entry of a keys file; the key is its name.
func keyBlock(name string, lines ...string) string {
	return fmt.Sprintf("[[key]]\nname = %q\nsha256 = \"%x\"\n%s\n", name, sha256.Sum256([]byte(name)), strings.Join(lines, "\n"))
}

// keysFile writes a keys file of these blocks.
func keysFile(t testing.TB, blocks ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "keys.toml")
	writeKeys(t, path, blocks...)
	return path
}

func writeKeys(t testing.TB, path string, blocks ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(blocks, "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// as sends a chat completion with a key and returns the status.
func (d *daemon) as(key, body string) int {
	d.t.Helper()
	res := d.request("POST", "/v1/chat/completions", "Bearer "+key, "application/json", body)
	res.Body.Close()
	return res.StatusCode
}

// TestKeysRotateUnderLoad adds a key, moves the clients to it, and removes the old one,
// by editing the file in each of the ways in which operators and Kubernetes do.
func TestKeysRotateUnderLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keys.toml")
	writeKeys(t, path, keyBlock("key-0"))
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=0", "PROXY_API_KEYS_FILE="+path)
	replace := func(blocks ...string) {
		writeKeys(t, path+".new", blocks...)
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	generation := 0
	link := func(blocks ...string) { // as Kubernetes mounts a secret
		generation++
		name := fmt.Sprintf("..%d", generation)
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		writeKeys(t, filepath.Join(dir, name, "keys.toml"), blocks...)
		for _, l := range [][2]string{{name, "..data"}, {"..data/keys.toml", "keys.toml"}} {
			if err := os.Symlink(l[0], filepath.Join(dir, "new")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, l[1])); err != nil {
				t.Fatal(err)
			}
		}
	}
	hup := func(blocks ...string) {
		writeKeys(t, path, blocks...)
		d.cmd.Process.Signal(syscall.SIGHUP)
	}
	var mu sync.Mutex
	current := "key-0" // what the clients use
	stop := make(chan struct{})
	var clients sync.WaitGroup
	requests := 0
	for range 2 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				key := current
				requests++
				mu.Unlock()
				if status := d.as(key, chatBody("hi", false)); status != 200 {
					t.Errorf("%s got %d", key, status)
				}
			}
		})
	}
	for i, write := range []func(...string){func(blocks ...string) { writeKeys(t, path, blocks...) }, replace, link, link, hup} {
		before, after := fmt.Sprintf("key-%d", i), fmt.Sprintf("key-%d", i+1)
		write(keyBlock(before), keyBlock(after))
		eventually(t, 2*time.Second, after, func() bool { return d.as(after, chatBody("hi", false)) == 200 })
		mu.Lock()
		current = after
		mu.Unlock()
		time.Sleep(100 * time.Millisecond) // the requests with the old key have been authenticated
		write(keyBlock(after))
		eventually(t, 2*time.Second, "401 for "+before, func() bool { return d.as(before, chatBody("hi", false)) == 401 })
	}
	close(stop)
	clients.Wait()
	m := d.metrics()
	if _, there := m[`codexpool_key_requests_total{key="key-4",outcome="ok"}`]; there || m[`codexpool_key_requests_total{key="key-5",outcome="ok"}`] == 0 || m["codexpool_keys_reload_success"] != 1 {
		t.Error("the metrics are not those of the keys that exist")
	}
	if requests < 50 {
		t.Errorf("only %d requests", requests)
	}
	writeKeys(t, path, "[[key]]\nname = 1")
	eventually(t, 2*time.Second, "report of a bad file", func() bool { return d.metrics()["codexpool_keys_reload_success"] == 0 })
	if status := d.as("key-5", chatBody("hi", false)); status != 200 || !strings.Contains(d.logged(), "the keys stay as they are") {
		t.Errorf("after a bad file: %d", status)
	}
}

// TestSIGHUPAsksToStopWhereStandardInputIsATerminal: it comes from that terminal.
func TestSIGHUPAsksToStopWhereStandardInputIsATerminal(t *testing.T) {
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ptmx.Close()
	number, locked := 0, 0
	for request, p := range map[uintptr]*int{syscall.TIOCGPTN: &number, syscall.TIOCSPTLCK: &locked} {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, ptmx.Fd(), request, uintptr(unsafe.Pointer(p))); e != 0 {
			t.Fatal(e)
		}
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	d := launchOn(t, terminal, program, "POOL_SIZE=1", "PROXY_API_KEYS_FILE="+keysFile(t, keyBlock("a")))
	d.cmd.Process.Signal(syscall.SIGHUP)
	select {
	case <-d.ended:
	case <-time.After(10 * time.Second):
		t.Error("the daemon still runs")
	}
}

// manyKeys are entries of so many keys, with limits that nobody reaches.
func manyKeys(n int) []string {
	blocks := make([]string, n)
	for i := range blocks {
		blocks[i] = keyBlock(fmt.Sprintf("key-%d", i), "requests_per_minute = 60000", "tokens_per_minute = 1000000", "streams = 8")
	}
	return blocks
}

// TestManyKeysCostGoodClientsNothing has a keys file of 5,000 keys, which changes.
func TestManyKeysCostGoodClientsNothing(t *testing.T) {
	blocks := manyKeys(5000)
	path := keysFile(t, blocks...)
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=0", "PROXY_API_KEYS_FILE="+path)
	d.load(20, 4)
	before := d.weigh()
	for round := range 5 {
		blocks[0] = keyBlock(fmt.Sprintf("round-%d", round))
		writeKeys(t, path, blocks...)
		eventually(t, 2*time.Second, "the new key", func() bool { return d.as(fmt.Sprintf("round-%d", round), chatBody("hi", false)) == 200 })
		d.spread(100, 4, func(i int) error {
			if status := d.as(fmt.Sprintf("key-%d", 1+(i*47)%4999), chatBody("hi", false)); status != http.StatusOK {
				return fmt.Errorf("a key got %d", status)
			}
			if status := d.as(fmt.Sprintf("wrong-%d", i), chatBody("hi", false)); status != http.StatusUnauthorized {
				return fmt.Errorf("a wrong key got %d", status)
			}
			return nil
		})
	}
	after := d.weigh()
	t.Logf("before %+v, after %+v", before, after)
	if after.heap > before.heap+64<<20 {
		t.Errorf("the daemon's heap grew from %v to %v", before.heap, after.heap)
	}
	keys := map[string]bool{}
	for name := range d.metrics() {
		if _, rest, ok := strings.Cut(name, `{key="`); ok {
			keys[rest[:strings.IndexByte(rest, '"')]] = true
		}
	}
	if len(keys) != 201 || !keys["other"] {
		t.Errorf("%d keys have series", len(keys))
	}
}

// TestLimitsOfAKeyHoldOverHTTP has one key for each limit.
func TestLimitsOfAKeyHoldOverHTTP(t *testing.T) {
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=100", "PROXY_RATE_LIMIT_MAX=1", "PROXY_API_KEYS_FILE="+keysFile(t,
		keyBlock("requests", "requests_per_minute = 30"), keyBlock("tokens", "tokens_per_minute = 1", "requests_per_minute = 60"), keyBlock("streams", "streams = 1", "requests_per_minute = 60")))
	ask := func(bearer string, stream bool) *http.Response {
		return d.request("POST", "/v1/chat/completions", "Bearer "+bearer, "application/json", chatBody("one two three", stream))
	}
	const limited, busy = "429 rate_limit_error rate_limited - *", "429 rate_limit_error concurrency_exceeded - *"
	first := ask(key, false)
	first.Body.Close()
	if got := failure(t, ask(key, false)); first.StatusCode != 200 || first.Header.Get("x-ratelimit-limit-requests") != "1" || got != limited {
		t.Errorf("PROXY_RATE_LIMIT_MAX: %d, then %s", first.StatusCode, got)
	}
	for range 30 {
		d.as("requests", "{")
	}
	last := ask("requests", false)
	wait, err := time.ParseDuration(last.Header.Get("Retry-After") + "s")
	if got := failure(t, last); got != limited || err != nil || wait > 2*time.Second {
		t.Errorf("requests: %s, %v", got, wait)
	}
	time.Sleep(wait)
	if status := d.as("requests", chatBody("hi", false)); status != 200 {
		t.Errorf("after %v: %d", wait, status)
	}
	if status := d.as("tokens", chatBody("one two three", false)); status != 200 {
		t.Errorf("tokens: %d", status)
	}
	if got := failure(t, ask("tokens", false)); got != limited {
		t.Errorf("in debt: %s", got)
	}
	open := ask("streams", true)
	if got := failure(t, ask("streams", true)); got != busy {
		t.Errorf("a second stream: %s", got)
	}
	open.Body.Close()
	eventually(t, 5*time.Second, "end of the stream", func() bool { return d.as("streams", chatBody("hi", true)) == 200 })
	res := d.request("GET", "/v1/usage", "Bearer tokens", "", "")
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(body), `"today":{"requests":1,"input_tokens":3,"cached_tokens":0,"output_tokens":3,`) {
		t.Errorf("%v %s", err, body)
	}
}

// TestFloodOfOneKeyDoesNotStarveAnother: key a keeps 60 requests in the queue, and key b
// sends one now and then.
func TestFloodOfOneKeyDoesNotStarveAnother(t *testing.T) {
	const word, size = 50, 2 // milliseconds of a turn, and how many run at once
	d := start(t, fmt.Sprint("POOL_SIZE=", size), fmt.Sprint("CODEX_ECHO_DELAY_MS=", word), "POOL_MAX_WAITING=60",
		"PROXY_API_KEYS_FILE="+keysFile(t, keyBlock("a"), keyBlock("b")))
	stop := make(chan struct{})
	var flood sync.WaitGroup
	var mu sync.Mutex
	ended := map[int]int{} // of key a, by status
	for range 60 + size {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				status := d.as("a", chatBody("hi", false))
				mu.Lock()
				ended[status]++
				mu.Unlock()
			}
		})
	}
	eventually(t, 20*time.Second, "full queue", func() bool { return d.metrics()[`codexpool_key_waiting{key="a"}`] >= 59 })
	served := func() int {
		mu.Lock()
		defer mu.Unlock()
		return ended[200]
	}
	for range 10 {
		before := served()
		if status := d.as("b", chatBody("hi", false)); status != 200 {
			t.Errorf("b got %d", status)
		}
		// Two turns before it, as many beside those and beside its own, and those whose answers are on their way.
		if others := served() - before; others > 4*size {
			t.Errorf("b waited for %d others", others)
		}
		time.Sleep(100 * time.Millisecond)
	}
	close(stop)
	flood.Wait()
	if ended[503] == 0 || ended[200] < 30 || len(ended) != 2 {
		t.Errorf("a got %v", ended)
	}
	if d.total("codexpool_http_errors_total", `error="pool_saturated"`, `route="chat"`) != float64(ended[503]) || d.total("codexpool_key_waiting", `key="a"`) != 0 {
		t.Error("what was dismissed is not counted as saturation")
	}
}
