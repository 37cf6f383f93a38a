// Package codextest plays a Codex child, or the child's upstream, for tests:
// in memory ([Pipe]), as this test binary run again ([Main], [Command]), or for
// real ([Real]). One suite, [TestTurns], runs over all three, which is what
// keeps the played ones honest.
package codextest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// Script is what a child does, in order. A mismatch ends it with an error that
// names the step.
type Script []Step

// Step is one act of a child.
type Step struct {
	name string
	do   func(*player) error
}

// player is a script being played.
type player struct {
	in       *bufio.Scanner
	out      io.Writer
	last     wireMessage // the last expected request
	requests int         // requests of its own
	threads  int
	thread   string // "$thread" in what is sent
	turn     string // "$turn" in what is sent
	exit     func(code int)
}

type wireMessage struct {
	ID     json.RawMessage `json:"id,omitempty"`
	Method string          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  json.RawMessage `json:"error,omitempty"`
}

// errExit ends the script of a child that exits.
var errExit = errors.New("exit")

// Serve plays the script on the child's side of a stream. After its last step
// the child waits for the end of its input.
func (s Script) Serve(r io.Reader, w io.Writer) error {
	return s.serve(r, w, func(int) {})
}

func (s Script) serve(r io.Reader, w io.Writer, exit func(int)) error {
	p := &player{in: bufio.NewScanner(r), out: w, exit: exit}
	p.in.Buffer(nil, 64<<20)
	for i, step := range append(s, Hang()) {
		if err := step.do(p); err == errExit {
			return nil
		} else if err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, step.name, err)
		}
	}
	return nil
}

// read returns the next line from the client.
func (p *player) read() (wireMessage, error) {
	var m wireMessage
	if !p.in.Scan() {
		return m, io.EOF
	}
	return m, json.Unmarshal(p.in.Bytes(), &m)
}

func (p *player) send(m wireMessage) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	text := strings.NewReplacer("$thread", p.thread, "$turn", p.turn).Replace(string(line))
	_, err = io.WriteString(p.out, text+"\n")
	return err
}

// Expect waits for a request or notification and holds its params against the checks.
func Expect(method string, checks ...func(json.RawMessage) error) Step {
	return Step{"expect " + method, func(p *player) error {
		m, err := p.read()
		if err != nil {
			return err
		}
		if m.Method != method {
			return fmt.Errorf("got %q", m.Method)
		}
		p.last = m
		for _, check := range checks {
			if err := check(m.Params); err != nil {
				return err
			}
		}
		return nil
	}}
}

// Reply answers the last expected request.
func Reply(result any) Step {
	return Step{"reply", func(p *player) error {
		return p.send(wireMessage{ID: p.last.ID, Result: raw(result)})
	}}
}

// ReplyError answers the last expected request with an error.
func ReplyError(code int64, message string) Step {
	return Step{"refuse", func(p *player) error {
		return p.send(wireMessage{ID: p.last.ID, Error: raw(map[string]any{"code": code, "message": message})})
	}}
}

// Notify sends a notification. In params "$thread" and "$turn" stand for the
// ids of the current ones.
func Notify(method string, params any) Step {
	return Step{"notify " + method, func(p *player) error {
		return p.send(wireMessage{Method: method, Params: raw(params)})
	}}
}

// RequestAnswered sends a request and waits for its answer. The first request has id 0,
// as with a real child.
func RequestAnswered(method string, params any, checks ...func(answer json.RawMessage) error) Step {
	return Step{"answered request " + method, func(p *player) error {
		id := raw(p.requests)
		if err := Request(method, params).do(p); err != nil {
			return err
		}
		m, err := p.read()
		if err != nil {
			return err
		}
		if m.Method != "" || !bytes.Equal(m.ID, id) {
			return fmt.Errorf("got %q with id %s instead of an answer", m.Method, m.ID)
		}
		for _, check := range checks {
			if err := check(raw(m)); err != nil {
				return err
			}
		}
		return nil
	}}
}

// Request sends a request and does not wait for an answer.
func Request(method string, params any) Step {
	return Step{"request " + method, func(p *player) error {
		id := raw(p.requests)
		p.requests++
		return p.send(wireMessage{ID: id, Method: method, Params: raw(params)})
	}}
}

