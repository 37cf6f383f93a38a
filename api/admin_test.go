package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/pool"
	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
)

// admin sends one request to the admin listener.
func (h *house) admin(t *testing.T, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	return h.adminFrom(t, method, path, "")
}

func (h *house) adminFrom(t *testing.T, method, path, origin string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	r.Host, r.RemoteAddr = "localhost:11436", "127.0.0.1:5000"
	if origin != "" {
		r.Header.Set("Origin", origin)
	}
	w := httptest.NewRecorder()
	h.Admin(api.Sources{Metrics: http.NotFoundHandler()}).ServeHTTP(w, r)
	if w.Code >= 400 && path != "/readyz" && path != "/metrics" {
		checkEnvelope(t, w)
	}
	return w
}

// shown reads what a pool route answered.
func shown(t *testing.T, w *httptest.ResponseRecorder) map[string]any {
	t.Helper()
	var body map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	return body
}

func TestPoolRouteShowsThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := codextest.Script{
			codextest.Handshake(), codextest.Answer("hi"), // then the next thread
			codextest.Expect("thread/unsubscribe"), codextest.Reply(struct{}{}),
			codextest.Expect("thread/start"), codextest.Reply(map[string]any{"thread": map[string]any{"id": "next"}}),
			codextest.Expect("server/diagnostics"), codextest.Reply(map[string]any{
				"process": map[string]any{"residentMemoryBytes": 7},
				"gauges":  []any{map[string]any{"name": "core.threads.live", "value": 1}},
			}),
		}
		dying := codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Do(func() { time.Sleep(35500 * time.Millisecond) }), codextest.Raw("oops")}
		h := openWith(t, config(), pool.Config{Size: 1, ProbeEvery: 40 * time.Second}, nil, dying, asked)
		time.Sleep(40 * time.Second)
		h.do(t, chat(hello))
		time.Sleep(time.Minute)
		want := map[string]any{
			"size": 1., "starting": 0., "idle": 1., "leased": 0., "waiting": 0., "worn": 0., "memory_bytes": 0., "draining": false, "failure": nil,
			"upstream": map[string]any{"choice": "echo", "credential": "none"},
			"children": []any{map[string]any{
				"pid": 0., "state": "idle", "version": "0.0.1", "born": "2000-01-01T00:00:36Z", "age_seconds": 64., "turns": 1., "memory_bytes": 0.,
				"probe": map[string]any{"at": "2000-01-01T00:01:20Z", "took_seconds": 0., "resident_bytes": 7., "threads": 1., "turns": 0.},
			}},
			"deaths": []any{map[string]any{
				"pid": 0., "why": "protocol", "at": "2000-01-01T00:00:36Z", "age_seconds": 36., "turns": 0., "error": "child broke the protocol: a line of 4 bytes is not a message",
			}},
		}
		body := shown(t, h.admin(t, "GET", "/pool"))
		if diff := cmp.Diff(want, body); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

func TestPoolRouteShowsTheTurnOfAChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1, codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: 20 * time.Second})})
		turn := func() any {
			return shown(t, h.admin(t, "GET", "/pool"))["children"].([]any)[0].(map[string]any)["turn"]
		}
		if got := turn(); got != nil {
			t.Errorf("at rest: %v", got)
		}
		go h.do(t, withHeader(chat(`{"messages":[{"role":"user","content":"one two"}]}`), "X-Request-Id", "mine"))
		time.Sleep(23 * time.Second) // the second word comes at 40 s
		want := map[string]any{"since": "2000-01-01T00:00:00Z", "request": "mine", "key": "1", "model": "gpt-a", "silent_seconds": 3.}
		if diff := cmp.Diff(any(want), turn()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		time.Sleep(time.Minute)
		if got := turn(); got != nil {
			t.Errorf("after it: %v", got)
		}
	})
}

