package upstream_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/upstream"
)

func TestRejectedLastsUntilTheCredentialIsAccepted(t *testing.T) {
	p := newProvider(t, status(401, "", ""), status(500, "", ""), sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	for i, want := range []bool{true, true, false} {
		call := prepare(t.Context(), r, upstream.Request{})
		child(t.Context(), base, call.Key)
		call.Done()
		if r.Rejected() != want {
			t.Errorf("after request %d: %v", i+1, r.Rejected())
		}
	}
}

func TestRejectedIsSetByA401Only(t *testing.T) {
	p := newProvider(t, status(403, "", ""), status(401, "", ""), status(429, "", ""), status(403, "", ""))
	r, base := relay(t, p, upstream.Hooks{})
	for i, want := range []bool{false, true, true, false} {
		call := prepare(t.Context(), r, upstream.Request{})
		child(t.Context(), base, call.Key)
		call.Done()
		if r.Rejected() != want {
			t.Errorf("after request %d: %v", i+1, r.Rejected())
		}
	}
}

func TestProviderRejectedGetsTheCredentialThatWasRejected(t *testing.T) {
	p := newProvider(t, status(401, "", ""), status(403, "", ""), status(401, "", ""))
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	used := 0
	r := upstream.NewRelay(upstream.Provider{
		Base: base,
		Credential: func(h http.Header) error {
			used++
			return upstream.Bearer(fmt.Sprint("token-", used))(h)
		},
		Rejected: func(h http.Header) { got = append(got, h.Get("Authorization")) },
	}, p.Client().Transport, upstream.Hooks{})
	for range 3 {
		serveOne(t.Context(), r)
	}
	if !slices.Equal(got, []string{"Bearer token-1", "Bearer token-3"}) {
		t.Errorf("got %q", got)
	}
}

// TestWatchRechecksARejectedCredential counts the requests for the list of models,
// one every 30 s, until the relay trusts the credential again.
func TestWatchRechecksARejectedCredential(t *testing.T) {
	for name, tt := range map[string]struct {
		models   []int
		rechecks int // 0 = for ever
	}{
		"it is accepted":                {[]int{200}, 1},
		"it may not list models":        {[]int{403}, 1},
		"it is rejected, then accepted": {[]int{401, 401, 200}, 3},
		"it is rejected for ever":       {[]int{401}, 0},
		"no answer is conclusive":       {[]int{500, 0}, 2},
		"there is no list of models":    {[]int{404}, 2}, // within 60 s
		"one answer is conclusive":      {[]int{429, 401, 404}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				statuses := append([]int{401}, tt.models...)
				r := imagined(func(req *http.Request) *http.Response {
					code := statuses[0]
					if len(statuses) > 1 {
						statuses = statuses[1:]
					}
					if code == 0 || req.Method == "GET" && req.URL.Path != "/v1/models" {
						return nil
					}
					return &http.Response{StatusCode: code, Body: http.NoBody}
				})
				serveOne(t.Context(), r)
				if !r.Rejected() {
					t.Fatal("the 401 is not known")
				}
				ctx, cancel := context.WithCancel(t.Context())
				go r.Watch(ctx, 30*time.Second) // ends with ctx, for which the bubble waits
				rechecks := 0
				for r.Rejected() && rechecks < 100 {
					time.Sleep(30 * time.Second)
					synctest.Wait()
					rechecks++
				}
				cancel()
				if rechecks%100 != tt.rechecks {
					t.Errorf("%d rechecks, want %d", rechecks, tt.rechecks)
				}
			})
		})
	}
}
