package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex"
	"codexpool/pool"
)

// list is n elements of an array; each %d in format is its number.
func list(n int, format string) string {
	elements := make([]string, n)
	for i := range elements {
		elements[i] = strings.ReplaceAll(format, "%d", strconv.Itoa(i))
	}
	return strings.Join(elements, ",")
}

// counts are the kinds of which a request may have only so many: how a body with n of
// them looks.
var counts = []struct {
	name string
	most int
	body func(n int) string
}{
	{"messages", 20_000, func(n int) string { return `{"messages":[` + list(n, `{"role":"user","content":"a"}`) + `]}` }},
	{"tools", 2_048, func(n int) string {
		return `{"messages":[{"role":"user","content":"hi"}],"tools":[` + list(n, `{"type":"function","function":{"name":"f%d"}}`) + `]}`
	}},
	{"functions", 2_048, func(n int) string {
		return `{"messages":[{"role":"user","content":"hi"}],"functions":[` + list(n, `{"name":"f%d"}`) + `]}`
	}},
	{"calls", 2_048, func(n int) string {
		return `{"messages":[{"role":"assistant","tool_calls":[` + list(n, `{"id":"c%d","type":"function","function":{"name":"f","arguments":"{}"}}`) + `]},` +
			list(n, `{"role":"tool","tool_call_id":"c%d","content":"x"}`) + `]}`
	}},
	{"parts", 2_048, func(n int) string {
		return `{"messages":[{"role":"user","content":[` + list(n, `{"type":"text","text":"a"}`) + `]}]}`
	}},
	{"fields", 1_024, func(n int) string {
		return `{"messages":[{"role":"user","content":"hi",` + list(n-2, `"x%d":0`) + `}]}`
	}},
	{"levels", 256, func(n int) string {
		schema := strings.Repeat(`{"a":`, n-2) + `"}{[]\\\""` + strings.Repeat("}", n-2)
		return `{"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","x":[` + schema + `]}}}]}`
	}},
	{"levels", 256, func(n int) string {
		schema := strings.Repeat(`{"a":`, n) + "0" + strings.Repeat("}", n)
		return `{"messages":[{"role":"user","content":"hi"}],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":` + schema + `}}}`
	}},
}

func TestBoundsOfARequestAreNamed(t *testing.T) {
	cfg := config()
	cfg.MaxBody = 16 << 20
	synctest.Test(t, func(t *testing.T) {
		h := behind(t, cfg, 1, says("ok"))
		for _, tt := range counts {
			if a := h.do(t, chat(tt.body(tt.most))); a.Code != 200 {
				t.Errorf("%d %s: %d %.300s", tt.most, tt.name, a.Code, a.Body)
			}
			for _, n := range []int{tt.most + 1, 2 * tt.most} {
				a := h.do(t, chat(tt.body(n)))
				if want := fmt.Sprintf("%d %s", tt.most, tt.name); a.Code != 400 || !strings.Contains(a.Body.String(), want) {
					t.Errorf("%d %s: %d %.300s", n, tt.name, a.Code, a.Body)
				}
			}
		}
	})
}

// TestBoundsOfARequestAreCheap measures the processor's time for a body at each bound.
func TestBoundsOfARequestAreCheap(t *testing.T) {
	const most = 2 * time.Second
	for _, tt := range counts {
		body := []byte(tt.body(tt.most))
		before := cpu(t)
		if err := api.Decode(t.Context(), body, config()); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if took := cpu(t) - before; took > most {
			t.Errorf("%s: %d KB took %v", tt.name, len(body)>>10, took)
		}
	}
}

// cpu is the processor's time that this process has used.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// leaving is the context of a client that leaves when it has been looked at so often.
type leaving struct {
	context.Context
	looks int
}

func (l *leaving) Err() error {
	if l.looks--; l.looks < 0 {
		return context.Canceled
	}
	return nil
}

func TestDecodingStopsWhenTheClientLeaves(t *testing.T) {
	for _, tt := range counts[:5] {
		ctx := &leaving{t.Context(), 100}
		if err := api.Decode(ctx, []byte(tt.body(1_000)), config()); !errors.Is(err, context.Canceled) || ctx.looks < -2 { // the cause is asked for too
			t.Errorf("%s: %v, %d looks too many", tt.name, err, -2-ctx.looks)
		}
	}
}

