package upstream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// MetaKey is the name under which a call's key travels through the child: given
// to its turn as client metadata, it comes out in the header
// x-codex-turn-metadata of the request that belongs to the turn.
const MetaKey = "codexpool_call"

const (
	maxRequest  = 64 << 20               // of a child, bytes: an API request with images, as Codex writes it
	maxFailure  = 64 << 10               // of a provider's error that is kept, bytes
	maxEvent    = 8 << 20                // of one event, bytes: an answer is half a megabyte at most, and Codex needs a minute for 30
	maxLeftover = 1 << 20                // of a provider's body behind response.completed, bytes
	leftoverFor = 5 * time.Second        // until that body must have ended, or that of an error
	retryAfter  = 200 * time.Millisecond // before the one retry, jittered; a provider's own Retry-After goes first
	retryAtMost = 2 * time.Second        // a longer Retry-After is the caller's to wait for
	atOnce      = time.Second            // an answer after more than that may have had a model at work
	maxUnclear  = 10                     // rechecks of a refused credential in a row that told nothing
)

// Provider is where the relay forwards to.
type Provider struct {
	Base *url.URL // of a Responses API, such as https://api.openai.com/v1
	Kind Kind

	// Credential adds the credential, here and nowhere else; nil = there is none.
	// An error says that none is at hand that could work.
	Credential func(http.Header) error

	// Refused is told the headers of a request whose credential was refused (401);
	// it may be nil, and must not block.
	Refused func(http.Header)
}

// Bearer is the credential of an API key.
func Bearer(key string) func(http.Header) error {
	return func(h http.Header) error {
		h.Set("Authorization", "Bearer "+key)
		return nil
	}
}

// Kind is what a provider takes beside model and input.
type Kind struct {
	fields       []string // of the Responses API; nil = all
	instructions bool     // refuses a request without instructions
	leastOutput  int64    // refuses a smaller max_output_tokens
}

// The kinds of provider.
var (
	// Responses is the Responses API as it is written down, by whoever serves it.
	Responses = Kind{}

	// OpenAI's own does not think of less than 16 tokens. Chat completions may ask
	// for one, as clients do to see whether there is an answer at all.
	OpenAI = Kind{leastOutput: 16}

	// ChatGPT is the backend of a ChatGPT login. It is known to refuse
	// max_output_tokens and a lack of instructions; so it gets the fields that
	// Codex itself sends there, and no others. It could not be tried.
	ChatGPT = Kind{
		fields: []string{
			"include", "parallel_tool_calls", "prompt_cache_key", "reasoning", "service_tier", "text", "tool_choice", "tools",
		},
		instructions: true,
	}

	// EchoModel is what [Echo] takes.
	EchoModel = Kind{fields: []string{"max_output_tokens", "prompt_cache_key", "reasoning"}}
)

func (k Kind) takes(field string) bool { return k.fields == nil || slices.Contains(k.fields, field) }

// Overrides are the fields of the provider's request that the caller asked for,
// by their names in the Responses API. A child carries none of them: the relay
// takes only input, and model where there is none here, from what it posts, so that
// nothing of Codex's own reaches the provider.
type Overrides map[string]json.RawMessage

// Hooks are told numbers as things happen. Any may be nil; none may block.
type Hooks struct {
	Request    func(status int, reused bool, firstByte time.Duration) // one try at the provider; status 0 = no answer
	Retried    func()
	Sent       func(bytes int64)                // bodies, to the provider
	Received   func(bytes int64)                // the same, from it
	Overridden func(field string)               // a field of Overrides was written into a request
	Limit      func(limit Limit, value float64) // as the provider last said
}

// Limit is one of the provider's limits, of a closed list.
type Limit struct {
	Kind string // limit or remaining (a number of units), or used (a fraction)
	Unit string // requests or tokens; primary or secondary for the windows of a ChatGPT login
}

// limitHeaders are how providers tell them.
var limitHeaders = map[string]Limit{
	"X-Ratelimit-Limit-Requests":     {"limit", "requests"},
	"X-Ratelimit-Limit-Tokens":       {"limit", "tokens"},
	"X-Ratelimit-Remaining-Requests": {"remaining", "requests"},
	"X-Ratelimit-Remaining-Tokens":   {"remaining", "tokens"},
	"X-Codex-Primary-Used-Percent":   {"used", "primary"},
	"X-Codex-Secondary-Used-Percent": {"used", "secondary"},
}

