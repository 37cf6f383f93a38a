package codex

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"
)

const (
	// defaultCallTimeout is for a host whose cores are busy: calls take milliseconds.
	// Each needs a limit, because an overloaded app-server may drop even its errors.
	defaultCallTimeout = 10 * time.Second

	// endTimeout bounds the end of a turn whose reader has stopped, from the
	// interrupt to turn/completed (2 ms is normal), and the rest of a call whose
	// context has ended.
	endTimeout = 2 * time.Second

	// pipeSize is how much a pipe takes before its reader reads, in bytes (pipe(7)).
	pipeSize = 64 << 10
)

// enter opens the inbox for one method of the lessee. shut ends that.
func (c *Client) enter() (shut func()) {
	c.inbox.open()
	return func() {
		if err := c.inbox.shut(); err != nil {
			c.spoil(err)
		}
	}
}

// call is exchange with a limit: see callContext.
func (c *Client) call(ctx context.Context, method string, params, result any) error {
	ctx, cancel := c.callContext(ctx)
	defer cancel()
	return c.exchange(ctx, method, params, result)
}

// exchange sends one request and waits for its answer until ctx ends. A call that
// is given up spoils the child. Requests that arrive meanwhile are answered;
// notifications are dropped.
func (c *Client) exchange(ctx context.Context, method string, params, result any) error {
	id, err := c.send(ctx, method, params)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	for {
		m, err := c.inbox.next(ctx, nil, nil)
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

// callContext bounds one call. It ends after the call timeout, or as [abandonable] does.
func (c *Client) callContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, abandon := abandonable(ctx)
	expire(ctx, c.callTimeout, abandon)
	return ctx, func() { abandon(context.Canceled) }
}

// abandonable ends endTimeout after ctx: a caller who disconnects must not cost a healthy
// child, nor wait long for a wedged one.
func abandonable(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	bounded, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { expire(bounded, endTimeout, abandon) })
	return bounded, func(cause error) {
		stop()
		abandon(cause)
	}
}

// send writes one request and returns its id.
func (c *Client) send(ctx context.Context, method string, params any) (int64, error) {
	id := c.newID()
	return id, c.write(ctx, outgoing{ID: &id, Method: method, Params: params})
}

func (c *Client) newID() int64 {
	c.nextID++
	return c.nextID
}

// write sends each value as one line.
func (c *Client) write(ctx context.Context, values ...any) error {
	_, err := c.writeLines(ctx, func() {}, values...)
	return err
}

// writeLines is write, and returns how many bytes the child has got; it calls progress
// each time that the child has got some. When ctx ends first, the child's input is closed:
// half a line has spoiled the child anyway.
func (c *Client) writeLines(ctx context.Context, progress func(), values ...any) (written int, err error) {
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines) // ends each with a newline
	enc.SetEscapeHTML(false)       // or each "<" of a prompt becomes six bytes
	for _, v := range values {
		if line, ok := v.(rawLine); ok && lines.Len() == 0 {
			lines = *bytes.NewBuffer(line) // megabytes that are not copied
			continue
		}
		if err := enc.Encode(v); err != nil {
			return 0, err
		}
	}
	stop := context.AfterFunc(ctx, func() { c.stream.Close() })
	for err == nil && lines.Len() > 0 {
		var n int
		n, err = c.stream.Write(lines.Next(pipeSize))
		written += n
		progress()
	}
	switch {
	case !stop():
		err = context.Cause(ctx)
	case err == nil:
		return written, nil
	case c.inbox.waitEnd(ctx):
		return written, c.inbox.fault() // the child is gone, which explains more than "broken pipe"
	}
	c.spoil(fmt.Errorf("write: %w", err))
	return written, err
}

// rawLine is a line that is written as it is: the first of those in one write, with room
// for the others behind it.
type rawLine []byte

// injectLine is a thread/inject_items. The items are put in by hand: an encoder would
// look at each byte of the history again, and it may have megabytes.
func injectLine(id int64, thread string, items []json.RawMessage) rawLine {
	const end = "]}}"
	line, err := json.Marshal(outgoing{ID: &id, Method: "thread/inject_items", Params: injectItemsParams{ThreadID: thread, Items: []json.RawMessage{}}})
	if err != nil || !bytes.HasSuffix(line, []byte(end)) {
		panic("BUG: the items are not the end of the line")
	}
	size := len(line) + 1 + 4<<10 // for the start of the turn
	for _, item := range items {
		size += len(item) + 1
	}
	line = append(make([]byte, 0, size), line[:len(line)-len(end)]...)
	for i, item := range items {
		if bytes.IndexByte(item, '\n') >= 0 {
			panic("BUG: an item of several lines")
		}
		if i > 0 {
			line = append(line, ',')
		}
		line = append(line, item...)
	}
	return append(line, end+"\n"...)
}

// answer answers one request of the child; without an answer its turn would hang.
// Approvals and questions are declined: no person is there to decide them.
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
