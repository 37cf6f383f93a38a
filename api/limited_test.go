package api_test

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/api/limits"
	"codexpool/codex/codextest"
)

// said are the headers of an answer's limits.
func said(a answer) string {
	list := []string{strconv.Itoa(a.Code)}
	for _, unit := range []string{"Requests", "Tokens"} {
		for _, what := range []string{"Limit", "Remaining", "Reset"} {
			if v := a.Header().Get("X-Ratelimit-" + what + "-" + unit); v != "" {
				list = append(list, v)
			}
		}
	}
	return strings.Join(append(list, a.Header()["Retry-After"]...), " ")
}

func TestRequestsOfAKeyAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("own"), named("common"), named("other")}
		cfg.Keys[0].RequestsPerMinute = 1
		cfg.Requests = limits.Rate{Most: 2, Per: 10 * time.Second}
		h := open(t, cfg, 1)
		began := time.Now()
		for _, tt := range []struct{ key, body, want string }{
			{"own", "{", "400 1 0 1m0s"}, // also on errors, and they count
			{"own", hello, "429 1 0 1m0s 60"},
			{"common", "{", "400 2 1 5s"},
			{"common", "{", "400 2 0 10s"},
			{"common", "{", "429 2 0 10s 5"},
			{"other", "{", "400 2 1 5s"},
		} {
			if got := said(h.do(t, by(tt.key, chat(tt.body)))); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.key, got, tt.want)
			}
		}
		for _, r := range []*http.Request{request("GET", "/v1/models", ""), request("HEAD", "/v1/chat/completions", "")} {
			if got := said(h.do(t, by("own", r))); got != "200" {
				t.Errorf("%s %s: %s; it has no limit", r.Method, r.URL, got)
			}
		}
		if got := h.last(); got.Code != "" || time.Since(began) != 0 {
			t.Errorf("%+v", got)
		}
		if a := h.do(t, by("own", chat(hello))); outcome(a) != "429 rate_limited" || h.last().Code != "rate_limited" {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

// TestClientThatObeysRetryAfterIsServed has limits whose waits are no whole seconds.
func TestClientThatObeysRetryAfterIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, perMinute := range []int{7, 59, 61, 600} {
			cfg := config()
			cfg.Keys = []api.Key{named("k")}
			cfg.Keys[0].RequestsPerMinute = perMinute
			h := open(t, cfg, 1)
			rejected := 0
			for range 3*perMinute + 10 {
				a := h.do(t, by("k", chat("{")))
				if a.Code == 400 {
					continue
				}
				rejected++
				seconds, err := strconv.Atoi(a.Header().Get("Retry-After"))
				if err != nil || seconds < 1 {
					t.Fatalf("Retry-After: %q", a.Header().Get("Retry-After"))
				}
				time.Sleep(time.Duration(seconds) * time.Second)
				if a := h.do(t, by("k", chat("{"))); a.Code != 400 {
					t.Fatalf("%d a minute: after %d s: %s", perMinute, seconds, said(a))
				}
			}
			if rejected == 0 {
				t.Errorf("%d a minute: nothing was rejected", perMinute)
			}
		}
	})
}

// TestTokensAreChargedWhenTheAnswerEnds has answers of every end; what each costs is seen
// in what remains after it.
func TestTokensAreChargedWhenTheAnswerEnds(t *testing.T) {
	const words = "one two three four five six" // each is a token of the played child, after a second
	const prompt = (len(words) + 3) / 4         // tokens, where the provider does not count them
	body := func(fields string) string {
		return `{` + fields + `"messages":[{"role":"user","content":"` + words + `"}]}`
	}
	for _, tt := range []struct {
		name   string
		body   string
		leaves time.Duration // when the client disconnects; 0 = it does not
		costs  int
	}{
		{"whole", body(""), 0, 12},
		{"streamed", body(`"stream":true,`), 0, 12},
		{"two answers", body(`"n":2,`), 0, 24},
		{"cut at a stop sequence", body(`"stop":"three",`), 0, prompt + 4},
		{"left", body(`"stream":true,`), 2500 * time.Millisecond, prompt + 2},
		{"left before the first word", body(""), 500 * time.Millisecond, prompt},
		{"rejected", body(`"n":99,`), 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := config()
				cfg.Keys = []api.Key{named("k")}
				cfg.Keys[0].TokensPerMinute = 60_000 // a token is a millisecond
				cfg.Keys[0].RequestsPerMinute = 60
				h := open(t, cfg, 2)
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				if tt.leaves > 0 {
					time.AfterFunc(tt.leaves, leave)
				}
				h.do(t, by("k", chat(tt.body)).WithContext(ctx))
				a := h.do(t, by("k", chat("{")))
				if got := a.Header().Get("X-Ratelimit-Reset-Tokens"); got != (time.Duration(tt.costs) * time.Millisecond).String() {
					t.Errorf("it costs %s, want %d", got, tt.costs)
				}
			})
		})
	}
}

