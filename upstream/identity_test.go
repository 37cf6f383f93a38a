package upstream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
)

// login is a relay to the backend of a ChatGPT login without a network.
func login(answer func(*http.Request) *http.Response) *upstream.Relay {
	return upstream.NewRelay(upstream.Provider{
		Base: &url.URL{Scheme: "http", Host: "provider", Path: "/v1"}, Kind: upstream.ChatGPT,
		Version: func() string { return "0.169.0" },
	}, imaginary(answer), upstream.Hooks{})
}

const thread = "019a0000-0000-7000-8000-000000000001"

// sentWith is the request that the backend of a login gets for a child's, as its headers
// and its fields.
func sentWith(t *testing.T, long string, o upstream.Overrides) (h http.Header, fields map[string]json.RawMessage) {
	t.Helper()
	return requested(t, long, upstream.Request{Overrides: o})
}

// requested is [sentWith] for any request.
func requested(t *testing.T, long string, request upstream.Request) (h http.Header, fields map[string]json.RawMessage) {
	t.Helper()
	r := login(func(req *http.Request) *http.Response {
		h = req.Header
		if err := json.NewDecoder(req.Body).Decode(&fields); err != nil {
			t.Error(err)
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("data: " + completed + "\n\n"))}
	})
	call := prepare(t.Context(), r, request)
	defer call.Done()
	turn, _ := json.Marshal(fmt.Sprintf(`{"a":"%s","%s":"%s","model":"stand-in","workspaces":{"/home/me":{}}}`, thread, upstream.MetaKey, call.Key))
	body := fmt.Sprintf(`{"input":[%q],"client_metadata":{"thread_id":"%s","x-codex-turn-metadata":%s}}`, long, thread, turn)
	req := httptest.NewRequest("POST", "/v1/responses", strings.NewReader(body))
	req.Header = http.Header{
		"User-Agent": {"codexpool/0.169.7 (Debian 12.0.0; x86_64) unknown (codexpool; 0.169.0)"}, "Originator": {"codexpool"},
		"Session-Id": {thread}, "Thread-Id": {thread}, "X-Client-Request-Id": {thread}, "X-Codex-Window-Id": {thread + ":0"},
		"X-Codex-Turn-Metadata": {unquoted(t, turn)}, "Authorization": {"Bearer of-the-child"}, "Cookie": {"c=d"},
	}
	r.ServeHTTP(httptest.NewRecorder(), req)
	if f := failure(call); f != nil {
		t.Fatalf("%+v", f)
	}
	return h, fields
}

func unquoted(t *testing.T, quoted []byte) (text string) {
	t.Helper()
	if err := json.Unmarshal(quoted, &text); err != nil {
		t.Fatal(err)
	}
	return text
}

func TestChatGPTGetsTheChildsIdentityAndNothingElseOfIt(t *testing.T) {
	h, fields := sentWith(t, "", upstream.Overrides{"model": json.RawMessage(`"gpt"`), "service_tier": json.RawMessage(`"priority"`), "reasoning": json.RawMessage(`{"effort":"high"}`)})
	want := http.Header{
		"Accept": {"text/event-stream"}, "Content-Type": {"application/json"}, "Idempotency-Key": nil,
		"User-Agent": {"codexpool/0.169.7 (Debian 12.0.0; x86_64) unknown (codexpool; 0.169.0)"}, "Originator": {"codexpool"}, "Version": {"0.169.7"},
		"Session-Id": {thread}, "Thread-Id": {thread}, "X-Client-Request-Id": {thread}, "X-Codex-Window-Id": {thread + ":0"},
		"X-Codex-Turn-Metadata": {`{"a":"` + thread + `","model":"gpt","reasoning_effort":"high"}`}, "X-Codex-Routing-Hint": {"model=gpt;tier=priority"},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("headers (-want +got)\n%s", diff)
	}
	var metadata map[string]string
	json.Unmarshal(fields["client_metadata"], &metadata)
	if diff := cmp.Diff(map[string]string{"thread_id": thread, "x-codex-turn-metadata": want.Get("X-Codex-Turn-Metadata")}, metadata); diff != "" {
		t.Errorf("client_metadata (-want +got)\n%s", diff)
	}
	if key, there := fields["prompt_cache_key"]; there {
		t.Errorf("a prompt_cache_key that nobody asked for: %s", key)
	}
}

