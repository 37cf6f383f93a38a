package api

import (
	"encoding/json"

	"codexpool/codex"
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
