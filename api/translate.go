package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"codexpool/codex"
	"codexpool/upstream"
)

// turnParams is the request in Codex's words: every message in its own place
// and role. It is pure.
func turnParams(req chatRequest) codex.TurnParams {
	p := codex.TurnParams{Model: req.Model, Effort: req.Effort}
	for _, m := range req.Messages {
		p.Items = append(p.Items, responsesItem(m))
	}
	return p
}

type responsesMessage struct {
	Type    string          `json:"type"`
	Role    string          `json:"role"`
	Content []responsesPart `json:"content"`
}

type responsesPart struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// responsesItem is one message as an item of the Responses API.
func responsesItem(m chatMessage) json.RawMessage {
	kind := "input_text"
	if m.Role == "assistant" {
		kind = "output_text"
	}
	item := responsesMessage{Type: "message", Role: m.Role}
	for _, text := range m.Parts {
		item.Content = append(item.Content, responsesPart{Type: kind, Text: text})
	}
	data, err := json.Marshal(item)
	if err != nil {
		panic("BUG: strings that JSON cannot hold: " + err.Error())
	}
	return data
}

func usage(u codex.Usage) *usageBody {
	body := &usageBody{Prompt: u.Input, Completion: u.Output, Total: u.Total}
	body.PromptDetails.Cached = u.Cached
	body.CompletionDetails.Reasoning = u.Reasoning
	return body
}

// overrides is what the caller wants of the provider, in the names of the
// Responses API. caller tells callers apart; only its digest is used.
func overrides(req chatRequest, caller string) upstream.Overrides {
	o := upstream.Overrides{"prompt_cache_key": quoted(cacheKey(req, caller))}
	for name, value := range req.Tuned {
		switch name {
		case "verbosity":
			o["text"] = json.RawMessage(`{"verbosity":` + string(value) + `}`)
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
	if req.Effort != "" {
		o["reasoning"] = json.RawMessage(`{"effort":` + string(quoted(req.Effort)) + `}`)
	}
	return o
}

// cacheKey is the same for requests that begin alike, so that they share the
// provider's prompt cache, and differs between callers: Codex would use a new
// one for every completion.
func cacheKey(req chatRequest, caller string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q", caller, req.Model)
	for _, m := range req.Messages {
		if m.Role != "developer" {
			break
		}
		fmt.Fprintf(h, " %q", m.Parts)
	}
	return "codexpool-" + hex.EncodeToString(h.Sum(nil)[:16])
}

func quoted(s string) json.RawMessage {
	data, err := json.Marshal(s)
	if err != nil {
		panic("BUG: a string that JSON cannot hold: " + err.Error())
	}
	return data
}