func TestBodiesAreDecodedOnAsManyCoresAsThereAre(t *testing.T) {
	cores := runtime.GOMAXPROCS(0)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		at, most := 0, 0
		goOn := make(chan struct{})
		cfg := config()
		cfg.Models = func() api.Models { // the last step of decoding
			mu.Lock()
			at++
			most = max(most, at)
			mu.Unlock()
			<-goOn
			mu.Lock()
			defer mu.Unlock()
			at--
			return models
		}
		h := openWith(t, cfg, pool.Config{Size: 1, MaxWaiting: 4 * cores}, nil)
		var clients sync.WaitGroup
		for range 3 * cores {
			clients.Go(func() {
				if a := h.do(t, chat(hello)); a.Code != 200 {
					t.Errorf("%d %s", a.Code, a.Body)
				}
			})
		}
		synctest.Wait()
		gone, leave := context.WithCancel(t.Context())
		clients.Go(func() { h.do(t, chat(hello).WithContext(gone)) })
		synctest.Wait()
		leave() // one that waits for a core does not wait on
		synctest.Wait()
		if got := h.last(); got.Status != api.StatusClientGone {
			t.Errorf("the client that left: %+v", got)
		}
		close(goOn)
		clients.Wait()
		if most != cores {
			t.Errorf("%d bodies at once on %d cores", most, cores)
		}
	})
}

// inParts is a body that comes in two parts: the second when rest is closed.
func inParts(first, second string, rest <-chan struct{}) io.Reader {
	r, w := io.Pipe()
	go func() { // ends when the body is read or closed
		io.WriteString(w, first)
		<-rest
		io.WriteString(w, second)
		w.Close()
	}()
	return r
}

// thinking is a provider that begins each answer at once and ends it when thought is
// closed.
type thinking struct{ thought chan struct{} }

func (p thinking) RoundTrip(req *http.Request) (*http.Response, error) {
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() { // ends when the answer is read or closed
		<-p.thought
		res, _ := says("ok").RoundTrip(nil)
		io.Copy(w, res.Body)
		w.Close()
	}()
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: r}, nil
}

func TestBodiesOfAllRequestsShareOneBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.MaxBodies = 100_000
		provider := thinking{make(chan struct{})}
		h := behind(t, cfg, 2, provider)
		large := `{"messages":[{"role":"user","content":"` + strings.Repeat("x", 40_000)
		saturated := func(what string) {
			t.Helper()
			a := h.do(t, chat(large+`"}]}`))
			if a.Code != 503 || !strings.Contains(a.Body.String(), "bodies") || h.last().Code != "pool_saturated" || a.Header().Get("Retry-After") == "" || a.Header().Get("Connection") != "close" {
				t.Errorf("%s: %d %v %s", what, a.Code, a.Header(), a.Body)
			}
		}
		var clients sync.WaitGroup
		served := func(r *http.Request) {
			clients.Go(func() {
				if a := h.do(t, r); a.Code != 200 {
					t.Errorf("%d %.300s", a.Code, a.Body)
				}
			})
			synctest.Wait()
		}

		announced := make(chan struct{})
		r := request("POST", "/v1/chat/completions", "-")
		r.Body, r.ContentLength = io.NopCloser(inParts("", hello, announced)), 1<<20 // what was announced does not count
		served(r)
		rest := make(chan struct{})
		r = request("POST", "/v1/chat/completions", "-")
		r.Body, r.ContentLength = io.NopCloser(inParts(large, `"}]}`, rest)), -1
		served(r)
		saturated("beside a body that is unfinished")
		close(announced)
		synctest.Wait() // a small body finds room: its request is with the provider
		close(rest)
		synctest.Wait() // so is the large one
		served(chat(large + `"}]}`))
		saturated("beside a request in the queue")
		close(provider.thought)
		clients.Wait()
		for range 3 {
			served(chat(large + `"}]}`))
			h.do(t, chat(large)) // not JSON
			h.do(t, chat(large+strings.Repeat(" ", 1<<20)))
		}
		clients.Wait()
	})
}

// A share of the bodies is given back when the provider has the requests of all
// choices, not of the first.
func TestBodyIsHeldUntilAllChoicesAreWithTheProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.MaxBodies = 100_000
		provider := thinking{make(chan struct{})}
		h := behind(t, cfg, 1, provider)
		done := make(chan answer, 1)
		large := `"messages":[{"role":"user","content":"` + strings.Repeat("x", 40_000) + `"}]}`
		go func() { done <- h.do(t, chat(`{"n":2,`+large)) }()
		synctest.Wait()
		if a := h.do(t, chat(`{`+large)); a.Code != 503 || !strings.Contains(a.Body.String(), "bodies") {
			t.Errorf("beside a choice that waits: %d %s", a.Code, a.Body)
		}
		close(provider.thought)
		if a := <-done; a.Code != 200 {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}

