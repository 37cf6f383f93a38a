package codextest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"codexpool/codex"
)

// Child is a healthy child for any number of turns. It answers with the words of the
// last user message, as the echo model does behind a real child, and with the calls
// that the message contains (see [Calling]). Its methods may be called while it serves.
type Child struct {
	Delay time.Duration // before each word

	// Post, if not nil, is what a turn with metadata does instead of answering by itself:
	// it sends the request of the turn, as the real CLI does, and returns when the
	// answer is over. metadata is the value of the header x-codex-turn-metadata. ctx ends
	// when the turn is interrupted.
	Post func(ctx context.Context, metadata string) error

	mu       sync.Mutex
	out      io.Writer      // guarded by mu
	calls    map[string]int // guarded by mu
	threads  map[string]*playedThread
	turns    map[string]*playedTurn
	requests int // requests of its own
}

type playedThread struct {
	raw   bool // with raw events
	tools map[string]bool
	text  string // last user message
}

type playedTurn struct {
	meta string // "" = none
	stop chan struct{}
	once sync.Once
}

// Serve is the step that plays c until its input ends; put it after [Handshake].
func Serve(c *Child) Step {
	return Step{"serve", func(p *player) error {
		c.mu.Lock()
		c.out = p.out
		c.calls, c.threads, c.turns = map[string]int{}, map[string]*playedThread{}, map[string]*playedTurn{}
		c.mu.Unlock()
		var running sync.WaitGroup
		defer running.Wait()
		defer c.stopAll()
		for {
			m, err := p.read()
			if err == io.EOF {
				return errExit
			}
			if err != nil {
				return err
			}
			if err := c.serve(m, &running); err != nil {
				return err
			}
		}
	}}
}

// Calls is how often method was called so far.
func (c *Child) Calls(method string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[method]
}

func (c *Child) serve(m wireMessage, running *sync.WaitGroup) error {
	if m.Method == "" {
		return nil // an answer to a request of its own, which it does not need
	}
	var params struct {
		ThreadID string `json:"threadId"`
		TurnID   string `json:"turnId"`
		Items    []struct {
			Role    string
			Content []struct{ Text string }
		}
		DynamicTools          []struct{ Name string }
		ExperimentalRawEvents bool
		Meta                  json.RawMessage `json:"responsesapiClientMetadata"`
	}
	if err := json.Unmarshal(m.Params, &params); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[m.Method]++
	thread := c.threads[params.ThreadID]
	switch m.Method {
	case "thread/start":
		id := fmt.Sprintf("thread-%d", len(c.threads)+1)
		thread := &playedThread{raw: params.ExperimentalRawEvents, tools: map[string]bool{}}
		for _, tool := range params.DynamicTools {
			thread.tools[tool.Name] = true
		}
		c.threads[id] = thread
		return c.send(wireMessage{ID: m.ID, Result: raw(map[string]any{"thread": map[string]any{"id": id}})})
	case "thread/inject_items":
		for _, item := range params.Items {
			if item.Role == "user" && len(item.Content) > 0 {
				thread.text = item.Content[0].Text
			}
		}
		return c.send(wireMessage{ID: m.ID, Result: raw(struct{}{})})
	case "turn/start":
		turn := &playedTurn{meta: string(params.Meta), stop: make(chan struct{})}
		id := "turn-of-" + params.ThreadID
		c.turns[id] = turn
		if err := c.send(wireMessage{ID: m.ID, Result: raw(map[string]any{"turn": map[string]any{"id": id}})}); err != nil {
			return err
		}
		running.Go(func() {
			if turn.meta != "" && c.Post != nil {
				c.post(turn, params.ThreadID, id)
				return
			}
			c.play(*thread, params.ThreadID, id, turn.stop)
		})
		return nil
	case "turn/interrupt":
		if turn := c.turns[params.TurnID]; turn != nil {
			turn.once.Do(func() { close(turn.stop) })
		}
		return c.send(wireMessage{ID: m.ID, Result: raw(struct{}{})})
	case "server/diagnostics", "thread/unsubscribe":
		return c.send(wireMessage{ID: m.ID, Result: raw(struct{}{})})
	}
	return c.send(wireMessage{ID: m.ID, Error: raw(map[string]any{"code": -32601, "message": "not played: " + m.Method})})
}

