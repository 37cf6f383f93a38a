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
	Parameters  json.RawMessage // a JSON schema of an object; nil for a function without parameters
}

// ToolCall is one call of a function, as the model wrote it.
type ToolCall struct {
	ID        string // the call_id of its function_call_output
	Name      string // not always that of a Tool: models make mistakes
	Arguments string // exactly as written, even where that is not JSON
}

// This file is for children that call the provider themselves (CODEX_UPSTREAM=direct).
// With a relay the child learns nothing of calls: the relay gives them to the caller.
//
// Codex runs the calls of a model within one turn: it sends us a request for each
// (item/tool/call), waits for all results, and sends them to the model. But here the
// caller has the results, and sends them with another turn. So we do not answer these
// requests, and interrupt the turn as soon as the model's answer is complete
// (rawResponse/completed). The child then drops its requests, and can be used again.
//
// Two cases need more:
//
//   - The child itself answers a call of a function that was not declared, or whose
//     arguments are not JSON. It sends that to the model about 2 ms after the answer
//     was complete. The interrupt is too late for one in twenty of these on an idle
//     host, for most on a busy one. That second request is paid for.
//   - When the upstream fails after a call, the child reports it only after its
//     requests are answered. See [callsHeld].

// callsHeld is how long the child may be silent before its requests to run calls are
// answered, with a failure. The answer may be complete by then. If it is not, the
// request for a later call keeps the child waiting again.
const callsHeld = time.Second

// maxAnswers bounds the answers of the model in one turn. Where an answer says
// "end_turn":false, as a model does that has more to say, Codex asks it again, for ever
// and at full price: 190 times a second where the provider always says so. Each thread of
// a direct child has raw events, so that the answers can be counted.
const maxAnswers = 8

// maxNesting is how deep the parameters of a tool may nest. The child reads 127 levels
// of one line; the request around the parameters has four of them.
const maxNesting = 123

// dynamicTools are the tools as thread/start accepts them. Names that Codex reserves
// for MCP servers are omitted, because the whole thread/start would fail. Codex itself
// omits exec_command and shell_command.
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

// readable decodes a schema, so that it is sent in a form that the child can read.
// Without an answer, the child ignores a line with half of a surrogate pair in it, or
// one that nests too deep; a line that is not UTF-8 kills it. The order of names is
// lost, but Codex does not keep it anyway.
func readable(parameters json.RawMessage) (schema any, err error) {
	if parameters == nil {
		parameters = json.RawMessage(`{"type":"object","properties":{}}`)
	}
	dec := json.NewDecoder(bytes.NewReader(parameters))
	dec.UseNumber()
	if dec.Decode(&schema) != nil {
		return nil, errors.New("are not JSON")
	}
	if nesting(schema) > maxNesting {
		return nil, fmt.Errorf("nest deeper than %d levels", maxNesting)
	}
	return schema, nil
}

// nesting is how deep objects and arrays are nested.
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

// requested handles a request of the child.
func (t *turn) requested(ctx context.Context, m message) {
	if m.Method == "item/tool/call" {
		t.pending = append(t.pending, m.ID)
		return
	}
	ctx, cancel := t.c.callContext(ctx)
	defer cancel()
	t.c.answer(ctx, m)
}

// release answers the child's requests to run calls, with failures.
func (t *turn) release(ctx context.Context) {
	ctx, cancel := t.c.callContext(ctx)
	defer cancel()
	for _, id := range t.pending {
		t.c.write(ctx, outgoing{ID: id, Result: toolCallResult{ContentItems: []string{}}}) // an error spoils the child
	}
	t.pending = nil
}

// rawItem notes the call in a raw item. Only raw items have the arguments as the model
// wrote them, and the calls of unknown functions. Raw items of the history arrive too,
// when it is injected, with the id of another turn.
func (t *turn) rawItem(n *notification) {
	if n.Item.Type != "function_call" {
		return
	}
	call := ToolCall{ID: n.Item.CallID, Name: n.Item.Name}
	json.Unmarshal(n.Item.Arguments, &call.Arguments) // always a string
	t.calls[n.TurnID] = append(t.calls[n.TurnID], call)
}

// responded handles the end of an answer of the model: with calls, or as the last that is
// allowed, it is the end of the turn's. Where an answer is cut short or fails, only
// turn/completed arrives. The usage is added up here, because the child reports that of
// the turn only after it has the results of the calls.
func (t *turn) responded(n *notification) (events []Event) {
	t.answers++
	calls, finish := t.calls[n.TurnID], FinishStop
	if len(calls) == 0 && t.answers < maxAnswers {
		return nil
	}
	t.answered = true
	if len(calls) > 0 {
		finish = FinishToolCalls
		events = append(events, ToolCalls{Calls: calls})
	}
	if u := n.Usage; u != nil && Usage(*u).Plausible() {
		events = append(events, Usage{
			Input: t.usage.Input + u.Input, Cached: t.usage.Cached + u.Cached,
			Output: t.usage.Output + u.Output, Reasoning: t.usage.Reasoning + u.Reasoning,
			Total: t.usage.Total + u.Total,
		})
	}
	return append(events, Completed{Finish: finish})
}
