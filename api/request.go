package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"codexpool/upstream"
)

// bodyTimeout is the longest time that a body may take to arrive; handle sets it.
const bodyTimeout = time.Minute

// chatRequest is a checked request for completions. It holds the caller's prompt:
// never log it.
type chatRequest struct {
	Name          string // the model as the caller wrote it
	Model         string // its catalog id
	Effort        string // "" = the model's default
	EffortField   string // where it was given, for errors
	Summary       string // of the reasoning: auto, concise, detailed or none; "" = not requested
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
	Ignored       []string                   // fields that were accepted and have no effect
	Needs         map[string]*Error          // what input has that not every provider takes, and the error where it does not
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

// conversation is the one that a choice answers.
func (req *chatRequest) conversation(choice int) []chatMessage {
	return req.Conversations[choice/req.N]
}

// promptLength is how long the text is that the model reads for a choice, in bytes. The
// bytes of images and files say nothing of their tokens.
func (req *chatRequest) promptLength(choice int) int {
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

// decode reads a request, and names in the response what it ignores.
func (s *Server) decode(res *response, r *http.Request, f form) (*chatRequest, error) {
	body, err := s.readBody(res, r)
	if err != nil {
		return nil, err
	}
	req, err := s.parse(body, f)
	if err == nil && len(req.Ignored) > 0 {
		res.Header().Set("X-Codexpool-Ignored", headerList(req.Ignored))
	}
	return req, err
}

// parse reads and checks the body of a request.
func (s *Server) parse(body []byte, f form) (*chatRequest, error) {
	req := &chatRequest{Stream: s.cfg.DefaultStream, N: 1, Tuned: map[string]json.RawMessage{}, Needs: map[string]*Error{}}
	if err := req.decode(body, f); err != nil {
		return nil, err
	}
	if err := req.check(s.cfg); err != nil {
		return nil, err
	}
	return req, req.fit(s.relay)
}

// readBody reads a JSON body within its limits of type, size and time.
func (s *Server) readBody(res *response, r *http.Request) ([]byte, error) {
	kind, err := mediaType(r)
	if err != nil || (kind == formType && res.caller.Key == "") {
		return nil, errMediaType
	}
	unpack, ok := codings[strings.ToLower(r.Header.Get("Content-Encoding"))]
	if !ok {
		return nil, errEncoding
	}
	if r.ContentLength > s.cfg.MaxBody && r.Header.Get("Expect") != "" {
		return nil, errTooLarge // the client waits for our answer before it sends the body
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, s.cfg.MaxBody+1))
	if err == nil && int64(len(body)) > s.cfg.MaxBody {
		// Read on a little: a client that is still writing would not see the answer.
		_, _ = io.CopyN(io.Discard, r.Body, s.cfg.MaxBody)
		return nil, errTooLarge
	}
	_ = res.control.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, errSlowBody
	case malformed(err):
		return nil, errBadBody
	case err != nil:
		return nil, &goneError{err}
	}
	body, err = unpack(body, s.cfg.MaxBody)
	if kind == formType && err == nil && !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		return nil, errMediaType
	}
	return body, err
}

// formType is the type that curl gives to a body that it is given no type for. It is
// taken for JSON where the request has a key: a form of any web page has this type too,
// but no key.
const formType = "application/x-www-form-urlencoded"

// mediaType is the type of a body that may be JSON. A body without a type is JSON.
func mediaType(r *http.Request) (string, error) {
	given := r.Header.Get("Content-Type")
	if given == "" {
		return "application/json", nil
	}
	kind, _, err := mime.ParseMediaType(given)
	if err == nil && kind != "application/json" && kind != formType && !strings.HasSuffix(kind, "+json") {
		err = errMediaType
	}
	return kind, err
}

// malformed reports whether a body has no valid transfer encoding, such as broken
// chunks: net/http has no type for that error. A client that disconnected causes a
// network error, or a body that is too short.
func malformed(err error) bool {
	var network net.Error
	return err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &network)
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
	var fields map[string]json.RawMessage
	if unmarshal(body, &fields) != nil || fields == nil || !utf8.Valid(body) {
		e := badRequest("", "The body is not a JSON object.")
		var syntax *json.SyntaxError
		if errors.As(json.Unmarshal(body, &fields), &syntax) { // its errors are in plain words
			e.Message = fmt.Sprintf("The body is not valid JSON: %v (at byte %d).", syntax, syntax.Offset)
		}
		if !utf8.Valid(body) {
			e.Message = "The body is not valid UTF-8."
		}
		e.Code = "invalid_json"
		return e
	}
	if isNull(fields[f.input]) {
		return missing(f.input, fields)
	}
	return req.readFields("", fields, f.fields)
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
			req.Ignored = append(req.Ignored, prefix+name)
		} else if err := read(req, prefix+name, fields[name]); err != nil {
			return err
		}
	}
	return nil
}

// ignoreRest names the fields that are not known.
func (req *chatRequest) ignoreRest(prefix string, fields map[string]json.RawMessage, known ...string) {
	for key, value := range fields {
		if !slices.Contains(known, key) && !isNull(value) {
			req.Ignored = append(req.Ignored, prefix+key)
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
		req.Ignored = append(req.Ignored, "stream_options")
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
	takes := func(name string) bool { return relay != nil && relay.Supports(name) }
	for name := range req.Tuned {
		if !takes(cmp.Or(providerNames[name], name)) || (name == "parallel_tool_calls" && len(req.Tools) == 0) {
			delete(req.Tuned, name)
			req.Ignored = append(req.Ignored, name)
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
	case req.Format != nil && !takes("text"):
		return unsupported("response_format")
	case req.ToolChoice.binds() && !takes("tool_choice"):
		return unsupported(req.ToolChoice.Field)
	case len(req.Tools) > 0 && relay != nil && !takes("tools"):
		req.Ignored = append(req.Ignored, "tools")
		req.Tools = nil
	case relay == nil && slices.ContainsFunc(req.Tools, func(t tool) bool { return t.Strict }):
		req.Ignored = append(req.Ignored, "tools.function.strict")
	}
	return nil
}

var notHeaderSafe = regexp.MustCompile(`[^A-Za-z0-9_.\-\[\]]`)

// headerList joins names, each once, for a header of at most 1 KB. Names come
// from the client, so all but plain characters become "?".
func headerList(names []string) string {
	slices.Sort(names)
	list := ""
	for _, n := range slices.Compact(names) {
		n = notHeaderSafe.ReplaceAllString(n[:min(len(n), 100)], "?")
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
