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
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
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
	r := upstream.NewRelay(upstream.Provider{Base: base, Credential: upstream.Bearer("sk-real")}, flight{p.Client().Transport, p}, hooks)
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

// serveOne has r serve one request of a child, without a server.
func serveOne(ctx context.Context, r *upstream.Relay) (*upstream.Call, *httptest.ResponseRecorder) {
	call := r.Prepare(nil)
	defer call.Done()
	w := httptest.NewRecorder()
	r.ServeHTTP(w, fromChild(ctx, "", call.Key, posted))
	return call, w
}

// endless is a body that never ends: its text, and then the same byte for ever,
// or silence until it is closed.
type endless struct {
	*io.PipeReader
	read int
}

func newEndless(text, filler string) *endless {
	r, w := io.Pipe()
	go func() { // ends when the body is closed
		_, err := io.WriteString(w, text)
		for err == nil && filler != "" {
			_, err = io.WriteString(w, strings.Repeat(filler, 32<<10))
		}
	}()
	return &endless{PipeReader: r}
}

func (e *endless) Read(b []byte) (int, error) {
	n, err := e.PipeReader.Read(b)
	e.read += n
	return n, err
}

// TestRelayStopsReadingABodyThatNeverEnds covers the bodies that the relay itself
// reads to their end: of an error, of a first try, and behind the last event.
func TestRelayStopsReadingABodyThatNeverEnds(t *testing.T) {
	const envelope = `{"error":{"message":"m"}}`
	for name, tt := range map[string]struct {
		status int
		text   string
		filler string        // what comes for ever; "" = silence
		takes  time.Duration // 0 = no time
		reads  int           // about, at most
	}{
		"a silent error":        {400, envelope, "", 5 * time.Second, 1 << 10},
		"a long error":          {400, envelope, " ", 0, 128 << 10},
		"a silent first try":    {502, envelope, "", 5 * time.Second, 1 << 10},
		"a long first try":      {502, envelope, " ", 0, 128 << 10},
		"silent after the last": {200, "data: " + completed + "\n\n", "", 5 * time.Second, 1 << 10},
		"long after the last":   {200, "data: " + completed + "\n\n", "\n", 0, 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first := newEndless(tt.text, tt.filler)
				r := imagined(func() func(*http.Request) *http.Response {
					tries := 0
					return func(*http.Request) *http.Response {
						if tries++; tries > 1 {
							return &http.Response{StatusCode: 400, Body: io.NopCloser(strings.NewReader(envelope))}
						}
						return &http.Response{StatusCode: tt.status, Body: first, Header: http.Header{"Content-Type": {"text/event-stream"}}}
					}
				}())
				began := time.Now()
				ctx, disconnect := context.WithCancel(t.Context())
				defer disconnect()
				call := r.Prepare(nil)
				defer call.Done()
				w := &childThatDisconnects{ResponseRecorder: httptest.NewRecorder(), disconnect: disconnect}
				func() {
					defer func() { _ = recover() }() // http.ErrAbortHandler, of a write that failed
					r.ServeHTTP(w, fromChild(ctx, "", call.Key, posted))
				}()
				if took := time.Since(began); took < tt.takes || took > tt.takes+time.Second {
					t.Errorf("it took %v", took)
				}
				if first.read > tt.reads {
					t.Errorf("%d bytes were read", first.read)
				}
				if w.Body.Len() > 64<<10 {
					t.Errorf("the child got %d bytes", w.Body.Len())
				}
				if f := call.Failure(); (f != nil && f.Message == "m") != (tt.status != 200) {
					t.Errorf("failure %+v", f)
				}
			})
		})
	}
}

// childThatDisconnects disconnects as soon as it has read the last event.
type childThatDisconnects struct {
	*httptest.ResponseRecorder
	disconnect func()
}

var lastEvent = regexp.MustCompile(`"(response\.(completed|incomplete|failed)|error)"`)

