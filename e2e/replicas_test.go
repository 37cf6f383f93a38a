package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// replicas are daemons behind the proxy with the file that operators copy. A completion
// takes a second.
type replicas struct {
	t        *testing.T
	binary   string // that the next is started of
	settings []string
	daemons  []*daemon
	ports    []string
	client   *daemon // of the proxy
}

const (
	childrenOfReplica = 4
	wordsOfAnswer     = "an answer of ten words which takes about one second"
)

func newReplicas(t *testing.T, e edge, n int, binary string, settings ...string) *replicas {
	r := &replicas{t: t, binary: binary, settings: settings, ports: freePorts(t, n)}
	for i := range r.ports {
		r.daemons = append(r.daemons, r.launch(i))
	}
	for _, d := range r.daemons {
		d.warm(time.Minute)
	}
	changed := (*strings.Replacer)(nil)
	if e.name == "caddy" { // its file says what to change for several daemons
		changed = strings.NewReplacer("# import several", "import several")
	}
	r.client = e.before(t, "127.0.0.1:"+strings.Join(r.ports, " 127.0.0.1:"), changed)
	return r
}

func (r *replicas) launch(i int) *daemon {
	return launch(r.t, r.binary, append([]string{"PORT=" + r.ports[i], fmt.Sprint("POOL_SIZE=", childrenOfReplica), prestop}, r.settings...)...)
}

// sharingReplicas are three that share their limits in Redis.
func sharingReplicas(t *testing.T, e edge) *replicas {
	_, redis := redisServer(t)
	return newReplicas(t, e, 3, program, "CODEX_ECHO_DELAY_MS=100", "PROXY_TRUSTED_PROXIES=127.0.0.1",
		"PROXY_RATE_LIMIT_MAX=1000", "PROXY_RATE_LIMIT_WINDOW_MS=60000000", "PROXY_RATE_LIMIT_REDIS_URL=redis://"+redis)
}

// load sends completions at 70 % of what the replicas can do, streamed and in one piece in
// turns, whether earlier ones have ended or not. stop waits for their ends and returns how
// many there were, and the errors of those that failed.
func (r *replicas) load() (stop func() (sent int, failed []error)) {
	var mu sync.Mutex
	var failed []error
	var running sync.WaitGroup
	sent, over, ended := 0, make(chan struct{}), make(chan struct{})
	every := time.Duration(float64(time.Second) / (0.7 * childrenOfReplica * float64(len(r.daemons))))
	go func() { // ends with over
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for ; ; sent++ {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			streamed := sent%2 == 0
			running.Go(func() {
				if err := r.whole(streamed); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed = append(failed, err)
				}
			})
		}
	}()
	return func() (int, []error) {
		close(over)
		<-ended
		running.Wait()
		return sent, failed
	}
}

// refused is a completion that failed before the first byte of its answer.
type refused struct{ status, code string }

func (r refused) Error() string { return r.status + " " + r.code }

// whole sends one completion, and returns why it is not whole.
func (r *replicas) whole(streamed bool) error {
	res, err := r.client.post(chatBody(wordsOfAnswer, streamed))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		var body struct{ Error struct{ Code string } }
		json.NewDecoder(res.Body).Decode(&body)
		return refused{res.Status, body.Error.Code}
	}
	if !streamed {
		body, err := io.ReadAll(res.Body)
		if err == nil && !strings.Contains(string(body), wordsOfAnswer) {
			err = fmt.Errorf("not the answer: %s", body)
		}
		return err
	}
	var chunks []chunk
	if err := readStream(res.Body, func(c chunk) { chunks = append(chunks, c) }); err != nil {
		return err
	}
	if _, err := wholeText(chunks); err != nil {
		return errNotWhole
	}
	return nil
}

// errNotWhole is a stream that ends without its finish and [DONE], and without an error.
// Caddy 2.6 ends one so where the daemon is gone; HAProxy cuts it.
var errNotWhole = errors.New("a stream without its end")

// restart stops one daemon as a supervisor does, and starts it again.
func (r *replicas) restart(i int) {
	r.t.Helper()
	r.daemons[i].stop()
	r.back(i)
}

// back starts a daemon that is gone, and waits until it gets completions.
func (r *replicas) back(i int) {
	r.t.Helper()
	r.daemons[i] = r.launch(i)
	eventually(r.t, time.Minute, "completion for the daemon that is back", func() bool {
		return r.daemons[i].total("codexpool_completions_total") > 0
	})
}

// TestReplicasRestartWithoutALoss restarts each of three daemons under load, then kills one.
// It does that once behind HAProxy; with ROLLING set twice, and behind Caddy too.
func TestReplicasRestartWithoutALoss(t *testing.T) {
	t.Parallel()
	rounds := 1
	if os.Getenv("ROLLING") != "" {
		rounds = 2
	}
	for _, e := range edges {
		if e.name == "haproxy" || rounds > 1 && e.name == "caddy" {
			t.Run(e.name, func(t *testing.T) { restarts(t, sharingReplicas(t, e), rounds) })
		}
	}
}

func restarts(t *testing.T, r *replicas, rounds int) {
	stop := r.load()
	for range rounds {
		for i := range r.daemons {
			r.restart(i)
		}
	}
	sent, failed := stop()
	t.Logf("%d completions, %d restarts", sent, rounds*len(r.daemons))
	for _, err := range failed {
		t.Errorf("failed: %v", err)
	}
	for i, d := range r.daemons {
		d.shares()
		// A request is regained each minute, and each question takes one.
		if got := remaining(t, d); got < 1000-sent-len(r.daemons) || got > 1000-sent+5 {
			t.Errorf("daemon %d says that %d of 1000 requests remain after %d", i+1, got, sent)
		}
	}

	stop = r.load()
	busy := r.daemons[0]
	eventually(t, 10*time.Second, "daemon that is busy", func() bool { return busy.pool().in("leased") > 1 })
	busy.cmd.Process.Signal(syscall.SIGKILL)
	<-busy.ended
	r.back(0)
	sent, failed = stop()
	t.Logf("%d completions, of which %d ended with the daemon that was killed: %v", sent, len(failed), failed)
	if len(failed) == 0 || len(failed) > childrenOfReplica {
		t.Errorf("%d completions failed, and the daemon could have run %d", len(failed), childrenOfReplica)
	}
	for _, err := range failed {
		// SDKs try such a status again, and a connection that ends before an answer: HAProxy
		// ends it so where it had used the daemon's before. They raise an error where the
		// answer has begun.
		if no := (refused{}); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errNotWhole) && !(errors.As(err, &no) && no.code == "edge_unavailable" && no.status[0] == '5') {
			t.Errorf("not an error that a client can tell: %v", err)
		}
	}
}