func TestPoolRouteShowsSinceWhenTheDaemonDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		h.admin(t, "POST", "/pool/drain")
		time.Sleep(time.Minute)
		if got := shown(t, h.admin(t, "GET", "/pool")); got["draining"] != true || got["draining_since"] != "2000-01-01T00:00:00Z" {
			t.Errorf("%v, since %v", got["draining"], got["draining_since"])
		}
		if got := shown(t, h.admin(t, "POST", "/pool/resume")); got["draining"] != false || got["draining_since"] != nil {
			t.Errorf("resumed: %v, since %v", got["draining"], got["draining_since"])
		}
	})
}

// openBroken builds a house whose children cannot be started. Call it in a bubble.
func openBroken(t *testing.T, why error) *house {
	t.Helper()
	p, err := pool.New(pool.Config{Size: 1, MinIdle: 1, Log: codextest.Log(t), Spawn: func(context.Context) (*codex.Client, error) { return nil, why }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	synctest.Wait()
	return &house{Server: api.New(config(), p, nil, codextest.Log(t), func(context.Context, api.Result) {}), pool: p}
}

func TestPoolRouteShowsWhyAChildCannotBeStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := openBroken(t, &codex.ExitError{Status: "exit status 1", Stderr: []string{"no such key: x"}})
		want := map[string]any{"error": "child is gone: exit status 1", "stderr": []any{"no such key: x"}}
		if diff := cmp.Diff(any(want), shown(t, h.admin(t, "GET", "/pool"))["failure"]); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		a := h.do(t, chat(hello))
		if a.Code != 503 || !strings.Contains(a.Body.String(), "backend_unavailable") || a.Header().Get("Retry-After") == "" || strings.Contains(a.Body.String(), "no such key") {
			t.Errorf("%d %v %s", a.Code, a.Header(), a.Body)
		}
	})
}

func TestPoolRouteShowsWhatAChildThatCannotBeStartedSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := openBroken(t, &codex.RPCError{Code: -32600, Message: "unknown profile x"})
		want := map[string]any{"error": "child answered with an error (-32600): unknown profile x"}
		if diff := cmp.Diff(any(want), shown(t, h.admin(t, "GET", "/pool"))["failure"]); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

func TestRecycleRouteReplacesTheChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 2)
		running := make(chan answer)
		go func() { running <- h.do(t, chat(`{"stream":true,"messages":[{"role":"user","content":"one two"}]}`)) }()
		synctest.Wait()
		w := h.admin(t, "POST", "/pool/recycle")
		if w.Code != 202 || shown(t, w)["worn"] == 0. {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if a := <-running; !strings.HasSuffix(a.Body.String(), "data: [DONE]\n\n") {
			t.Errorf("the running stream: %s", a.Body)
		}
		time.Sleep(time.Second)
		body := shown(t, h.admin(t, "GET", "/pool"))
		deaths := fmt.Sprint(body["deaths"])
		if body["worn"] != 0. || body["idle"] != 2. || strings.Count(deaths, "why:recycled") != 2 {
			t.Errorf("afterwards: %v", body)
		}
	})
}

func TestDrainAndResumeRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		if w := h.admin(t, "POST", "/pool/drain"); w.Code != 200 || shown(t, w)["draining"] != true {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		a := h.do(t, chat(hello))
		if a.Code != 503 || h.last().Code != "shutting_down" || a.Header().Get("Retry-After") == "" {
			t.Errorf("%d %v %s", a.Code, a.Header(), a.Body)
		}
		if a := h.do(t, request("GET", "/readyz", "")); a.Code != 503 || !strings.Contains(a.Body.String(), `"reason":"draining"`) {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		if w := h.admin(t, "POST", "/pool/resume"); w.Code != 200 || shown(t, w)["draining"] != false {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		for _, r := range []*http.Request{chat(hello), request("GET", "/readyz", "")} {
			if a := h.do(t, r); a.Code != 200 {
				t.Errorf("%s: %d %s", r.URL, a.Code, a.Body)
			}
		}
	})
}

