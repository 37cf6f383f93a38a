package api_test

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
)

// asks is what an edge at 10.0.0.2 asks about a request of the client at 203.0.113.7.
// headers are pairs of a name and its value.
func asks(bearer string, headers ...string) *http.Request {
	r := httptest.NewRequest("GET", "/verify", nil)
	r.RemoteAddr = "10.0.0.2:5000"
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	r.Header.Set("X-Forwarded-For", "203.0.113.7")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

// edged has the settings of a daemon behind an edge.
func edged() api.Config {
	cfg := config()
	cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	return cfg
}

func TestVerifyTellsAnEdgeWhoIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := edged()
		cfg.Keys = append(cfg.Keys, api.Key{Name: "lister", Digest: sha256.Sum256([]byte("lists")), Routes: []string{"models"}})
		h := open(t, cfg, 1)
		from := func(peer string, r *http.Request) *http.Request {
			r.RemoteAddr = peer
			return r
		}
		for _, tt := range []struct {
			name    string
			request *http.Request
			want    string // status, and the name of the key
		}{
			{"a key", asks(key), "200 1"},
			{"another key", asks("another"), "200 2"},
			{"a wrong key", asks("nope"), "401 "},
			{"no key", asks(""), "401 "},
			{"a key for a route", asks(key, "X-Forwarded-Method", "POST", "X-Forwarded-Uri", "/v1/chat/completions?a=b"), "200 1"},
			{"no key for a route", asks("", "X-Forwarded-Method", "POST", "X-Forwarded-Uri", "/v1/chat/completions"), "401 "},
			{"no key for health", asks("", "X-Forwarded-Uri", "/healthz"), "401 "},
			{"a key for what is no URI", asks(key, "X-Forwarded-Uri", "::"), "200 1"},
			{"a key for its route", asks("lists", "X-Forwarded-Uri", "/v1/models"), "200 lister"},
			{"a key for its route, spelt otherwise", asks("lists", "X-Forwarded-Uri", "//models/?a"), "200 lister"},
			{"a key for another route", asks("lists", "X-Forwarded-Method", "POST", "X-Forwarded-Uri", "/v1/chat/completions"), "403 "},
			{"a key for another route, spelt otherwise", asks("lists", "X-Forwarded-Method", "POST", "X-Forwarded-Uri", "//v1//chat/completions/"), "403 "},
			{"a key for what is no route of ours", asks("lists", "X-Forwarded-Uri", "/admin"), "403 "},
			{"a preflight", asks("", "X-Forwarded-Method", "OPTIONS", "X-Forwarded-Uri", "/v1/chat/completions"), "200 "},
			{"a stranger's word for a preflight", from("10.0.1.2:5000", asks("", "X-Forwarded-Method", "OPTIONS")), "401 "},
			{"a stranger with a key", from("10.0.1.2:5000", asks(key)), "200 1"},
		} {
			for _, method := range []string{"GET", "HEAD"} {
				tt.request.Method = method
				a := h.do(t, tt.request)
				if got := fmt.Sprint(a.Code, " ", a.Header().Get("X-Auth-Key-Name")); got != tt.want {
					t.Errorf("%s, %s: %s, want %s", tt.name, method, got, tt.want)
				}
				if (a.Code == 401) != (a.Header().Get("WWW-Authenticate") == `Bearer realm="api"`) {
					t.Errorf("%s: WWW-Authenticate is %q", tt.name, a.Header().Get("WWW-Authenticate"))
				}
				if a.Header().Get("Cache-Control") != "no-store" {
					t.Errorf("%s: a cache may keep the answer", tt.name)
				}
				if h.last().Key != "" {
					t.Errorf("%s: it counts as a request of key %s", tt.name, h.last().Key)
				}
			}
		}
		r := asks("")
		r.Method = "OPTIONS" // an edge may keep the method
		if a := h.do(t, r); a.Code != 204 {
			t.Errorf("OPTIONS: %d", a.Code)
		}
	})
}

func TestVerifyNeedsNoChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, edged(), 1)
		h.pool.Drain()
		if a := h.do(t, asks(key, "X-Forwarded-Uri", "/v1/chat/completions")); a.Code != 200 {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

// Without a secret key a page of another host must not get through an edge either.
func TestVerifyWithoutASecretKeyIsForThisMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := edged()
		cfg.LoopbackOnly = true
		h := open(t, cfg, 1)
		for host, want := range map[string]int{"localhost:8080": 200, "api.example": 403} {
			r := asks(key, "X-Forwarded-Host", host)
			r.Host = "127.0.0.1:11435"
			if a := h.do(t, r); a.Code != want {
				t.Errorf("%s: %d, want %d", host, a.Code, want)
			}
		}
	})
}