// Relay forwards the requests of children to the provider: with the caller's
// exact parameters, with the credential, over connections that stay warm. It
// keeps what the provider really said, for the caller.
type Relay struct {
	provider  Provider
	transport http.RoundTripper
	hooks     Hooks
	proxy     *httputil.ReverseProxy
	rejected  atomic.Bool // the provider refused our credential last

	mu    sync.Mutex
	calls map[string]*Call // guarded by mu
}

// NewRelay forwards to p over transport, which the caller owns.
func NewRelay(p Provider, transport http.RoundTripper, hooks Hooks) *Relay {
	if p.Base.Path == "" {
		p.Base = p.Base.JoinPath("/") // else what is joined to it stays relative
	}
	r := &Relay{provider: p, transport: transport, hooks: hooks, calls: map[string]*Call{}}
	r.proxy = &httputil.ReverseProxy{
		Rewrite:        func(*httputil.ProxyRequest) {}, // the request is ours from the start
		Transport:      &retrier{next: transport, hooks: hooks},
		ModifyResponse: r.receive,
		ErrorHandler:   unreachable,
		ErrorLog:       log.New(io.Discard, "", 0), // what goes wrong is in the call's failure
	}
	return r
}

// Takes says whether the provider takes a field of the Responses API; what it
// does not take is not to be given to Prepare.
func (r *Relay) Takes(field string) bool { return r.provider.Kind.takes(field) }

// Rejected says that there is no credential that could work, or that the
// provider refused it and has not accepted it since.
func (r *Relay) Rejected() bool { return r.rejected.Load() || r.authorize(http.Header{}) != nil }

// Watch asks a provider that refused our credential for its models, for free,
// until it no longer does: while we say that we are not ready nobody may send us
// a completion that would find out. Where that tells nothing for long, completions
// are let find out. It returns when ctx ends.
func (r *Relay) Watch(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	unclear := 0 // rechecks in a row
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !r.rejected.Load() {
			unclear = 0
			continue
		}
		accepted, told := r.recheck(ctx)
		if unclear++; told {
			unclear = 0
		}
		if accepted || unclear >= maxUnclear {
			r.rejected.Store(false)
		}
	}
}

// recheck asks for the models. A 403 accepts the credential too: it may only not
// list models. What else goes wrong tells nothing about it.
func (r *Relay) recheck(ctx context.Context) (accepted, told bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.provider.Base.JoinPath("models").String(), nil)
	if err != nil || r.authorize(req.Header) != nil {
		return false, false
	}
	res, err := r.transport.RoundTrip(req)
	if err != nil {
		return false, false
	}
	res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK, http.StatusForbidden:
		return true, true
	case http.StatusUnauthorized:
		return false, true
	}
	return false, false
}

// Call is one turn's request as the API prepared it. Its owner calls Done.
type Call struct {
	Key       string // for the child, under MetaKey
	relay     *Relay
	overrides Overrides
	asked     atomic.Bool // a child has brought the key
	details   []string    // of the conversation's images
	failure   atomic.Pointer[Failure]
	refusal   atomic.Pointer[string]
}

// Prepare makes a call. Until Done, a child that brings its key is forwarded.
// It is for one turn: when the child has answered a function call by itself and
// asks again, it is refused (see package codex).
// details are what the caller said of each image of the conversation, "" where
// it said nothing: Codex has its own idea of how closely to look.
func (r *Relay) Prepare(o Overrides, details ...string) *Call {
	c := &Call{Key: rand.Text(), relay: r, overrides: o, details: details}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls[c.Key] = c
	return c
}

// Done forgets the call.
func (c *Call) Done() {
	c.relay.mu.Lock()
	defer c.relay.mu.Unlock()
	delete(c.relay.calls, c.Key)
}

// Asked says that a child has brought a request for this call.
func (c *Call) Asked() bool { return c.asked.Load() }

// Failure is what the provider really said when it failed, nil otherwise.
func (c *Call) Failure() *Failure { return c.failure.Load() }

// Refusal is what the model said instead of an answer, "" where it did answer:
// Codex does not tell it.
func (c *Call) Refusal() string {
	if text := c.refusal.Load(); text != nil {
		return *text
	}
	return ""
}

// Failure is a provider's refusal, or the lack of an answer.
type Failure struct {
	Status     int    // HTTP status; 0 where there was no answer, 200 where the failure came instead of an answer, or in it
	Type       string // of the provider's error, like the next three; may be empty
	Code       string
	Param      string
	Message    string
	RetryAfter string // in whole seconds; "" where nothing was said
	Cause      error  // why there was no answer, or why nobody was asked
}

