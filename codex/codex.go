// Package codex speaks to one Codex app-server child: it starts the child, runs
// turns on it, and stops it.
//
// The pool calls it. A [Client] is used by one goroutine at a time, the lessee,
// which writes a request and then reads messages in wire order until its turn
// ends; so there is no call table and no write lock. Two goroutines belong to a
// child: a reader (stdout to inbox, ends at end of file) and a reaper (the only
// caller of Wait, ends when the process is gone). [Client.Close] waits for both.
//
// What the model calls is handed to the caller, never run: see tools.go.
//
// The protocol is JSON-RPC 2.0 by lines without the "jsonrpc" member, which is
// why no JSON-RPC library reads it. What is said about Codex here was seen on
// version [Pinned].
package codex

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Pinned is the version of the Codex CLI that this package was written and
// tested against. Another version is worth a warning, not a refusal.
const Pinned = "0.169.0"

const (
	// callTimeout bounds every call to the child but the handshake: under overload
	// app-server may drop even its refusals. Calls take milliseconds; the rest is
	// for a host whose cores are busy.
	callTimeout = 10 * time.Second

	// endTimeout bounds the end of a turn that is left early, from the
	// interrupt to turn/completed (2 ms is normal), and what is left of a call
	// whose caller has gone.
	endTimeout = 2 * time.Second
)

// Client is one initialized child. One goroutine uses it at a time, except that
// Done, Err, Reusable, Pid, Version, Warnings and Close may be called from any.
type Client struct {
	log    *slog.Logger
	stream io.ReadWriteCloser // Close ends the child's input
	proc   *process           // nil where the child is not a process of ours
	inbox  *inbox

	nextID int64  // lessee only
	ready  string // thread that the next turn will use, or ""; lessee only
	left   string // thread of the last turn, still subscribed, or ""; lessee only

	version string // set by the handshake

	mu       sync.Mutex
	spoiled  error    // why the child must not be used again; guarded by mu
	warnings []string // guarded by mu

	closing  atomic.Bool
	readDone chan struct{} // closed by read
	done     chan struct{} // closed by reap
}

// Start runs cmd and does the handshake. ctx alone bounds both, but not the
// child's life: give it a deadline. Its cause is then the error. On error nothing
// is left: no process, no home.
func Start(ctx context.Context, cmd Command) (*Client, error) {
	p, err := spawn(cmd)
	if err != nil {
		return nil, err
	}
	return open(ctx, p, p, p.log)
}

// Connect does the handshake over any stream, bounded by ctx as in [Start], and
// takes ownership of the stream.
func Connect(ctx context.Context, rwc io.ReadWriteCloser, log *slog.Logger) (*Client, error) {
	return open(ctx, rwc, nil, log)
}

func open(ctx context.Context, stream io.ReadWriteCloser, p *process, log *slog.Logger) (*Client, error) {
	c := &Client{
		log:      log,
		stream:   stream,
		proc:     p,
		inbox:    newInbox(),
		readDone: make(chan struct{}),
		done:     make(chan struct{}),
	}
	go c.read() // ends at end of file or when reap gives up on it; reap waits for it
	go c.reap() // ends when the child is gone; Close waits for it
	if err := c.handshake(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("codex handshake: %w", err)
	}
	return c, nil
}

func (c *Client) handshake(ctx context.Context) error {
	defer c.enter()()
	var answer initializeResult
	if err := c.exchange(ctx, "initialize", initializeParams{
		ClientInfo: clientInfo{Name: "codexpool", Title: "codexpool", Version: Pinned},
		Capabilities: capabilities{
			ExperimentalAPI:           true,
			OptOutNotificationMethods: unread,
		},
	}, &answer); err != nil {
		return err
	}
	c.version = versionOf(answer.UserAgent)
	return c.write(ctx, outgoing{Method: "initialized"})
}

// versionOf finds the CLI's version in "codexpool/0.169.0 (Debian …) …".
func versionOf(userAgent string) string {
	_, rest, _ := strings.Cut(userAgent, "/")
	version, _, _ := strings.Cut(rest, " ")
	return version
}

// Warm starts the thread that the next [Client.Turn] will use, and leaves the
// one that the last turn used. It costs the child 5 to 7 ms that the next
// completion then need not wait for.
func (c *Client) Warm(ctx context.Context) error {
	defer c.enter()()
	return c.warm(ctx)
}

func (c *Client) warm(ctx context.Context) error {
	if err := c.leave(ctx); err != nil || c.ready != "" {
		return err
	}
	ready, err := c.startThread(ctx, threadStartParams{})
	c.ready = ready
	return err
}

// leave gives up the thread of the last turn. An ephemeral one cannot be
// deleted: unsubscribed it is closed at once, as thread_unload_delay_secs = 0
// asks.
func (c *Client) leave(ctx context.Context) error {
	if c.left == "" {
		return nil
	}
	err := c.call(ctx, "thread/unsubscribe", threadParams{ThreadID: c.left}, nil)
	if err == nil {
		c.left = ""
	}
	return err
}

