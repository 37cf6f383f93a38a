package codex_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
)

// chatGPT plays the backend of a ChatGPT login and keeps what was posted to it.
type chatGPT struct {
	*httptest.Server

	mu     sync.Mutex
	posted []posted // guarded by mu
}

type posted struct {
	header http.Header
	body   map[string]json.RawMessage
}

func newChatGPT(t *testing.T) *chatGPT {
	g := &chatGPT{}
	g.Server = httptest.NewServer(g)
	t.Cleanup(g.Close)
	return g
}

func (g *chatGPT) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/backend-api/codex/responses":
		p := posted{header: r.Header}
		if err := json.NewDecoder(r.Body).Decode(&p.body); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		g.mu.Lock()
		g.posted = append(g.posted, p)
		g.mu.Unlock()
		codextest.Text("ok")(w, r)
	case r.URL.Path == "/backend-api/wham/accounts/check": // without an answer Codex runs no turn
		io.WriteString(w, `{"account_ordering":["account"],"default_account_id":"account","accounts":[
			{"id":"account","workspace_backend_origin":"https://chatgpt.com","account_routing_override":"NO_CONSTRAINT"}]}`)
	case r.Header.Get("Upgrade") != "": // without WebSocket Codex posts
		w.WriteHeader(http.StatusUpgradeRequired)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (g *chatGPT) last(t *testing.T) posted {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.posted) == 0 {
		t.Fatal("nothing was posted")
	}
	return g.posted[len(g.posted)-1]
}

// exceptions are what our request lacks, has besides, or says otherwise, and why.
var exceptions = map[string]string{
	"header Content-Length": "the bodies differ",

	"body client_metadata": "compared by its members, below",
	"body input":           "Codex gives items ids, and changes the effort of a thread by an item",
	"body reasoning":       "so this stays that of the thread; ours is what the caller said",

	"body include":             "the caller asked for no encrypted reasoning",
	"body parallel_tool_calls": "the caller did not say",
	"body text":                "the caller did not say",
	"body tool_choice":         "the caller did not say",
	"body tools":               "the caller has none",
	"body instructions":        "the backend required it before; \"\" was good at all times",

	"metadata guardian_credits_requested": "it asks for a feature that we do not use",
	"metadata mcp_attribution status":     "children have no MCP servers",
}

var (
	uuids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-([0-9a-f])[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)
	times = regexp.MustCompile(`\b1[0-9]{12}\b`)
)

// told is what a request tells, by names: without what differs from turn to turn. Of the
// id of the session remains where it is, of another UUID its version, and of a time, in
// milliseconds, that it is one.
func (p posted) told(t *testing.T) map[string]string {
	t.Helper()
	told := map[string]string{}
	session := p.header.Get("Session-Id")
	if session == "" {
		session = "no session"
	}
	tell := func(name, value string) {
		var object map[string]json.RawMessage
		if json.Unmarshal([]byte(value), &object) != nil {
			object = map[string]json.RawMessage{"": json.RawMessage(value)}
		}
		for key, value := range object { // so that the order of an object's members does not count
			plain := strings.ReplaceAll(string(value), session, "SESSION")
			plain = times.ReplaceAllString(uuids.ReplaceAllString(plain, "UUIDv$1"), "TIME")
			told[strings.TrimSpace(name+" "+key)] = plain
		}
	}
	for name, values := range p.header {
		tell("header "+name, strings.Join(values, ", "))
	}
	for name, value := range p.body {
		told["body "+name] = strings.ReplaceAll(string(value), session, "SESSION")
	}
	var metadata map[string]string
	if err := json.Unmarshal(p.body["client_metadata"], &metadata); err != nil {
		t.Errorf("client_metadata: %v", err)
	}
	for name, value := range metadata {
		tell("metadata "+name, value)
	}
	return told
}

