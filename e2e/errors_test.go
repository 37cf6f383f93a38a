package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// failure formats an error response as "status type code param", and adds a * where
// the response has Retry-After.
func failure(t testing.TB, res *http.Response) string {
	t.Helper()
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Error struct {
			Message, Type, Code, Param *string
		}
	}
	if err := json.Unmarshal(body, &e); err != nil || res.Header.Get("Content-Type") != "application/json" || e.Error.Message == nil || *e.Error.Message == "" {
		t.Errorf("not an envelope: %v %.500s", err, body)
	}
	show := func(s *string) string {
		if s == nil {
			return "-"
		}
		return *s
	}
	again := ""
	if res.Header.Get("Retry-After") != "" {
		again = " *"
	}
	return fmt.Sprint(res.StatusCode, " ", show(e.Error.Type), " ", show(e.Error.Code), " ", show(e.Error.Param), again)
}

func (d *daemon) request(method, path, authorization, contentType, body string) *http.Response {
	d.t.Helper()
	req, err := http.NewRequest(method, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	for name, value := range map[string]string{"Authorization": authorization, "Content-Type": contentType} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	res, err := cmp.Or(d.client, http.DefaultClient).Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	return res
}

// TestErrorTableHoldsRowByRow covers the errors row by row, with the real CLI
// and over HTTP. The rows for a key's own limits are in
// limits_test.go.
func TestErrorTableHoldsRowByRow(t *testing.T) {
	const chat, bearer, kind = "/v1/chat/completions", "Bearer " + key, "application/json"
	words := func(code string) string {
		return `{"error":{"message":"m","type":"t","param":"p","code":"` + code + `"}}`
	}
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	d, up := withRelay(t, codextest.Text("ok"))
	limited := start(t, "POOL_SIZE=1", "PROXY_API_KEYS_FILE="+keysFile(t, keyBlock("lister", `routes = ["models"]`),
		keyBlock("guest", "expires = 2026-01-01T00:00:00Z"), keyBlock("stranger", `models = ["x"]`)))
	for _, tt := range []struct{ name, key, want string }{
		{"an expired key", "guest", "401 authentication_error invalid_api_key -"},
		{"a key without a right to the route", "lister", "403 permission_error permission_denied -"},
		{"a key without a right to the model", "stranger", "403 permission_error permission_denied model"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := failure(t, limited.request("POST", chat, "Bearer "+tt.key, kind, chatBody("hi", false))); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	for _, tt := range []struct{ name, method, path, key, kind, body, want string }{
		{"no key", "POST", chat, "", kind, chatBody("hi", false), "401 authentication_error invalid_api_key -"},
		{"a wrong key", "POST", chat, "Bearer nope", kind, chatBody("hi", false), "401 authentication_error invalid_api_key -"},
		{"bad JSON", "POST", chat, bearer, kind, `{"messages":`, "400 invalid_request_error invalid_json -"},
		{"a wrong type", "POST", chat, bearer, kind, `{"messages":[{"role":1,"content":"hi"}]}`, "400 invalid_request_error - messages[0].role"},
		{"a missing field", "POST", chat, bearer, kind, `{}`, "400 invalid_request_error - messages"},
		{"a field that cannot be honoured", "POST", chat, bearer, kind, `{"logprobs":true,` + hi + `}`, "400 invalid_request_error unsupported_parameter logprobs"},
		{"an unknown path", "POST", "/v1/nothing", bearer, kind, "{}", "404 invalid_request_error not_found -"},
		{"an unknown method", "DELETE", chat, bearer, "", "", "405 invalid_request_error method_not_allowed -"},
		{"a background answer", "POST", "/v1/responses", bearer, kind, `{"background":true}`, "400 invalid_request_error unsupported_parameter background"},
		{"20,001 messages", "POST", chat, bearer, kind, `{"messages":[` + strings.Repeat(`{"role":"user","content":"a"},`, 20_000) + `{"role":"user","content":"a"}]}`, "400 invalid_request_error - messages"},
		{"20 MB", "POST", chat, bearer, kind, chatBody(strings.Repeat("x", 20<<20), false), "413 invalid_request_error request_too_large -"},
		{"another content type", "POST", chat, bearer, "text/plain", chatBody("hi", false), "415 invalid_request_error unsupported_media_type -"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := failure(t, d.request(tt.method, tt.path, tt.key, tt.kind, tt.body)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		name  string
		reply http.HandlerFunc
		want  string
	}{
		{"too long for the model", codextest.Status(400, words("context_length_exceeded")), "400 invalid_request_error context_length_exceeded messages"},
		{"upstream rejects the request", codextest.Status(422, words("c")), "422 t c p"},
		{"upstream rejects our credential", codextest.Status(401, words("c")), "502 server_error upstream_auth -"},
		{"upstream's usage limit", retryAfter(429, "9", words("insufficient_quota")), "429 rate_limit_error usage_limit_reached - *"},
		{"a firewall before upstream", page(403, "<html>"), "502 server_error upstream_blocked -"},
		{"upstream's rate limit", retryAfter(429, "9", words("rate_limit_exceeded")), "429 rate_limit_error upstream_rate_limited - *"},
		{"upstream is overloaded", retryAfter(503, "9", ""), "503 server_error upstream_overloaded - *"},
		{"upstream fails", codextest.Status(500, ""), "502 server_error upstream_error -"},
		{"a status that is ours alone", codextest.Status(499, words("c")), "502 server_error upstream_error -"},
		{"an answer of a computer call", ending(map[string]any{"type": "response.output_item.done", "item": map[string]any{"type": "computer_call"}}), "502 server_error upstream_error -"},
	} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, " stream ", stream), func(t *testing.T) {
				up.Script(tt.reply)
				if got := failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", stream))); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			})
		}
	}

	t.Run("an unknown model", func(t *testing.T) {
		t.Parallel()
		d := start(t, "POOL_SIZE=1")
		if got, want := failure(t, d.request("POST", chat, bearer, kind, `{"model":"gpt-2",`+hi+`}`)), "404 invalid_request_error model_not_found model"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("the child is killed", func(t *testing.T) {
		t.Parallel()
		reached := make(chan struct{})
		d, _ := withRelay(t, func(w http.ResponseWriter, r *http.Request) {
			close(reached)
			silent(w, r)
		})
		go func() {
			<-reached
			syscall.Kill(d.children()[0], syscall.SIGKILL)
		}()
		if got, want := failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", true))), "502 server_error child_exited -"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("silence and no room", func(t *testing.T) {
		reached := make(chan struct{}, 8)
		up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			reached <- struct{}{}
			silent(w, r)
		})
		d := start(t, "POOL_SIZE=1", "POOL_MAX_WAITING=1", "POOL_ACQUIRE_TIMEOUT_MS=300", "PROXY_SSE_MAX_CONCURRENCY=1",
			"PROXY_IDLE_TIMEOUT_MS=60000", "PROXY_STREAM_IDLE_TIMEOUT_MS=4000", "PROXY_SSE_COMMIT_MS=60000", "CODEX_UPSTREAM="+up.URL+"/v1")
		first, second := make(chan string), make(chan string)
		go func() { first <- failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", true))) }()
		<-reached
		if got, want := failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", true))), "429 rate_limit_error concurrency_exceeded - *"; got != want {
			t.Errorf("a second stream: got %s, want %s", got, want)
		}
		go func() { second <- failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", false))) }()
		eventually(t, 5*time.Second, "a request in the queue", func() bool { return d.metrics()["codexpool_pool_waiting"] == 1 })
		const saturated = "503 server_error pool_saturated - *"
		if got := failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", false))); got != saturated {
			t.Errorf("a full queue: got %s, want %s", got, saturated)
		}
		if got := <-second; got != saturated {
			t.Errorf("too long in the queue: got %s, want %s", got, saturated)
		}
		if m := d.metrics(); m[`codexpool_pool_acquires_total{outcome="timeout"}`] != 1 || m[`codexpool_pool_acquires_total{outcome="full"}`] != 1 {
			t.Error("the ends of waiting are not counted as what they are")
		}
		if got, want := <-first, "504 timeout_error idle_timeout -"; got != want {
			t.Errorf("a silent model: got %s, want %s", got, want)
		}
	})
	t.Run("the whole request", func(t *testing.T) {
		t.Parallel()
		up := newUpstream(t, silent)
		d := start(t, "POOL_SIZE=1", "PROXY_TIMEOUT_MS=500", "CODEX_UPSTREAM="+up.URL+"/v1")
		if got, want := failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", false))), "504 timeout_error request_timeout -"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("no child can be started, and draining", func(t *testing.T) {
		t.Parallel()
		d := start(t, "POOL_SIZE=1", "PROXY_PRESTOP_MS=0", "PROXY_DRAIN_MS=5000", "CODEX_ECHO_DELAY_MS=200")
		homes, err := filepath.Glob(filepath.Join(d.workdir, "daemon-*", "child-*"))
		if err != nil || len(homes) != 1 {
			t.Fatal(homes, err)
		}
		// A file stands where the folder of the homes was.
		if err := os.Rename(d.workdir, d.workdir+"-away"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(d.workdir + "-away")
		if err := os.WriteFile(d.workdir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		syscall.Kill(d.children()[0], syscall.SIGKILL)
		want := "503 server_error backend_unavailable - *"
		eventually(t, time.Minute, want, func() bool {
			return failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", false))) == want
		})
		if err := os.Remove(d.workdir); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "recovery", func() bool { return d.ready() == `200 {"ready":true}` })
		running := make(chan error)
		go func() {
			_, err := d.stream("one two three four five")
			running <- err
		}()
		eventually(t, 5*time.Second, "a running turn", func() bool { return d.metrics()[`codexpool_pool_children{state="leased"}`] == 1 })
		d.cmd.Process.Signal(syscall.SIGTERM)
		want = "503 server_error shutting_down - *"
		eventually(t, 5*time.Second, want, func() bool {
			return failure(t, d.request("POST", chat, bearer, kind, chatBody("hi", false))) == want
		})
		if err := <-running; err != nil {
			t.Errorf("the turn that ran: %v", err)
		}
	})
}
