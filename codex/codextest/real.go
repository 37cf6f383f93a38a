package codextest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/lean"
)

// Binary is the native binary of the pinned Codex CLI: CODEX_BIN, or what
// "make codex" has fetched. It fails the test without one, but under -short
// skips it.
func Binary(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the Codex CLI; not under -short")
	}
	if path := os.Getenv("CODEX_BIN"); path != "" {
		native, err := codex.Locate(path)
		if err != nil {
			t.Fatal(err)
		}
		return native
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if native, err := codex.Native(filepath.Join(dir, "configs", "codex", "node_modules", "@openai", "codex")); err == nil {
			return native
		}
	}
	t.Fatal("the Codex CLI is missing: run make codex, or set CODEX_BIN")
	return ""
}

// Real is the real child, lean as in production, whose provider is at baseURL.
func Real(t testing.TB, baseURL string) codex.Command {
	t.Helper()
	binary := Binary(t)
	env := []string{"PATH=" + os.Getenv("PATH"), Mark()}
	original, _, err := codex.Catalog(t.Context(), binary, t.TempDir(), env)
	if err != nil {
		t.Fatal(err)
	}
	catalog, err := lean.StandIn(original)
	if err != nil {
		t.Fatal(err)
	}
	c := codex.Command{
		Path: binary,
		Args: []string{"app-server", "--strict-config"},
		Home: filepath.Join(Workdir(t), "home"),
		Log:  Log(t),
	}
	child := lean.Relayed(c.CodexHome(), baseURL, catalog)
	c.Files, c.Env = child.Files, append(child.Env, env...)
	return c
}

// Workdir is a folder that is not below /tmp, where Codex does not use its helper
// binaries.
func Workdir(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(cache, "codextest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Upstream is a scripted Responses API.
type Upstream struct {
	*httptest.Server

	// Check may reject the body of a request; then the test fails. It is set before the
	// first request, and may be nil.
	Check func(body []byte) error

	t       testing.TB
	mu      sync.Mutex
	replies []http.HandlerFunc // guarded by mu
	bodies  [][]byte           // guarded by mu
}

// NewUpstream answers each request with the next reply; the last one serves
// all that follow.
func NewUpstream(t testing.TB, replies ...http.HandlerFunc) *Upstream {
	t.Helper()
	u := &Upstream{t: t, replies: replies}
	u.Server = httptest.NewServer(u)
	t.Cleanup(u.Close)
	return u
}

func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if u.Check != nil && r.Method == http.MethodPost {
		if err := u.Check(body); err != nil {
			u.t.Errorf("the provider rejects a request: %v\n%.2000s", err, body)
			Status(http.StatusBadRequest, `{"error":{"message":"The provider is strict.","type":"invalid_request_error","param":null,"code":"strict"}}`)(w, r)
			return
		}
	}
	u.mu.Lock()
	u.bodies = append(u.bodies, body)
	reply := u.replies[0]
	if len(u.replies) > 1 {
		u.replies = u.replies[1:]
	}
	u.mu.Unlock()
	reply(w, r)
}

// Script replaces the replies that remain.
func (u *Upstream) Script(replies ...http.HandlerFunc) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.replies = replies
}

// Bodies are the request bodies so far.
func (u *Upstream) Bodies() [][]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([][]byte(nil), u.bodies...)
}

// Text answers with these deltas, one token each.
func Text(deltas ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := StartStream(w)
		s.Begin()
		for _, d := range deltas {
			s.Delta(d)
		}
		s.End()
	}
}

// Calls answers with these calls, one token each.
func Calls(calls ...codex.ToolCall) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := StartStream(w)
		s.Begin()
		for _, c := range calls {
			s.Call(c)
		}
		s.End()
	}
}

// Calling is a model that calls functions. Where the last user message has lines such as
//
//	call weather {"city":"Oslo"}
//
// it answers with the other lines, word by word, and then with those calls. Any other
// request is for next. A played [Child] does the same.
func Calling(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		text, calls := callsIn(LastUserText(body))
		if len(calls) == 0 {
			r.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(w, r)
			return
		}
		s := StartStream(w)
		s.Begin()
		for word := range strings.SplitAfterSeq(text, " ") {
			s.Delta(word)
		}
		for _, c := range calls {
			s.Call(c)
		}
		s.End()
	})
}

// LastUserText is the text of the last user message in a request of the Responses API.
func LastUserText(request []byte) (text string) {
	var body struct {
		Input []struct {
			Role    string
			Content []struct{ Text string }
		}
	}
	json.Unmarshal(request, &body) // next rejects a body that cannot be read
	for _, item := range body.Input {
		if item.Role == "user" && len(item.Content) > 0 {
			text = item.Content[0].Text
		}
	}
	return text
}