// genuine is the CLI itself with a ChatGPT login, lean as our children are, and the model
// of its turn. The address of its backend and that of its account's service must differ:
// with one for both, Codex would go to chatgpt.com.
func genuine(t *testing.T, backend, service string) (cmd codex.Command, model codex.Model) {
	t.Helper()
	cmd, models := withCatalog(t, backend)
	home := t.TempDir()
	codextest.AuthFile(t, home, "rt", 24*time.Hour)
	auth, err := os.ReadFile(filepath.Join(home, "auth.json"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Files["auth.json"] = auth
	cmd.Files["config.toml"] = fmt.Appendf(nil, `openai_base_url = "%s/backend-api/codex"
chatgpt_base_url = "%s/backend-api"
cli_auth_credentials_store = "file"
[features]
enable_request_compression = false
`, backend, service)
	return cmd, models[0]
}

// TestRequestForAChatGPTLoginIsTheOneOfCodexItself records the CLI anew on each run: with
// a login that is made up, and a backend on loopback. So it fails on the day on which the
// pinned CLI sends something new.
func TestRequestForAChatGPTLoginIsTheOneOfCodexItself(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t)
	cmd, model := genuine(t, g.URL, newChatGPT(t).URL)
	effort := model.Efforts[len(model.Efforts)-1]
	p := codex.TurnParams{Model: model.ID, Effort: effort, Items: []json.RawMessage{codextest.UserItem(strings.Repeat("long ", 20_000))}}
	if _, err := run(t, start(t, cmd), p); err != nil {
		t.Fatal(err)
	}
	want := g.last(t)

	relay := relayTo(t, g, want.header.Get("Authorization"))
	server := httptest.NewServer(relay)
	t.Cleanup(server.Close)
	child := start(t, codextest.Real(t, server.URL+"/v1"))
	for _, key := range []string{`"k"`, ""} { // "" is CODEX_PROMPT_CACHE_KEY=off
		overrides := upstream.Overrides{"model": json.RawMessage(`"` + model.ID + `"`), "reasoning": json.RawMessage(`{"effort":"` + effort + `"}`)}
		if key != "" {
			overrides["prompt_cache_key"] = json.RawMessage(key)
		}
		call := relay.Prepare(t.Context(), func() upstream.Request {
			return upstream.Request{Input: p.Items, Overrides: overrides}
		}, func() {})
		defer call.Done()
		p := codex.TurnParams{Items: p.Items}
		p.Meta = map[string]string{upstream.MetaKey: call.Key}
		if _, err := run(t, child, p); err != nil {
			t.Fatal(err)
		}
		got := g.last(t)
		if id := got.header.Get("Session-Id"); uuids.ReplaceAllString(id, "$1") != "7" {
			t.Errorf("the session %q is no UUID of version 7", id)
		}
		theirs, our := want.told(t), got.told(t)
		for exception := range exceptions {
			delete(theirs, exception)
			delete(our, exception)
		}
		if key == "" {
			delete(theirs, "body prompt_cache_key")
		}
		if diff := cmp.Diff(theirs, our); diff != "" {
			t.Errorf("cache key %s (-Codex itself +ours)\n%s", key, diff)
		}
		if whole := fmt.Sprint(got); strings.Contains(whole, call.Key) || strings.Contains(whole, upstream.MetaKey) {
			t.Errorf("the key of the call has left the machine: %s", whole)
		}
	}
}

// relayTo is a relay to g with a login.
func relayTo(t *testing.T, g *chatGPT, authorization string) *upstream.Relay {
	t.Helper()
	base, err := url.Parse(g.URL + "/backend-api/codex")
	if err != nil {
		t.Fatal(err)
	}
	return upstream.NewRelay(upstream.Provider{Base: base, Kind: upstream.ChatGPT, Credential: func(h http.Header) error {
		h.Set("Authorization", authorization)
		h.Set("Chatgpt-Account-Id", "account")
		return nil
	}}, &http.Transport{DisableCompression: true}, upstream.Hooks{})
}