// Error is for the log: the provider's sentence may quote the prompt.
func (f *Failure) Error() string {
	if f.Cause != nil && f.Status != 0 {
		return "provider not asked: " + f.Cause.Error()
	}
	if f.Cause != nil {
		return "provider not reached: " + f.Cause.Error()
	}
	return fmt.Sprintf("provider failed: status %d, type %q, code %q", f.Status, f.Type, f.Code)
}

type callKey struct{}

// ServeHTTP takes one request of a child.
func (r *Relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost || req.URL.Path != "/v1/responses" {
		refuse(w, http.StatusNotFound, "the relay serves POST /v1/responses only")
		return
	}
	call := r.call(req.Header.Get("X-Codex-Turn-Metadata"))
	if call == nil {
		refuse(w, http.StatusForbidden, "the request does not belong to a call")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxRequest))
	if err != nil {
		refuse(w, http.StatusBadRequest, "the body could not be read")
		return
	}
	var asked question
	if err := json.Unmarshal(body, &asked); err != nil {
		refuse(w, http.StatusBadRequest, "the body is not a Responses request")
		return
	}
	if call.asked.Swap(true) && asked.endsInResult() {
		refuse(w, http.StatusConflict, "what a function returns is the caller's to say")
		return
	}
	if body, err = r.rewrite(asked, call.overrides, call.details); err != nil {
		refuse(w, http.StatusBadRequest, "the body is not a Responses request")
		return
	}
	// The child hangs up as soon as it has read response.completed. That is no
	// cancel, and must not cost the connection, if the body ends soon; a hang-up
	// before it is one.
	flow := &flow{call: call}
	ctx, cancel := context.WithCancel(context.WithoutCancel(req.Context()))
	defer cancel()
	stop := context.AfterFunc(req.Context(), func() {
		if flow.completed.Load() {
			time.AfterFunc(leftoverFor, cancel)
			return
		}
		cancel()
	})
	defer stop()
	out := r.outgoing(context.WithValue(ctx, callKey{}, flow), body)
	if err := r.authorize(out.Header); err != nil {
		call.failure.Store(&Failure{Status: http.StatusUnauthorized, Cause: err})
		refuse(w, http.StatusUnauthorized, "there is no credential for the provider")
		return
	}
	var cacheKey string
	if json.Unmarshal(call.overrides["prompt_cache_key"], &cacheKey) == nil && fitsHeader(cacheKey) {
		out.Header.Set("Session-Id", cacheKey) // Codex sends both alike
	}
	r.proxy.ServeHTTP(w, out)
}

// fitsHeader says that a caller's text can be a header's value as it is.
func fitsHeader(s string) bool {
	return s != "" && len(s) <= 200 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// call finds the call that a child's metadata names.
func (r *Relay) call(metadata string) *Call {
	var m map[string]any
	if json.Unmarshal([]byte(metadata), &m) != nil {
		return nil
	}
	key, _ := m[MetaKey].(string)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[key]
}

// question is what is read of a child's request.
type question struct {
	Model json.RawMessage   `json:"model"`
	Input []json.RawMessage `json:"input"`
}

// rewrite makes the provider's body: model and input of the child's, without
// what Codex added to the items, and the caller's own fields.
func (r *Relay) rewrite(q question, o Overrides, details []string) ([]byte, error) {
	input := make([]json.RawMessage, len(q.Input))
	for i, item := range q.Input {
		input[i] = withoutCodex(item, &details)
	}
	fields := map[string]any{"model": q.Model, "input": input, "stream": true, "store": false}
	for name, value := range o {
		fields[name] = value
		if r.hooks.Overridden != nil {
			r.hooks.Overridden(name)
		}
	}
	var most int64
	if least := r.provider.Kind.leastOutput; json.Unmarshal(o["max_output_tokens"], &most) == nil && most < least {
		fields["max_output_tokens"] = least
	}
	if r.provider.Kind.instructions {
		fields["instructions"], fields["input"] = instructions(input)
	}
	return encode(fields)
}

// instructions takes the system's text from the beginning of input, for a
// provider that wants it apart.
func instructions(input []json.RawMessage) (text string, rest []json.RawMessage) {
	var texts []string
	for len(input) > 0 {
		var m struct {
			Role    string
			Content []struct{ Text string }
		}
		if json.Unmarshal(input[0], &m) != nil || m.Role != "developer" {
			break
		}
		for _, part := range m.Content {
			texts = append(texts, part.Text)
		}
		input = input[1:]
	}
	if len(texts) == 0 {
		return "You are a helpful assistant.", input
	}
	return strings.Join(texts, "\n\n"), input
}

// endsInResult says that the last item is what some tool has returned.
func (q question) endsInResult() bool {
	var last struct {
		Type string `json:"type"`
	}
	if n := len(q.Input); n > 0 {
		json.Unmarshal(q.Input[n-1], &last) // what cannot be read is none
	}
	return strings.HasSuffix(last.Type, "_output")
}

// encode is json.Marshal without the escapes that are for HTML: text goes on as
// it came.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// withoutCodex takes from an item what Codex has added to it: an id, and how
// closely to look at an image. details are what the caller said of the images
// that are still to come.
func withoutCodex(item json.RawMessage, details *[]string) json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(item, &fields) != nil {
		return item
	}
	switch string(fields["type"]) {
	case `"message"`, `"function_call"`, `"function_call_output"`:
	default:
		return item // an id that is needed, for all we know
	}
	delete(fields, "id")
	var parts []map[string]json.RawMessage
	if json.Unmarshal(fields["content"], &parts) == nil && withDetails(parts, details) {
		fields["content"], _ = encode(parts) // they were JSON before
	}
	if b, err := encode(fields); err == nil {
		return b
	}
	return item
}

