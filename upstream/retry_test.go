package upstream_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/upstream"
)

func TestRetryHappensOnceWhereTheCallerCanHaveGotNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		first http.HandlerFunc
		tries int
	}{
		"502":                        {status(502, "", ""), 2},
		"503":                        {status(503, "", ""), 2},
		"503 with a long pause":      {status(503, "Retry-After: 60", ""), 1},
		"504":                        {status(504, "", ""), 2},
		"429 with a short pause":     {status(429, "Retry-After: 0", ""), 2},
		"429 with a long pause":      {status(429, "Retry-After: 60", ""), 1},
		"429 without a word":         {status(429, "", ""), 1},
		"500":                        {status(500, "", ""), 1},
		"400":                        {status(400, "", ""), 1},
		"a connection that was shut": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 1}, // the model may be at work
		"a cut after the headers":    {sse(`{"type":"response.created"}`), 1},
	} {
		t.Run(name, func(t *testing.T) {
			retries := 0
			p := newProvider(t, tt.first, sse(completed))
			r, base := relay(t, p, upstream.Hooks{Retried: func(context.Context) { retries++ }})
			call := prepare(t.Context(), r, upstream.Request{})
			defer call.Done()
			code, _, _ := child(t.Context(), base, call.Key)
			_, bodies, _ := p.seen()
			if len(bodies) != tt.tries || retries != tt.tries-1 {
				t.Fatalf("%d tries, %d retries", len(bodies), retries)
			}
			if tt.tries == 2 && (code != 200 || bodies[0] != bodies[1] || failure(call) != nil) {
				t.Errorf("the second: %d, failure %+v", code, failure(call))
			}
		})
	}
}

// TestRetryWaitsAsLongAsRetryAfter measures the time between the two tries.
func TestRetryWaitsAsLongAsRetryAfter(t *testing.T) {
	for name, tt := range map[string]struct {
		status      int
		after       time.Duration // until the first answer
		wait        func() string // its Retry-After
		least, most time.Duration // until the second try; 0 = there is none
		passed      string        // the Retry-After that the caller gets, where there is none
	}{
		"a 504 at once":          {status: 504, least: 100 * time.Millisecond, most: 300 * time.Millisecond},
		"a 504 after a while":    {status: 504, after: 3 * time.Second},
		"a 503 after a while":    {status: 503, after: 3 * time.Second},
		"a 502 after a while":    {status: 502, after: 3 * time.Second},
		"a 503 with seconds":     {status: 503, wait: func() string { return "2" }, least: 2 * time.Second, most: 2 * time.Second},
		"a 429 with parts":       {status: 429, wait: func() string { return "1.5" }, least: 1500 * time.Millisecond, most: 1500 * time.Millisecond},
		"a 429 with a near date": {status: 429, wait: func() string { return date(2 * time.Second) }, least: time.Second, most: 2 * time.Second},
		"a 429 with a past date": {status: 429, wait: func() string { return date(-time.Hour) }, least: 100 * time.Millisecond, most: 300 * time.Millisecond},
		"a 503 with a far date":  {status: 503, wait: func() string { return date(time.Hour) }, passed: "3600"},
		"a 429 with a far time":  {status: 429, wait: func() string { return "17.2" }, passed: "18"},
		"a 429 with nonsense":    {status: 429, wait: func() string { return "NaN" }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var first, second time.Time
				r := imagined(func(*http.Request) *http.Response {
					if !first.IsZero() {
						second = time.Now()
						return &http.Response{StatusCode: 400, Body: http.NoBody}
					}
					time.Sleep(tt.after)
					first = time.Now()
					res := &http.Response{StatusCode: tt.status, Body: http.NoBody, Header: http.Header{}}
					if tt.wait != nil {
						res.Header.Set("Retry-After", tt.wait())
					}
					return res
				})
				call, _ := serveOne(t.Context(), r)
				if second.IsZero() != (tt.least == 0) {
					t.Fatalf("a second try: %v", !second.IsZero())
				}
				if pause := second.Sub(first); !second.IsZero() && (pause < tt.least || pause > tt.most) {
					t.Errorf("it came after %v", pause)
				}
				if got := failure(call).RetryAfter; got != tt.passed {
					t.Errorf("the caller gets %q, want %q", got, tt.passed)
				}
			})
		})
	}
}

// date is a Retry-After of that much from now.
func date(from time.Duration) string {
	return time.Now().Add(from).UTC().Format(http.TimeFormat)
}

func TestCancelInThePauseBeforeARetryEndsTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		r := imagined(func(*http.Request) *http.Response {
			tries++
			return &http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {"2"}}, Body: http.NoBody}
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		call, _ := serveOne(ctx, r)
		if took := time.Since(began); took != time.Second || tries != 1 || failure(call) != nil {
			t.Errorf("after %v and %d tries: failure %+v", took, tries, failure(call))
		}
	})
}

// failing fails the first requests before they have a connection.
type failing struct {
	http.RoundTripper
	failures int // still to come
}

func (f *failing) RoundTrip(req *http.Request) (*http.Response, error) {
	if f.failures > 0 {
		f.failures--
		return nil, errors.New("connection refused")
	}
	return f.RoundTripper.RoundTrip(req)
}

func TestFailedConnectIsTriedOnceMore(t *testing.T) {
	for failures, fails := range map[int]bool{1: false, 2: true} {
		p := newProvider(t, sse(completed))
		base, _ := url.Parse(p.URL)
		r := upstream.NewRelay(upstream.Provider{Base: base}, &failing{p.Client().Transport, failures}, upstream.Hooks{})
		server := httptest.NewServer(r)
		call := prepare(t.Context(), r, upstream.Request{})
		if code, _, _ := child(t.Context(), server.URL, call.Key); code != 200 || (failure(call) != nil) != fails {
			t.Errorf("%d failures: %d", failures, code)
		}
		call.Done()
		server.Close()
	}
}
