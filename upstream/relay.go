package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxRequest = 64 << 20 // of a child, bytes: an API request with images, as Codex writes it
	maxFailure = 64 << 10 // of a provider's error that is kept, bytes
)

// Relay forwards the requests of children to the provider: with the caller's exact
// parameters, with the credential, and over connections that stay warm. It keeps
// the provider's own errors for the caller. All methods may be called from any
// goroutine.
type Relay struct {
	provider  Provider
	transport http.RoundTripper
	hooks     Hooks
	proxy     *httputil.ReverseProxy
	rejected  atomic.Bool // the provider's last verdict on our credential

	mu    sync.Mutex
	calls map[string]*Call // guarded by mu
}

// NewRelay forwards to p over transport. The caller owns transport.
func NewRelay(p Provider, transport http.RoundTripper, hooks Hooks) *Relay {
	if p.Base.Path == "" {
		p.Base = p.Base.JoinPath("/") // else a path that is joined to it stays relative
	}
	r := &Relay{provider: p, transport: transport, hooks: hooks, calls: map[string]*Call{}}
	r.proxy = &httputil.ReverseProxy{
		Rewrite:        func(*httputil.ProxyRequest) {}, // outgoing has made the request
		Transport:      &retrier{next: transport, hooks: hooks},
		ModifyResponse: r.receive,
		ErrorHandler:   unreachable,
		ErrorLog:       log.New(io.Discard, "", 0), // errors are kept in the call's failure
	}
	return r
}

// Supports reports whether the provider supports a field of the Responses API.
// Other fields must not be given to Prepare.
func (r *Relay) Supports(field string) bool { return r.provider.Kind.supports(field) }

// ServeHTTP serves one request of a child: POST /v1/responses for a call of
// Prepare. It answers with the provider's stream, or with an error in OpenAI's
// envelope.
func (r *Relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost || req.URL.Path != "/v1/responses" {
		reject(w, http.StatusNotFound, "the relay serves POST /v1/responses only")
		return
	}
	call := r.call(req.Header.Get("X-Codex-Turn-Metadata"))
	if call == nil {
		reject(w, http.StatusForbidden, "the request does not belong to a call")
		return
	}
	child := callContext{req.Context(), call.values}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxRequest))
	if err != nil {
		reject(w, http.StatusBadRequest, "the body could not be read")
		return
	}
	var posted childRequest
	if err := json.Unmarshal(body, &posted); err != nil {
		reject(w, http.StatusBadRequest, "the body is not a Responses request")
		return
	}
	if call.arrived.Swap(true) && posted.endsInResult() {
		reject(w, http.StatusConflict, "the result of a function comes from the caller, not from the child")
		return
	}
	if body, err = r.rewrite(child, posted, call); err != nil {
		reject(w, http.StatusBadRequest, "the body is not a Responses request")
		return
	}
	r.forward(child, w, call, body)
}

// forward sends body to the provider, and the provider's answer to the child.
// child is the context of the child's request.
func (r *Relay) forward(child context.Context, w http.ResponseWriter, call *Call, body []byte) {
	// The child disconnects as soon as it has read the last event. That must not cost
	// the connection to the provider, if the body ends soon. Before the last event it
	// is a cancel.
	f := &flow{call: call}
	ctx, cancel := context.WithCancel(context.WithoutCancel(child))
	defer cancel()
	stop := context.AfterFunc(child, func() {
		if f.completed.Load() {
			time.AfterFunc(restTime, cancel)
			return
		}
		cancel()
	})
	defer stop()
	out := r.outgoing(context.WithValue(ctx, flowKey{}, f), body)
	if err := r.authorize(out.Header); err != nil {
		call.failure.Store(&Failure{Status: http.StatusUnauthorized, Cause: err})
		reject(w, http.StatusUnauthorized, "there is no credential for the provider")
		return
	}
	var cacheKey string
	if json.Unmarshal(call.overrides["prompt_cache_key"], &cacheKey) == nil && fitsHeader(cacheKey) {
		out.Header.Set("Session-Id", cacheKey) // Codex sends both with one value
	}
	r.proxy.ServeHTTP(w, out)
}

