package api

import (
	"encoding/json"
	"net/http"
)

// completionFields are the fields of a legacy completion, as chatFields are
// those of a chat completion.
var completionFields = map[string]fieldReader{
	"prompt": readPrompt,

	"model":          chatFields["model"],
	"stream":         chatFields["stream"],
	"stream_options": chatFields["stream_options"],
	"n":              readN,
	"stop":           readStop,
	"max_tokens":     tokens,

	"best_of":  only("1"),
	"echo":     only("false"),
	"logprobs": only("false", "0"),
	"suffix":   only(`""`),

	"temperature":       chatFields["temperature"],
	"top_p":             chatFields["top_p"],
	"user":              chatFields["user"],
	"presence_penalty":  chatFields["presence_penalty"],
	"frequency_penalty": chatFields["frequency_penalty"],
	"seed":              chatFields["seed"],
	"logit_bias":        chatFields["logit_bias"],
}

// textForm is how a legacy completion looks.
var textForm = form{
	input: "prompt", fields: completionFields,
	prefix: "cmpl-", whole: "text_completion", chunk: "text_completion", text: true,
}

// completions serves POST /v1/completions: each prompt is a conversation of one
// message, and each answer bare text.
func (s *Server) completions(res *response, r *http.Request) error {
	return s.complete(res, r, textForm)
}

// readPrompt reads one prompt, or several.
func readPrompt(req *chatRequest, name string, value json.RawMessage) error {
	add := func(i int, value json.RawMessage) error {
		if !isString(value) {
			return badRequest(name, "'%s[%d]' must be a string.", name, i)
		}
		req.Conversations = append(req.Conversations, []chatMessage{{Role: "user", Parts: []part{{Text: value}}}})
		return nil
	}
	if isString(value) {
		return add(0, value)
	}
	err := req.elements(name, value, "a string or an array of strings; token arrays are not supported", maxParts, "prompts", add)
	if err == nil && req.Conversations == nil {
		err = badRequest(name, "'%s' must not be empty.", name)
	}
	return err
}
