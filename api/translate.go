package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"codexpool/codex"
	"codexpool/upstream"
)

// turnParams is a conversation as a turn of Codex: every message in its own place
// and role. It is pure.
func turnParams(req *chatRequest, conversation []chatMessage) codex.TurnParams {
	p := codex.TurnParams{Model: req.Model, Effort: req.Effort, Summary: req.Summary}
	for _, m := range conversation {
		for _, item := range responsesItems(m) {
			p.Items = append(p.Items, marshal(item))
		}
	}
	for _, t := range req.Tools {
		p.Tools = append(p.Tools, codex.Tool{Name: t.Name, Description: t.Description, Parameters: t.Parameters})
	}
	return p
}

// The items of the Responses API that a conversation is made of.
type (
	messageItem struct {
		Type    string     `json:"type"`
		Role    string     `json:"role"`
		Content []itemPart `json:"content"`
	}

	itemPart struct {
		Type   string  `json:"type"`
		Text   *string `json:"text,omitempty"`
		Image  string  `json:"image_url,omitempty"`
		Detail string  `json:"detail,omitempty"`
	}

	callItem struct {
		Type      string `json:"type"`
		CallID    string `json:"call_id"`
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	}

	resultItem struct {
		Type   string `json:"type"`
		CallID string `json:"call_id"`
		Output string `json:"output"`
	}
)

// responsesItems is one message as items of the Responses API.
func responsesItems(m chatMessage) (items []any) {
	if m.Role == "tool" {
		var output strings.Builder
		for _, p := range m.Parts {
			output.WriteString(p.Text)
		}
		return []any{resultItem{Type: "function_call_output", CallID: m.CallID, Output: output.String()}}
	}
	if len(m.Parts) > 0 {
		items = append(items, messageItem{Type: "message", Role: m.Role, Content: itemParts(m)})
	}
	for _, c := range m.Calls {
		items = append(items, callItem{Type: "function_call", CallID: c.ID, Name: c.Name, Arguments: c.Arguments})
	}
	return items
}

func itemParts(m chatMessage) (parts []itemPart) {
	kind := "input_text"
	if m.Role == "assistant" {
		kind = "output_text"
	}
	for _, p := range m.Parts {
		if p.Image != "" {
			parts = append(parts, itemPart{Type: "input_image", Image: p.Image, Detail: p.Detail})
			continue
		}
		parts = append(parts, itemPart{Type: kind, Text: &p.Text})
	}
	return parts
}

// marshal is encode for values that were built from JSON.
func marshal(v any) json.RawMessage {
	data, err := encode(v)
	if err != nil {
		panic("BUG: a value that JSON cannot hold: " + err.Error())
	}
	return bytes.TrimSuffix(data, []byte("\n"))
}

func usage(u codex.Usage) *usageBody {
	body := &usageBody{Prompt: u.Input, Completion: u.Output, Total: u.Total}
	body.PromptDetails.Cached = u.Cached
	body.CompletionDetails.Reasoning = u.Reasoning
	return body
}

// overrides is what the request sets in the provider's request, in the names of
// the Responses API.
func overrides(req *chatRequest, conversation []chatMessage, caller Caller) upstream.Overrides {
	o := upstream.Overrides{"model": marshal(req.Model), "prompt_cache_key": marshal(cacheKey(req, conversation, caller))}
	text := map[string]any{}
	for name, value := range req.Tuned {
		switch name {
		case "verbosity":
			text["verbosity"] = value
		case "max_tokens":
			if _, newer := req.Tuned["max_completion_tokens"]; !newer {
				o["max_output_tokens"] = value
			}
		case "max_completion_tokens":
			o["max_output_tokens"] = value
		default:
			o[name] = value
		}
	}
	if req.Format != nil {
		text["format"] = req.Format
	}
	if len(text) > 0 {
		o["text"] = marshal(text)
	}
	if req.Effort != "" || req.Summary != "" {
		o["reasoning"] = marshal(struct {
			Effort  string `json:"effort,omitempty"`
			Summary string `json:"summary,omitempty"`
		}{req.Effort, req.Summary})
	}
	if len(req.Tools) > 0 {
		o["tools"] = marshal(functions(req.Tools))
		if choice := responsesChoice(req.ToolChoice); choice != nil {
			o["tool_choice"] = marshal(choice)
		}
		if req.LegacyCalls {
			o["parallel_tool_calls"] = json.RawMessage("false") // an answer in the old form has room for one
		}
	}
	return o
}

// standIns are the items of a conversation as a child gets them with a relay: with a
// word for every image. Decoding images helps nobody, for the provider gets them from
// us, and a large one can cost a child gigabytes.
func standIns(conversation []chatMessage) (items []json.RawMessage) {
	for _, m := range conversation {
		parts := make([]part, len(m.Parts))
		for i, p := range m.Parts {
			if parts[i] = p; p.Image != "" {
				parts[i] = part{Text: "[image]"}
			}
		}
		m.Parts = parts
		for _, item := range responsesItems(m) {
			items = append(items, marshal(item))
		}
	}
	return items
}

type functionTool struct {
	Type string `json:"type"`
	tool
}

func functions(tools []tool) (list []functionTool) {
	for _, t := range tools {
		list = append(list, functionTool{"function", t})
	}
	return list
}

// responsesChoice is a tool_choice in the form of the Responses API, or nil.
func responsesChoice(c toolChoice) any {
	switch {
	case c.Name != "":
		return map[string]string{"type": "function", "name": c.Name}
	case c.Mode != "":
		return c.Mode
	}
	return nil
}

// cacheKey is the same for requests that begin alike, so that they share the
// provider's prompt cache, and differs between callers: Codex would use a new
// one for every completion.
func cacheKey(req *chatRequest, conversation []chatMessage, caller Caller) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %s", caller.Key, req.Model, marshal(req.Tools))
	for _, m := range conversation {
		if m.Role != "developer" {
			break
		}
		fmt.Fprintf(h, " %q", m.Parts)
	}
	return "codexpool-" + hex.EncodeToString(h.Sum(nil)[:16])
}
