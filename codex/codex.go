// Package codex speaks to one Codex app-server child: it starts the child, runs
// turns on it, and stops it.
//
// The pool calls it. A [Client] is used by one goroutine at a time, the lessee,
// which writes a request and then reads messages in wire order until its turn
// ends; so there is no call table and no write lock. Two goroutines belong to a
// child: a reader (stdout to inbox, ends at end of file) and a reaper (the only
// caller of Wait, ends when the process is gone). [Client.Close] waits for both.
//
// When the model calls a function, the caller gets the call and runs it: see
// tools.go.
//
// The protocol is JSON-RPC 2.0 by lines without the "jsonrpc" member, which is
// why no JSON-RPC library can read it. The facts about Codex in this package were
// observed on version [Pinned].
package codex

import (
	"cmp"
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

// Pinned is the version of the Codex CLI that this package was written for and
// tested with. Another version deserves a warning, but may work.
const Pinned = "0.169.0"

// Client is one initialized child. One goroutine uses it at a time, except that
// Done, Err, Reusable, Pid, CPU, Version, Warnings, Kill and Close may be called from any.
type Client struct {
	log         *slog.Logger
	stream      io.ReadWriteCloser // Close ends the child's input
	proc        *process           // nil where the child is not a process of ours
	inbox       *inbox
	callTimeout time.Duration // see Command.CallTimeout
	direct      bool          // see Command.Direct

	nextID int64  // lessee only
	ready  string // thread that the next turn will use, or ""; lessee only
	used   string // thread of the last turn, while it is subscribed, or ""; lessee only

	version string // set by the handshake

	mu       sync.Mutex
	spoiled  error    // why the child must not be used again; guarded by mu
	warnings []string // guarded by mu

	closing  atomic.Bool
	readDone chan struct{} // closed by read
	done     chan struct{} // closed by reap
}

// Start runs cmd and does the handshake. ctx alone bounds both, but not the
// child's life: give it a deadline. Its cause is then the error. After an error
// there is no process, and no home but with Command.KeepHome.
func Start(ctx context.Context, cmd Command) (*Client, error) {
	p, err := spawn(cmd)
	if err != nil {
		return nil, err
	}
	return open(ctx, p, p, cmd)
}

// Connect does the handshake over any stream, bounded by ctx as in [Start], and
// becomes the owner of the stream.
func Connect(ctx context.Context, rwc io.ReadWriteCloser, log *slog.Logger) (*Client, error) {
	return open(ctx, rwc, nil, Command{Log: log})
}

func open(ctx context.Context, stream io.ReadWriteCloser, p *process, cmd Command) (*Client, error) {
	c := &Client{
		log:         cmd.Log,
		stream:      stream,
		proc:        p,
		inbox:       newInbox(),
		callTimeout: cmp.Or(cmd.CallTimeout, defaultCallTimeout),
		direct:      cmd.Direct,
		readDone:    make(chan struct{}),
		done:        make(chan struct{}),
	}
	go c.read() // ends at end of file, or when reap closes the output; reap waits for it
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
	c.version = VersionIn(answer.UserAgent)
	return c.write(ctx, outgoing{Method: "initialized"})
}

// VersionIn is the CLI's version in its user agent, "codexpool/0.169.0 (Debian …) …".
func VersionIn(userAgent string) string {
	_, rest, _ := strings.Cut(userAgent, "/")
	version, _, _ := strings.Cut(rest, " ")
	return version
}

// Health is what a child reports about itself.
type Health struct {
	ResidentBytes int64 // RSS of the child's own process
	LiveThreads   int64 // threads that are loaded
	ActiveTurns   int64 // turns that run
}

// Ping reads the child's health. It is the cheapest call that proves that the
// child still answers (0.2 ms).
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

// CPU is the processor time that the child used, with the helpers that it waited for. It
// is 0 until Done is closed, and where the child is not a process of ours.
func (c *Client) CPU() time.Duration {
	select {
	case <-c.done:
		if c.proc != nil {
			return c.proc.cpu
		}
	default:
	}
	return 0
}

// Version is the CLI's version from the handshake, such as "0.169.0".
func (c *Client) Version() string { return c.version }

// Warnings are the child's complaints about its configuration so far. The one
// about a missing bubblewrap is omitted: children run no shell commands.
func (c *Client) Warnings() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.warnings...)
}

// Reusable reports whether the child is alive, between turns, and has not broken
// the protocol. This may change at any moment.
func (c *Client) Reusable() bool {
	return c.Err() == nil && !c.closing.Load() && c.inbox.resting()
}

// Done is closed once the child is gone: reaped, with its home removed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the child cannot be used again, or nil: an [*ExitError], an
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
// did not answer in time is killed at once, but with Command.KeepHome. Close is
// idempotent and its error is always nil; [Client.Err] has how the child ended.
func (c *Client) Close() error {
	c.closing.Store(true)
	c.stream.Close()
	if c.proc != nil {
		c.proc.stop(errors.Is(c.Err(), ErrUnresponsive))
	}
	<-c.done
	return nil
}

// Kill ends the child at once, also within a turn, which then fails with an [*ExitError].
// [Client.Err] is why. It does not wait for the end.
func (c *Client) Kill(why error) {
	c.spoil(why)
	if c.proc == nil {
		c.stream.Close()
		return
	}
	c.proc.kill()
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
			r.drain() // or the child would block on its output and not see the end of its input
			return
		}
		c.inbox.finish(c.exit())
		return
	}
}

// exit is called by the reader at the end of the output: the child is ending, or
// is stopped now. It waits for the exit status, which explains the end.
func (c *Client) exit() *ExitError {
	if c.proc == nil {
		return &ExitError{Status: "closed the connection"}
	}
	unread := c.proc.unread() // before its input is closed
	c.proc.stop(false)
	return &ExitError{Status: c.proc.status, Stderr: c.proc.stderr.lines(), unread: unread}
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
	if noise(w.Summary) {
		return
	}
	c.mu.Lock()
	c.warnings = append(c.warnings, w.Summary)
	c.mu.Unlock()
	c.log.Warn("child config warning", "child", c.Pid(), "warning", w.Summary)
}
