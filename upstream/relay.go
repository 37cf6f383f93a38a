package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"codexpool/codex"
)

const (
	maxRequest = 64 << 20        // of a child, bytes: a conversation, as Codex writes it
	maxFailure = 64 << 10        // of a provider's error that is kept, bytes
	maxEvent   = 64 << 20        // of one event of a provider, bytes; the last one may repeat the whole answer
	maxRest    = 1 << 20         // of a provider's body behind the last event, bytes
	restTime   = 5 * time.Second // until that body must have ended, or that of an error
)

// Relay serves the requests of children. For each it sends the caller's own request
// to the provider: with the caller's exact parameters, with the credential, and over
// connections that stay warm. The answer goes to the caller ([Call.Next]), not through
// the child: the child only learns when it is over. All methods may be called from any
// goroutine.
type Relay struct {
	provider  Provider
	transport http.RoundTripper
	tries     http.RoundTripper // transport, with a second try
	hooks     Hooks
	running   atomic.Int64 // requests that are with the provider
	rejected  atomic.Bool  // the provider's last verdict on our credential

	mu    sync.Mutex
	calls map[string]*Call // guarded by mu
}

// NewRelay sends to p over transport. The caller owns transport.
func NewRelay(p Provider, transport http.RoundTripper, hooks Hooks) *Relay {
	if p.Base.Path == "" {
		p.Base = p.Base.JoinPath("/") // else a path that is joined to it stays relative
	}
	return &Relay{provider: p, transport: transport, tries: &retrier{next: transport, hooks: hooks}, hooks: hooks, calls: map[string]*Call{}}
}

// Supports reports whether the provider supports a field of the Responses API, or a
// thing in its input, such as [SystemRole]. Others must not be given to Prepare.
func (r *Relay) Supports(field string) bool { return r.provider.Kind.supports(field) }

// Passes reports whether a field with this value is passed on, in a body that its caller
// made. Others must not be in the body.
func (r *Relay) Passes(field string, value json.RawMessage) bool {
	return r.provider.Kind.passes(field, value)
}

// Accepts reports whether the provider supports a field of the Responses API with this
// value.
func (r *Relay) Accepts(field string, value json.RawMessage) bool {
	return r.provider.Kind.accepts(field, value)
}

// Running is how many requests are with the provider now.
func (r *Relay) Running() int { return int(r.running.Load()) }

// ServeHTTP serves one request of a child: POST /v1/responses for a call of
// Prepare. What the child posts is read and dropped, but for what it tells the backend
// of a ChatGPT login of itself (identity.go). Its answer is an empty one,
// which comes when the provider's answer is over, however that ended.
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
	child, err := r.hear(req.Header, http.MaxBytesReader(w, req.Body, maxRequest))
	if err != nil {
		reject(w, http.StatusBadRequest, "the body could not be read")
		return
	}
	if call.arrived.Swap(true) {
		reject(w, http.StatusConflict, "the call has been sent already")
		return
	}
	call.child = child
	r.send(callContext{req.Context(), call.values}, w, call)
}

// send sends a call to the provider, and its answer to the caller. child is the
// context of the child's request: the provider's request ends with it, unless the
// answer is over.
func (r *Relay) send(child context.Context, w http.ResponseWriter, call *Call) {
	defer func() {
		if p := recover(); p != nil { // the caller must learn of it
			call.ended(nil)
			call.answer.end(&Failure{Status: http.StatusInternalServerError, Cause: fmt.Errorf("panic: %v\n%s", p, debug.Stack())})
			panic(http.ErrAbortHandler)
		}
	}()
	ctx, cancel := context.WithCancel(context.WithoutCancel(child))
	defer cancel()
	stop := context.AfterFunc(child, cancel)
	defer stop()
	r.running.Add(1)
	defer r.running.Add(-1)
	res, failure := r.open(ctx, call)
	over := false
	if res != nil {
		defer res.Body.Close()
		begin(w)
		if over, failure = r.read(ctx, res.Body, call); failure != nil {
			failure = failure.of(res)
		}
	}
	stop()
	call.ended(failure)
	if failure != nil && child.Err() != nil {
		return // the child has disconnected, which is the cause, and the lessee's to judge
	}
	call.answer.end(failure)
	finish(w)
	if over {
		copyRest(io.Discard, res.Body, maxRest) // so that the connection can be used again
	}
}

// open returns the provider's answer, which is a stream, or why there is none.
func (r *Relay) open(ctx context.Context, call *Call) (*http.Response, *Failure) {
	request := call.request()
	call.exact = request.Body != nil
	header := r.identify(call.child, &request)
	body, err := r.body(request)
	if err != nil {
		return nil, &Failure{Cause: err}
	}
	req := r.outgoing(ctx, &body)
	maps.Copy(req.Header, header)
	maps.Copy(req.Header, request.Header)
	if err := r.authorize(req.Header); err != nil {
		return nil, &Failure{Status: http.StatusUnauthorized, Cause: fmt.Errorf("no request sent to the provider: %w", err), unsent: true}
	}
	if r.hooks.Sending != nil {
		asked := Asked{Base: r.provider.Base, Model: request.Model, Text: request.Text, Settings: func() Settings { return settings(body) }}
		call.report = r.hooks.Sending(ctx, asked, req.Header)
	}
	call.posted = time.Now()
	res, err := r.tries.RoundTrip(req)
	body = nil
	call.sent()
	if err != nil {
		return nil, &Failure{Cause: fmt.Errorf("provider not reached: %w", err)}
	}
	answered := &reply{status: res.StatusCode}
	if id := res.Header.Get("X-Request-Id"); fitsHeader(id) {
		answered.request = id
	}
	call.reply.Store(answered)
	if call.exact {
		call.answer.put(ctx, []codex.Event{opening(res.Header)}, 0)
	}
	r.hooks.limits(ctx, res.Header)
	if res.StatusCode == http.StatusOK && isStream(res.Header) {
		r.noteCredential(res, &Failure{})
		return res, nil
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		return nil, &Failure{Cause: errors.New("provider switched protocols")} // its body would never end
	}
	failure := r.readFailure(ctx, res)
	r.noteCredential(res, failure)
	return nil, failure
}