// withDetails puts the caller's words into the images among parts. It says
// whether there were any.
func withDetails(parts []map[string]json.RawMessage, details *[]string) (images bool) {
	for _, part := range parts {
		if string(part["type"]) != `"input_image"` {
			continue
		}
		images = true
		delete(part, "detail")
		if len(*details) > 0 {
			if d := (*details)[0]; d != "" {
				part["detail"], _ = encode(d)
			}
			*details = (*details)[1:]
		}
	}
	return images
}

// outgoing is the provider's request. Nothing of the child's headers goes along.
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

// receive looks at the provider's answer before the child gets it.
func (r *Relay) receive(res *http.Response) error {
	f := res.Request.Context().Value(callKey{}).(*flow)
	r.noteLimits(res.Header)
	if res.StatusCode == http.StatusUnauthorized && r.provider.Refused != nil {
		r.provider.Refused(res.Request.Header)
	}
	switch {
	case res.StatusCode == http.StatusUnauthorized: // a 403 is about what this one request wanted
		r.rejected.Store(true)
	case res.StatusCode < http.StatusInternalServerError && res.StatusCode != http.StatusTooManyRequests:
		r.rejected.Store(false)
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		return errors.New("it switches protocols") // and would never end
	}
	if res.StatusCode != http.StatusOK || !streams(res.Header) {
		var head bytes.Buffer
		take(&head, res.Body, maxFailure)
		res.Body.Close()
		r.received(head.Len())
		failure := parseFailure(head.Bytes())
		failure.Status = res.StatusCode
		if wait, told := askedWait(res.Header); told {
			failure.RetryAfter = wholeSeconds(wait.Seconds())
		}
		f.call.failure.Store(failure)
		// The child gets no more than that: it keeps a whole body in memory, and would
		// follow a Location to wherever that leads, with the whole prompt.
		res.Header = http.Header{"Content-Type": res.Header["Content-Type"]}
		res.Body = io.NopCloser(&head)
		return nil
	}
	f.body, f.received = res.Body, r.received
	res.Body = f
	return nil
}

// take copies at most so many bytes of what is left of body into w, as far as they
// come in leftoverFor.
func take(w io.Writer, body io.ReadCloser, most int64) {
	timer := time.AfterFunc(leftoverFor, func() { body.Close() }) // which ends a read
	defer timer.Stop()
	_, _ = io.CopyN(w, body, most)
}

func (r *Relay) received(n int) {
	if r.hooks.Received != nil {
		r.hooks.Received(int64(n))
	}
}

// noteLimits reports the limits that the provider tells.
func (r *Relay) noteLimits(h http.Header) {
	if r.hooks.Limit == nil {
		return
	}
	for name, limit := range limitHeaders {
		value, err := strconv.ParseFloat(h.Get(name), 64)
		if err != nil {
			continue // not told
		}
		if limit.Kind == "used" {
			value /= 100
		}
		r.hooks.Limit(limit, value)
	}
}