func (c *childThatDisconnects) Write(b []byte) (int, error) {
	if lastEvent.Match(c.Body.Bytes()) {
		return 0, errors.New("the child has disconnected")
	}
	n, err := c.ResponseRecorder.Write(b)
	if lastEvent.Match(c.Body.Bytes()) {
		c.disconnect()
	}
	return n, err
}

// TestRelayReadsTheBodyToItsEndAfterEachLastEvent has a body end a second after the
// child has disconnected: a body that is cut off costs the connection.
func TestRelayReadsTheBodyToItsEndAfterEachLastEvent(t *testing.T) {
	for kind, whole := range map[string]bool{
		"response.completed": true, "response.incomplete": true, "response.failed": true, "error": true,
		"response.output_text.delta": false, // the disconnect is a cancel
	} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				body, end := io.Pipe()
				var cut error
				go func() { // ends with the body
					io.WriteString(end, `data: {"type":"`+kind+`"}`+"\n\n")
					time.Sleep(time.Second)
					_, cut = io.WriteString(end, "\n")
					end.Close()
				}()
				r := imagined(func(*http.Request) *http.Response { return &http.Response{StatusCode: 200, Body: body} })
				call := r.Prepare(nil)
				defer call.Done()
				ctx, disconnect := context.WithCancel(t.Context())
				if !whole {
					time.AfterFunc(500*time.Millisecond, disconnect)
				}
				func() {
					defer func() { _ = recover() }() // http.ErrAbortHandler, of what was cut
					r.ServeHTTP(&childThatDisconnects{httptest.NewRecorder(), disconnect}, fromChild(ctx, "", call.Key, posted))
				}()
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if (cut == nil) != whole {
					t.Errorf("its end: %v", cut)
				}
			})
		})
	}
}

func TestSwitchOfProtocolsIsAFailureAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := imagined(func(*http.Request) *http.Response {
			return &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: newEndless("", "")}
		})
		began := time.Now()
		call, w := serveOne(t.Context(), r)
		if w.Code != 502 || call.Failure() == nil || time.Since(began) != 0 {
			t.Errorf("the child got %d, failure %+v after %v", w.Code, call.Failure(), time.Since(began))
		}
	})
}

func TestProviderGetsTheCallersFieldsAndNothingOfCodex(t *testing.T) {
	p := newProvider(t, sse(completed))
	var sent, received int64
	var overridden []string
	r, base := relay(t, p, upstream.Hooks{
		Sent:       func(_ context.Context, n int64) { sent += n },
		Received:   func(_ context.Context, n int64) { received += n },
		Overridden: func(_ context.Context, field string) { overridden = append(overridden, field) },
	})
	call := r.Prepare(upstream.Overrides{"temperature": json.RawMessage("0.20"), "prompt_cache_key": json.RawMessage(`"k"`)})
	defer call.Done()
	if code, _, err := child(t.Context(), base, call.Key); code != 200 || err != nil {
		t.Fatal(code, err)
	}
	requests, bodies, _ := p.seen()
	want := `{"input":[{"content":[{"type":"input_text","text":"hi <b>"}],"role":"user","type":"message"},` +
		`{"arguments":"{}","call_id":"c","name":"f","type":"function_call"},{"call_id":"c","output":"<b>","type":"function_call_output"},` +
		`{"type":"reasoning","id":"rs_1","summary":[]}],` +
		`"model":"m","prompt_cache_key":"k","store":false,"stream":true,"temperature":0.20}`
	if diff := cmp.Diff(want, bodies[0]); diff != "" {
		t.Errorf("body (-want +got)\n%s", diff)
	}
	got := requests[0]
	if got.URL.Path != "/base/v1/responses" || got.Header.Get("Authorization") != "Bearer sk-real" || got.Header.Get("Session-Id") != "k" {
		t.Errorf("%s %v", got.URL, got.Header)
	}
	for name := range got.Header {
		if !slices.Contains([]string{"Accept", "Accept-Encoding", "Authorization", "Content-Length", "Content-Type", "Session-Id", "User-Agent"}, name) {
			t.Errorf("header %s: %s", name, got.Header.Get(name))
		}
	}
	if call.Failure() != nil {
		t.Errorf("a failure: %+v", call.Failure())
	}
	p.rest(t)
	if sent != int64(len(want)) || received != int64(len("data: "+completed+"\n\n")) || len(overridden) != 2 {
		t.Errorf("counted %d bytes sent, %d received, and the overrides %v", sent, received, overridden)
	}
}