// startThread starts a thread as plain as it can be, but for what p has set.
func (c *Client) startThread(ctx context.Context, p threadStartParams) (id string, err error) {
	p.Ephemeral, p.Sandbox, p.ApprovalPolicy, p.Environments = true, "read-only", "never", []string{}
	var answer threadStartResult
	err = c.call(ctx, "thread/start", p, &answer)
	return answer.Thread.ID, err
}

// thread takes the ready thread for a turn, or starts one that knows tools: they
// can be told to a new thread only. The ready one then stays for a plain turn.
func (c *Client) thread(ctx context.Context, tools []Tool) (id string, err error) {
	if len(tools) > 0 {
		id, err = c.toolThread(ctx, tools)
	} else if err = c.warm(ctx); err == nil {
		id, c.ready = c.ready, ""
	}
	if err == nil {
		c.left = id
	}
	return id, err
}

func (c *Client) toolThread(ctx context.Context, tools []Tool) (string, error) {
	declared, err := dynamicTools(tools)
	if err != nil {
		return "", err
	}
	if err := c.leave(ctx); err != nil {
		return "", err
	}
	id, err := c.startThread(ctx, threadStartParams{DynamicTools: declared, ExperimentalRawEvents: true})
	if refused := (*RPCError)(nil); errors.As(err, &refused) && refused.Code == invalidRequest {
		return "", &ToolsError{Problem: refused.Message}
	}
	return id, err
}

// Health is what a child says of itself.
type Health struct {
	ResidentBytes int64 // RSS of the child's own process
	LiveThreads   int64 // threads loaded
	ActiveTurns   int64 // turns running
}

// Ping asks the child how it is: the cheapest call that proves that it still
// answers (0.2 ms).
func (c *Client) Ping(ctx context.Context) (Health, error) {
	defer c.enter()()
	var answer diagnosticsResult
	if err := c.call(ctx, "server/diagnostics", struct{}{}, &answer); err != nil {
		return Health{}, err
	}
	h := Health{ResidentBytes: answer.Process.ResidentMemoryBytes}
	for _, g := range answer.Gauges {
		switch g.Name {
		case "core.threads.live":
			h.LiveThreads = g.Value
		case "core.turns.active":
			h.ActiveTurns = g.Value
		}
	}
	return h, nil
}

// Pid is the process id of the child, 0 where it is not a process of ours.
func (c *Client) Pid() int {
	if c.proc == nil {
		return 0
	}
	return c.proc.cmd.Process.Pid
}

// Version is the CLI's version as the handshake told it, such as "0.169.0".
func (c *Client) Version() string { return c.version }

// Warnings are what the child disliked in its configuration so far, but that there
// is no bubblewrap for shell commands, which it has not.
func (c *Client) Warnings() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.warnings...)
}

// Reusable says that the child is alive, between turns, and has done nothing
// odd. It may be out of date as soon as it is true.
func (c *Client) Reusable() bool {
	return c.Err() == nil && !c.closing.Load() && c.inbox.resting()
}

// Done is closed once the child is gone: reaped, with its home removed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the child cannot be used again, or nil: an [*ExitError], an
// error that wraps [ErrUnresponsive], or a breach of the protocol.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spoiled != nil {
		return c.spoiled
	}
	return c.inbox.fault()
}

// spoil notes the first reason why the child must not be used again.
func (c *Client) spoil(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spoiled == nil {
		c.spoiled = err
	}
}

// Close stops the child and waits until it is gone: its input is closed, then
// its process group gets SIGTERM, then SIGKILL, a StopGrace apart. A child that
// did not answer in time is killed at once. It is idempotent and its error is
// always nil; what the child died of is [Client.Err].
func (c *Client) Close() error {
	c.closing.Store(true)
	c.stream.Close()
	if c.proc != nil {
		c.proc.stop(errors.Is(c.Err(), ErrUnresponsive))
	}
	<-c.done
	return nil
}

// enter opens the inbox for one method of the lessee and returns what shuts it.
func (c *Client) enter() (leave func()) {
	c.inbox.open()
	return func() {
		if err := c.inbox.shut(); err != nil {
			c.spoil(err)
		}
	}
}

// call is exchange for at most its limit and at most [endTimeout] once ctx has
// ended: a call that is given up costs the child.
func (c *Client) call(ctx context.Context, method string, params, result any) error {
	ctx, cancel := limited(ctx, c.limit())
	defer cancel()
	return c.exchange(ctx, method, params, result)
}

