package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"codexpool/upstream"
)

// chatRequest is a checked request for completions. It holds the caller's prompt:
// never log it.
type chatRequest struct {
	Name          string // the model as the caller wrote it
	Model         string // its catalog id
	Effort        string // "" = the model's default
	Summary       string // of the reasoning: auto, concise, detailed or none; "" = not requested
	Bytes         int    // of the body, for each conversation
	Conversations [][]chatMessage
	N             int // answers to each conversation
	Stream        bool
	IncludeUsage  bool
	Stop          []string
	Tools         []tool
	ToolChoice    toolChoice
	LegacyCalls   bool                       // tools were given as functions
	Format        map[string]any             // of the answer, in the Responses API's words; nil = text
	Tuned         map[string]json.RawMessage // fields for the provider, checked, by their names here
	Ignored       map[string]bool            // fields that were accepted and have no effect

	scanner
	toolNames map[string]bool // of Tools
}

// choices is the number of answers that are requested.
func (req *chatRequest) choices() int { return len(req.Conversations) * req.N }

// forget drops what only the provider needs: the parts of the body. It keeps the number
// of conversations.
func (req *chatRequest) forget() {
	req.Conversations = make([][]chatMessage, len(req.Conversations))
	req.Tools, req.Tuned, req.Format = nil, nil, nil
}

// conversation is the one that a choice answers.
func (req *chatRequest) conversation(choice int) []chatMessage {
	return req.Conversations[choice/req.N]
}

// parse reads and checks the body of a request.
func (s *Server) parse(ctx context.Context, body []byte, f form) (*chatRequest, error) {
	req := &chatRequest{
		Stream: s.cfg.DefaultStream, N: 1, Tuned: map[string]json.RawMessage{}, Ignored: map[string]bool{}, toolNames: map[string]bool{},
		scanner: newScanner(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return nil
		}),
	}
	err := req.decode(body, f.fields)
	req.scanner = scanner{} // it keeps what it last read
	if err != nil {
		return nil, err
	}
	if req.Conversations == nil {
		return nil, badRequest(f.input, "'%s' is missing.", f.input)
	}
	req.Bytes = len(body) / max(len(req.Conversations), 1)
	if err := req.check(s.cfg); err != nil {
		return nil, err
	}
	return req, req.fit(s.relay)
}

// decode reads the fields one by one, so that each error names its own.
func (req *chatRequest) decode(body []byte, known map[string]fieldReader) error {
	if kindOf(body) != '{' || !utf8.Valid(body) {
		return notJSON(body)
	}
	fields, err := req.members("body", body, "an object")
	if told := (*Error)(nil); errors.As(err, &told) {
		return err
	}
	if err != nil {
		return notJSON(body)
	}
	return req.readFields("", fields, known)
}

// notJSON says what is wrong with a body.
func notJSON(body []byte) *Error {
	e := badRequest("", "The body is not a JSON object.")
	var syntax *json.SyntaxError
	if errors.As(json.Unmarshal(body, new(json.RawMessage)), &syntax) { // its errors are in plain words
		e.Message = fmt.Sprintf("The body is not valid JSON: %v (at byte %d).", syntax, syntax.Offset)
	}
	if !utf8.Valid(body) {
		e.Message = "The body is not valid UTF-8."
	}
	e.Code = "invalid_json"
	return e
}

// readFields reads the fields of an object, in the order of their names. Null is
// as if a field were not there.
func (req *chatRequest) readFields(prefix string, fields map[string]json.RawMessage, known map[string]fieldReader) error {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		read, found := known[name]
		if isNull(fields[name]) {
			continue
		}
		if !found {
			req.ignore(prefix + name)
		} else if err := read(req, prefix+name, fields[name]); err != nil {
			return err
		}
	}
	return nil
}

// maxIgnored is how many names a header of 1 KB can hold, and one more.
const maxIgnored = 335

// ignore names a field in the response.
func (req *chatRequest) ignore(name string) {
	if len(req.Ignored) < maxIgnored {
		req.Ignored[name[:min(len(name), 100)]] = true
	}
}

// ignoreRest names the fields that are not known.
func (req *chatRequest) ignoreRest(prefix string, fields map[string]json.RawMessage, known ...string) {
	for key, value := range fields {
		if !slices.Contains(known, key) && !isNull(value) {
			req.ignore(prefix + key)
		}
	}
}

// check checks the fields against each other and resolves the model.
func (req *chatRequest) check(cfg Config) error {
	if req.N > cfg.MaxChoices || req.choices() > cfg.MaxChoices { // the first bounds the product
		return badRequest("n", "'n' times the number of prompts must be at most %d.", cfg.MaxChoices)
	}
	if req.IncludeUsage && !req.Stream {
		req.ignore("stream_options")
	}
	if err := req.checkTools(); err != nil {
		return err
	}
	models := cfg.Models()
	if req.Name == "" {
		req.Name = models.Default
	}
	id, effort, ok := models.resolve(req.Name)
	if !ok {
		return modelNotFound(req.Name)
	}
	req.Model = id
	if req.Effort == "" {
		req.Effort = effort
	}
	if !models.effort(req.Effort) && req.Effort != "" {
		return badRequest("reasoning_effort", "'reasoning_effort' is not one of %s.", strings.Join(efforts, ", "))
	}
	return nil
}

// providerNames are the fields of the Responses API that hold what a chat
// completion calls otherwise.
var providerNames = map[string]string{
	"max_completion_tokens": "max_output_tokens",
	"max_tokens":            "max_output_tokens",
	"verbosity":             "text",
}

// fit keeps the fields that the provider supports. Of the others, those that only
// tune the answer are ignored and named, and those that would change it are rejected.
// Without a relay, the provider gets only what Codex itself can pass on.
func (req *chatRequest) fit(relay *upstream.Relay) error {
	takes := func(name string) bool { return relay != nil && relay.Supports(name) }
	for name := range req.Tuned {
		if !takes(cmp.Or(providerNames[name], name)) || (name == "parallel_tool_calls" && len(req.Tools) == 0) {
			delete(req.Tuned, name)
			req.ignore(name)
		}
	}
	if req.ToolChoice.Mode == "none" && !takes("tool_choice") {
		req.Tools = nil
	}
	switch {
	case req.Format != nil && !takes("text"):
		return unsupported("response_format")
	case req.ToolChoice.forced() && !takes("tool_choice"):
		return unsupported(req.ToolChoice.Field)
	case len(req.Tools) > 0 && relay != nil && !takes("tools"):
		req.ignore("tools")
		req.Tools = nil
	case relay == nil && slices.ContainsFunc(req.Tools, func(t tool) bool { return t.Strict }):
		req.ignore("tools.function.strict")
	}
	return nil
}

var notHeaderSafe = regexp.MustCompile(`[^A-Za-z0-9_.\-\[\]]`)

// headerList joins names for a header of at most 1 KB. Names come from the client, so
// all but plain characters become "?".
func headerList(names map[string]bool) string {
	list := ""
	for _, n := range slices.Sorted(maps.Keys(names)) {
		n = notHeaderSafe.ReplaceAllString(n, "?")
		if len(list)+len(n)+2 > 1000 {
			return list + ", ..."
		}
		if list != "" {
			list += ", "
		}
		list += n
	}
	return list
}