// callsIn splits a text into its calls and the rest.
func callsIn(text string) (rest string, calls []codex.ToolCall) {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		call, ok := strings.CutPrefix(line, "call ")
		if !ok {
			lines = append(lines, line)
			continue
		}
		name, arguments, _ := strings.Cut(call, " ")
		calls = append(calls, codex.ToolCall{ID: fmt.Sprintf("call_%d", len(calls)+1), Name: name, Arguments: arguments})
	}
	return strings.Join(lines, "\n"), calls
}

// Status answers with an error, as OpenAI does.
func Status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// Stream writes the events of one answer, for replies that pause in between.
type Stream struct {
	w      http.ResponseWriter
	id     string
	output []any            // items that are complete
	text   *strings.Builder // of the message that is open, or nil
	n      int              // tokens
}

// StartStream sends the headers.
func StartStream(w http.ResponseWriter) *Stream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	s := &Stream{w: w, output: []any{}, id: fmt.Sprintf("resp_%d", time.Now().UnixNano())}
	http.NewResponseController(w).Flush()
	return s
}

// Event writes one event of the type that it names.
func (s *Stream) Event(fields map[string]any) {
	data, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", fields["type"], data)
	http.NewResponseController(s.w).Flush()
}

// Begin opens the response.
func (s *Stream) Begin() {
	s.Event(map[string]any{"type": "response.created", "response": map[string]any{"id": s.id}})
}

// Delta writes one piece of a message.
func (s *Stream) Delta(text string) {
	if s.text == nil {
		s.text = new(strings.Builder)
		s.item("response.output_item.added", s.message("in_progress"))
	}
	s.text.WriteString(text)
	s.n++
	s.Event(map[string]any{"type": "response.output_text.delta", "item_id": s.itemID("msg"), "output_index": len(s.output), "content_index": 0, "delta": text})
}

// Call writes one call of a function, after the message that is open.
func (s *Stream) Call(c codex.ToolCall) {
	s.closeMessage()
	call := func(status, arguments string) map[string]any {
		return map[string]any{
			"type": "function_call", "id": s.itemID("fc"), "call_id": c.ID, "name": c.Name, "arguments": arguments, "status": status,
		}
	}
	s.item("response.output_item.added", call("in_progress", ""))
	s.n++
	s.Event(map[string]any{"type": "response.function_call_arguments.delta", "item_id": s.itemID("fc"), "output_index": len(s.output), "delta": c.Arguments})
	s.done(call("completed", c.Arguments))
}

// End completes the response: 7 tokens in, one out per delta and call.
func (s *Stream) End() {
	s.closeMessage()
	s.Event(map[string]any{"type": "response.completed", "response": map[string]any{
		"id": s.id, "status": "completed", "output": s.output,
		"usage": map[string]any{
			"input_tokens": 7, "input_tokens_details": map[string]any{"cached_tokens": 0},
			"output_tokens": s.n, "output_tokens_details": map[string]any{"reasoning_tokens": 0},
			"total_tokens": 7 + s.n,
		},
	}})
}

// Fail ends the response with a failure.
func (s *Stream) Fail(code, message string) {
	s.Event(map[string]any{"type": "response.failed", "response": map[string]any{
		"id": s.id, "error": map[string]any{"code": code, "message": message},
	}})
}

// Incomplete ends the response before its end.
func (s *Stream) Incomplete(reason string) {
	s.closeMessage()
	s.Event(map[string]any{"type": "response.incomplete", "response": map[string]any{
		"id": s.id, "status": "incomplete", "incomplete_details": map[string]any{"reason": reason}, "output": s.output,
	}})
}

func (s *Stream) closeMessage() {
	if s.text == nil {
		return
	}
	s.done(s.message("completed", map[string]any{"type": "output_text", "text": s.text.String(), "annotations": []any{}}))
	s.text = nil
}

func (s *Stream) message(status string, content ...any) map[string]any {
	return map[string]any{
		"type": "message", "id": s.itemID("msg"), "role": "assistant", "status": status, "content": append([]any{}, content...),
	}
}

func (s *Stream) item(event string, item map[string]any) {
	s.Event(map[string]any{"type": event, "output_index": len(s.output), "item": item})
}

// done ends the item that is being written.
func (s *Stream) done(item map[string]any) {
	s.item("response.output_item.done", item)
	s.output = append(s.output, item)
}

// itemID is the id of the item that is being written.
func (s *Stream) itemID(kind string) string {
	return fmt.Sprintf("%s_%s_%d", kind, s.id, len(s.output))
}