// The metadata stands behind the conversation, whose text may look like it.
func TestMetadataOfALongConversationIsFound(t *testing.T) {
	for _, long := range []string{strings.Repeat(`"client_metadata":{"x":"y"},`, 100_000), strings.Repeat("x", 16<<10-100), strings.Repeat("x", 16<<10)} {
		_, fields := sentWith(t, long, upstream.Overrides{})
		if !strings.Contains(string(fields["client_metadata"]), `"thread_id":"`+thread+`"`) {
			t.Errorf("behind %d bytes: %s", len(long), fields["client_metadata"])
		}
	}
}

func TestTurnsWithOneCacheKeyAreOneSession(t *testing.T) {
	sessions := map[string]string{} // by cache key
	for _, key := range []string{"k", "l", "k"} {
		h, fields := sentWith(t, "", upstream.Overrides{"prompt_cache_key": json.RawMessage(`"` + key + `"`)})
		session := h.Get("Session-Id")
		if !regexp.MustCompile(`^019a[0-9a-f]{4}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(session) || session == thread {
			t.Errorf("%q is no UUID of version 7 of its own", session)
		}
		ids := []string{h.Get("Thread-Id"), h.Get("X-Client-Request-Id"), strings.TrimSuffix(h.Get("X-Codex-Window-Id"), ":0"), unquoted(t, fields["prompt_cache_key"])}
		if !slices.Equal(ids, []string{session, session, session, session}) || strings.Contains(fmt.Sprint(h, string(fields["client_metadata"])), thread) {
			t.Errorf("session %s, and %q in %v %s", session, ids, h, fields["client_metadata"])
		}
		if last := sessions[key]; last != "" && last != session {
			t.Errorf("key %s: session %s, before %s", key, session, last)
		}
		sessions[key] = session
	}
	if sessions["k"] == sessions["l"] {
		t.Error("two keys have one session")
	}
}

func TestServiceTierOfALoginIsPriorityOnly(t *testing.T) {
	for tier, want := range map[string]bool{`"priority"`: true, `"pr\u0069ority"`: true, `"auto"`: false, `"flex"`: false, `null`: false} {
		if login(nil).Accepts("service_tier", json.RawMessage(tier)) != want {
			t.Errorf("%s: %v", tier, !want)
		}
	}
	if r := imagined(nil); !r.Accepts("service_tier", json.RawMessage(`"flex"`)) || login(nil).Accepts("temperature", json.RawMessage("1")) {
		t.Error("another field, or another provider")
	}
}

// TestLoginIsReadyWithinOneRecheck has a backend as ChatGPT's: it answers 400 to a request
// for its models that does not say who asks.
func TestLoginIsReadyWithinOneRecheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := login(func(req *http.Request) *http.Response {
			code := 401
			if req.Method == "GET" {
				code = 200
				h := req.Header
				if req.URL.String() != "http://provider/v1/models?client_version=0.169.0" || h.Get("Version") != "0.169.0" || h.Get("Originator") != "codexpool" || h.Get("User-Agent") != "codexpool/0.169.0" {
					code = 400
				}
			}
			return &http.Response{StatusCode: code, Body: http.NoBody}
		})
		serveOne(t.Context(), r)
		if !r.Rejected() {
			t.Fatal("the 401 is not known")
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go r.Watch(ctx, 30*time.Second) // ends with ctx, for which the bubble waits
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if r.Rejected() {
			t.Error("it is not ready after a recheck")
		}
	})
}

// TestOnlyAnAnswerAboutTheTokenRejectsIt: neither a firewall nor a rule on regions says
// anything of the token.
func TestOnlyAnAnswerAboutTheTokenRejectsIt(t *testing.T) {
	const region = `{"detail":"Workspace is not authorized in this region."}`
	for name, tt := range map[string]struct {
		status         int
		body           string
		before, after  bool // rejected
		refreshed      bool
		recheckDecides bool // after a 401
	}{
		"a 401":                                {401, `{"detail":"Unauthorized"}`, false, true, true, false},
		"a 401 about the region":               {401, region, false, false, false, true},
		"a 401 about the region, after a 401":  {401, region, true, false, false, true},
		"a page of a firewall":                 {403, "<html>", false, false, false, false},
		"a page of a firewall, after a 401":    {403, "<html>", true, true, false, false},
		"a 403 of the provider, after a 401":   {403, `{"detail":"no"}`, true, false, false, true},
		"a usage limit, after a 401":           {429, `{"error":{"type":"usage_limit_reached"}}`, true, true, false, false},
		"an unpaid workspace, after a 401":     {402, `{"detail":{"code":"deactivated_workspace"}}`, true, false, false, false},
		"a newer version asked, after a 401":   {400, `{"detail":"The 'X' model requires a newer version of Codex."}`, true, false, false, false},
		"an overloaded backend, after a 401":   {503, ``, true, true, false, false},
		"a model that is not there, after one": {404, `{"detail":"Model not found X"}`, true, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answers := []*http.Response{}
				answer := func(status int, body string) *http.Response {
					return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
				}
				refreshed := false
				r := upstream.NewRelay(upstream.Provider{
					Base: &url.URL{Scheme: "http", Host: "provider"}, Kind: upstream.ChatGPT, Version: func() string { return "1" },
					Rejected: func(http.Header) { refreshed = true },
				}, imaginary(func(*http.Request) *http.Response {
					next := answers[0]
					answers = answers[1:]
					return next
				}), upstream.Hooks{})
				ask := func(list ...*http.Response) {
					answers = list
					serveOne(t.Context(), r)
				}
				if tt.before {
					ask(answer(401, ""))
				}
				refreshed = false
				ask(answer(tt.status, tt.body), answer(tt.status, tt.body)) // a 503 is tried again
				if r.Rejected() != tt.after || refreshed != tt.refreshed {
					t.Errorf("rejected %v, refreshed %v", r.Rejected(), refreshed)
				}

				ask(answer(401, ""))
				answers = []*http.Response{answer(tt.status, tt.body)}
				ctx, cancel := context.WithCancel(t.Context())
				go r.Watch(ctx, 30*time.Second) // ends with ctx, for which the bubble waits
				time.Sleep(30 * time.Second)
				synctest.Wait()
				cancel()
				if r.Rejected() == tt.recheckDecides {
					t.Errorf("after a recheck with that answer: rejected %v", r.Rejected())
				}
			})
		})
	}
}

func TestRetryAfterIsTheResetOfAUsageLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Now().Add(90 * time.Minute).Unix()
		for body, want := range map[string]string{
			fmt.Sprintf(`{"error":{"type":"usage_limit_reached","resets_at":%d}}`, at):                        "5400",
			fmt.Sprintf(`{"detail":{"type":"usage_limit_reached","resets_at":%d,"resets_in_seconds":7}}`, at): "7",
			fmt.Sprintf(`{"error":{"type":"usage_limit_reached","resets_at":%d}}`, time.Now().Unix()-1):       "",
			`{"error":{"resets_at":1e300}}`:  "",
			`{"error":{"resets_at":"soon"}}`: "",
		} {
			if got := upstream.ParseFailure([]byte(body)).RetryAfter; got != want {
				t.Errorf("%s: %q", body, got)
			}
		}
	})
}

// TestChatGPTGetsACallersOwnBodyAsOneSession has a body whose key and metadata are its
// caller's, a key that is a session already, and neither.
func TestChatGPTGetsACallersOwnBodyAsOneSession(t *testing.T) {
	const uuid = "019b1234-5678-7abc-8def-0123456789ab"
	for key, session := range map[string]string{"mine": "[0-9a-f]{8}-[0-9a-f]{4}-7.*", uuid: uuid, "": thread} {
		o := upstream.Overrides{"model": json.RawMessage(`"gpt"`)}
		if key != "" {
			o["prompt_cache_key"], o["client_metadata"] = json.RawMessage(`"`+key+`"`), json.RawMessage(`{"theirs":"x"}`)
		}
		h, fields := requested(t, "", upstream.Request{Body: []byte(` { "x" : 1.50}`), Overrides: o})
		again, _ := requested(t, "", upstream.Request{Body: []byte(`{}`), Overrides: o})
		id := h.Get("Session-Id")
		if !regexp.MustCompile("^"+session+"$").MatchString(id) || h.Get("Thread-Id") != id || again.Get("Session-Id") != id || again.Get("Thread-Id") != id {
			t.Errorf("%q: %v, then %v", key, h, again)
		}
		if string(fields["x"]) != "1.50" || string(fields["model"]) != `"gpt"` || string(fields["prompt_cache_key"]) != string(o["prompt_cache_key"]) {
			t.Errorf("%q: %s", key, fields)
		}
		if got := string(fields["client_metadata"]); (key != "") != (got == `{"theirs":"x"}`) || got == "" {
			t.Errorf("%q: client_metadata %s", key, got)
		}
	}
}