// streams says that a body is a stream of events, for all that is said of it.
func streams(h http.Header) bool {
	kind := h.Get("Content-Type")
	return kind == "" || strings.HasPrefix(strings.ToLower(kind), "text/event-stream")
}

// parseFailure reads an error as providers write it: in OpenAI's envelope, without
// one, or as a mere sentence under error or detail.
func parseFailure(body []byte) *Failure {
	var b map[string]any
	if json.Unmarshal(body, &b) != nil {
		return &Failure{}
	}
	if envelope, ok := b["error"].(map[string]any); ok {
		b = envelope
	}
	f := &Failure{
		Type: text(b["type"]), Code: text(b["code"]), Param: text(b["param"]),
		Message: cmp.Or(text(b["message"]), text(b["error"]), text(b["detail"])),
	}
	if wait, ok := b["resets_in_seconds"].(float64); ok && wait > 0 { // a ChatGPT login's usage limit
		f.RetryAfter = wholeSeconds(wait)
	}
	return f
}

// wholeSeconds is a Retry-After.
func wholeSeconds(s float64) string { return strconv.FormatFloat(math.Ceil(s), 'f', 0, 64) }

// text is a JSON string, or a number as one; "" for all else.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return ""
}

// unreachable answers a child whose provider gave no answer.
func unreachable(w http.ResponseWriter, req *http.Request, err error) {
	f := req.Context().Value(callKey{}).(*flow)
	if !errors.Is(err, context.Canceled) {
		f.call.failure.Store(&Failure{Cause: err})
	}
	refuse(w, http.StatusBadGateway, "the provider cannot be reached")
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	kind := "invalid_request_error"
	if status >= http.StatusInternalServerError {
		kind = "server_error"
	}
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": message, "type": kind, "param": nil, "code": nil}})
}

// flow is a provider's stream on its way to a child. It watches the events that
// pass, and keeps reading to the end when the child has left after the last.
type flow struct {
	call      *Call
	body      io.ReadCloser
	received  func(bytes int)
	lines     lineWatch
	completed atomic.Bool // response.completed, .incomplete or .failed has passed
}

func (f *flow) Read(b []byte) (int, error) {
	n, err := f.body.Read(b)
	f.received(n)
	f.lines.watch(b[:n], f.event)
	if len(f.lines.line) > maxEvent {
		f.call.failure.Store(&Failure{Status: http.StatusOK, Code: "event_too_long"})
		return 0, errors.New("an event is too long")
	}
	return n, err
}

// Close ends the provider's request; after a completed response it first reads
// on to the end, so that the connection can serve again.
func (f *flow) Close() error {
	if f.completed.Load() {
		take(io.Discard, f.body, maxLeftover)
	}
	return f.body.Close()
}

// heard are the types of event that matter. All the others, which are nearly all,
// pass without being decoded.
var heard = [][]byte{[]byte("response.completed"), []byte("response.incomplete"), []byte("response.failed"), []byte("response.refusal.done"), []byte(`"error"`)}

// event sees the data of each event.
func (f *flow) event(data []byte) {
	if !slices.ContainsFunc(heard, func(kind []byte) bool { return bytes.Contains(data, kind) }) {
		return
	}
	var e struct {
		Type     string          `json:"type"`
		Refusal  string          `json:"refusal"`
		Response json.RawMessage `json:"response"`
	}
	_ = json.Unmarshal(data, &e) // what cannot be read is not for us
	switch e.Type {
	case "response.completed", "response.incomplete":
		f.completed.Store(true)
	case "response.refusal.done":
		f.call.refusal.Store(&e.Refusal)
	case "response.failed":
		f.fail(e.Response)
	case "error":
		f.fail(data)
	}
}

// fail keeps what a stream says of its failure, which is its last word.
func (f *flow) fail(said []byte) {
	f.completed.Store(true)
	failure := parseFailure(said)
	failure.Status = http.StatusOK
	f.call.failure.Store(failure)
}

// lineWatch cuts a stream into lines and shows those that are data. Its owner
// ends a stream whose line grows too long.
type lineWatch struct{ line []byte }

func (l *lineWatch) watch(b []byte, data func([]byte)) {
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte("\n"))
		l.line = append(l.line, part...)
		if ended {
			if d, ok := bytes.CutPrefix(l.line, []byte("data:")); ok {
				data(bytes.TrimSpace(d))
			}
			l.line = l.line[:0]
		}
		b = rest
	}
}
