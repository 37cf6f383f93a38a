package limits_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api/limits"
)

// server plays a Redis server in memory. It runs no script: it answers each with told.
type server struct {
	mu    sync.Mutex
	down  bool          // it cannot be reached
	slow  time.Duration // before each answer
	told  string        // the answer to a script, in Redis's protocol
	asked int           // scripts
}

func (s *server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *server) scripts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *server) dial() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	go s.serve(theirs)
	return ours, nil
}

func (s *server) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for {
		command, err := readCommand(in)
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.down {
			s.mu.Unlock()
			return
		}
		slow, answer := s.slow, "-ERR unknown command\r\n" // also for HELLO: then the client speaks the older protocol
		if strings.HasPrefix(strings.ToLower(command), "eval") {
			s.asked++
			answer = s.told
		}
		s.mu.Unlock()
		time.Sleep(slow)
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

// readCommand reads the name of a command and skips its arguments.
func readCommand(in *bufio.Reader) (name string, err error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
	for i := range n {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		size, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
		arg := make([]byte, size+2)
		if _, err := io.ReadFull(in, arg); err != nil {
			return "", err
		}
		if i == 0 {
			name = string(arg[:size])
		}
	}
	return name, nil
}

// told is the answer of a script.
func told(figures ...string) string {
	s := fmt.Sprintf("*%d\r\n", len(figures))
	for _, f := range figures {
		s += fmt.Sprintf("$%d\r\n%s\r\n", len(f), f)
	}
	return s
}

// TestRedisThatCannotBeUsedCostsThreeDeadlines has every way in which Redis may fail; the
// clock is made up, so what is not waited for takes no time at all.
func TestRedisThatCannotBeUsedCostsThreeDeadlines(t *testing.T) {
	for name, tt := range map[string]struct {
		ill   func(s *server)
		costs time.Duration // a call
	}{
		"silent":       {func(s *server) { s.slow = time.Hour }, 50 * time.Millisecond},
		"too slow":     {func(s *server) { s.slow = 51 * time.Millisecond }, 50 * time.Millisecond},
		"gone":         {func(s *server) { s.down = true }, 0},
		"read-only":    {func(s *server) { s.told = "-READONLY You can't write against a read only replica.\r\n" }, 0},
		"full":         {func(s *server) { s.told = "-OOM command not allowed when used memory > 'maxmemory'.\r\n" }, 0},
		"unauthorized": {func(s *server) { s.told = "-NOAUTH Authentication required.\r\n" }, 0},
		"another":      {func(s *server) { s.told = told("nonsense") }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				s := &server{told: told("0", "4")}
				r := limits.OpenRedisOver(s.dial, slog.New(slog.NewTextHandler(&log, nil)))
				a := limits.NewAccount("k", r)
				a.Set(limits.Rate{Most: 5, Per: time.Minute}, limits.Rate{})
				if v := a.Take(t.Context()); v.Wait != 0 || v.Requests.Remaining != 4 {
					t.Fatalf("while it is well: %+v\n%s", v, &log)
				}
				s.set(func() { tt.ill(s) })
				for i := range 5 { // its own limit holds, from the first miss on
					before := time.Now()
					v := a.Take(t.Context())
					took, want := time.Since(before), tt.costs
					if i >= 3 {
						want = 0
					}
					if v.Wait != 0 || v.Requests.Remaining != 4-i || took != want {
						t.Errorf("call %d: %+v, %+v after %v", i, v, *v.Requests, took)
					}
				}
				if v := a.Take(t.Context()); v.Wait > 12*time.Second || v.Wait < 11*time.Second { // it has regained a little
					t.Errorf("over its own limit: %+v", v)
				}
				if up, errors := r.Stat(); up || errors != 3 {
					t.Errorf("up %v, %d errors", up, errors)
				}
				asked := s.scripts()
				a.Take(t.Context())
				if s.scripts() != asked {
					t.Error("a request asks a server that is known to be ill")
				}
				time.Sleep(10 * time.Second) // probes fail
				if up, _ := r.Stat(); up || strings.Count(log.String(), "level=WARN") != 1 {
					t.Errorf("up %v\n%s", up, &log)
				}
				s.set(func() { s.down, s.slow, s.told = false, 0, told("0", "3") })
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if v := a.Take(t.Context()); v.Requests.Remaining != 3 || strings.Count(log.String(), "can be used again") != 1 {
					t.Errorf("after its recovery: %+v\n%s", *v.Requests, &log)
				}
				r.Close()
				time.Sleep(2 * time.Hour) // the server's last answers
			})
		})
	}
}

// TestRedisIsNotToBlameForAClientThatLeaves: its call ends with the client.
func TestRedisIsNotToBlameForAClientThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{told: told("0", "4")}
		r := limits.OpenRedisOver(s.dial, slog.New(slog.DiscardHandler))
		a := limits.NewAccount("k", r)
		a.Set(limits.Rate{Most: 50, Per: time.Minute}, limits.Rate{})
		s.set(func() { s.slow = time.Hour })
		for range 5 {
			ctx, leave := context.WithCancel(t.Context())
			time.AfterFunc(10*time.Millisecond, leave)
			a.Take(ctx)
		}
		if up, errors := r.Stat(); !up || errors != 0 {
			t.Errorf("up %v, %d errors", up, errors)
		}
		r.Close()
		time.Sleep(2 * time.Hour)
	})
}

func TestRedisURLIsNotQuoted(t *testing.T) {
	for _, url := range []string{"redis://:SECRET@host:port/0", "redis://:SECRET@host/0?nonsense=1", "redis://:SECRET@host/x"} {
		if _, err := limits.OpenRedis(url, slog.New(slog.DiscardHandler)); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%v", err)
		}
	}
}
