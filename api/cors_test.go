package api_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"codexpool/api"
)

// preflight is what a browser asks before a page of origin may send a chat completion.
func preflight(origin string) *http.Request {
	r := httptest.NewRequest("OPTIONS", "/v1/chat/completions", nil)
	r.Header.Set("Origin", origin)
	r.Header.Set("Access-Control-Request-Method", "POST")
	r.Header.Set("Access-Control-Request-Headers", "authorization,content-type,x-stainless-lang,x-stainless-retry-count")
	r.Header.Set("Access-Control-Request-Private-Network", "true")
	return r
}

// origins are those of apps that are web pages in a shell of their own, too.
var origins = []string{"https://a.example", "app://obsidian.md", "capacitor://localhost", "vscode-webview://1a2b3c", "chrome-extension://abcdefghijklmnop"}

func TestPreflightOfAListedOriginIsAnsweredWithoutAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.CORS, cfg.Origins = true, origins
		h := open(t, cfg, 1)
		for _, origin := range origins {
			a := h.do(t, preflight(origin))
			for name, want := range map[string]string{
				"Access-Control-Allow-Origin":          origin,
				"Access-Control-Allow-Credentials":     "true",
				"Access-Control-Allow-Methods":         "POST",
				"Access-Control-Allow-Headers":         "authorization,content-type,x-stainless-lang,x-stainless-retry-count",
				"Access-Control-Allow-Private-Network": "true",
				"Vary":                                 "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network",
			} {
				if got := a.Header().Get(name); got != want {
					t.Errorf("%s: %s is %q, want %q", origin, name, got, want)
				}
			}
			if a.Code != 204 || h.last().Route != "options" || h.last().CrossOrigin != api.CrossOriginAllowed {
				t.Errorf("%s: %d, %+v", origin, a.Code, h.last())
			}
		}
	})
}

func TestPageOfAListedOriginReadsWhatAClientNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.CORS, cfg.Origins = true, origins
		h := open(t, cfg, 1)
		for _, r := range []*http.Request{chat(hello), chat("{}"), withHeader(chat(hello), "Authorization", "")} { // errors too
			a := h.do(t, withHeader(r, "Origin", "https://a.example"))
			shown := strings.ToLower(a.Header().Get("Access-Control-Expose-Headers"))
			for _, name := range []string{
				"x-request-id", "retry-after", "x-codexpool-ignored",
				"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
				"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
			} {
				if !strings.Contains(shown, name) {
					t.Errorf("%d: %s is hidden from the page", a.Code, name)
				}
			}
			if a.Header().Get("Access-Control-Allow-Origin") != "https://a.example" || a.Header().Get("Vary") != "Origin" || h.last().CrossOrigin != api.CrossOriginAllowed {
				t.Errorf("%d: %v, %+v", a.Code, a.Header(), h.last())
			}
		}
		// A cache must not give to a page what it keeps for another client.
		if a := h.do(t, request("GET", "/v1/models", "")); a.Header().Get("Vary") != "Origin" || h.last().CrossOrigin != "" {
			t.Errorf("without an origin: %v, %+v", a.Header(), h.last())
		}
	})
}

func TestRefusedOriginIsCountedAndLogged(t *testing.T) {
	for _, cfg := range []struct {
		on      bool
		origins []string
	}{{true, []string{"https://a.example"}}, {true, nil}, {false, origins}} {
		synctest.Test(t, func(t *testing.T) {
			c := config()
			c.CORS, c.Origins = cfg.on, cfg.origins
			h := open(t, c, 1)
			var log bytes.Buffer
			h.Server = api.New(c, h.pool, nil, slog.New(slog.NewJSONHandler(&log, nil)), func(_ context.Context, r api.Result) { h.results = append(h.results, r) })
			for _, origin := range []string{"https://b.example", "https://a.example:8443", "http://a.example", "https://x.a.example", "null"} {
				for _, r := range []*http.Request{preflight(origin), withHeader(chat(hello), "Origin", origin)} {
					log.Reset()
					a := h.do(t, r)
					for name := range a.Header() {
						if strings.HasPrefix(name, "Access-Control-Allow") {
							t.Errorf("%s of %s: %s", r.Method, origin, name)
						}
					}
					if h.last().CrossOrigin != api.CrossOriginRefused || !strings.Contains(log.String(), `"origin":"`+origin+`"`) {
						t.Errorf("%s of %s: %+v, logged %s", r.Method, origin, h.last(), &log)
					}
				}
			}
			own := withHeader(chat(hello), "Origin", "http://example.com") // its Host, as browsers send it with any POST
			if log.Reset(); h.do(t, own).Code != 200 || h.last().CrossOrigin != "" || strings.Contains(log.String(), "origin") {
				t.Errorf("the same origin: %+v, logged %s", h.last(), &log)
			}
		})
	}
}