func TestImagesKeepTheCallersDetail(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	call := r.Prepare(nil, "low", "")
	defer call.Done()
	image := `{"type":"input_image","image_url":"data:","detail":"original"}`
	body := `{"model":"m","input":[{"type":"message","role":"user","content":[` + image + `]},{"type":"message","role":"user","content":[{"type":"input_text","text":"<"},` + image + `]}]}`
	if code, _, err := childPosts(t.Context(), base, call.Key, body); code != 200 || err != nil {
		t.Fatal(code, err)
	}
	_, bodies, _ := p.seen()
	want := `{"input":[{"content":[{"detail":"low","image_url":"data:","type":"input_image"}],"role":"user","type":"message"},` +
		`{"content":[{"text":"<","type":"input_text"},{"image_url":"data:","type":"input_image"}],"role":"user","type":"message"}],"model":"m","store":false,"stream":true}`
	if diff := cmp.Diff(want, bodies[0]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestMaxOutputTokensIsRaisedToWhatOpenAIAccepts(t *testing.T) {
	p := newProvider(t, sse(completed))
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind        upstream.Kind
		value, want string
	}{
		{upstream.OpenAI, "1", `"max_output_tokens":16`},
		{upstream.OpenAI, "17", `"max_output_tokens":17`},
		{upstream.Responses, "1", `"max_output_tokens":1`},
	} {
		r := upstream.NewRelay(upstream.Provider{Base: base, Kind: tt.kind}, p.Client().Transport, upstream.Hooks{})
		server := httptest.NewServer(r)
		defer server.Close()
		call := r.Prepare(upstream.Overrides{"max_output_tokens": json.RawMessage(tt.value)})
		defer call.Done()
		if code, _, err := child(t.Context(), server.URL, call.Key); code != 200 || err != nil {
			t.Fatal(code, err)
		}
		_, bodies, _ := p.seen()
		if got := bodies[len(bodies)-1]; !strings.Contains(got, tt.want+",") {
			t.Errorf("max_output_tokens %s: %s", tt.value, got)
		}
	}
}

func TestChatGPTGetsInstructionsAndOnlyTheFieldsItSupports(t *testing.T) {
	p := newProvider(t, sse(completed))
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := upstream.NewRelay(upstream.Provider{Base: base, Kind: upstream.ChatGPT}, flight{p.Client().Transport, p}, upstream.Hooks{})
	server := httptest.NewServer(r)
	defer server.Close()
	if r.Supports("max_output_tokens") || r.Supports("temperature") || !r.Supports("tools") {
		t.Error("it supports other fields")
	}
	for _, tt := range []struct{ input, instructions, rest string }{
		{
			`[{"type":"message","role":"developer","content":[{"type":"input_text","text":"be"},{"type":"input_text","text":"brief"}]},
		   {"type":"message","role":"developer","content":[{"type":"input_text","text":"and kind"}]},
		   {"type":"message","role":"user","content":[]},{"type":"message","role":"developer","content":[]}]`,
			"be\n\nbrief\n\nand kind", `[{"content":[],"role":"user","type":"message"},{"content":[],"role":"developer","type":"message"}]`,
		},
		{`[{"type":"message","role":"user","content":[]}]`, "You are a helpful assistant.", `[{"content":[],"role":"user","type":"message"}]`},
	} {
		call := r.Prepare(nil)
		defer call.Done()
		if code, _, err := childPosts(t.Context(), server.URL, call.Key, `{"model":"m","input":`+tt.input+`}`); code != 200 || err != nil {
			t.Fatal(code, err)
		}
		_, bodies, _ := p.seen()
		var got struct {
			Instructions string
			Input        json.RawMessage
		}
		if err := json.Unmarshal([]byte(bodies[len(bodies)-1]), &got); err != nil {
			t.Fatal(err)
		}
		if got.Instructions != tt.instructions || string(got.Input) != tt.rest {
			t.Errorf("instructions %q, input %s", got.Instructions, got.Input)
		}
	}
}

func TestProviderGetsNoRequestWithoutACredential(t *testing.T) {
	p := newProvider(t, sse(completed))
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	expired := errors.New("the login has expired")
	r := upstream.NewRelay(upstream.Provider{Base: base, Credential: func(http.Header) error { return expired }}, p.Client().Transport, upstream.Hooks{})
	server := httptest.NewServer(r)
	defer server.Close()
	call := r.Prepare(nil)
	defer call.Done()
	if code, _, _ := child(t.Context(), server.URL, call.Key); code != http.StatusUnauthorized {
		t.Errorf("the child got %d", code)
	}
	if f := call.Failure(); f == nil || f.Status != http.StatusUnauthorized || !errors.Is(f.Cause, expired) || !r.Rejected() {
		t.Errorf("failure %+v, rejected %v", f, r.Rejected())
	}
	expired = nil
	if r.Rejected() {
		t.Error("a login that is there again is not noticed")
	}
	if requests, _, _ := p.seen(); len(requests) != 0 {
		t.Errorf("%d requests reached the provider", len(requests))
	}
}

func TestRequestOfNoCallIsRejected(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	call := r.Prepare(nil)
	call.Done()
	for _, key := range []string{"", "guess", call.Key} {
		if code, _, _ := child(t.Context(), base, key); code != http.StatusForbidden {
			t.Errorf("%q: %d", key, code)
		}
	}
	if requests, _, _ := p.seen(); len(requests) != 0 {
		t.Errorf("%d requests reached the provider", len(requests))
	}
}

func TestChildThatAnswersACallByItselfIsRejected(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	call := r.Prepare(nil)
	defer call.Done()
	const (
		result  = `{"model":"m","input":[{"type":"function_call","call_id":"c"},{"type":"function_call_output","call_id":"c"}]}`
		message = `{"model":"m","input":[{"type":"function_call_output","call_id":"c"},{"type":"message","role":"assistant"}]}`
	)
	for i, step := range []struct {
		body string
		want int
	}{
		{result, http.StatusOK}, // the caller's own history
		{result, http.StatusConflict},
		{message, http.StatusOK}, // a model that goes on
		{result, http.StatusConflict},
	} {
		if code, _, _ := childPosts(t.Context(), base, call.Key, step.body); code != step.want {
			t.Errorf("request %d: %d, want %d", i+1, code, step.want)
		}
	}
	if requests, _, _ := p.seen(); len(requests) != 2 {
		t.Errorf("%d requests reached the provider", len(requests))
	}
}

func TestDisconnectAfterTheLastEventKeepsTheConnection(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			p := newProvider(t, sse(`{"type":"response.output_text.delta","delta":"x"}`, completed))
			if !http2 {
				p.Client().Transport.(*http.Transport).ForceAttemptHTTP2 = false
				p.Client().Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
			}
			r, base := relay(t, p, upstream.Hooks{})
			for range 50 {
				call := r.Prepare(nil)
				if code, got, err := child(t.Context(), base, call.Key); code != 200 || err != nil || !strings.Contains(got, `"delta":"x"`) {
					t.Fatal(code, got, err)
				}
				call.Done()
				p.rest(t)
			}
			if _, _, conns := p.seen(); conns != 1 {
				t.Errorf("%d connections for 50 requests, one at a time", conns)
			}
		})
	}
}

