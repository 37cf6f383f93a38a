package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"codexpool/codex/codextest"
	"codexpool/pool"
)

// notified is a supervisor's socket, and what arrives there.
type notified struct {
	t    *testing.T
	conn *net.UnixConn
}

func newNotified(t *testing.T) notified {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return notified{t, conn}
}

// next is the next state that arrives within that time; "" where none does.
func (n notified) next(within time.Duration) string {
	n.t.Helper()
	state := make([]byte, 100)
	n.conn.SetReadDeadline(time.Now().Add(within))
	size, err := n.conn.Read(state)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		n.t.Fatal(err)
	}
	return string(state[:size])
}

func (n notified) expect(want string) {
	n.t.Helper()
	if got := n.next(10 * time.Second); got != want {
		n.t.Fatalf("the supervisor is told %q, want %q", got, want)
	}
}

// falls expects that nothing arrives for much longer than the daemon takes between two times,
// but for what was on its way.
func (n notified) falls() {
	n.t.Helper()
	for tries := 0; n.next(300*time.Millisecond) != "" && tries < 50; tries++ {
	}
	if got := n.next(3 * answerIn); got != "" {
		n.t.Errorf("the supervisor is told %q by a wedged daemon", got)
	}
}

// Whatever keeps completions from being served keeps the watchdog from being told: a
// listener that does not answer, or says that it does not live, or the lock of the pool. The
// log says which.
func TestWedgedDaemonMissesItsWatchdog(t *testing.T) {
	n := newNotified(t)
	t.Setenv("WATCHDOG_USEC", "300000")
	var answers, lock sync.Mutex // of the listener and of the pool
	var alive, status atomic.Int64
	status.Store(http.StatusOK)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers.Lock()
		defer answers.Unlock()
		if r.URL.Path != "/livez" {
			t.Errorf("it asks for %s", r.URL.Path)
		}
		w.WriteHeader(int(status.Load()))
	}))
	defer server.Close()
	var logged bytes.Buffer
	boss := supervisor{addr: server.Listener.Addr().String(), log: slog.New(slog.NewTextHandler(&logged, nil)), stat: func() pool.Stat {
		lock.Lock()
		defer lock.Unlock()
		return pool.Stat{Alive: int(alive.Load())}
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { boss.watch(ctx) })
	defer func() {
		cancel()
		watching.Wait()
		for _, why := range []string{"context deadline exceeded", "the lock of the pool was held", "/livez answers 500"} {
			if !strings.Contains(logged.String(), why) {
				t.Errorf("no %q in the log:\n%s", why, &logged)
			}
		}
	}()
	if got := n.next(300 * time.Millisecond); got != "" {
		t.Errorf("the supervisor is told %q before a child is warm", got)
	}
	alive.Store(1)
	n.expect("READY=1")
	n.expect("WATCHDOG=1")
	for _, wedged := range []*sync.Mutex{&answers, &lock} {
		wedged.Lock()
		n.falls()
		wedged.Unlock()
		n.expect("WATCHDOG=1")
	}
	status.Store(http.StatusInternalServerError)
	n.falls()
	status.Store(http.StatusOK)
	n.expect("WATCHDOG=1")
}

func TestSupervisorThatIsNotThereIsToldNothing(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	boss := supervisor{log: codextest.Log(t), stat: func() pool.Stat {
		t.Error("the pool is looked at")
		return pool.Stat{Alive: 1}
	}}
	boss.watch(t.Context())
}
