package codex

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Tool is a function that the model may call.
type Tool struct {
	Name        string // at most 128 letters, digits, "_" and "-"; each name once
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

// maxNesting is how deep the parameters of a tool may nest: what the child reads
// of one line is 127 levels, and four of them are the request around these.
const maxNesting = 123

// dynamicTools are the tools as thread/start takes them. Names that Codex keeps
// for MCP servers are left out, for it would refuse the whole thread; exec_command
// and shell_command it leaves out by itself. A provider may have been told of
// them all the same, by the relay, and a call of one arrives like any other.
func dynamicTools(tools []Tool) ([]dynamicTool, error) {
	var declared []dynamicTool
	for _, t := range tools {
		if t.Name == "mcp" || strings.HasPrefix(t.Name, "mcp__") {
			continue
		}
		schema, err := readable(t.Parameters)
		if err != nil {
			return nil, &ToolsError{Problem: fmt.Sprintf("the parameters of %s %v", t.Name, err)}
		}
		declared = append(declared, dynamicTool{Type: "function", Name: t.Name, Description: t.Description, InputSchema: schema})
	}
	return declared, nil
}

// readable decodes a schema, so that it is sent as the child can read it: a line
// with half of a surrogate pair in it, or one that nests too deep, it ignores
// without an answer, and of one that is not UTF-8 it dies. The order of its names
// is lost on Codex anyway.
func readable(parameters json.RawMessage) (schema any, err error) {
	if parameters == nil {
		parameters = json.RawMessage(`{"type":"object","properties":{}}`)
	}
	dec := json.NewDecoder(bytes.NewReader(parameters))
	dec.UseNumber()
	if dec.Decode(&schema) != nil {
		return nil, errors.New("are no JSON")
	}
	if nesting(schema) > maxNesting {
		return nil, fmt.Errorf("nest deeper than %d levels", maxNesting)
	}
	return schema, nil
}

// nesting is how many objects and arrays lie in each other.
func nesting(v any) int {
	deepest := 0
	switch v := v.(type) {
	case map[string]any:
		for _, inner := range v {
			deepest = max(deepest, nesting(inner))
		}
	case []any:
		for _, inner := range v {
			deepest = max(deepest, nesting(inner))
		}
	default:
		return 0
	}
	return 1 + deepest
}

// asks takes a request of the child.
func (t *turn) asks(ctx context.Context, m message) {
	if m.Method == "item/tool/call" {
		t.asked = append(t.asked, m.ID)
		return
	}
	ctx, cancel := t.c.callContext(ctx)
	defer cancel()
	t.c.answer(ctx, m)
}

// release answers what the child has asked, with failures.
func (t *turn) release(ctx context.Context) {
	ctx, cancel := t.c.callContext(ctx)
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

// responded is the end of the model's answer, unless that is cut or fails: then
// nothing tells of it but turn/completed. The child tells the usage of a turn only
// once it is done with the calls.
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