func TestResumeDoesNotMakeAStoppingDaemonReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		h.Unready()
		h.admin(t, "POST", "/pool/resume")
		if a := h.do(t, request("GET", "/readyz", "")); a.Code != 503 {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		h.pool.Close()
		h.admin(t, "POST", "/pool/resume")
		if a := h.do(t, chat(hello)); a.Code != 503 || h.last().Code != "shutting_down" {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

func TestAdminRoutesAcceptTheirOwnMethodOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for _, tt := range []struct{ method, path, want string }{
			{"POST", "/pool", "405 GET, HEAD"},
			{"DELETE", "/metrics", "405 GET, HEAD"},
			{"POST", "/readyz", "405 GET, HEAD"},
			{"GET", "/pool/recycle", "405 POST"},
			{"GET", "/pool/drain", "405 POST"},
			{"PUT", "/pool/resume", "405 POST"},
			{"GET", "/auth/bypass", "405 POST, DELETE"},
			{"GET", "/pool/other", "404 "},
			{"HEAD", "/pool", "200 "},
			{"GET", "/debug/pprof/cmdline", "200 "},
			{"GET", "/debug/pprof/goroutine", "200 "},
		} {
			w := h.admin(t, tt.method, tt.path)
			if got := fmt.Sprint(w.Code, " ", w.Header().Get("Allow")); got != tt.want {
				t.Errorf("%s %s: %s, want %s", tt.method, tt.path, got, tt.want)
			}
		}
		if h.pool.Err() != nil || h.pool.Stat().Worn > 0 {
			t.Error("a refused request had its way")
		}
	})
}

func TestAdminRoutesRejectWebPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, public := range []bool{false, true} {
			cfg := config()
			cfg.AdminPublic = public
			h := open(t, cfg, 1)
			for _, origin := range []string{"https://evil.example", "null", "http://localhost:3000"} {
				if w := h.adminFrom(t, "POST", "/pool/drain", origin); w.Code != 403 || h.pool.Err() != nil {
					t.Errorf("public %v, from %s: %d", public, origin, w.Code)
				}
			}
			if w := h.adminFrom(t, "POST", "/pool/drain", "http://localhost:11436"); w.Code != 200 {
				t.Errorf("public %v, from itself: %d", public, w.Code)
			}
		}
	})
}

// A container's admin listener is on 0.0.0.0: whoever shares a network with it reaches
// the port.
func TestAdminRoutesAreForThisMachine(t *testing.T) {
	routes := map[string]string{
		"/metrics": "GET", "/healthz": "GET", "/livez": "GET", "/readyz": "GET",
		"/pool": "GET", "/pool/drain": "POST", "/pool/resume": "POST", "/pool/recycle": "POST",
		"/auth/bypass?minutes=5": "POST", "/debug/pprof/": "GET", "/debug/pprof/cmdline": "GET", "/nothing": "GET", "/metrics/../pool": "GET",
	}
	for _, tt := range []struct {
		name, peer, host    string
		monitored, operated bool // where AdminPublic is set
		alone               bool // where it is not
	}{
		{"this machine", "127.0.0.1:5000", "localhost:11436", true, true, true},
		{"this machine over IPv6", "[::1]:5000", "[::1]:11436", true, true, true},
		{"this machine in IPv6's words for IPv4", "[::ffff:127.0.0.1]:5000", "127.0.0.1:11436", true, true, true},
		{"another machine", "10.0.0.9:5000", "10.0.0.2:11436", true, false, false},
		{"another machine that claims to be this one", "10.0.0.9:5000", "localhost:11436", true, false, false},
		{"a proxy on this machine", "127.0.0.1:5000", "admin.example", true, false, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			for _, public := range []bool{false, true} {
				cfg := config()
				cfg.AdminPublic = public
				h := open(t, cfg, 1)
				for path, method := range routes {
					r := httptest.NewRequest(method, path, nil)
					r.RemoteAddr, r.Host = tt.peer, tt.host
					w := httptest.NewRecorder()
					h.Admin(api.Sources{Metrics: http.NotFoundHandler()}).ServeHTTP(w, r)
					want := tt.alone
					if public {
						want = tt.operated || tt.monitored && (path == "/metrics" || strings.HasSuffix(path, "z"))
					}
					if got := w.Code != 403; got != want || w.Header().Get("X-Request-Id") == "" {
						t.Errorf("%s, public %v, %s: %d", tt.name, public, path, w.Code)
					}
				}
				if !tt.operated && (h.pool.Err() != nil || h.pool.Stat().Worn > 0 || !h.Stat().BypassUntil.IsZero()) {
					t.Errorf("%s, public %v: a refused request had its way", tt.name, public)
				}
			}
		})
	}
}

