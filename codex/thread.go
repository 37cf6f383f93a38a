package codex

import (
	"context"
	"errors"
)

// Warm starts the thread that the next [Client.Turn] will use, and unsubscribes
// from the thread of the last turn. It costs the child 5 to 7 ms that the next
// completion then does not have to wait for.
func (c *Client) Warm(ctx context.Context) error {
	defer c.enter()()
	return c.warm(ctx)
}

func (c *Client) warm(ctx context.Context) error {
	if err := c.unsubscribe(ctx); err != nil || c.ready != "" {
		return err
	}
	ready, err := c.startThread(ctx, threadStartParams{ExperimentalRawEvents: c.direct})
	c.ready = ready
	return err
}

// unsubscribe gives up the thread of the last turn. An ephemeral thread cannot be
// deleted, but the child closes it at once, because thread_unload_delay_secs is 0.
func (c *Client) unsubscribe(ctx context.Context) error {
	if c.used == "" {
		return nil
	}
	err := c.call(ctx, "thread/unsubscribe", threadParams{ThreadID: c.used}, nil)
	if err == nil {
		c.used = ""
	}
	return err
}

// startThread starts a thread that adds nothing to the caller's messages. p may
// set more.
func (c *Client) startThread(ctx context.Context, p threadStartParams) (id string, err error) {
	p.Ephemeral, p.Sandbox, p.ApprovalPolicy, p.Environments = true, "read-only", "never", []string{}
	var answer threadStartResult
	err = c.call(ctx, "thread/start", p, &answer)
	return answer.Thread.ID, err
}

// thread returns the thread for a turn. A plain turn gets the ready one. A turn
// with tools needs a new one, because only thread/start can declare tools; the
// ready one is then kept for the next plain turn.
func (c *Client) thread(ctx context.Context, tools []Tool) (id string, err error) {
	if len(tools) > 0 {
		id, err = c.toolThread(ctx, tools)
	} else if err = c.warm(ctx); err == nil {
		id, c.ready = c.ready, ""
	}
	if err == nil {
		c.used = id
	}
	return id, err
}

func (c *Client) toolThread(ctx context.Context, tools []Tool) (string, error) {
	declared, err := dynamicTools(tools)
	if err != nil {
		return "", err
	}
	if err := c.unsubscribe(ctx); err != nil {
		return "", err
	}
	id, err := c.startThread(ctx, threadStartParams{DynamicTools: declared, ExperimentalRawEvents: true})
	if failed := (*RPCError)(nil); errors.As(err, &failed) && failed.Code == invalidRequest {
		return "", &ToolsError{Problem: failed.Message}
	}
	return id, err
}