// unread fails the test that reads it.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, io.EOF
}

func TestNoBodyIsReadWhileTheQueueIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider := thinking{make(chan struct{})}
		h := behind(t, config(), 1, provider)
		var clients sync.WaitGroup
		for range 3 { // one runs, two wait
			clients.Go(func() {
				if a := h.do(t, chat(hello)); a.Code != 200 {
					t.Errorf("%d %s", a.Code, a.Body)
				}
			})
		}
		synctest.Wait()
		r := request("POST", "/v1/chat/completions", "-")
		r.Body = io.NopCloser(unread{t})
		if a := h.do(t, r); a.Code != 503 || !strings.Contains(a.Body.String(), `"pool_saturated"`) || a.Header().Get("Connection") != "close" {
			t.Errorf("%d %v %s", a.Code, a.Header(), a.Body)
		}
		close(provider.thought)
		clients.Wait()
	})
}

func TestNamesAreBounded(t *testing.T) {
	cfg := config()
	cfg.MaxBody = 16 << 20
	cfg.Models = func() api.Models { return api.Models{Prefix: "codex-5", Default: "gpt-a", Open: true} }
	const (
		user   = `"messages":[{"role":"user","content":"hi"}]`
		tools  = `"tools":[{"type":"function","function":{"name":"f"}}]`
		result = `,{"role":"tool","tool_call_id":"1","content":"x"}`
	)
	synctest.Test(t, func(t *testing.T) {
		h := behind(t, cfg, 1, says("ok"))
		for param, body := range map[string]string{
			"model": `{"model":"NAME",` + user + `}`,
			"messages[0].tool_calls[0].function.name": `{"messages":[{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"NAME","arguments":""}}]}` + result + `]}`,
			"messages[0].function_call.name":          `{"messages":[{"role":"assistant","function_call":{"name":"NAME","arguments":""}},{"role":"function","name":"NAME","content":"x"}]}`,
			"messages[0].name":                        `{"messages":[{"role":"function","name":"NAME","content":"x"}]}`,
			"tool_choice.function.name":               `{"tool_choice":{"type":"function","function":{"name":"NAME"}},` + tools + `,` + user + `}`,
			"response_format.json_schema.name":        `{"response_format":{"type":"json_schema","json_schema":{"name":"NAME","schema":{}}},` + user + `}`,
		} {
			for _, long := range []string{strings.Repeat("ä", 201), strings.Repeat("x", 2<<20)} {
				a := h.do(t, chat(strings.ReplaceAll(body, "NAME", long)))
				if a.Code != 400 || !strings.Contains(a.Body.String(), `at most 200 characters`) || !strings.Contains(a.Body.String(), `"param":"`+param+`"`) || a.Body.Len() > 1<<10 {
					t.Errorf("%s: %d %.300s", param, a.Code, a.Body)
				}
			}
			if a := h.do(t, chat(strings.ReplaceAll(body, "NAME", strings.Repeat("ä", 200)))); strings.Contains(a.Body.String(), "characters") {
				t.Errorf("%s: %d %.300s", param, a.Code, a.Body)
			}
		}
		if a := h.do(t, chat(`{"model":"`+strings.Repeat("ä", 200)+`",`+user+`}`)); a.Code != 200 {
			t.Errorf("%d %.300s", a.Code, a.Body)
		}
		if a := h.do(t, request("GET", "/v1/models/"+strings.Repeat("x", 201), "")); a.Code != 404 || a.Body.Len() > 1<<10 {
			t.Errorf("%d %.300s", a.Code, a.Body)
		}
	})
}