// TestBlameIsForWhatNeverReachedTheProvider plays children whose turns
// fail three times in a row.
func TestBlameIsForWhatNeverReachedTheProvider(t *testing.T) {
	posted := func(relay *upstream.Relay) codextest.Step {
		return codextest.Expect("turn/start", func(params json.RawMessage) error {
			var p struct {
				Meta json.RawMessage `json:"responsesapiClientMetadata"`
			}
			if err := json.Unmarshal(params, &p); err != nil {
				return err
			}
			r := httptest.NewRequest("POST", "/v1/responses", strings.NewReader(`{"model":"m","input":[]}`))
			r.Header.Set("X-Codex-Turn-Metadata", string(p.Meta))
			relay.ServeHTTP(httptest.NewRecorder(), r)
			return nil
		})
	}
	items, ok := codextest.Expect("thread/inject_items"), codextest.Reply(struct{}{})
	started := codextest.Reply(map[string]any{"turn": map[string]any{"id": "$turn"}})
	interrupted := codextest.Script{
		codextest.Expect("turn/start"), started, codextest.Expect("turn/interrupt"), ok,
		codextest.Notify("turn/completed", map[string]any{"threadId": "$thread", "turn": map[string]any{"id": "$turn", "status": "interrupted"}}),
	}
	for name, tt := range map[string]struct {
		turn   func(*upstream.Relay) codextest.Script
		blamed bool
	}{
		"it does not get through": {func(*upstream.Relay) codextest.Script {
			return codextest.Script{codextest.Turn(), codextest.Fail(map[string]any{"responseStreamConnectionFailed": map[string]any{}}, "no route")}
		}, true},
		"it refuses what is right": {func(*upstream.Relay) codextest.Script {
			return append(codextest.Script{items, codextest.ReplyError(-32603, "internal error")}, interrupted...)
		}, true},
		"it refuses what is wrong": {func(*upstream.Relay) codextest.Script {
			return append(codextest.Script{items, codextest.ReplyError(-32602, "invalid params")}, interrupted...)
		}, false},
		"the provider is down": {func(relay *upstream.Relay) codextest.Script {
			return codextest.Script{items, ok, posted(relay), started, codextest.Fail("other", "stream disconnected")}
		}, false},
		"the conversation is too long": {func(*upstream.Relay) codextest.Script {
			return codextest.Script{codextest.Turn(), codextest.Fail(codex.InfoContextWindow, "too long")}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				relay := relayTo(unplugged{})
				script := codextest.Script{codextest.Handshake()}
				for range 3 {
					script = append(append(script, codextest.Thread()), tt.turn(relay)...)
				}
				h := openWith(t, config(), pool.Config{Size: 1}, relay, append(script, codextest.Serve(&codextest.Child{})))
				for range 3 {
					if a := h.do(t, chat(hello)); a.Code < 400 {
						t.Errorf("%d %s", a.Code, a.Body)
					}
				}
				synctest.Wait()
				deaths := h.pool.Deaths()
				if blamed := len(deaths) == 1 && deaths[0].Why == pool.Failing; blamed != tt.blamed || len(deaths) > 1 {
					t.Errorf("blamed: %v, %+v", blamed, deaths)
				}
			})
		})
	}
}

// unplugged is a network without a provider.
type unplugged struct{}

func (unplugged) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("unplugged")
}
