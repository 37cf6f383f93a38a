package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// chatGPT is a made-up ChatGPT: a backend that the daemon finds through a proxy,
// a token endpoint, and a CODEX_HOME with a login.
type chatGPT struct {
	home   string
	tokens *codextest.Tokens
	env    []string // for a daemon

	mu      sync.Mutex
	revoked bool             // the first token was; guarded by mu
	reply   http.HandlerFunc // to a completion that is not rejected; nil is text; guarded by mu
	models  http.HandlerFunc // to a request for the list; nil is a list; guarded by mu
	wham    http.HandlerFunc // to what direct children and the keeper look for; nil is nothing; guarded by mu
	bearers []string         // of the completions, in their order; guarded by mu
	header  http.Header      // of the last; guarded by mu
	body    []byte           // of the last; guarded by mu
}

func newChatGPT(t *testing.T, life time.Duration) *chatGPT {
	t.Helper()
	g := &chatGPT{home: codextest.Workdir(t), tokens: codextest.NewTokens(t)}
	codextest.AuthFile(t, g.home, "rt-old", life)
	server, roots := secure(t, g, true)
	g.env = []string{
		"CODEX_HOME=" + g.home, "HTTPS_PROXY=" + detour(t, server.Listener.Addr().String()), "SSL_CERT_FILE=" + roots,
		"CODEX_REFRESH_TOKEN_URL_OVERRIDE=" + g.tokens.URL + "/token",
	}
	return g
}

// ServeHTTP is the backend. It accepts requests whose token has not expired, and
// rejects those that ChatGPT's backend is known to reject.
func (g *chatGPT) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Host == "chatgpt.com" && r.URL.Path == "/backend-api/codex/models" {
		g.list(w, r)
		return
	}
	if r.Host != "chatgpt.com" || r.URL.Path != "/backend-api/codex/responses" {
		g.mu.Lock()
		wham := g.wham
		g.mu.Unlock()
		if wham == nil {
			wham = http.NotFound
		}
		wham(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	var asked map[string]any
	json.Unmarshal(body, &asked)
	g.mu.Lock()
	g.bearers = append(g.bearers, r.Header.Get("Authorization"))
	g.header, g.body = r.Header, body
	reply := g.reply
	refused := g.revoked && g.bearers[len(g.bearers)-1] == g.bearers[0]
	g.mu.Unlock()
	if refused {
		codextest.Status(401, `{"error":{"code":"token_revoked"}}`)(w, r)
		return
	}
	if wrong := wrongWith(asked, r.Header); wrong != "" {
		codextest.Status(400, `{"detail":"`+wrong+`"}`)(w, r)
		return
	}
	if reply == nil {
		reply = codextest.Text("ok")
	}
	reply(w, r)
}

// wrongWith is why the backend is known to reject a request; "" where it is not.
func wrongWith(asked map[string]any, h http.Header) string {
	if _, there := asked["instructions"].(string); !there {
		return "Instructions are required"
	}
	for _, name := range []string{
		"temperature", "top_p", "max_output_tokens", "metadata", "user", "safety_identifier", "truncation", "previous_response_id", "prompt_cache_retention",
	} {
		if _, there := asked[name]; there {
			return "Unsupported parameter: " + name
		}
	}
	if tier, there := asked["service_tier"]; there && tier != "priority" {
		return "Unsupported service_tier"
	}
	input, _ := asked["input"].([]any)
	for _, item := range input {
		if m, _ := item.(map[string]any); m["role"] == "system" {
			return "System messages are not allowed"
		}
	}
	if asked["store"] != false || asked["stream"] != true {
		return "Store must be set to false, stream to true"
	}
	if h.Get("Version") == "" || h.Get("Originator") == "" || !uuid7.MatchString(h.Get("Session-Id")) {
		return "The model requires a newer version of Codex."
	}
	return ""
}

var uuid7 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// list answers a request for the models of the plan.
func (g *chatGPT) list(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	models := g.models
	g.mu.Unlock()
	switch {
	case r.URL.Query().Get("client_version") == "":
		codextest.Status(400, `{"detail":"client_version is required"}`)(w, r)
	case models != nil:
		models(w, r)
	default:
		codextest.Status(200, `{"models":[{"slug":"gpt-5.5","visibility":"list"}]}`)(w, r)
	}
}

// script has the backend answer all completions that follow with reply.
func (g *chatGPT) script(reply http.HandlerFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reply = reply
}

// says has it answer what follows so: a request for the list of models, and a completion
// whose token is not rejected. nil is as it is when all is well.
func (g *chatGPT) says(models, reply http.HandlerFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.models, g.reply = models, reply
}

func (g *chatGPT) seen() (bearers []string, account, body string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.bearers...), g.header.Get("Chatgpt-Account-Id"), string(g.body)
}

