package codextest

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Child is a healthy child for as many turns as one likes: it answers with the
// words of the last user message, as the echo model does behind a real child.
// Its methods may be called while it serves.
type Child struct {
	Delay time.Duration // before each word

	mu    sync.Mutex
	out   io.Writer
	calls map[string]int // guarded by mu
	turns map[string]*playedTurn
	text  map[string]string // last user message by thread
	next  int
}

type playedTurn struct {
	stop chan struct{}
	once sync.Once
}

// Serve is the step that plays c until its input ends; put it after [Handshake].
func Serve(c *Child) Step {
	return Step{"serve", func(p *player) error {
		c.mu.Lock()
		c.out = p.out
		c.calls, c.turns, c.text = map[string]int{}, map[string]*playedTurn{}, map[string]string{}
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
	var params struct {
		ThreadID string `json:"threadId"`
		TurnID   string `json:"turnId"`
		Items    []struct {
			Role    string
			Content []struct{ Text string }
		}
	}
	if err := json.Unmarshal(m.Params, &params); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[m.Method]++
	switch m.Method {
	case "thread/start":
		c.next++
		id := fmt.Sprintf("thread-%d", c.next)
		return c.send(wireMessage{ID: m.ID, Result: raw(map[string]any{"thread": map[string]any{"id": id}})})
	case "thread/inject_items":
		for _, item := range params.Items {
			if item.Role == "user" && len(item.Content) > 0 {
				c.text[params.ThreadID] = item.Content[0].Text
			}
		}
		return c.send(wireMessage{ID: m.ID, Result: raw(struct{}{})})
	case "turn/start":
		turn := &playedTurn{stop: make(chan struct{})}
		id := "turn-of-" + params.ThreadID
		c.turns[id] = turn
		if err := c.send(wireMessage{ID: m.ID, Result: raw(map[string]any{"turn": map[string]any{"id": id}})}); err != nil {
			return err
		}
		text := c.text[params.ThreadID]
		running.Go(func() { c.play(params.ThreadID, id, text, turn.stop) })
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

// play runs one turn.
func (c *Child) play(thread, turn, text string, stop <-chan struct{}) {
	words := strings.SplitAfter(text, " ")
	status := "completed"
	for _, word := range words {
		if c.Delay > 0 {
			select {
			case <-time.After(c.Delay):
			case <-stop:
			}
		}
		select {
		case <-stop:
			status = "interrupted"
		default:
			c.notify("item/agentMessage/delta", map[string]any{"threadId": thread, "turnId": turn, "itemId": "item-" + turn, "delta": word})
			continue
		}
		break
	}
	if n := len(words); status == "completed" {
		c.notify("thread/tokenUsage/updated", map[string]any{"threadId": thread, "turnId": turn, "tokenUsage": map[string]any{
			"total": map[string]any{"inputTokens": n, "outputTokens": n, "totalTokens": 2 * n},
		}})
	}
	c.notify("turn/completed", map[string]any{"threadId": thread, "turn": map[string]any{"id": turn, "status": status}})
}

func (c *Child) notify(method string, params any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send(wireMessage{Method: method, Params: raw(params)}) // a client that has gone is no concern of a child
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
