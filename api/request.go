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
	EffortField   string // where it was given, for errors
	Summary       string // of the reasoning: auto, concise, detailed or none; "" = not requested
	Conversations [][]chatMessage
	Lengths       []int // of each choice: the length of its prompt, in bytes
	N             int   // answers to each conversation
	Stream        bool
	IncludeUsage  bool
	Stop          []string
	Tools         []tool
	ToolChoice    toolChoice
	LegacyCalls   bool                       // tools were given as functions
	Format        map[string]any             // of the answer, in the Responses API's words; nil = text
	Tuned         map[string]json.RawMessage // fields for the provider, checked, by their names here
	Ignored       map[string]bool            // fields that were accepted and have no effect
	LargeImage    *Error                     // the error for a child that decodes images, nil where each is small enough
	Needs         map[string]*Error          // what input has that not every provider takes, and the error where it does not
	Exact         *exactRequest              // the request as it came; nil where it is translated

	scanner
	toolNames map[string]bool // of Tools
}

// need notes that the request has what only some providers take. The first error for
// each is kept.
func (req *chatRequest) need(what string, otherwise *Error) {
	if req.Needs[what] == nil {
		req.Needs[what] = otherwise
	}
}

// choices is the number of answers that are requested.
func (req *chatRequest) choices() int { return len(req.Conversations) * req.N }

// forget drops what only the provider needs: the parts of the body. It keeps the number
// of conversations.
func (req *chatRequest) forget() {
	req.Conversations = make([][]chatMessage, len(req.Conversations))
	req.Tools, req.Tuned, req.Format, req.Exact = nil, nil, nil, nil
}

// conversation is the one that a choice answers.
func (req *chatRequest) conversation(choice int) []chatMessage {
	return req.Conversations[choice/req.N]
}

// promptLength is how long the text is that the model reads for a choice, in bytes. The
// bytes of images and files say nothing of their tokens.
func (req *chatRequest) promptLength(choice int) int {
	if req.Exact != nil {
		return textLength(req.Exact.body)
	}
	n := 0
	for _, t := range req.Tools {
		n += len(t.Name) + len(t.Description) + len(t.Parameters)
	}
	for _, m := range req.conversation(choice) {
		for _, p := range m.Parts {
			n += max(0, len(p.Text)-len(emptyText)) // without its quotes
		}
		for _, c := range m.Calls {
			n += len(c.Name) + len(c.Arguments) - len(emptyText)
		}
	}
	return n
}

// parse reads and checks the body of a request.
func (s *Server) parse(ctx context.Context, body []byte, f form) (*chatRequest, error) {
	req := &chatRequest{
		Stream: s.cfg.DefaultStream, N: 1, Tuned: map[string]json.RawMessage{}, Ignored: map[string]bool{}, Needs: map[string]*Error{}, toolNames: map[string]bool{},
		scanner: newScanner(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return nil
		}),
	}
	err := req.decode(body, f)
	req.scanner = scanner{} // it keeps what it last read
	if err != nil {
		return nil, err
	}
	if err := req.check(s.cfg); err != nil {
		return nil, err
	}
	if err := req.fit(s.relay); err != nil {
		return nil, err
	}
	for choice := range req.choices() {
		req.Lengths = append(req.Lengths, req.promptLength(choice))
	}
	return req, nil
}

// routes are the routes by the field that holds what is to be answered.
var routes = map[string]string{"messages": "/v1/chat/completions", "prompt": "/v1/completions", "input": "/v1/responses"}

// missing is the error for a body without the field that holds what is to be answered.
// It names the route that the body was meant for.
func missing(input string, fields map[string]json.RawMessage) *Error {
	e := badRequest(input, "'%s' is missing.", input)
	for _, field := range slices.Sorted(maps.Keys(routes)) {
		if !isNull(fields[field]) {
			e.Message += fmt.Sprintf(" A body with '%s' is for %s.", field, routes[field])
		}
	}
	return e
}

// decode reads the fields one by one, so that each error names its own.
func (req *chatRequest) decode(body []byte, f form) error {
	if kindOf(body) != '{' || !utf8.Valid(body) {
		return notJSON(body)
	}
	if f.exact {
		return req.readExact(body)
	}
	fields, err := req.members("body", body, "an object")
	if told := (*Error)(nil); errors.As(err, &told) {
		return err
	}
	if err != nil {
		return notJSON(body)
	}
	if isNull(fields[f.input]) {
		return missing(f.input, fields)
	}
	return req.readFields("", fields, f.fields)
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
	switch {
	case req.N > min(cfg.MaxChoices, cfg.MaxPlaces): // which bounds the product
		return badRequest("n", "'n' must be at most %d.", min(cfg.MaxChoices, cfg.MaxPlaces))
	case req.choices() > cfg.MaxPlaces:
		return badRequest("prompt", "The number of prompts times 'n' must be at most %d.", cfg.MaxPlaces)
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
	if taken := models.efforts(); req.Effort != "" && !slices.Contains(taken, req.Effort) {
		return badRequest(req.EffortField, "'%s' must be one of %s.", req.EffortField, strings.Join(taken, ", "))
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
	if req.Exact != nil {
		return req.fitExact(relay)
	}
	takes := func(name string) bool { return relay != nil && relay.Supports(name) }
	for name, value := range req.Tuned {
		if relay == nil || !relay.Accepts(cmp.Or(providerNames[name], name), value) || (name == "parallel_tool_calls" && len(req.Tools) == 0) {
			delete(req.Tuned, name)
			req.ignore(name)
		}
	}
	if req.ToolChoice.Mode == "none" && !takes("tool_choice") {
		req.Tools = nil
	}
	if !takes(upstream.SystemRole) {
		for i, conversation := range req.Conversations {
			req.Conversations[i] = instructed(conversation)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(req.Needs)) {
		if !takes(what) {
			return req.Needs[what]
		}
	}
	switch {
	case relay == nil && req.LargeImage != nil:
		return req.LargeImage
	case req.Format != nil && !takes("text"):
		return unsupported("response_format")
	case req.ToolChoice.binds() && !takes("tool_choice"):
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