func TestDisconnectBeforeTheLastEventEndsTheProvidersRequest(t *testing.T) {
	ended := make(chan struct{})
	p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	})
	r, base := relay(t, p, upstream.Hooks{})
	call := r.Prepare(nil)
	defer call.Done()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel) // after the headers, in most runs; before them is well, too
	child(ctx, base, call.Key)
	<-ended
	if call.Failure() != nil {
		t.Errorf("a cancel is no failure: %+v", call.Failure())
	}
}

func TestFailureKeepsTheProvidersOwnError(t *testing.T) {
	envelope := `{"error":{"message":"m","type":"t","param":"p","code":"c"}}`
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   upstream.Failure
	}{
		"400":             {status(400, "", envelope), upstream.Failure{Status: 400, Message: "m", Type: "t", Param: "p", Code: "c"}},
		"429":             {status(429, "Retry-After: 17", envelope), upstream.Failure{Status: 429, Message: "m", Type: "t", Param: "p", Code: "c", RetryAfter: "17"}},
		"500 without one": {status(500, "", "<html>"), upstream.Failure{Status: 500}},
		"numbers":         {status(422, "", `{"error":{"message":"m","code":42,"param":7}}`), upstream.Failure{Status: 422, Message: "m", Code: "42", Param: "7"}},
		"other types":     {status(422, "", `{"error":{"message":"m","code":[],"param":["p"],"type":{}}}`), upstream.Failure{Status: 422, Message: "m"}},
		"error as text":   {status(400, "", `{"error":"m"}`), upstream.Failure{Status: 400, Message: "m"}},
		"detail as text":  {status(404, "", `{"detail":"m"}`), upstream.Failure{Status: 404, Message: "m"}},
		"no envelope":     {status(400, "", `{"object":"error","message":"m","type":"t","param":null,"code":400}`), upstream.Failure{Status: 400, Message: "m", Type: "t", Code: "400"}},
		"JSON with a 200": {status(200, "Content-Type: application/json", envelope), upstream.Failure{Status: 200, Message: "m", Type: "t", Param: "p", Code: "c"}},
		"HTML with a 200": {status(200, "Content-Type: text/html", "<html>"), upstream.Failure{Status: 200}},
		"response.failed": {
			sse(`{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"slow down"}}}`),
			upstream.Failure{Status: 200, Code: "rate_limit_exceeded", Message: "slow down"},
		},
		"response.failed, long": {
			sse(`{"type":"response.failed","response":{"instructions":"` + strings.Repeat("x", 1<<20) + `","error":{"code":"c","message":"m"}}}`),
			upstream.Failure{Status: 200, Code: "c", Message: "m"},
		},
		"response.failed, its type last": {
			sse(`{"response":{"error":{"code":"c","message":"m"},"instructions":"` + strings.Repeat("x", 300) + `"},"type":"response.failed"}`),
			upstream.Failure{Status: 200, Code: "c", Message: "m"},
		},
		"response.failed without a word": {sse(`{"type":"response.failed","response":null}`), upstream.Failure{Status: 200}},
		"error":                          {sse(`{"type":"error","code":"c","message":"m","param":null}`), upstream.Failure{Status: 200, Type: "error", Code: "c", Message: "m"}},
		"error in an envelope":           {sse(`{"type":"error","error":{"type":"t","code":"c","message":"m"}}`), upstream.Failure{Status: 200, Type: "t", Code: "c", Message: "m"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t, tt.answer)
			r, base := relay(t, p, upstream.Hooks{})
			call := r.Prepare(nil)
			defer call.Done()
			child(t.Context(), base, call.Key)
			if got := call.Failure(); got == nil || *got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestCacheKeyIsAHeaderOnlyWhereItFits(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	for i, tt := range []struct{ key, header string }{
		{"a key of mine", "a key of mine"},
		{strings.Repeat("x", 200), strings.Repeat("x", 200)},
		{strings.Repeat("x", 201), ""},
		{"a\nb", ""},
		{"clé", ""},
		{"\x7f", ""},
	} {
		value, _ := json.Marshal(tt.key)
		call := r.Prepare(upstream.Overrides{"prompt_cache_key": value})
		code, _, err := child(t.Context(), base, call.Key)
		call.Done()
		if code != 200 || err != nil {
			t.Errorf("%q: %d, %v", tt.key, code, err)
			continue
		}
		requests, bodies, _ := p.seen()
		if got := requests[i].Header.Get("Session-Id"); got != tt.header || !strings.Contains(bodies[i], `"prompt_cache_key":`) {
			t.Errorf("%q: the header is %q", tt.key, got)
		}
	}
}

func TestUnreachableProviderIsAFailureWithoutStatus(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	p.Close()
	call := r.Prepare(nil)
	defer call.Done()
	if code, _, _ := child(t.Context(), base, call.Key); code != http.StatusBadGateway {
		t.Errorf("%d", code)
	}
	if got := call.Failure(); got == nil || got.Status != 0 || !strings.Contains(got.Error(), "connection refused") {
		t.Errorf("got %+v", got)
	}
}

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
			call := r.Prepare(nil)
			defer call.Done()
			code, _, _ := child(t.Context(), base, call.Key)
			_, bodies, _ := p.seen()
			if len(bodies) != tt.tries || retries != tt.tries-1 {
				t.Fatalf("%d tries, %d retries", len(bodies), retries)
			}
			if tt.tries == 2 && (code != 200 || bodies[0] != bodies[1] || call.Failure() != nil) {
				t.Errorf("the second: %d, failure %+v", code, call.Failure())
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
				if got := call.Failure().RetryAfter; got != tt.passed {
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
		if took := time.Since(began); took != time.Second || tries != 1 || call.Failure() != nil {
			t.Errorf("after %v and %d tries: failure %+v", took, tries, call.Failure())
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
	for failures, want := range map[int]int{1: 200, 2: 502} {
		p := newProvider(t, sse(completed))
		base, _ := url.Parse(p.URL)
		r := upstream.NewRelay(upstream.Provider{Base: base}, &failing{p.Client().Transport, failures}, upstream.Hooks{})
		server := httptest.NewServer(r)
		call := r.Prepare(nil)
		if code, _, _ := child(t.Context(), server.URL, call.Key); code != want || (call.Failure() == nil) != (want == 200) {
			t.Errorf("%d failures: %d, failure %+v", failures, code, call.Failure())
		}
		call.Done()
		server.Close()
	}
}

func TestEventThatIsTooLongEndsTheStream(t *testing.T) {
	p := newProvider(t, sse(`{"type":"x","delta":"`+strings.Repeat("x", 9<<20)+`"}`, completed))
	r, base := relay(t, p, upstream.Hooks{})
	call := r.Prepare(nil)
	defer call.Done()
	if _, got, err := child(t.Context(), base, call.Key); err == nil || strings.Contains(got, "completed") {
		t.Errorf("%d bytes passed, %v", len(got), err)
	}
}

func TestRejectedLastsUntilTheCredentialIsAccepted(t *testing.T) {
	p := newProvider(t, status(401, "", ""), status(500, "", ""), sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	for i, want := range []bool{true, true, false} {
		call := r.Prepare(nil)
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
		call := r.Prepare(nil)
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
		"no answer is conclusive":       {[]int{404, 429, 500, 0}, 10},
		"one answer is conclusive":      {[]int{404, 404, 401, 404}, 13},
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

func TestLimitsOfTheProviderAreReported(t *testing.T) {
	got := map[upstream.Limit]float64{}
	p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-ratelimit-remaining-tokens", "149000")
		w.Header().Set("x-ratelimit-limit-requests", "many")
		w.Header().Set("x-codex-primary-used-percent", "12.5")
		sse(completed)(w, r)
	})
	r, base := relay(t, p, upstream.Hooks{Limit: func(_ context.Context, l upstream.Limit, value float64) { got[l] = value }})
	call := r.Prepare(nil)
	defer call.Done()
	child(t.Context(), base, call.Key)
	want := map[upstream.Limit]float64{{Kind: "remaining", Unit: "tokens"}: 149000, {Kind: "used", Unit: "primary"}: 0.125}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestConnectionReuseIsReported(t *testing.T) {
	var got []string
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{Request: func(_ context.Context, status int, reused bool, _ time.Duration) {
		got = append(got, fmt.Sprint(status, reused))
	}})
	for range 2 {
		call := r.Prepare(nil)
		child(t.Context(), base, call.Key)
		call.Done()
		p.rest(t)
	}
	if !slices.Equal(got, []string{"200 false", "200 true"}) {
		t.Errorf("got %v", got)
	}
}
