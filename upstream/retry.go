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
// caller anything, nor set a model to work: no connection, 502, 503 or 504 that
// came at once, or 429 with a short Retry-After. Requests carry their body in GetBody.
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
		take(io.Discard, res.Body, maxFailure) // so that the connection can serve again
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
	res, _, err = t.try(req)
	return res, err
}

// try does one try and reports it. connected is when a connection was there.
func (t *retrier) try(req *http.Request) (res *http.Response, connected time.Time, err error) {
	reused := false
	began := time.Now()
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { connected, reused = time.Now(), info.Reused },
	})
	res, err = t.next.RoundTrip(req.WithContext(ctx))
	if t.hooks.Sent != nil && !connected.IsZero() {
		t.hooks.Sent(req.ContentLength)
	}
	if t.hooks.Request != nil && !errors.Is(err, context.Canceled) {
		status := 0
		if err == nil {
			status = res.StatusCode
		}
		t.hooks.Request(status, reused, time.Since(began))
	}
	return res, connected, err
}

// retryWait is the pause before a second try, and whether the response, nil
// where there is none, calls for one. It came that long after the connection.
func retryWait(res *http.Response, took time.Duration) (time.Duration, bool) {
	wait := time.Duration(float64(retryAfter) * (0.5 + rand.Float64()))
	if res == nil {
		return wait, false
	}
	given, told := askedWait(res.Header)
	switch res.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return max(wait, given), given <= retryAtMost && took <= atOnce
	case http.StatusTooManyRequests:
		return max(wait, given), told && given <= retryAtMost
	}
	return 0, false
}

// askedWait is how long a response asks to wait, in seconds or until a date.
func askedWait(h http.Header) (wait time.Duration, told bool) {
	header := h.Get("Retry-After")
	if date, err := http.ParseTime(header); err == nil {
		return max(0, time.Until(date)), true
	}
	n, err := strconv.ParseFloat(header, 64)
	if err != nil || !(n >= 0 && n <= 1e6) { // nor no number at all
		return 0, false
	}
	return time.Duration(n * float64(time.Second)), true
}