// flowKey is the context key under which the provider's request carries its *flow.
type flowKey struct{}

// outgoing makes the provider's request. None of the child's headers are copied.
func (r *Relay) outgoing(ctx context.Context, body []byte) *http.Request {
	req := (&http.Request{
		Method:        http.MethodPost,
		URL:           r.provider.Base.JoinPath("responses"),
		Host:          r.provider.Base.Host,
		Header:        http.Header{},
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
		GetBody:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}).WithContext(ctx)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("User-Agent", "codexpool")
	return req
}

func (r *Relay) authorize(h http.Header) error {
	if r.provider.Credential == nil {
		return nil
	}
	return r.provider.Credential(h)
}

// fitsHeader reports whether a caller's text can be a header's value unchanged.
func fitsHeader(s string) bool {
	return s != "" && len(s) <= 200 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// receive looks at the provider's answer before the child gets it.
func (r *Relay) receive(res *http.Response) error {
	ctx := res.Request.Context()
	f := ctx.Value(flowKey{}).(*flow)
	r.hooks.limits(ctx, res.Header)
	r.noteCredential(res)
	if res.StatusCode == http.StatusSwitchingProtocols {
		return errors.New("it switched protocols") // such an answer would never end
	}
	if res.StatusCode != http.StatusOK || !isStream(res.Header) {
		r.receiveFailure(res, f.call)
		return nil
	}
	f.body, f.received = res.Body, func(bytes int) { r.hooks.received(ctx, bytes) }
	res.Body = f
	return nil
}

// noteCredential keeps the provider's verdict on our credential. A 403 is about
// what this one request does, and so shows that the credential is valid.
func (r *Relay) noteCredential(res *http.Response) {
	switch {
	case res.StatusCode == http.StatusUnauthorized:
		if r.provider.Rejected != nil {
			r.provider.Rejected(res.Request.Header)
		}
		r.rejected.Store(true)
	case res.StatusCode < http.StatusInternalServerError && res.StatusCode != http.StatusTooManyRequests:
		r.rejected.Store(false)
	}
}

// receiveFailure keeps the provider's error for the caller. It cuts what the child
// gets of the answer: the child would hold a whole body in memory, and would follow
// a Location to any host, with the whole prompt.
func (r *Relay) receiveFailure(res *http.Response, call *Call) {
	var head bytes.Buffer
	copyRest(&head, res.Body, maxFailure)
	res.Body.Close()
	r.hooks.received(res.Request.Context(), head.Len())
	failure := ParseFailure(head.Bytes())
	failure.Status = res.StatusCode
	if wait, ok := parseRetryAfter(res.Header); ok {
		failure.RetryAfter = wholeSeconds(wait.Seconds())
	}
	call.failure.Store(failure)
	res.Header = http.Header{"Content-Type": res.Header["Content-Type"]}
	res.Body = io.NopCloser(&head)
}

// isStream reports whether a body is a stream of events. One without a type may be.
func isStream(h http.Header) bool {
	kind := h.Get("Content-Type")
	return kind == "" || strings.HasPrefix(strings.ToLower(kind), "text/event-stream")
}

// unreachable answers a child whose provider gave no answer.
func unreachable(w http.ResponseWriter, req *http.Request, err error) {
	f := req.Context().Value(flowKey{}).(*flow)
	if !errors.Is(err, context.Canceled) {
		f.call.failure.Store(&Failure{Cause: err})
	}
	reject(w, http.StatusBadGateway, "the provider cannot be reached")
}

// reject answers a child with an error of our own.
func reject(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	kind := "invalid_request_error"
	if status >= http.StatusInternalServerError {
		kind = "server_error"
	}
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": message, "type": kind, "param": nil, "code": nil}})
}