// Raw writes one line as it is.
func Raw(line string) Step {
	return Step{"raw line", func(p *player) error {
		_, err := io.WriteString(p.out, line+"\n")
		return err
	}}
}

// Do runs any code between two steps.
func Do(f func()) Step {
	return Step{"do", func(*player) error { f(); return nil }}
}

// Hang reads on without an answer until the input ends.
func Hang() Step {
	return Step{"hang", func(p *player) error {
		for p.in.Scan() {
		}
		return errExit
	}}
}

// Exit ends the child, a re-executed one with the code.
func Exit(code int) Step {
	return Step{"exit " + strconv.Itoa(code), func(p *player) error {
		p.exit(code)
		return errExit
	}}
}

// all makes one step of several.
func all(name string, steps ...Step) Step {
	return Step{name, func(p *player) error {
		for _, s := range steps {
			if err := s.do(p); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		return nil
	}}
}

// Handshake answers initialize and reads initialized.
func Handshake() Step {
	return all("handshake",
		Expect("initialize"),
		Reply(map[string]any{"userAgent": "codexpool/0.0.1 (a played child)"}),
		Expect("initialized"))
}

// Thread answers the thread/start of one turn, with an unsubscribe before it
// when it is not the first.
func Thread(checks ...func(json.RawMessage) error) Step {
	return Step{"thread", func(p *player) error {
		if p.threads > 0 {
			if err := all("unsubscribe", Expect("thread/unsubscribe"), Reply(map[string]any{})).do(p); err != nil {
				return err
			}
		}
		p.threads++
		p.thread = fmt.Sprintf("thread-%d", p.threads)
		p.turn = fmt.Sprintf("turn-%d", p.threads)
		return all("start", Expect("thread/start", checks...), Reply(map[string]any{"thread": map[string]any{"id": "$thread"}})).do(p)
	}}
}

// Turn reads the history and starts the turn.
func Turn() Step {
	return all("turn",
		Expect("thread/inject_items"), Reply(map[string]any{}),
		Expect("turn/start"), Reply(map[string]any{"turn": map[string]any{"id": "$turn"}}))
}

// Delta sends a piece of the answer.
func Delta(text string) Step {
	return Notify("item/agentMessage/delta", map[string]any{"threadId": "$thread", "turnId": "$turn", "itemId": "item-$turn", "delta": text})
}

// Complete ends the turn with a usage of in and out tokens.
func Complete(in, out int) Step {
	return all("complete",
		Notify("thread/tokenUsage/updated", map[string]any{"threadId": "$thread", "turnId": "$turn", "tokenUsage": map[string]any{
			"total": map[string]any{"inputTokens": in, "outputTokens": out, "totalTokens": in + out},
		}}),
		Notify("turn/completed", map[string]any{"threadId": "$thread", "turn": map[string]any{"id": "$turn", "status": "completed"}}))
}

// Fail ends the turn as Codex does when the upstream fails it.
func Fail(info any, message string) Step {
	return Notify("turn/completed", map[string]any{"threadId": "$thread", "turn": map[string]any{
		"id": "$turn", "status": "failed", "error": map[string]any{"message": message, "codexErrorInfo": info},
	}})
}

// Interrupted expects the interrupt of the running turn, and ends the turn.
func Interrupted() Step {
	return all("interrupted",
		Expect("turn/interrupt"), Reply(map[string]any{}),
		Notify("turn/completed", map[string]any{"threadId": "$thread", "turn": map[string]any{"id": "$turn", "status": "interrupted"}}))
}

// Answer is one ordinary turn, thread and all.
func Answer(deltas ...string) Step {
	steps := []Step{Thread(), Turn()}
	for _, d := range deltas {
		steps = append(steps, Delta(d))
	}
	return all("answer", append(steps, Complete(1, len(deltas)))...)
}

func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// Pipe plays s in memory and returns the client's end. The test fails when the
// script does, or is still running at its end.
func Pipe(t testing.TB, s Script) io.ReadWriteCloser {
	t.Helper()
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := s.Serve(theirs, theirs)
		theirs.Close()
		ended <- err
	}()
	t.Cleanup(func() {
		ours.Close()
		// The test itself asserts on a client that disconnects before the end of the
		// script. Here the test fails when the script received something unexpected.
		if err := <-ended; err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, os.ErrClosed) {
			t.Errorf("played child: %v", err)
		}
	})
	return ours
}