func TestLoginIsRefreshedOnceForTheWholePool(t *testing.T) {
	t.Parallel()
	const life = 4 * time.Second
	expired := time.Now().Add(life)
	g := newChatGPT(t, life)
	t.Run("a daemon", func(t *testing.T) {
		d := start(t, append(g.env, "POOL_SIZE=8", "POOL_MIN_IDLE=8")...)
		for n := 0; n < 8 || time.Now().Before(expired.Add(time.Second)); n++ {
			if chunks, err := d.stream("hi"); err != nil {
				t.Fatal(err)
			} else if _, err := wholeText(chunks); err != nil {
				t.Fatal(err)
			}
		}
		bearers, _, _ := g.seen()
		for _, pid := range d.children() {
			holdsNot(t, pid, "rt-old", "rt-fresh", strings.TrimPrefix(bearers[len(bearers)-1], "Bearer "))
		}
	})
	if spent := g.tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
		t.Errorf("the refresh tokens that were spent: %q", spent)
	}
	if got := codextest.RefreshToken(t, g.home); got != "rt-fresh" {
		t.Errorf("on disk: %q", got)
	}
	t.Run("the next", func(t *testing.T) {
		d := start(t, append(g.env, "POOL_SIZE=1")...)
		res, err := d.post(`{"max_tokens":5,"temperature":1,"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}]}`)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("X-Codexpool-Ignored"); res.StatusCode != 200 || got != "max_tokens, temperature" {
			t.Errorf("%d, ignored: %s", res.StatusCode, got)
		}
		if _, account, body := g.seen(); account != "account" || !strings.Contains(body, `"instructions":"be brief"`) || strings.Count(body, "be brief") != 1 {
			t.Errorf("account %q, body %s", account, body)
		}
	})
	if spent := g.tokens.Spent(); len(spent) != 1 {
		t.Errorf("the refresh tokens that were spent after a restart: %q", spent)
	}
}

func TestLoginIsRefreshedWhenTheProviderRejectsItsToken(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, 60*time.Hour)
	g.revoked = true
	d := start(t, append(g.env, "POOL_SIZE=1")...)
	if _, err := d.stream("hi"); err == nil || !strings.Contains(err.Error(), "upstream_auth") {
		t.Errorf("rejected: %v", err)
	}
	eventually(t, time.Minute, "refresh", func() bool { return codextest.RefreshToken(t, g.home) == "rt-fresh" })
	eventually(t, time.Minute, "answer", func() bool { _, err := d.stream("hi"); return err == nil })
	if spent := g.tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
		t.Errorf("the refresh tokens that were spent: %q", spent)
	}
}

// The keeper of a daemon that was killed ends its refresh, which the next must
// wait for.
func TestLoginSurvivesKilledDaemon(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, -time.Minute)
	restarted := make(chan struct{})
	finish := sync.OnceFunc(func() { close(restarted) })
	t.Cleanup(finish)
	g.tokens.During(func() { <-restarted })
	d := start(t, append(g.env, "POOL_SIZE=1")...)
	eventually(t, time.Minute, "refresh", func() bool { return len(g.tokens.Spent()) > 0 })
	d.cmd.Process.Kill()
	<-d.ended
	start(t, append(g.env, "POOL_SIZE=1")...)
	finish()
	eventually(t, time.Minute, "new login", func() bool { return codextest.RefreshToken(t, g.home) == "rt-fresh" })
	if spent := g.tokens.Spent(); strings.Join(spent, " ") != "rt-old" {
		t.Errorf("the refresh tokens that were spent: %q", spent)
	}
}

