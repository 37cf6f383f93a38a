package codex

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Tool is a function that the model may call.
type Tool struct {
	Name        string // of letters, digits, "_" and "-", at most 128, unlike the others
	Description string
	Parameters  json.RawMessage // a JSON schema of an object; nil for a function that takes nothing
}

// ToolCall is one call of a function, by its model's own words.
type ToolCall struct {
	ID        string // what its function_call_output names as call_id
	Name      string // not always that of a Tool: models err
	Arguments string // exactly as written, also where that is no JSON
}

// What Codex makes of calls is not what we want. It asks us to run each one
// that it knows (item/tool/call), waits for all results, and asks the model
// again; but the results are the caller's to give, in another turn. So these
// requests are left unanswered, and the turn is interrupted as soon as the
// model's answer is over (rawResponse/completed). Then the child forgets what it
// has asked, and is as good as new.
//
// Two things are not in our hands:
//
//   - A call of a function that the child does not know, or whose arguments are
//     no JSON, it answers by itself, and asks the model again about 2 ms after the
//     answer was over. The interrupt comes too late for one in twenty on an idle
//     host, for most on a busy one. So the relay refuses that second request.
//   - When the upstream fails after a call, the child says so only once its
//     requests are answered. See [callsHeld].

// callsHeld is how long the child may be silent before its requests to run calls
// are answered after all, with a failure: there may be no more to come. If there
// is, a call that it has not asked for yet still holds it.
const callsHeld = time.Second

// maxNesting is how deep the parameters of a tool may nest. The child does not
// even refuse a line that nests deeper than 127, it ignores it; four of them are
// the request around the parameters.
const maxNesting = 123

// dynamicTools are the tools as thread/start takes them. Names that Codex keeps
// for MCP servers are left out, for it would refuse the whole thread; exec_command
// and shell_command it leaves out by itself. A provider may have been told of
// them all the same, by the relay, and a call of one arrives like any other.
func dynamicTools(tools []Tool) ([]dynamicTool, error) {
	var declared []dynamicTool
	for _, t := range tools {
		if nesting(t.Parameters) > maxNesting {
			return nil, &ToolsError{Problem: fmt.Sprintf("the parameters of %s nest deeper than %d levels", t.Name, maxNesting)}
		}
		if t.Name == "mcp" || strings.HasPrefix(t.Name, "mcp__") {
			continue
		}
		d := dynamicTool{Type: "function", Name: t.Name, Description: t.Description, InputSchema: t.Parameters}
		if d.InputSchema == nil {
			d.InputSchema = json.RawMessage(`{"type":"object","properties":{}}`)
		}
		declared = append(declared, d)
	}
	return declared, nil
}

// nesting is the depth of the deepest array or object in data.
func nesting(data json.RawMessage) (deepest int) {
	dec := json.NewDecoder(bytes.NewReader(data))
	for depth := 0; ; {
		token, err := dec.Token()
		if err != nil {
			return deepest // the end; what is no JSON cannot be sent at all
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// asks takes a request of the child.
func (t *turn) asks(ctx context.Context, m message) {
	if m.Method == "item/tool/call" {
		t.asked = append(t.asked, m.ID)
		return
	}
	ctx, cancel := callContext(ctx)
	defer cancel()
	t.c.answer(ctx, m)
}

// release answers what the child has asked, with failures.
func (t *turn) release(ctx context.Context) {
	ctx, cancel := callContext(ctx)
	defer cancel()
	for _, id := range t.asked {
		t.c.write(ctx, outgoing{ID: id, Result: toolCallResult{ContentItems: []string{}}}) // an error spoils the child
	}
	t.asked = nil
}

// wrote takes a raw item: only it has the arguments as they are, and calls of
// functions that are unknown. Items of the history come too, when it is injected,
// as those of a turn of their own.
func (t *turn) wrote(n *notification) {
	if n.Item.Type != "function_call" {
		return
	}
	call := ToolCall{ID: n.Item.CallID, Name: n.Item.Name}
	json.Unmarshal(n.Item.Arguments, &call.Arguments) // always a string
	t.calls[n.TurnID] = append(t.calls[n.TurnID], call)
}

// responded is the end of the model's answer. The child tells the usage of a
// turn only once it is done with the calls.
func (t *turn) responded(n *notification) []Event {
	calls := t.calls[n.TurnID]
	if len(calls) == 0 {
		return nil
	}
	t.called = true
	events := []Event{ToolCalls{Calls: calls}}
	if u := n.Usage; u != nil {
		events = append(events, Usage{
			Input: t.usage.Input + u.Input, Cached: t.usage.Cached + u.Cached,
			Output: t.usage.Output + u.Output, Reasoning: t.usage.Reasoning + u.Reasoning,
			Total: t.usage.Total + u.Total,
		})
	}
	return append(events, Completed{Finish: FinishToolCalls})
}
