package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"codexpool/codex/codextest"
)

// openAI is a made-up api.openai.com, which the daemon finds through a proxy.
type openAI struct {
	env []string // for a daemon

	mu            sync.Mutex
	authorization string // of the last completion; guarded by mu
	most          int    // max_output_tokens of the last completion; guarded by mu
	completions   int    // guarded by mu
}

func newOpenAI(t *testing.T) *openAI {
	t.Helper()
	o := &openAI{}
	server, roots := secure(t, o, true)
	o.env = []string{"HTTPS_PROXY=" + detour(t, server.Listener.Addr().String()), "SSL_CERT_FILE=" + roots, "POOL_SIZE=1"}
	return o
}

// ServeHTTP serves https://api.openai.com/v1/responses and nothing else.
func (o *openAI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Host != "api.openai.com" || r.URL.Path != "/v1/responses" {
		http.NotFound(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	var fields struct {
		Most int `json:"max_output_tokens"`
	}
	if err := errors.Join(strict(body), json.Unmarshal(body, &fields)); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	o.authorization, o.most = r.Header.Get("Authorization"), fields.Most
	o.completions++
	o.mu.Unlock()
	codextest.Text("ok")(w, r)
}

// TestOpenAIGetsItsKeyAndTokens has a row for each way to choose OpenAI and its key.
func TestOpenAIGetsItsKeyAndTokens(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		env  []string
		key  string // that OpenAI gets
	}{
		{"OPENAI_API_KEY alone chooses it", []string{"OPENAI_API_KEY=k-openai"}, "k-openai"},
		{"CODEX_UPSTREAM_API_KEY alone chooses it", []string{"CODEX_UPSTREAM_API_KEY=k-upstream"}, "k-upstream"},
		{"CODEX_UPSTREAM_API_KEY wins", []string{"CODEX_UPSTREAM=openai", "OPENAI_API_KEY=k-openai", "CODEX_UPSTREAM_API_KEY=k-upstream"}, "k-upstream"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := newOpenAI(t)
			d := start(t, append(o.env, tt.env...)...)
			for sent, arrives := range map[string]int{`"max_tokens":1,`: 16, `"max_completion_tokens":15,`: 16, `"max_tokens":17,`: 17, ``: 0} {
				got, res := d.complete(sent+hi, false)
				if got.String() != `assistant content "ok" finish stop` || res.Header.Get("X-Codexpool-Ignored") != "" {
					t.Errorf("%s: %s, ignored: %q", sent, got, res.Header.Get("X-Codexpool-Ignored"))
				}
				o.mu.Lock()
				if o.most != arrives || o.authorization != "Bearer "+tt.key {
					t.Errorf("%s: max_output_tokens %d, want %d; Authorization %q", sent, o.most, arrives, o.authorization)
				}
				o.mu.Unlock()
			}
			if o.completions != 4 {
				t.Errorf("%d completions reached OpenAI", o.completions)
			}
		})
	}
}

func TestOpenAIKeyReachesNoOtherProvider(t *testing.T) {
	t.Parallel()
	authorization := make(chan string, 1)
	up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		authorization <- r.Header.Get("Authorization")
		codextest.Text("ok")(w, r)
	})
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "OPENAI_API_KEY=k-openai")
	d.complete(hi, false)
	if got := <-authorization; got != "" {
		t.Errorf("another provider gets Authorization %q", got)
	}
	if !strings.Contains(d.logged(), "OPENAI_API_KEY has no effect") {
		t.Error("no warning about it")
	}
}