// readFailure reads an answer that is not a stream.
func (r *Relay) readFailure(ctx context.Context, res *http.Response) *Failure {
	var head bytes.Buffer
	copyRest(&head, res.Body, maxFailure)
	r.hooks.received(ctx, head.Len())
	return ReadFailure(res, head.Bytes())
}

// read reads the provider's stream and puts what it delivers into the call's answer.
// over is true if the last event has come; failure is why the answer is not whole.
func (r *Relay) read(ctx context.Context, body io.Reader, call *Call) (over bool, failure *Failure) {
	dec, events, came := newDecoder(), lines{most: maxEvent, keep: call.exact}, 0
	exact := exactDecoder{codex: r.provider.Kind.codex}
	event := func(data []byte) (more bool) {
		var delivered []codex.Event
		if call.exact {
			delivered, over, failure = exact.decode(events.take(), data)
		} else {
			delivered, over, failure = dec.decode(data)
		}
		if call.exact && events.cut && !over {
			return true // half an event: what comes behind it would be read as a part of it
		}
		call.note(ctx, delivered)
		if over {
			call.keep(data, delivered)
		}
		return call.answer.put(ctx, delivered, len(data)) && !over
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		r.hooks.received(ctx, n)
		came += n
		more := events.add(buf[:n], event)
		if err != nil && more {
			events.close(event)
		}
		switch {
		case over:
			return true, failure
		case ctx.Err() != nil:
			return false, &Failure{Cause: context.Cause(ctx)}
		case !more:
			return false, &Failure{Status: http.StatusOK, Code: "event_too_long"}
		case errors.Is(err, io.EOF):
			return false, &Failure{Status: http.StatusOK, Cause: fmt.Errorf("provider ended its stream after %d bytes, without a last event: %w", came, io.ErrUnexpectedEOF)}
		case err != nil:
			return false, &Failure{Status: http.StatusOK, Cause: fmt.Errorf("provider hung up after %d bytes of its stream: %w", came, err)}
		}
	}
}

// begin answers the child with the beginning of a stream, so that its own limits
// for an answer do not begin with the first token.
func begin(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // a recorder in a test may have none
}

// finish ends the child's turn with an empty answer. The child is told nothing of a
// failure: it could only repeat what the caller learns anyway, or retry.
func finish(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	io.WriteString(w, "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_relay\",\"output\":[]}}\n\n")
	_ = http.NewResponseController(w).Flush()
}

// copyRest copies the rest of body into w: at most so many bytes, and only those
// that come within restTime.
func copyRest(w io.Writer, body io.ReadCloser, most int64) {
	timer := time.AfterFunc(restTime, func() { body.Close() }) // which ends a read
	defer timer.Stop()
	_, _ = io.CopyN(w, body, most)
}

// outgoing makes the provider's request. It refers to body only through the pointer, for
// the transport keeps the request until the end of the answer.
func (r *Relay) outgoing(ctx context.Context, body *[]byte) *http.Request {
	open := func() (io.ReadCloser, error) { return io.NopCloser(draining{bytes.NewReader(*body)}), nil }
	first, _ := open()
	req := (&http.Request{
		Method:        http.MethodPost,
		URL:           r.provider.Base.JoinPath("responses"),
		Host:          r.provider.Base.Host,
		Header:        http.Header{},
		Body:          first,
		ContentLength: int64(len(*body)),
		GetBody:       open,
	}).WithContext(ctx)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("User-Agent", "codexpool")
	req.Header["Idempotency-Key"] = nil // not sent: it has net/http repeat a request of which a reused connection brought nothing
	return req
}

// draining forgets its bytes when all are read.
type draining struct{ r *bytes.Reader }

func (d draining) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if d.r.Len() == 0 {
		d.r.Reset(nil)
	}
	return n, err
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

// noteCredential keeps the provider's verdict on our credential. A 403 is about
// what this one request does, and so shows that the credential is valid, unless it is that
// of a firewall, which does not know. Nor is a 401 about the region one about the token.
func (r *Relay) noteCredential(res *http.Response, f *Failure) {
	switch {
	case f.Blocked:
	case res.StatusCode == http.StatusUnauthorized && !f.Region:
		if r.provider.Rejected != nil {
			r.provider.Rejected(res.Request.Header)
		}
		r.rejected.Store(true)
	case res.StatusCode < http.StatusInternalServerError && res.StatusCode != http.StatusTooManyRequests:
		r.rejected.Store(false)
	}
}

// isStream reports whether a body is a stream of events. One without a type may be.
func isStream(h http.Header) bool {
	kind := h.Get("Content-Type")
	return kind == "" || strings.HasPrefix(strings.ToLower(kind), "text/event-stream")
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