func TestKeyInDebtIsRejectedUntilItIsPaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("poor"), named("rich")}
		cfg.Keys[0].TokensPerMinute = 2 // an answer costs two
		h := open(t, cfg, 1)
		a := h.do(t, by("poor", chat(hello)))
		if got := said(a); got != "200 2 2 0s" {
			t.Errorf("the first: %s", got)
		}
		for range 2 {
			h.do(t, by("poor", chat(hello)))
		}
		a = h.do(t, by("poor", chat(hello)))
		if outcome(a) != "429 rate_limited" || a.Header().Get("X-Ratelimit-Remaining-Tokens") != "0" {
			t.Fatalf("in debt: %d %s, %s", a.Code, a.Body, said(a))
		}
		if a := h.do(t, by("rich", chat(hello))); a.Code != 200 {
			t.Errorf("another key: %d %s", a.Code, a.Body)
		}
		seconds, _ := strconv.Atoi(a.Header().Get("Retry-After"))
		time.Sleep(time.Duration(seconds) * time.Second)
		if a := h.do(t, by("poor", chat(hello))); a.Code != 200 {
			t.Errorf("after %d s: %d %s", seconds, a.Code, a.Body)
		}
	})
}

func TestStreamsOfAKeyAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.MaxStreams = 3
		cfg.Keys = []api.Key{named("one"), named("many")}
		cfg.Keys[0].Streams = 1
		h := open(t, cfg, 4)
		stream := `{"stream":true,` + hello[1:]
		var streams sync.WaitGroup
		for _, k := range []string{"one", "many", "many"} {
			streams.Go(func() {
				if a := h.do(t, by(k, chat(stream))); a.Code != 200 {
					t.Errorf("%s: %d %s", k, a.Code, a.Body)
				}
			})
			synctest.Wait()
			if k == "one" {
				if a := h.do(t, by(k, chat(stream))); outcome(a) != "429 concurrency_exceeded" || !strings.Contains(a.Body.String(), "with this API key") || a.Header().Get("Retry-After") == "" {
					t.Errorf("a second stream: %d %s", a.Code, a.Body)
				}
				streams.Go(func() { h.do(t, by(k, chat(hello))) })
			}
		}
		if a := h.do(t, by("many", chat(stream))); outcome(a) != "429 concurrency_exceeded" {
			t.Errorf("a fourth stream: %d %s", a.Code, a.Body)
		}
		streams.Wait()
		if a := h.do(t, by("one", chat(stream))); a.Code != 200 {
			t.Errorf("when the first has ended: %d %s", a.Code, a.Body)
		}
	})
}

// TestTurnThatFailsBeforeItsAnswerCostsNothing: who retries an overloaded provider must not
// end in debt for it.
func TestTurnThatFailsBeforeItsAnswerCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("k")}
		cfg.Keys[0].TokensPerMinute = 60_000
		busy := codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn()}
		busy = append(busy, codextest.Wire(t, []byte(`< turn/completed {"threadId":"$thread","turn":{"id":"$turn","status":"failed","error":{"message":"busy","codexErrorInfo":"serverOverloaded"}}}`))...)
		h := open(t, cfg, 1, append(busy, codextest.Serve(&codextest.Child{})))
		long := strings.Replace(hello, "hi", strings.Repeat("x", 4000), 1) // a thousand tokens
		if a := h.do(t, by("k", chat(long))); outcome(a) != "503 upstream_overloaded" {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		if got := said(h.do(t, by("k", chat("{")))); got != "400 60000 60000 0s" {
			t.Errorf("after it %s", got)
		}
	})
}
