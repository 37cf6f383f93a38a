package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"codexpool/codex/codextest"

	"github.com/google/go-cmp/cmp"
)

// TestErrorsOfAChatGPTBackend has, for each error that this backend is known to answer
// with, what the caller gets, whether the daemon stays ready, and what the log says. None
// but a 401 about the token makes the keeper spend the refresh token.
func TestErrorsOfAChatGPTBackend(t *testing.T) {
	t.Parallel()
	const (
		limit   = `"type":"usage_limit_reached","message":"The usage limit has been reached"`
		blocked = "A firewall before the upstream rejects requests of this server. Its operator can try another network or, with a ChatGPT login, CODEX_UPSTREAM=direct."
		ready   = `200 {"ready":true}`
		rejects = `503 {"ready":false,"reason":"upstream_auth"}`
	)
	inAnHour := strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)
	inStream := func(events ...map[string]any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			s := codextest.StartStream(w)
			for _, e := range events {
				s.Event(e)
			}
		}
	}
	challenge := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cf-Mitigated", "challenge")
		codextest.Status(403, "{}")(w, r)
	}
	g := newChatGPT(t, 60*time.Hour)
	d := start(t, append(g.env, "POOL_SIZE=1")...)
	for _, tt := range []struct {
		name  string
		reply http.HandlerFunc
		want  string         // status, code, Retry-After, final where X-Should-Retry is false, message
		ready string         // afterwards
		line  map[string]any // of the log line
	}{
		{
			"a usage limit", codextest.Status(429, `{"error":{`+limit+`,"resets_in_seconds":1234}}`),
			"429 usage_limit_reached [1234] The usage limit has been reached", ready,
			map[string]any{"upstream_status": 429.0, "upstream_code": "usage_limit_reached"},
		},
		{
			"a usage limit with the time of its end only", codextest.Status(429, `{"error":{`+limit+`,"resets_at":`+inAnHour+`}}`),
			"429 usage_limit_reached [an hour] The usage limit has been reached", ready,
			map[string]any{"upstream_status": 429.0},
		},
		{
			"a usage limit in the stream", inStream(map[string]any{"type": "error", "error": map[string]any{"type": "usage_limit_reached", "message": "The usage limit has been reached", "resets_in_seconds": 1234}}),
			"429 usage_limit_reached [1234] The usage limit has been reached", ready,
			map[string]any{"upstream_status": 200.0, "upstream_code": "usage_limit_reached"},
		},
		{
			"overload in the stream", inStream(map[string]any{"type": "response.failed", "response": map[string]any{"error": map[string]any{"code": "server_is_overloaded", "message": "Our servers are overloaded."}}}),
			"503 upstream_overloaded [1 2 3] Our servers are overloaded.", ready,
			map[string]any{"upstream_status": 200.0, "upstream_code": "server_is_overloaded"},
		},
		{
			"a CLI that is too old", codextest.Status(400, `{"detail":"The 'gpt' model requires a newer version of Codex."}`),
			"400  [] The 'gpt' model requires a newer version of Codex.", ready,
			map[string]any{"upstream_status": 400.0, "counted": "upstream_refused"},
		},
		{
			"a model that the plan has not", codextest.Status(400, `{"detail":"The 'gpt' model is not supported when using Codex with a ChatGPT account."}`),
			"400  [] The 'gpt' model is not supported when using Codex with a ChatGPT account.", ready,
			map[string]any{"upstream_status": 400.0},
		},
		{
			"a model that is not there", codextest.Status(404, `{"detail":"Model not found gpt"}`),
			"404  [] Model not found gpt", ready,
			map[string]any{"upstream_status": 404.0},
		},
		{
			"a workspace that is not paid for", codextest.Status(402, `{"detail":{"code":"deactivated_workspace"}}`),
			"429 usage_limit_reached [] final The upstream requires a payment: deactivated_workspace.", ready,
			map[string]any{"fault": "upstream", "upstream_status": 402.0, "upstream_code": "deactivated_workspace"},
		},
		{
			"a workspace of another region", codextest.Status(401, `{"detail":"Workspace is not authorized in this region."}`),
			"502 upstream_blocked [] final Workspace is not authorized in this region.", ready,
			map[string]any{"upstream_status": 401.0},
		},
		{
			"a firewall's challenge", challenge,
			"502 upstream_blocked [] final " + blocked, ready,
			map[string]any{"upstream_status": 403.0},
		},
		{
			"a firewall's page", page(403, "<html><title>Just a moment...</title>"),
			"502 upstream_blocked [] final " + blocked, ready,
			map[string]any{"upstream_status": 403.0, "upstream_content_type": "text/html"},
		},
		{
			"a token that is not valid any more", codextest.Status(401, `{"error":{"code":"token_invalidated","message":"Your authentication token has been invalidated."}}`),
			"502 upstream_auth [] final The upstream rejected this server's credentials.", rejects,
			map[string]any{"upstream_status": 401.0, "upstream_code": "token_invalidated"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if spent := g.tokens.Spent(); len(spent) > 0 {
				t.Errorf("the refresh token was spent before: %q", spent)
			}
			logged := len(d.logged())
			g.script(tt.reply)
			res, err := d.post(chatBody("hi", true))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if got := errorOf(t, res); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if got := d.ready(); got != tt.ready {
				t.Errorf("afterwards: %s", got)
			}
			line := d.lineOf(logged)
			for name, want := range tt.line {
				if line[name] != want {
					t.Errorf("%s: %v, want %v", name, line[name], want)
				}
			}
		})
	}
	eventually(t, time.Minute, "refresh after the 401", func() bool { return codextest.RefreshToken(t, g.home) == "rt-fresh" })
	g.script(nil)
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Errorf("afterwards: %v", err)
	}
	if got := d.ready(); got != ready {
		t.Errorf("after a success: %s", got)
	}
}