// post runs one turn whose answer comes from elsewhere.
func (c *Child) post(turn *playedTurn, thread, id string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with the turn
		select {
		case <-turn.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	end := map[string]any{"id": id, "status": "completed"}
	if err := c.Post(ctx, turn.meta); ctx.Err() != nil {
		end["status"] = "interrupted"
	} else if err != nil {
		end["status"], end["error"] = "failed", map[string]any{"message": err.Error(), "codexErrorInfo": "other"}
	}
	c.notify("turn/completed", map[string]any{"threadId": thread, "turn": end})
}

// PostTo makes a [Child.Post] that posts to the Responses API at baseURL.
func PostTo(baseURL string) func(context.Context, string) error {
	return func(ctx context.Context, metadata string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, baseURL+"/responses", strings.NewReader(`{"model":"m","input":[],"stream":true}`))
		if err != nil {
			return err
		}
		req.Header.Set("X-Codex-Turn-Metadata", metadata)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("unexpected status %d", res.StatusCode)
		}
		for lines := bufio.NewScanner(res.Body); lines.Scan(); {
			if strings.Contains(lines.Text(), "response.completed") {
				return nil // as the real CLI does, before the body has ended
			}
		}
		return errors.New("stream disconnected before completion")
	}
}

// ConfiguredURL is the base URL of the provider in the config.toml of this process's
// CODEX_HOME.
func ConfiguredURL() string {
	config, err := os.ReadFile(filepath.Join(os.Getenv("CODEX_HOME"), "config.toml"))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(config), "\nbase_url = \"")
	url, _, _ := strings.Cut(rest, "\"")
	return url
}

// play runs one turn.
func (c *Child) play(thread playedThread, id, turn string, stop <-chan struct{}) {
	text, calls := callsIn(thread.text)
	status := "interrupted"
	if n, ok := c.sayWords(text, id, turn, stop); ok {
		usage := map[string]any{"inputTokens": n, "outputTokens": n + len(calls), "totalTokens": 2*n + len(calls)}
		if len(calls) > 0 {
			c.call(thread, id, turn, calls, usage)
			<-stop // with the results a real child would send another request to the model
		} else {
			status = "completed"
		}
		c.notify("thread/tokenUsage/updated", map[string]any{"threadId": id, "turnId": turn, "tokenUsage": map[string]any{"total": usage}})
	}
	c.notify("turn/completed", map[string]any{"threadId": id, "turn": map[string]any{"id": turn, "status": status}})
}

// sayWords sends the words of text, until it is stopped. It returns how many.
func (c *Child) sayWords(text, thread, turn string, stop <-chan struct{}) (n int, ok bool) {
	for word := range strings.SplitAfterSeq(text, " ") {
		if c.Delay > 0 {
			select {
			case <-time.After(c.Delay):
			case <-stop:
			}
		}
		select {
		case <-stop:
			return n, false
		default:
		}
		n++
		c.notify("item/agentMessage/delta", map[string]any{"threadId": thread, "turnId": turn, "itemId": "item-" + turn, "delta": word})
	}
	return n, true
}

// call calls functions, and requests the results of those that were declared.
func (c *Child) call(thread playedThread, id, turn string, calls []codex.ToolCall, usage any) {
	for _, call := range calls {
		if thread.raw {
			c.notify("rawResponseItem/completed", map[string]any{"threadId": id, "turnId": turn, "item": map[string]any{
				"type": "function_call", "call_id": call.ID, "name": call.Name, "arguments": call.Arguments,
			}})
		}
		if thread.tools[call.Name] {
			c.request("item/tool/call", map[string]any{"threadId": id, "turnId": turn, "callId": call.ID, "tool": call.Name, "arguments": json.RawMessage(call.Arguments)})
		}
	}
	if thread.raw {
		c.notify("rawResponse/completed", map[string]any{"threadId": id, "turnId": turn, "responseId": "response-" + turn, "usage": usage})
	}
}

func (c *Child) notify(method string, params any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send(wireMessage{Method: method, Params: raw(params)}) // an error means that the client is gone, which Serve notices
}

func (c *Child) request(method string, params any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send(wireMessage{ID: raw(c.requests), Method: method, Params: raw(params)})
	c.requests++
}

// send writes one message. The caller holds mu.
func (c *Child) send(m wireMessage) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = c.out.Write(append(line, '\n'))
	return err
}

func (c *Child) stopAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, turn := range c.turns {
		turn.once.Do(func() { close(turn.stop) })
	}
}