// exchange sends one request and waits for its answer until ctx ends. What else
// arrives is answered (requests) or dropped (notifications).
func (c *Client) exchange(ctx context.Context, method string, params, result any) error {
	id, err := c.send(ctx, method, params)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	for {
		m, err := c.inbox.next(ctx, nil)
		if err != nil {
			c.spoil(err)
			return fmt.Errorf("%s: %w", method, err)
		}
		switch {
		case m.isRequest():
			c.answer(ctx, m)
		case m.answers(id) && m.Error != nil:
			return fmt.Errorf("%s: %w", method, m.Error)
		case m.answers(id):
			if result == nil {
				return nil
			}
			if err := json.Unmarshal(m.Result, result); err != nil {
				err = fmt.Errorf("%s: answer: %w", method, err)
				c.spoil(err)
				return err
			}
			return nil
		}
	}
}

// limit is the time that a call may take.
func (c *Client) limit() time.Duration {
	if c.proc != nil && c.proc.keeper {
		return loginTimeout
	}
	return callTimeout
}

func callContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return limited(ctx, callTimeout)
}

// limited outlives ctx by endTimeout at most, so that a caller who leaves does
// not cost a healthy child, nor wait long for a wedged one.
func limited(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	bounded, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, ErrUnresponsive)
	bounded, abandon := context.WithCancelCause(bounded)
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(endTimeout, func() { abandon(ErrUnresponsive) })
		context.AfterFunc(bounded, func() { t.Stop() })
	})
	return bounded, func() {
		stop()
		abandon(context.Canceled)
		cancel()
	}
}

// send writes one request and returns its id.
func (c *Client) send(ctx context.Context, method string, params any) (int64, error) {
	c.nextID++
	id := c.nextID
	return id, c.write(ctx, outgoing{ID: &id, Method: method, Params: params})
}

// write sends one line. When ctx ends first, the input is closed: half a line
// has spoiled the child anyway.
func (c *Client) write(ctx context.Context, v any) error {
	var line bytes.Buffer
	enc := json.NewEncoder(&line) // ends it with a newline
	enc.SetEscapeHTML(false)      // which would make six bytes of each "<" of a prompt
	if err := enc.Encode(v); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.stream.Close() })
	_, err := c.stream.Write(line.Bytes())
	switch {
	case !stop():
		err = context.Cause(ctx)
	case err == nil:
		return nil
	case c.inbox.waitEnd(ctx):
		return c.inbox.fault() // the child is gone, which explains more than "broken pipe"
	}
	c.spoil(fmt.Errorf("write: %w", err))
	return err
}

// answer answers one request of the child; unanswered, its turn would hang.
// Approvals and questions are declined: nobody is there to ask.
func (c *Client) answer(ctx context.Context, m message) {
	reply := outgoing{ID: m.ID}
	switch m.Method {
	case "item/commandExecution/requestApproval", "item/fileChange/requestApproval":
		reply.Result = map[string]any{"decision": "decline"}
	case "execCommandApproval", "applyPatchApproval":
		reply.Result = map[string]any{"decision": "denied"}
	case "mcpServer/elicitation/request":
		reply.Result = map[string]any{"action": "decline", "content": nil}
	default:
		reply.Error = &RPCError{Code: methodNotFound, Message: "not supported by this client: " + m.Method}
	}
	c.log.Warn("child asked, declined", "child", c.Pid(), "method", m.Method)
	if err := c.write(ctx, reply); err != nil {
		c.spoil(err)
	}
}

// read moves the child's output into the inbox until it ends. It never waits
// for the lessee: a reader that stops blocks the whole child.
func (c *Client) read() {
	defer close(c.readDone)
	r := newLineReader(c.stream)
	for {
		m, err := r.next()
		if err == nil && m.Method == "configWarning" {
			c.warn(m)
			continue
		}
		if err == nil {
			err = c.inbox.put(m)
		}
		if err == nil {
			continue
		}
		if protocol := (*ProtocolError)(nil); errors.As(err, &protocol) {
			c.inbox.finish(err)
			r.drain() // so that the child can still be stopped politely
			return
		}
		c.inbox.finish(c.exit())
		return
	}
}

// exit is called by the reader at the end of the output: the child is dying, or
// must. It waits for the exit status, which explains the end.
func (c *Client) exit() *ExitError {
	if c.proc == nil {
		return &ExitError{Status: "closed the connection"}
	}
	c.proc.stop(false)
	return &ExitError{Status: c.proc.status, Stderr: c.proc.stderr.lines()}
}

// reap waits for the child's end, then for the reader's, then cleans up.
func (c *Client) reap() {
	defer close(c.done)
	if c.proc == nil {
		<-c.readDone
		c.stream.Close()
		return
	}
	c.proc.wait()
	<-c.readDone
	c.proc.cleanup()
}

func (c *Client) warn(m message) {
	var w struct {
		Summary string  `json:"summary"`
		Details *string `json:"details"`
	}
	json.Unmarshal(m.Params, &w) // a warning that cannot be read is still a warning
	if strings.Contains(w.Summary, "bubblewrap") {
		return // the sandbox of shell commands; the lean profile has none
	}
	c.mu.Lock()
	c.warnings = append(c.warnings, w.Summary)
	c.mu.Unlock()
	c.log.Warn("child config warning", "child", c.Pid(), "warning", w.Summary)
}
