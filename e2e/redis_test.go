package e2e

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"codexpool/api/limits"
)

// redisServer starts a Redis server with these options and returns its address.
func redisServer(t testing.TB, options ...string) (process *os.Process, addr string) {
	t.Helper()
	binary := installed(t, "redis-server")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = free.Addr().String()
	free.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(binary, append([]string{"--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", t.TempDir()}, options...)...)
	cmd.Env = []string{markVar + "=" + runMark}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGCONT)
		cmd.Process.Kill()
		cmd.Wait()
	})
	eventually(t, 10*time.Second, "Redis", func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer c.Close()
		fmt.Fprint(c, "PING\r\n")
		answer := make([]byte, 16)
		n, _ := c.Read(answer)
		return n > 0 && !strings.HasPrefix(string(answer), "-LOADING")
	})
	return cmd.Process, addr
}

// sharing starts a daemon that shares its limits there: a thousand requests, of which it
// regains one a minute.
func sharing(t testing.TB, url string, environ ...string) *daemon {
	t.Helper()
	return start(t, append([]string{"POOL_SIZE=1", "PROXY_RATE_LIMIT_MAX=1000", "PROXY_RATE_LIMIT_WINDOW_MS=60000000", "PROXY_RATE_LIMIT_REDIS_URL=" + url}, environ...)...)
}

// shares waits until the limits are shared: the first connection may take longer than a
// call may.
func (d *daemon) shares() {
	d.t.Helper()
	eventually(d.t, 5*time.Second, "a shared limit", func() bool { return d.metrics()["codexpool_ratelimit_redis_up"] == 1 })
}

// remaining is what a request is told to remain of its key's limit.
func remaining(t testing.TB, d *daemon) (n int) {
	t.Helper()
	res := d.request("POST", "/v1/chat/completions", "Bearer "+key, "application/json", "{")
	res.Body.Close()
	if _, err := fmt.Sscan(res.Header.Get("x-ratelimit-remaining-requests"), &n); err != nil {
		t.Fatal(err, res.Status)
	}
	return n
}

func TestDaemonsShareALimitThroughRedis(t *testing.T) {
	_, addr := redisServer(t)
	daemons := []*daemon{sharing(t, "redis://"+addr), sharing(t, "redis://"+addr)}
	for _, d := range daemons {
		d.shares()
	}
	var admitted, rejected atomic.Int64
	daemons[0].spread(1300, 8, func(i int) error {
		switch status := daemons[i%2].as(key, "{"); status {
		case http.StatusBadRequest:
			admitted.Add(1)
		case http.StatusTooManyRequests:
			rejected.Add(1)
		default:
			return fmt.Errorf("status %d", status)
		}
		return nil
	})
	if a, r := admitted.Load(), rejected.Load(); a < 1000 || a > 1020 || a+r != 1300 {
		t.Errorf("%d were admitted, %d rejected", a, r)
	}
}

// firstTokens are the median times until the first token of two daemons, which take
// turns, so that both have the same weather.
func firstTokens(t testing.TB, a, b *daemon) (medianA, medianB time.Duration) {
	t.Helper()
	var times [2][]time.Duration
	for range 21 {
		for i, d := range []*daemon{a, b} {
			began := time.Now()
			res, err := d.post(chatBody("one", true))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(res.Body, make([]byte, 1)); err != nil {
				t.Fatal(err, res.Status)
			}
			times[i] = append(times[i], time.Since(began))
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	}
	for i := range times {
		slices.Sort(times[i])
	}
	return times[0][10], times[1][10]
}

// TestRedisThatFailsDelaysNobody has a Redis that is stopped and goes on, one with another
// password, one that is read-only and one that is full. The first token with the echo
// model takes 100 ms, of which a tenth would be seen.
func TestRedisThatFailsDelaysNobody(t *testing.T) {
	without := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=100")
	process, stopped := redisServer(t)
	_, locked := redisServer(t, "--requirepass", "right")
	_, readOnly := redisServer(t, "--replicaof", "127.0.0.1", "1")
	_, full := redisServer(t, "--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
	_, evicting := redisServer(t, "--maxmemory", "2mb", "--maxmemory-policy", "allkeys-random")
	for _, tt := range []struct {
		name, url string
		own       bool // it goes on with its own limit
	}{
		{"stopped", "redis://" + stopped, true},
		{"wrong password", "redis://:wrong@" + locked, true},
		{"right password", "redis://:right@" + locked, false},
		{"read-only", "redis://" + readOnly, true},
		{"full", "redis://" + full, true},
		{"evicting", "redis://" + evicting, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := sharing(t, tt.url, "CODEX_ECHO_DELAY_MS=100")
			if tt.name == "stopped" || !tt.own {
				d.shares()
			}
			if tt.name == "stopped" {
				process.Signal(syscall.SIGSTOP)
			}
			with, plain := firstTokens(t, d, without)
			t.Logf("the first token takes %v, without Redis %v", with, plain)
			if with > plain*11/10 {
				t.Errorf("the first token takes %v, without Redis %v", with, plain)
			}
			m := d.metrics()
			if up := m["codexpool_ratelimit_redis_up"]; up == 1 == tt.own || strings.Count(d.logged(), "Redis cannot be used") > 1 {
				t.Errorf("up %v\n%s", up, d.logged())
			}
			if left := remaining(t, d); left < 1000-22 || left > 1000-21 { // one may have been taken before it failed
				t.Errorf("%d remain of its limit", left)
			}
			if strings.Contains(d.logged(), "wrong@") {
				t.Error("a password in the log")
			}
			if tt.name != "stopped" {
				return
			}
			process.Signal(syscall.SIGCONT)
			other := sharing(t, tt.url)
			d.shares()
			other.shares()
			if a, b := remaining(t, d), remaining(t, other); b != a-1 {
				t.Errorf("%d remain at one daemon, then %d at the other", a, b)
			}
		})
	}
}

// TestBucketsInRedisAreThoseOfOneProcess has the same random use of both.
func TestBucketsInRedisAreThoseOfOneProcess(t *testing.T) {
	_, addr := redisServer(t)
	shared, err := limits.OpenRedis("redis://"+addr, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	for seed := range uint64(10) {
		random := rand.New(rand.NewPCG(seed, 0))
		ours, theirs := limits.NewAccount("k", nil), limits.NewAccount(fmt.Sprint("k", seed), shared)
		requests := limits.Rate{Most: 1 + random.IntN(20), Per: time.Hour}
		tokens := limits.Rate{Most: 1 + random.IntN(1_000_000), Per: 10 * time.Hour}
		ours.Set(requests, tokens)
		theirs.Set(requests, tokens)
		for step := range 40 {
			a, b := ours.Take(t.Context()), theirs.Take(t.Context())
			if a.Requests.Remaining != b.Requests.Remaining || (a.Wait-b.Wait).Abs() > time.Minute || (a.Tokens.Remaining-b.Tokens.Remaining) > tokens.Most/100+1 {
				t.Fatalf("seed %d, step %d: %+v %+v %+v, %+v %+v %+v", seed, step, a.Wait, *a.Requests, *a.Tokens, b.Wait, *b.Requests, *b.Tokens)
			}
			n := random.IntN(tokens.Most/4 + 1)
			ours.Charge(t.Context(), n)
			theirs.Charge(t.Context(), n)
		}
	}
	if up, errors := shared.Stat(); !up || errors != 0 {
		t.Errorf("up %v, %d errors", up, errors)
	}
}
