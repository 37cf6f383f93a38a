package upstream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/upstream"
)

// provider is a scripted provider: one handler a request, the last for ever.
type provider struct {
	*httptest.Server

	mu       sync.Mutex
	handlers []http.HandlerFunc
	requests []*http.Request
	bodies   []string
	conns    map[string]bool // remote addresses
	inFlight int
}

func newProvider(t *testing.T, handlers ...http.HandlerFunc) *provider {
	t.Helper()
	p := &provider{handlers: handlers, conns: map[string]bool{}}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.EnableHTTP2 = true
	p.StartTLS()
	t.Cleanup(p.Close)
	return p
}

func (p *provider) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	h := p.handlers[0]
	if len(p.handlers) > 1 {
		p.handlers = p.handlers[1:]
	}
	p.requests = append(p.requests, r)
	p.bodies = append(p.bodies, string(body))
	p.conns[r.RemoteAddr] = true
	p.mu.Unlock()
	h(w, r)
}

// rest waits until no body is in flight: they end in their own time.
func (p *provider) rest(t *testing.T) {
	t.Helper()
	for range 1000 {
		p.mu.Lock()
		n := p.inFlight
		p.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond) // sockets give no other sign
	}
	t.Fatal("a body is still in flight")
}

// flight counts the requests in flight, from the start of each to the end of its
// body.
type flight struct {
	http.RoundTripper
	p *provider
}

func (f flight) RoundTrip(req *http.Request) (*http.Response, error) {
	f.p.mu.Lock()
	f.p.inFlight++
	f.p.mu.Unlock()
	res, err := f.RoundTripper.RoundTrip(req)
	if err != nil {
		f.landed()
		return nil, err
	}
	res.Body = landing{res.Body, f}
	return res, nil
}

func (f flight) landed() {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	f.p.inFlight--
}

type landing struct {
	io.ReadCloser
	f flight
}

func (l landing) Close() error {
	l.f.landed()
	return l.ReadCloser.Close()
}

func (p *provider) seen() (requests []*http.Request, bodies []string, conns int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests), slices.Clone(p.bodies), len(p.conns)
}

// sse answers with these data lines, and ends the body a moment later.
func sse(data ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, d := range data {
			fmt.Fprintf(w, "data: %s\n\n", d)
			http.NewResponseController(w).Flush()
		}
		time.Sleep(2 * time.Millisecond) // as providers do: the child has disconnected by now
	}
}

func status(code int, header, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if name, value, ok := strings.Cut(header, ": "); ok {
			w.Header().Set(name, value)
		}
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

const completed = `{"type":"response.completed","response":{"id":"r"}}`

// relay is a relay before a provider, served to a child.
func relay(t *testing.T, p *provider, hooks upstream.Hooks) (*upstream.Relay, string) {
	t.Helper()
	base, err := url.Parse(p.URL + "/base/v1")
	if err != nil {
		t.Fatal(err)
	}
	r := upstream.NewRelay(upstream.Provider{Base: base, Credential: upstream.Bearer("sk-real-key")}, flight{p.Client().Transport, p}, hooks)
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	return r, server.URL
}

const posted = `{"model":"m","stream":true,"instructions":"","input":[
	{"type":"message","id":"msg_codex","role":"user","content":[{"type":"input_text","text":"hi <b>"}]},
	{"type":"function_call","id":"fc_codex","call_id":"c","name":"f","arguments":"{}"},
	{"type":"function_call_output","id":"fco_codex","call_id":"c","output":"<b>"},
	{"type":"reasoning","id":"rs_1","summary":[]}],
	"tools":[],"tool_choice":"auto","parallel_tool_calls":true,"reasoning":{"effort":"low"},"store":false,
	"include":["reasoning.encrypted_content"],"prompt_cache_key":"thread","text":{"verbosity":"low"},"client_metadata":{"x":"y"}}`

// child posts as a child does, reads until it has seen completed, and disconnects.
func child(ctx context.Context, base, key string) (int, string, error) {
	return childPosts(ctx, base, key, posted)
}

// fromChild is a child's request.
func fromChild(ctx context.Context, base, key, body string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, "POST", base+"/v1/responses", strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	metadata, _ := json.Marshal(map[string]string{"thread_id": "t", upstream.MetaKey: key})
	req.Header.Set("X-Codex-Turn-Metadata", string(metadata))
	req.Header.Set("Session-Id", "thread")
	return req
}

func childPosts(ctx context.Context, base, key, body string) (int, string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(fromChild(ctx, base, key, body))
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	var got bytes.Buffer
	for buf := make([]byte, 64<<10); !bytes.Contains(got.Bytes()[max(0, got.Len()-len(buf)-100):], []byte(`"response.completed"`)); {
		n, err := res.Body.Read(buf)
		got.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return res.StatusCode, got.String(), err
		}
	}
	return res.StatusCode, got.String(), nil
}

// imagined is a relay before a provider without a network, for synctest: what
// answer gives, nil for no connection, comes over a connection that was there.
func imagined(answer func(*http.Request) *http.Response) *upstream.Relay {
	return upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider", Path: "/v1"}}, imaginary(answer), upstream.Hooks{})
}

type imaginary func(*http.Request) *http.Response

func (answer imaginary) RoundTrip(req *http.Request) (*http.Response, error) {
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{Reused: true})
	}
	res := answer(req)
	if err := context.Cause(req.Context()); err != nil {
		return nil, err
	}
	if res == nil {
		return nil, errors.New("connection refused")
	}
	body := res.Body // the relay puts another in its place
	context.AfterFunc(req.Context(), func() { body.Close() })
	if res.Request = req; res.Header == nil {
		res.Header = http.Header{}
	}
	return res, nil
}

// answerTo takes what a call has brought so far: its events, and why it is not whole.
func answerTo(call *upstream.Call) (events []codex.Event, failure *upstream.Failure) {
	for {
		e, err := call.Next()
		if errors.As(err, &failure) || e == nil {
			return events, failure
		}
		events = append(events, e)
	}
}

// failure is why the answer to a call is not whole, nil where it is. It is told once.
func failure(call *upstream.Call) *upstream.Failure {
	_, f := answerTo(call)
	return f
}

// serveOne has r serve one request of a child, without a server.
func serveOne(ctx context.Context, r *upstream.Relay) (*upstream.Call, *httptest.ResponseRecorder) {
	call := prepare(ctx, r, upstream.Request{})
	defer call.Done()
	w := httptest.NewRecorder()
	r.ServeHTTP(w, fromChild(ctx, "", call.Key, posted))
	return call, w
}

// prepare makes a call of a request that is made already.
func prepare(ctx context.Context, r *upstream.Relay, request upstream.Request) *upstream.Call {
	return r.Prepare(ctx, func() upstream.Request { return request }, func() {})
}