func TestErrorsRepeatLittleOfABody(t *testing.T) {
	cfg := config()
	cfg.MaxBody = 16 << 20
	long := strings.Repeat("x", 4_000)
	synctest.Test(t, func(t *testing.T) {
		h := open(t, cfg, 1)
		for _, body := range []string{
			`{"messages":[{"role":"assistant","tool_calls":[` + list(2_048, `{"id":"%d`+long+`","type":"function","function":{"name":"f","arguments":""}}`) + `]}]}`,
			`{"messages":[{"role":"tool","tool_call_id":"` + long + `","content":"x"}]}`,
			`{"messages":[{"role":"` + long + `","content":"x"}]}`,
			`{"messages":[{"role":"user","content":[{"type":"` + long + `"}]}]}`,
			`{"metadata":{"` + long + `":1},` + hello[1:],
			`{"logit_bias":{"` + long + `":1000},` + hello[1:],
			`{"functions":[{"name":"` + long + `"}],` + hello[1:],
			`{"reasoning_effort":"` + long + `",` + hello[1:],
			`{"stream":"` + long + `",` + hello[1:],
			`{"` + long,
		} {
			if a := h.do(t, chat(body)); a.Code != 400 || a.Body.Len() > 1<<10 {
				t.Errorf("%.100s: %d, %d bytes", body, a.Code, a.Body.Len())
			}
		}
		ignored := `{` + list(500, `"%d`+long[:3_000]+`":0`) + `,` + hello[1:]
		if a := h.do(t, chat(ignored)); a.Code != 200 || len(a.Header().Get("X-Codexpool-Ignored")) > 1<<10 {
			t.Errorf("%d, a header of %d bytes", a.Code, len(a.Header().Get("X-Codexpool-Ignored")))
		}
	})
}

func TestAnswerInOnePieceIsBounded(t *testing.T) {
	text, call := codex.TextDelta{Text: strings.Repeat("x", 1<<20)}, codex.ToolCallDelta{Name: "f", Arguments: strings.Repeat("x", 1<<20)}
	for _, tt := range []struct {
		name    string
		choices int
		event   codex.Event
		times   int // for each choice
		fails   bool
	}{
		{"text above it", 1, text, 65, true},
		{"choices, together at the bound", 2, text, 32, false},
		{"choices, together above it", 2, text, 33, true},
		{"reasoning above it", 1, codex.ReasoningDelta(text), 65, true},
		{"a refusal above it", 1, codex.Refusal(text), 65, true},
		{"a call above it", 1, call, 64, true}, // its name counts
		{"ticks", 1, codex.Tick{}, 2 << 20, false},
	} {
		w := httptest.NewRecorder()
		err := api.AnswerInOnePiece(w, tt.choices, tt.event, tt.times)
		told := (*api.Error)(nil)
		if failed := errors.As(err, &told) && told.Status == 502 && told.Code == "answer_too_large"; failed != tt.fails || (err != nil) != tt.fails {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, isTick := tt.event.(codex.Tick); !tt.fails && !isTick && w.Body.Len() < 64<<20 {
			t.Errorf("%s: %d bytes came", tt.name, w.Body.Len())
		}
	}
}

// eventsOf is a provider whose answer has these events.
type eventsOf string

func (e eventsOf) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(string(e)))}, nil
}

func TestAnswerThatTheRouteCannotCarryNamesItsItem(t *testing.T) {
	both(t, func(t *testing.T, stream string) {
		for _, tt := range []struct{ path, input, kind, want string }{
			{"/v1/chat/completions", hello[1:], "local_shell_call", "502 local_shell_call"},
			{"/v1/chat/completions", hello[1:], "computer_call", "502 computer_call"},
			{"/v1/chat/completions", hello[1:], "function_call", "200"},
			{"/v1/chat/completions", hello[1:], "message", "200"},
			{"/v1/chat/completions", hello[1:], "reasoning", "200"},
			{"/v1/completions", `"prompt":"hi"}`, "function_call", "502 function_call"},
		} {
			h := behind(t, config(), 1, eventsOf(`data: {"type":"response.completed","response":{"output":[{"type":"`+tt.kind+`","call_id":"c","name":"f","arguments":"{}"}]}}`+"\n\n"))
			a := h.do(t, request("POST", tt.path, `{"stream":`+stream+`,`+tt.input))
			got := strconv.Itoa(a.Code)
			if a.Code != 200 {
				if strings.Contains(a.Body.String(), tt.kind) && h.last().Code == "upstream_error" {
					got += " " + tt.kind
				}
			}
			if got != tt.want {
				t.Errorf("%s, %s: got %s %s, want %s", tt.path, tt.kind, got, a.Body, tt.want)
			}
		}
	})
}

func TestStatusThatIsOursAloneIsAnUpstreamError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := behind(t, config(), 1, refusing(499))
		if a := h.do(t, chat(hello)); a.Code != 502 || h.last().Code != "upstream_error" {
			t.Errorf("%d %s, counted as %+v", a.Code, a.Body, h.last())
		}
	})
}

// refusing is a provider that answers with a status.
type refusing int

func (status refusing) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: int(status), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"error":{"message":"m"}}`))}, nil
}
