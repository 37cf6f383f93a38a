package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"codexpool/codex"
	"codexpool/upstream"
)

// turnParams is a conversation as a turn of Codex: every message in its own place
// and role. It is pure.
func turnParams(req *chatRequest, conversation []chatMessage) codex.TurnParams {
	p := codex.TurnParams{Model: req.Model, Effort: req.Effort, Summary: req.Summary, Items: items(readable(conversation))}
	for _, t := range req.Tools {
		p.Tools = append(p.Tools, codex.Tool{Name: t.Name, Description: t.Description, Parameters: t.Parameters})
	}
	return p
}

// items is a conversation as items of the Responses API. They are put together here,
// once: what the caller wrote is copied into them as it is.
func items(conversation []chatMessage) (list []json.RawMessage) {
	for _, m := range conversation {
		if m.Role == "tool" {
			list = append(list, fmt.Appendf(nil, `{"type":"function_call_output","call_id":%s,"output":%s}`, marshal(m.CallID), output(m.Parts)))
			continue
		}
		if len(m.Parts) > 0 {
			list = append(list, messageItem(m, len(list)))
		}
		for _, c := range m.Calls {
			list = append(list, fmt.Appendf(nil, `{"type":"function_call","call_id":%s,"name":%s,"arguments":%s}`, marshal(c.ID), marshal(c.Name), c.Arguments))
		}
	}
	return list
}

const inputText = `{"type":"input_text","text":%s}`

// messageItem is a message as the item of this number. One of an assistant has all that
// the schema of the Responses API requires of an answer: some servers check it.
func messageItem(m chatMessage, number int) json.RawMessage {
	text, head := inputText, ""
	if m.Role == "assistant" {
		text, head = `{"type":"output_text","text":%s,"annotations":[],"logprobs":[]}`, fmt.Sprintf(`"id":"msg_%d","status":"completed",`, number)
	}
	item := fmt.Appendf(nil, `{"type":"message",%s"role":"%s","content":[`, head, m.Role)
	return append(appendParts(item, m.Parts, text), "]}"...)
}

// appendParts appends the parts of a message or a result. text is the form of those that
// are text.
func appendParts(item []byte, parts []part, text string) []byte {
	for i, p := range parts {
		if i > 0 {
			item = append(item, ',')
		}
		switch {
		case p.File != nil:
			item = fmt.Appendf(item, `{"type":"input_file"%s}`, p.File)
		case p.Image == nil:
			item = fmt.Appendf(item, text, p.Text)
		default:
			item = fmt.Appendf(item, `{"type":"input_image","image_url":%s,"detail":"%s"}`, p.Image, cmp.Or(p.Detail, "auto"))
		}
	}
	return item
}

// output is what a function returned: the text of all parts as one JSON string or, with
// an image or a file among them, the parts.
func output(parts []part) json.RawMessage {
	if slices.ContainsFunc(parts, func(p part) bool { return !p.isText() }) {
		return append(appendParts([]byte{'['}, parts, inputText), ']')
	}
	if len(parts) == 1 {
		return parts[0].Text
	}
	text := []byte{'"'}
	for _, p := range parts {
		text = append(text, p.Text[1:len(p.Text)-1]...)
	}
	return append(text, '"')
}

// instructed is a conversation in which system messages have the newer role developer,
// for those that refuse or drop a system message.
func instructed(conversation []chatMessage) []chatMessage {
	list := slices.Clone(conversation)
	for i := range list {
		if list[i].Role == "system" {
			list[i].Role = "developer"
		}
	}
	return list
}

// readable is a conversation as a child can read it. Codex drops system messages. A
// child ignores a line with half of a surrogate pair in it; so strings with escapes of
// that kind are written anew.
func readable(conversation []chatMessage) []chatMessage {
	list := instructed(conversation)
	for i := range list {
		m := &list[i]
		m.Parts, m.Calls = slices.Clone(m.Parts), slices.Clone(m.Calls)
		for j := range m.Parts {
			m.Parts[j].Text = rewritten(m.Parts[j].Text)
		}
		for j := range m.Calls {
			m.Calls[j].Arguments = rewritten(m.Calls[j].Arguments)
		}
	}
	return list
}

// rewritten is a JSON string without escapes of UTF-16; half a pair becomes U+FFFD.
func rewritten(raw json.RawMessage) json.RawMessage {
	var text string
	if !bytes.Contains(raw, []byte(`\u`)) || json.Unmarshal(raw, &text) != nil {
		return raw
	}
	return marshal(text)
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
func (s *Server) overrides(req *chatRequest, conversation []chatMessage, caller Caller) upstream.Overrides {
	o := upstream.Overrides{"model": marshal(req.Model)}
	if s.cfg.CacheKey {
		o["prompt_cache_key"] = marshal(cacheKey(req, conversation, caller)) // the caller's own replaces it
	}
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
	summary := req.Summary
	if summary == "none" {
		summary = "" // the Responses API has no word for it
	}
	if req.Effort != "" || summary != "" {
		o["reasoning"] = marshal(struct {
			Effort  string `json:"effort,omitempty"`
			Summary string `json:"summary,omitempty"`
		}{req.Effort, summary})
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
// word for every image and file. Decoding images helps nobody, for the provider gets
// them from us, and a large one can cost a child gigabytes.
func standIns(conversation []chatMessage) []json.RawMessage {
	conversation = readable(conversation)
	for _, m := range conversation {
		for i, p := range m.Parts {
			if p.Image != nil {
				m.Parts[i] = part{Text: json.RawMessage(`"[image]"`)}
			}
			if p.File != nil {
				m.Parts[i] = part{Text: json.RawMessage(`"[file]"`)}
			}
		}
	}
	return items(conversation)
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
	function := func(name string) any { return map[string]string{"type": "function", "name": name} }
	switch {
	case c.Name != "":
		return function(c.Name)
	case c.Allowed != nil:
		tools := make([]any, len(c.Allowed))
		for i, name := range c.Allowed {
			tools[i] = function(name)
		}
		return map[string]any{"type": "allowed_tools", "mode": c.Mode, "tools": tools}
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
		if m.Role != "system" && m.Role != "developer" {
			break
		}
		fmt.Fprintf(h, " %q", m.Parts)
	}
	return "codexpool-" + hex.EncodeToString(h.Sum(nil)[:16])
}
