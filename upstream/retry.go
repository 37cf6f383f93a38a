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
// caller anything, nor set a model to work: no connection, 502, 503, 504, or 429
// with a short Retry-After. Requests carry their body in GetBody.
type retrier struct {
	next  http.RoundTripper
	hooks Hooks
}

// RoundTrip does one or two tries within the request's own context.
func (t *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	res, connected, err := t.try(req)
	wait, again := retryWait(res)
	if err != nil {
		again = !connected && req.Context().Err() == nil
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

// try does one try and reports it. connected says that a connection was there.
func (t *retrier) try(req *http.Request) (res *http.Response, connected bool, err error) {
	reused := false
	began := time.Now()
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { connected, reused = true, info.Reused },
	})
	res, err = t.next.RoundTrip(req.WithContext(ctx))
	if t.hooks.Sent != nil && connected {
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
// where there is none, calls for one.
func retryWait(res *http.Response) (time.Duration, bool) {
	wait := time.Duration(float64(retryAfter) * (0.5 + rand.Float64()))
	if res == nil {
		return wait, false
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
