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

const (
	retryPause    = 200 * time.Millisecond // before the second try, jittered; a longer Retry-After counts instead
	maxRetryAfter = 2 * time.Second        // a longer Retry-After is passed on to the caller
	quickError    = time.Second            // an error that comes later may have cost a model's work
)

// retrier sends a request a second time where the first try cannot have given
// the caller anything, nor started a model: there was no connection; 502, 503 or
// 504 came within quickError; or 429 came with a short Retry-After. Requests must
// have GetBody.
type retrier struct {
	next  http.RoundTripper
	hooks Hooks
}

// RoundTrip does one or two tries within the request's own context.
func (t *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	res, connected, err := t.try(req)
	wait, again := retryWait(res, time.Since(connected))
	if err != nil {
		again = connected.IsZero() && req.Context().Err() == nil
	}
	if !again {
		return res, err
	}
	if res != nil {
		copyRest(io.Discard, res.Body, maxFailure) // so that the connection can be used again
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
		t.hooks.Retried(req.Context())
	}
	res, _, err = t.try(req)
	return res, err
}

// try does one try and reports it. connected is when it got a connection; zero if
// it got none.
func (t *retrier) try(req *http.Request) (res *http.Response, connected time.Time, err error) {
	reused := false
	began := time.Now()
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { connected, reused = time.Now(), info.Reused },
	})
	res, err = t.next.RoundTrip(req.WithContext(ctx))
	if t.hooks.Sent != nil && !connected.IsZero() {
		t.hooks.Sent(req.Context(), req.ContentLength)
	}
	if t.hooks.Request != nil && !errors.Is(err, context.Canceled) {
		status := 0
		if err == nil {
			status = res.StatusCode
		}
		t.hooks.Request(req.Context(), status, reused, time.Since(began))
	}
	return res, connected, err
}

// retryWait returns the pause before a second try, and whether the response calls
// for one. res is nil where there was none; took is the time from the connection to
// the response.
func retryWait(res *http.Response, took time.Duration) (time.Duration, bool) {
	wait := time.Duration(float64(retryPause) * (0.5 + rand.Float64()))
	if res == nil {
		return wait, false
	}
	given, ok := parseRetryAfter(res.Header)
	switch res.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return max(wait, given), given <= maxRetryAfter && took <= quickError
	case http.StatusTooManyRequests:
		return max(wait, given), ok && given <= maxRetryAfter
	}
	return 0, false
}

// parseRetryAfter reads Retry-After, which is a number of seconds or a date.
func parseRetryAfter(h http.Header) (wait time.Duration, ok bool) {
	header := h.Get("Retry-After")
	if date, err := http.ParseTime(header); err == nil {
		return max(0, time.Until(date)), true
	}
	n, err := strconv.ParseFloat(header, 64)
	if err != nil || !(n >= 0 && n <= 1e6) { // written so that NaN fails too
		return 0, false
	}
	return time.Duration(n * float64(time.Second)), true
}
