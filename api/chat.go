package api

import (
	"encoding/json"
	"net/http"
)

// form is what differs between the routes of completions.
type form struct {
	input  string                 // the field that holds what is to be answered
	fields map[string]fieldReader // all that have a meaning

	prefix string // of an answer's id
	whole  string // "object" of an answer in one piece
	chunk  string // and of a part of a stream
	text   bool   // choices are bare text
	exact  bool   // body and answer are passed on as they are; then input is all that is set
}

// chatForm is how a chat completion looks.
var chatForm = form{
	input: "messages", fields: chatFields,
	prefix: "chatcmpl-", whole: "chat.completion", chunk: "chat.completion.chunk",
}

// chatCompletions serves POST /v1/chat/completions.
func (s *Server) chatCompletions(res *response, r *http.Request) error {
	return s.complete(res, r, chatForm)
}

// chatFields are the fields of a chat completion that have a meaning. Those
// that would change the answer and cannot be honoured are rejected, those that the
// provider may accept are checked and kept for it, and the others are checked,
// ignored and named. All other fields are unknown: ignored and named too.
//
// Fields are read in the order of their names, not in the order of this table:
// include_reasoning is read before reasoning.
var chatFields = map[string]fieldReader{
	"messages": readMessages,

	"model":             readModel,
	"stream":            field(func(req *chatRequest) *bool { return &req.Stream }, "a boolean"),
	"stream_options":    object(streamOptions),
	"n":                 readN,
	"stop":              readStop,
	"include_reasoning": readIncludeReasoning, // read before reasoning: a summary of its own wins
	"reasoning": object(map[string]fieldReader{
		"effort":  readEffort,
		"summary": readSummary,
	}),
	"reasoning_effort": readEffort, // read after reasoning: it wins
	"functions":        readFunctions,
	"tools":            readTools, // read after functions: both together are rejected
	"tool_choice":      readToolChoice,
	"function_call":    readToolChoice,
	"response_format":  readResponseFormat,

	"modalities":         only(`["text"]`),
	"logprobs":           only("false", "0"),
	"top_logprobs":       only("false", "0"),
	"audio":              rejectField,
	"web_search_options": rejectField,

	"max_tokens":            tokens,
	"max_completion_tokens": tokens,
	"temperature":           number(0, 2, tuned),
	"top_p":                 number(0, 1, tuned),
	"user":                  typed[string]("a string", tuned),
	"safety_identifier":     typed[string]("a string", tuned),
	"service_tier":          typed[string]("a string", tuned),
	"verbosity":             typed[string]("a string", tuned),
	"prompt_cache_key":      typed[string]("a string", tuned),
	"metadata":              readMetadata,
	"parallel_tool_calls":   typed[bool]("a boolean", tuned),

	// The Responses API has no such fields.
	"presence_penalty":  number(-2, 2, ignored),
	"frequency_penalty": number(-2, 2, ignored),
	"prediction":        typed[map[string]any]("an object", ignored), // a hint for speed
	"seed":              typed[int64]("an integer", ignored),
	"logit_bias":        readLogitBias,
}

func readModel(req *chatRequest, name string, value json.RawMessage) error {
	return short(&req.Name, name, value)
}

var streamOptions = map[string]fieldReader{
	"include_usage": field(func(req *chatRequest) *bool { return &req.IncludeUsage }, "a boolean"),
}
