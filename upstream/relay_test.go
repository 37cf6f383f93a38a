package upstream_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/upstream"
)

func TestSwitchOfProtocolsIsAFailureAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := imagined(func(*http.Request) *http.Response {
			return &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: newEndless("", "")}
		})
		began := time.Now()
		call, w := serveOne(t.Context(), r)
		if f := failure(call); w.Code != 200 || f == nil || time.Since(began) != 0 {
			t.Errorf("the child got %d, failure %+v after %v", w.Code, f, time.Since(began))
		}
	})
}

func TestProviderGetsNoRequestWithoutACredential(t *testing.T) {
	p := newProvider(t, sse(completed))
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	expired := errors.New("the login has expired")
	r := upstream.NewRelay(upstream.Provider{Base: base, Credential: func(http.Header) error { return expired }}, p.Client().Transport, upstream.Hooks{})
	server := httptest.NewServer(r)
	defer server.Close()
	call := prepare(t.Context(), r, upstream.Request{})
	defer call.Done()
	if code, _, _ := child(t.Context(), server.URL, call.Key); code != http.StatusOK {
		t.Errorf("the child got %d", code)
	}
	if f := failure(call); f == nil || f.Status != http.StatusUnauthorized || !errors.Is(f.Cause, expired) || !r.Rejected() {
		t.Errorf("failure %+v, rejected %v", f, r.Rejected())
	}
	expired = nil
	if r.Rejected() {
		t.Error("a login that is there again is not noticed")
	}
	if requests, _, _ := p.seen(); len(requests) != 0 {
		t.Errorf("%d requests reached the provider", len(requests))
	}
}

func TestRequestOfNoCallIsRejected(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	call := prepare(t.Context(), r, upstream.Request{})
	call.Done()
	for _, key := range []string{"", "guess", call.Key} {
		if code, _, _ := child(t.Context(), base, key); code != http.StatusForbidden {
			t.Errorf("%q: %d", key, code)
		}
	}
	if requests, _, _ := p.seen(); len(requests) != 0 {
		t.Errorf("%d requests reached the provider", len(requests))
	}
}

func TestSecondRequestOfACallIsRejected(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	call := prepare(t.Context(), r, upstream.Request{})
	defer call.Done()
	for i, want := range []int{http.StatusOK, http.StatusConflict, http.StatusConflict} {
		if code, _, _ := child(t.Context(), base, call.Key); code != want {
			t.Errorf("request %d: %d, want %d", i+1, code, want)
		}
	}
	if requests, _, _ := p.seen(); len(requests) != 1 {
		t.Errorf("%d requests reached the provider", len(requests))
	}
}

// TestChildLearnsNothingOfTheAnswer: what the child gets is an empty answer, whatever
// the provider's is.
func TestChildLearnsNothingOfTheAnswer(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"text":     sse(`{"type":"response.output_text.delta","delta":"secret"}`, `{"type":"response.completed","response":{"end_turn":false,"output":[{"type":"function_call","name":"secret"}]}}`),
		"an error": status(400, "Location: /secret", `{"error":{"message":"secret"}}`),
		"a cut":    sse(`{"type":"response.output_text.delta","delta":"secret"}`),
	} {
		p := newProvider(t, answer)
		r, base := relay(t, p, upstream.Hooks{})
		call := prepare(t.Context(), r, upstream.Request{})
		defer call.Done()
		code, got, err := child(t.Context(), base, call.Key)
		if code != 200 || err != nil || strings.Contains(got, "secret") || !strings.Contains(got, `"response.completed"`) {
			t.Errorf("%s: %d, %s, %v", name, code, got, err)
		}
	}
}

func TestCacheKeyIsAHeaderOnlyWhereItFits(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	for i, tt := range []struct{ key, header string }{
		{"a key of mine", "a key of mine"},
		{strings.Repeat("x", 200), strings.Repeat("x", 200)},
		{strings.Repeat("x", 201), ""},
		{"a\nb", ""},
		{"clé", ""},
		{"\x7f", ""},
	} {
		value, _ := json.Marshal(tt.key)
		call := prepare(t.Context(), r, upstream.Request{Overrides: upstream.Overrides{"prompt_cache_key": value}})
		code, _, err := child(t.Context(), base, call.Key)
		call.Done()
		if code != 200 || err != nil {
			t.Errorf("%q: %d, %v", tt.key, code, err)
			continue
		}
		requests, bodies, _ := p.seen()
		if got := requests[i].Header.Get("Session-Id"); got != tt.header || !strings.Contains(bodies[i], `"prompt_cache_key":`) {
			t.Errorf("%q: the header is %q", tt.key, got)
		}
	}
}

func TestUnreachableProviderIsAFailureWithoutStatus(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	p.Close()
	call := prepare(t.Context(), r, upstream.Request{})
	defer call.Done()
	if code, _, _ := child(t.Context(), base, call.Key); code != http.StatusOK {
		t.Errorf("%d", code)
	}
	if got := failure(call); got == nil || got.Status != 0 || !strings.Contains(got.Error(), "connection refused") {
		t.Errorf("got %+v", got)
	}
}