// errorOf is an error as its status, code, Retry-After, final where no retry helps, and message.
func errorOf(t *testing.T, res *http.Response) string {
	t.Helper()
	var body struct {
		Error struct{ Message, Code string }
	}
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	wait := fmt.Sprint(res.Header["Retry-After"])
	switch n, _ := strconv.Atoi(res.Header.Get("Retry-After")); {
	case n > 3500 && n <= 3600:
		wait = "[an hour]"
	case n > 0 && n < 4:
		wait = "[1 2 3]" // ours, jittered
	}
	if res.Header.Get("X-Should-Retry") == "false" {
		wait += " final"
	}
	return fmt.Sprint(res.StatusCode, " ", body.Error.Code, " ", wait, " ", body.Error.Message)
}

// lineOf is the log line of a request that comes after so many bytes of the log.
func (d *daemon) lineOf(logged int) (line map[string]any) {
	d.t.Helper()
	eventually(d.t, 5*time.Second, "line of the request", func() bool {
		for text := range strings.SplitSeq(d.logged()[logged:], "\n") {
			if json.Unmarshal([]byte(text), &line) == nil && line["msg"] == "request" {
				return true
			}
		}
		return false
	})
	return line
}

// TestBodyForAChatGPTBackend has, for each field, what the caller sends and what of it
// arrives. The backend rejects what it is known to reject.
func TestBodyForAChatGPTBackend(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, 60*time.Hour)
	d := start(t, append(g.env, "POOL_SIZE=1", "CODEX_MODEL=gpt-5.5")...)
	const (
		hi      = `"messages":[{"role":"user","content":"hi"}]`
		arrives = `{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}`
	)
	for _, tt := range []struct{ sent, want, ignored string }{
		{hi, `{}`, ""},
		{hi + `,"service_tier":"priority"`, `{"service_tier":"priority"}`, ""},
		{hi + `,"service_tier":"auto"`, `{}`, "service_tier"},
		{hi + `,"service_tier":"flex"`, `{}`, "service_tier"},
		{`"messages":[{"role":"system","content":"a"},{"role":"developer","content":"b"},{"role":"user","content":"hi"},{"role":"system","content":"c"}]`, `{"instructions":"a\n\nb","input":[` + arrives + `,{"type":"message","role":"developer","content":[{"type":"input_text","text":"c"}]}]}`, ""},
		{hi + `,"temperature":1,"top_p":1,"max_tokens":5,"metadata":{"a":"b"},"user":"u","safety_identifier":"s","seed":1`, `{}`, "max_tokens, metadata, safety_identifier, seed, temperature, top_p, user"},
		{hi + `,"reasoning_effort":"low","verbosity":"low"`, `{"reasoning":{"effort":"low"},"text":{"verbosity":"low"}}`, ""},
		{hi + `,"response_format":{"type":"json_object"}`, `{"text":{"format":{"type":"json_object"}}}`, ""},
		{hi + `,"tools":[]`, `{}`, ""},
		{
			hi + `,"parallel_tool_calls":false,"tool_choice":"required","tools":[{"type":"function","function":{"name":"f"}}]`,
			`{"parallel_tool_calls":false,"tool_choice":"required","tools":[{"type":"function","name":"f","strict":false,"parameters":{"type":"object","properties":{}}}]}`, "",
		},
	} {
		res, err := d.post(`{` + tt.sent + `}`)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("X-Codexpool-Ignored"); res.StatusCode != 200 || got != tt.ignored {
			t.Errorf("%s: %d, ignored %q", tt.sent, res.StatusCode, got)
		}
		_, _, body := g.seen()
		var want, got map[string]any
		json.Unmarshal([]byte(`{"model":"gpt-5.5","store":false,"stream":true,"instructions":"","input":[`+arrives+`]}`), &want)
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		if !uuid7.MatchString(fmt.Sprint(got["prompt_cache_key"])) || got["client_metadata"] == nil {
			t.Errorf("%s: prompt_cache_key %v, client_metadata %v", tt.sent, got["prompt_cache_key"], got["client_metadata"])
		}
		delete(got, "prompt_cache_key")
		delete(got, "client_metadata")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +arrived)\n%s", tt.sent, diff)
		}
	}
	for _, effort := range []string{"minimal", "ultra"} {
		res, err := d.post(`{` + hi + `,"reasoning_effort":"` + effort + `"}`)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if got := errorOf(t, res); !strings.HasPrefix(got, "400  [] 'reasoning_effort' must be one of none, low, medium, high, xhigh") || strings.Contains(got, effort) {
			t.Errorf("%s: %s", effort, got)
		}
	}
}

// TestChildrenOfALoginAreOneInstallation: with an id of its own, each child would look to
// the provider like a new machine.
func TestChildrenOfALoginAreOneInstallation(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, 60*time.Hour)
	path := filepath.Join(g.home, "installation_id")
	var ids []string
	for _, upstream := range []string{"chatgpt", "direct"} {
		t.Run(upstream, func(t *testing.T) {
			d := start(t, append(g.env, "POOL_SIZE=2", "CODEX_UPSTREAM="+upstream)...)
			kept, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, string(kept))
			homes, _ := filepath.Glob(filepath.Join(d.workdir, "daemon-*", "*", "codex", "installation_id"))
			for _, home := range homes {
				id, err := os.ReadFile(home)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, string(id))
			}
		})
	}
	if len(ids) != 6 || strings.Count(strings.Join(ids, ""), ids[0]) != 6 {
		t.Errorf("%q", ids)
	}
}
