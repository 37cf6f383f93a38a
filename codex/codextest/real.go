package codextest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/configs"
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
	file, _, err := codex.Catalog(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	c := codex.Command{
		Path: binary,
		Args: []string{"app-server", "--strict-config"},
		Home: filepath.Join(Workdir(t), "home"),
		Log:  Log(t),
	}
	lean := configs.LeanChild(c.CodexHome(), baseURL, file)
	c.Files, c.Env = lean.Files, append(lean.Env, "PATH="+os.Getenv("PATH"), Mark())
	return c
}

// Workdir is a folder that is not below /tmp, as Codex wants it.
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

	mu      sync.Mutex
	replies []http.HandlerFunc // guarded by mu
	bodies  [][]byte           // guarded by mu
}

// NewUpstream answers each request with the next reply; the last one serves
// all that follow.
func NewUpstream(t testing.TB, replies ...http.HandlerFunc) *Upstream {
	t.Helper()
	u := &Upstream{replies: replies}
	u.Server = httptest.NewServer(u)
	t.Cleanup(u.Close)
	return u
}

func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
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

// Script replaces the replies that are left.
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

// Status answers with an error, as OpenAI does.
func Status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// Stream writes the events of one answer, for replies that take their time.
type Stream struct {
	w    http.ResponseWriter
	id   string
	text string
	n    int
}

// StartStream sends the headers.
func StartStream(w http.ResponseWriter) *Stream {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	s := &Stream{w: w, id: fmt.Sprintf("resp_%d", time.Now().UnixNano())}
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

// Begin opens the response and its one message.
func (s *Stream) Begin() {
	s.Event(map[string]any{"type": "response.created", "response": map[string]any{"id": s.id}})
	s.Event(map[string]any{"type": "response.output_item.added", "output_index": 0, "item": map[string]any{
		"type": "message", "id": "msg_" + s.id, "role": "assistant", "status": "in_progress", "content": []any{},
	}})
}

// Delta writes one piece of text.
func (s *Stream) Delta(text string) {
	s.text += text
	s.n++
	s.Event(map[string]any{"type": "response.output_text.delta", "item_id": "msg_" + s.id, "output_index": 0, "content_index": 0, "delta": text})
}

// End completes the message and the response: 7 tokens in, one out per delta.
func (s *Stream) End() {
	s.Event(map[string]any{"type": "response.output_item.done", "output_index": 0, "item": map[string]any{
		"type": "message", "id": "msg_" + s.id, "role": "assistant", "status": "completed",
		"content": []any{map[string]any{"type": "output_text", "text": s.text, "annotations": []any{}}},
	}})
	s.Event(map[string]any{"type": "response.completed", "response": map[string]any{"id": s.id, "usage": map[string]any{
		"input_tokens": 7, "input_tokens_details": map[string]any{"cached_tokens": 0},
		"output_tokens": s.n, "output_tokens_details": map[string]any{"reasoning_tokens": 0},
		"total_tokens": 7 + s.n,
	}}})
}