func TestLoginThatIsRejectedIsNotReadyUntilThereIsANewOne(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, 8*time.Second)
	g.tokens.Reject()
	d := start(t, append(g.env, "POOL_SIZE=1")...)
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Errorf("before it expires: %v", err)
	}
	eventually(t, time.Minute, "upstream_auth", func() bool { return d.ready() == `503 {"ready":false,"reason":"upstream_auth"}` })
	if _, err := d.stream("hi"); err == nil || !strings.Contains(err.Error(), "upstream_auth") {
		t.Errorf("after it has expired: %v", err)
	}
	codextest.AuthFile(t, g.home, "another", time.Hour*24)
	eventually(t, time.Minute, "readiness", func() bool { return d.ready() == `200 {"ready":true}` })
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Errorf("after a new login: %v", err)
	}
	if bearers, _, _ := g.seen(); len(bearers) != 2 || bearers[0] == bearers[1] {
		t.Fatalf("%d requests reached the backend", len(bearers))
	}
	if log := d.logged(); strings.Contains(log, strings.TrimPrefix(g.bearers[1], "Bearer ")) {
		t.Error("a token is in the log")
	}
}

// A direct child holds the access token itself, and cannot get another.
func TestDirectChildrenAreReplacedWhenThereIsANewLogin(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, 60*time.Hour)
	d := start(t, append(g.env, "POOL_SIZE=2", "CODEX_UPSTREAM=direct")...)
	tokens := func() (all []string) {
		paths, _ := filepath.Glob(filepath.Join(d.workdir, "daemon-*", "child-*", "codex", "auth.json"))
		for _, path := range paths {
			var auth struct {
				Tokens struct {
					Access string `json:"access_token"`
				}
			}
			data, _ := os.ReadFile(path) // it may have just been removed
			json.Unmarshal(data, &auth)
			all = append(all, auth.Tokens.Access)
		}
		return all
	}
	old := tokens()[0]
	codextest.AuthFile(t, g.home, "another", 60*time.Hour)
	eventually(t, time.Minute, "children with the new login", func() bool {
		now := tokens()
		return len(now) == 2 && !slices.Contains(now, old)
	})
	d.full(2)
	if m := d.metrics(); m[`codexpool_child_deaths_total{reason="recycled"}`] != 2 {
		t.Errorf("%v children were recycled", m[`codexpool_child_deaths_total{reason="recycled"}`])
	}
}

// TestDirectChildrenCallTheProviderThemselves has a provider as an operator of
// the CLI configures it, whose key is in the environment.
func TestDirectChildrenCallTheProviderThemselves(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var authorization string
	up := codextest.NewUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		authorization = r.Header.Get("Authorization")
		mu.Unlock()
		codextest.Text("ok")(w, r)
	})
	home := codextest.Workdir(t)
	config := `model_provider = "mine"
[features]
shell_tool = true
[model_providers.mine]
name = "mine"
base_url = "` + up.URL + `/v1"
wire_api = "responses"
env_key = "MY_KEY"
`
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM=direct", "CODEX_HOME="+home, "MY_KEY=k-mine", "CODEX_UPSTREAM_API_KEY="+upstreamKey, "OTEL_EXPORTER_OTLP_HEADERS=x-key="+collectorKey)
	res, err := d.post(`{"temperature":1,"reasoning_effort":"low","messages":[{"role":"user","content":"hi"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := res.Header.Get("X-Codexpool-Ignored"); res.StatusCode != 200 || got != "temperature" {
		t.Errorf("%d, ignored: %q", res.StatusCode, got)
	}
	mu.Lock()
	defer mu.Unlock()
	if authorization != "Bearer k-mine" {
		t.Errorf("the provider got %q", authorization)
	}
	body := up.Bodies()[0]
	if len(body) > 4000 || strings.Contains(string(body), "temperature") || !strings.Contains(string(body), `"effort":"low"`) {
		t.Errorf("%d bytes: %.4000s", len(body), body)
	}
	for _, pid := range d.children() {
		holdsNot(t, pid, upstreamKey, key, collectorKey)
	}
	for name, want := range map[string]int{"codex-5": 200, "NONSENSE": 404} {
		if got := statusOf(d.request("GET", "/v1/models/"+name, "Bearer "+key, "", "")); got != want {
			t.Errorf("the model %s: %d", name, got)
		}
	}
}
