package upstream

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"time"
)

// retrier tries a request a second time where the first cannot have told the
// caller anything: no connection, 502, 503, 504, or 429 with a short
// Retry-After. Requests carry their body in GetBody.
type retrier struct {
	next  http.RoundTripper
	hooks Hooks
}

// RoundTrip does one or two tries within the request's own context.
func (t *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.try(req)
	wait, again := retryWait(req.Context(), res, err)
	if !again {
		return res, err
	}
	if res != nil {
		_, _ = io.CopyN(io.Discard, res.Body, maxFailure) // so that the connection can serve again
		res.Body.Close()
	}
	select {
	case <-time.After(wait):
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Body = body
	if t.hooks.Retried != nil {
		t.hooks.Retried()
	}
	return t.try(req)
}

// try does one try and reports it.
func (t *retrier) try(req *http.Request) (*http.Response, error) {
	reused := false
	began := time.Now()
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
	})
	res, err := t.next.RoundTrip(req.WithContext(ctx))
	if t.hooks.Request != nil && !errors.Is(err, context.Canceled) {
		status := 0
		if err == nil {
			status = res.StatusCode
		}
		t.hooks.Request(status, reused, time.Since(began))
	}
	return res, err
}

// retryWait says whether to try again, and after what pause.
func retryWait(ctx context.Context, res *http.Response, err error) (time.Duration, bool) {
	wait := time.Duration(float64(retryAfter) * (0.5 + rand.Float64()))
	if err != nil {
		return wait, ctx.Err() == nil
	}
	switch res.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if given, ok := seconds(res.Header.Get("Retry-After")); ok {
			return max(wait, given), given <= retryAtMost
		}
		return wait, true
	case http.StatusTooManyRequests:
		given, ok := seconds(res.Header.Get("Retry-After"))
		return max(wait, given), ok && given <= retryAtMost
	}
	return 0, false
}

// seconds reads a Retry-After in seconds.
func seconds(header string) (time.Duration, bool) {
	n, err := strconv.ParseFloat(header, 64)
	if err != nil || n < 0 || n > 1e6 {
		return 0, false
	}
	return time.Duration(n * float64(time.Second)), true
}
