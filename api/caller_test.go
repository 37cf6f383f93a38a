package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex/codextest"
	"codexpool/pool"
	"codexpool/upstream"
)

// by is a request with another key.
func by(key string, r *http.Request) *http.Request {
	r.Header.Set("Authorization", "Bearer "+key)
	return r
}

// logged opens a house that writes its log into a buffer.
func logged(t *testing.T, scripts ...codextest.Script) (*house, *bytes.Buffer) {
	t.Helper()
	h := open(t, config(), 1, scripts...)
	var log bytes.Buffer
	h.Server = api.New(config(), h.pool, nil, slog.New(slog.NewJSONHandler(&log, nil)), func(_ context.Context, r api.Result) { h.results = append(h.results, r) })
	return h, &log
}

func TestCallerIsNamedInLogAndResultWithoutItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, log := logged(t)
		for _, tt := range []struct{ key, name string }{{key, "1"}, {"another", "2"}, {"wrong-key", ""}} {
			log.Reset()
			h.do(t, by(tt.key, chat(hello)))
			var line struct{ Key string }
			if err := json.Unmarshal(log.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
			if line.Key != tt.name || h.last().Key != tt.name {
				t.Errorf("the key %q is %q in the log, %q in the result", tt.name, line.Key, h.last().Key)
			}
			if strings.Contains(log.String(), tt.key) {
				t.Errorf("a key in %s", log)
			}
		}
	})
}

func TestCallersAreServedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := openWith(t, config(), pool.Config{Size: 1, MaxWaiting: 10}, nil)
		var mu sync.Mutex
		order := ""
		var requests sync.WaitGroup
		for _, k := range []string{key, key, key, key, "another"} {
			requests.Go(func() {
				h.do(t, by(k, chat(hello)))
				mu.Lock()
				defer mu.Unlock()
				order += h.last().Key
			})
			synctest.Wait()
		}
		requests.Wait()
		if order != "11211" { // the first was served at once, and the second was the next
			t.Errorf("served %s", order)
		}
	})
}

func TestBackPressureIsLoggedAsWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, log := logged(t)
		level := func(a answer, code string) string {
			t.Helper()
			var line struct{ Level, Code string }
			if err := json.Unmarshal(log.Bytes(), &line); err != nil || line.Code != code {
				t.Errorf("%d, %v, %s", a.Code, err, log)
			}
			log.Reset()
			return line.Level
		}
		var leases []*pool.Lease
		if l, err := h.pool.Acquire(t.Context()); err == nil {
			leases = append(leases, l)
		}
		timedOut := level(h.do(t, chat(hello)), "pool_saturated")
		places, err := h.pool.Admit(t.Context(), "", 2)
		if err != nil {
			t.Fatal(err)
		}
		full := level(h.do(t, chat(hello)), "pool_saturated")
		places.Close()
		h.pool.Drain()
		draining := level(h.do(t, chat(hello)), "shutting_down")
		h.pool.Resume()
		for _, l := range leases {
			l.Release()
		}
		r := chat(hello)
		r.Body = panicBody{}
		if got := []string{timedOut, full, draining, level(h.do(t, r), "internal_error")}; strings.Join(got, " ") != "WARN WARN WARN ERROR" {
			t.Errorf("levels %v", got)
		}
	})
}

type panicBody struct{ panicReader }

func (panicBody) Close() error { return nil }

// TestPanicBeforeAcquireFreesThePlaces has a relay that panics when a call is
// prepared, which is between Admit and Acquire.
func TestPanicBeforeAcquireFreesThePlaces(t *testing.T) {
	for _, n := range []string{"1", "2"} {
		synctest.Test(t, func(t *testing.T) {
			h := openWith(t, config(), pool.Config{Size: 1}, new(upstream.Relay))
			if a := h.do(t, chat(`{"n":`+n+`,"messages":[{"role":"user","content":"hi"}]}`)); a.Code != 500 {
				t.Errorf("%d %s", a.Code, a.Body)
			}
			time.Sleep(time.Minute)
			if s := h.pool.Stat(); s.Admitted != 0 || s.Waiting != 0 || s.Leased != 0 {
				t.Errorf("n = %s: %+v", n, s)
			}
		})
	}
}

// TestCallersDoNotShareAProviderCache: what one caller's requests begin with is
// no other caller's to find out.
func TestCallersDoNotShareAProviderCache(t *testing.T) {
	var keys []string
	for _, caller := range []api.Caller{{}, {Key: "1"}, {Key: "2"}, {Key: "1"}} {
		fields, err := api.OverridesOf([]byte(hello), caller, config())
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(fields["prompt_cache_key"]))
	}
	if keys[1] != keys[3] || keys[0] == keys[1] || keys[1] == keys[2] || keys[0] == "" {
		t.Errorf("%v", keys)
	}
}
