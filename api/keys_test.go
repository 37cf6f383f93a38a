package api_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
)

// named makes a key whose secret is its name.
func named(name string) api.Key {
	return api.Key{Name: name, Digest: sha256.Sum256([]byte(name))}
}

// outcome is the status of an answer, and the code and param of its error.
func outcome(a answer) string {
	var body struct{ Error struct{ Code, Param string } }
	_ = json.Unmarshal(a.Body.Bytes(), &body) // a stream has no error here
	return strings.TrimSpace(fmt.Sprint(a.Code, " ", body.Error.Code, " ", body.Error.Param))
}

func TestKeyIsRejectedForRoutesThatItMayNotUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("all"), named("chats"), named("lists")}
		cfg.Keys[1].Routes, cfg.Keys[2].Routes = []string{"chat"}, []string{"models"}
		h := open(t, cfg, 1)
		for _, tt := range []struct{ key, outcomes string }{
			{"all", "200 200 200 200"},
			{"chats", "200 403 permission_denied 403 permission_denied 403 permission_denied"},
			{"lists", "403 permission_denied 403 permission_denied 200 200"},
		} {
			var got []string
			for _, r := range []*http.Request{
				chat(hello), request("POST", "/v1/completions/", `{"prompt":"hi"}`), request("GET", "/v1/models", ""), request("GET", "/v1/models/gpt-a", ""),
			} {
				got = append(got, outcome(h.do(t, by(tt.key, r))))
			}
			if strings.Join(got, " ") != tt.outcomes {
				t.Errorf("%s: %v", tt.key, got)
			}
			if h.last().Key != tt.key {
				t.Errorf("the result names %q", h.last().Key)
			}
		}
	})
}

func TestKeyIsRejectedForModelsThatItMayNotUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("alias"), named("mini")}
		cfg.Keys[0].Models, cfg.Keys[1].Models = []string{"codex-5"}, []string{"GPT-B-mini"}
		h := open(t, cfg, 1)
		for _, tt := range []struct{ key, model, want string }{
			{"alias", "codex-5", "200"},
			{"alias", "codev-5-high", "200"}, // both mean the default model
			{"alias", "gpt-a", "200"},
			{"alias", "gpt-b-mini", "403 permission_denied model"},
			{"mini", "gpt-b-mini-low", "200"},
			{"mini", "codex-5", "403 permission_denied model"},
			{"mini", "gpt-9", "404 model_not_found model"},
		} {
			a := h.do(t, by(tt.key, chat(`{"model":"`+tt.model+`",`+hello[1:])))
			if got := outcome(a); got != tt.want {
				t.Errorf("%s, %s: %s", tt.key, tt.model, got)
			}
		}
		if got := outcome(h.do(t, by("mini", chat(hello)))); got != "403 permission_denied model" {
			t.Errorf("a request without a model: %s", got)
		}
		if got := outcome(h.do(t, by("mini", request("GET", "/v1/models/gpt-a", "")))); got != "403 permission_denied model" {
			t.Errorf("the model itself: %s", got)
		}
		list := h.do(t, by("mini", request("GET", "/v1/models", ""))).Body.String()
		if strings.Contains(list, "codex-5") || strings.Contains(list, "gpt-a") || !strings.Contains(list, "gpt-b-mini") {
			t.Errorf("it is listed %s", list)
		}
	})
}

func TestExpiredKeyIsToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("guest")}
		cfg.Keys[0].Expires = time.Now().Add(time.Hour).UTC()
		h := open(t, cfg, 1)
		if a := h.do(t, by("guest", chat(hello))); a.Code != 200 {
			t.Fatalf("%d %s", a.Code, a.Body)
		}
		time.Sleep(time.Until(cfg.Keys[0].Expires))
		a := h.do(t, by("guest", chat(hello)))
		if want := "This API key expired at " + cfg.Keys[0].Expires.Format(time.RFC3339); outcome(a) != "401 invalid_api_key" || !strings.Contains(a.Body.String(), want) || a.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

func TestKeysAreReplacedWhileRequestsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("old")}
		h := open(t, cfg, 1)
		running := make(chan answer)
		go func() { running <- h.do(t, by("old", chat(hello))) }()
		synctest.Wait()
		h.SetKeys([]api.Key{named("new")})
		if a := <-running; a.Code != 200 {
			t.Errorf("a request that ran got %d %s", a.Code, a.Body)
		}
		if a := h.do(t, by("old", chat(hello))); a.Code != 401 {
			t.Errorf("a key that was removed: %d", a.Code)
		}
		if a := h.do(t, by("new", chat(hello))); a.Code != 200 {
			t.Errorf("a key that was added: %d", a.Code)
		}
		h.SetKeys(nil)
		if a := h.do(t, by("new", chat(hello))); a.Code != 401 {
			t.Errorf("without any key the API answers %d: it must not be open", a.Code)
		}
	})
}