func TestRightIsThatOfTheRouteInAnySpelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, edged(), 1)
		for path, want := range map[string]string{
			"/v1/chat/completions": "chat", "/v1/chat/completions/": "chat", "/v1/completions": "completions",
			"/v1/models": "models", "/v1/models/": "models", "/v1/models/meta/llama-4": "models",
			"/": "other", "/v1": "other", "/v1/modelsx": "other", "/v1/chat": "other", "/chat/completions": "chat", "//v1//models": "models", "/models/gpt-a": "models", "/grafana": "other", "/healthz": "other",
			"/v1/chat/../models": "other", // the router does not know it either
		} {
			if got := h.RightFor(path); got != want {
				t.Errorf("%s: %s, want %s", path, got, want)
			}
		}
	})
}

func TestWrongKeysAreLimitedForEachAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := edged()
		cfg.Keys = append(cfg.Keys, api.Key{Name: "lister", Digest: sha256.Sum256([]byte("lists")), Routes: []string{"models"}})
		h := open(t, cfg, 1)
		from := func(addr, bearer string) int {
			t.Helper()
			a := h.do(t, asks(bearer, "X-Forwarded-For", addr))
			if a.Code == 401 && a.Header().Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
			return a.Code
		}
		if got := from("203.0.113.7", key); got != 200 {
			t.Fatal(got)
		}
		for i := range 10 {
			// What the client writes itself is to the left of what the edge saw.
			if got := from(fmt.Sprintf("198.51.100.%d, 203.0.113.7", i), fmt.Sprint("guess-", i)); got != 401 {
				t.Errorf("guess %d: %d", i, got)
			}
			from(fmt.Sprintf("2001:db8::%x", i), "guess")
		}
		for _, tt := range []struct {
			name, addr, key string
			want            int
		}{
			{"a key that was right there before", "203.0.113.7", key, 200},
			{"a key that is right at last", "203.0.113.7", "another", 401},
			{"the same key from another address", "203.0.113.8", "another", 200},
			{"another address of the same IPv6 network", "2001:db8::ffff", key, 401},
			{"another IPv6 network", "2001:db8:0:1::1", key, 200},
		} {
			if got := from(tt.addr, tt.key); got != tt.want {
				t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
			}
		}
		if body := h.do(t, asks("another")).Body.String(); !strings.Contains(body, "Too many wrong API keys came from this address") {
			t.Errorf("it does not say why: %s", body)
		}
		time.Sleep(time.Minute)
		if got := from("203.0.113.7", "another"); got != 200 {
			t.Errorf("a minute later: %d", got)
		}
		for range 20 { // whoever sends no key guesses none
			from("203.0.113.9", "")
		}
		if got := from("203.0.113.9", key); got != 200 {
			t.Errorf("after requests without a key: %d", got)
		}
	})
}

// A stranger that says for whom it asks would get a new limit with each address.
func TestStrangerIsLimitedWhateverAddressItNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, edged(), 1)
		ask := func(bearer string, i int) int {
			r := asks(bearer, "X-Forwarded-For", fmt.Sprintf("198.51.100.%d", i))
			r.RemoteAddr = "203.0.113.1:5000"
			return h.do(t, r).Code
		}
		for i := range 10 {
			ask("guess", i)
		}
		if got := ask(key, 11); got != 401 {
			t.Errorf("got %d", got)
		}
	})
}

func TestMemoryOfWrongKeysIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, edged(), 1)
		for i := range 12_000 {
			addr := fmt.Sprintf("100.%d.%d.1", i/256, i%256)
			h.do(t, asks("guess", "X-Forwarded-For", addr))
			h.do(t, asks(key, "X-Forwarded-For", addr))
		}
		if wrong, proven := h.Remembered(); wrong > 10_000 || proven > 10_000 {
			t.Errorf("%d addresses and %d keys are kept", wrong, proven)
		}
	})
}

func TestResultSaysWhyThereIsNoValidKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := edged()
		guest := named("guest")
		guest.Expires = time.Now()
		cfg.Keys = append(cfg.Keys, guest)
		h := open(t, cfg, 1)
		bare := chat(hello)
		bare.Header.Del("Authorization")
		for _, tt := range []struct {
			r    *http.Request
			want string
		}{
			{chat(hello), "chat "},
			{bare, "chat missing"},
			{by("wrong", chat(hello)), "chat wrong"},
			{by("guest", chat(hello)), "chat expired"},
			{asks(key), "verify "},
			{asks(""), "verify missing"},
			{asks("wrong"), "verify wrong"},
			{asks("guest"), "verify expired"},
		} {
			h.do(t, tt.r)
			if got := h.last().Route + " " + h.last().AuthFailure; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		}
		for range 10 {
			h.do(t, asks("wrong"))
		}
		if got := h.last().AuthFailure; got != "throttled" {
			t.Errorf("an address that has tried too many keys: %q", got)
		}
	})
}
