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
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// bodyTimeout is how long a body may take to arrive; handle sets it.
const bodyTimeout = time.Minute

// chatRequest is a checked request. It holds what a caller wrote: never log it.
type chatRequest struct {
	Name         string // the model as the caller wrote it
	Model        string // its catalog id
	Effort       string // "" = the model's default
	Messages     []chatMessage
	Stream       bool
	IncludeUsage bool
	Tuned        map[string]json.RawMessage // fields for the provider, checked, by their names here
	Ignored      []string                   // fields that were accepted and have no effect
}

// chatMessage is one message; its text comes in one or several parts.
type chatMessage struct {
	Role  string // developer, user or assistant
	Parts []string
}

// decodeChat reads the request and names what it ignores in the response.
func (s *Server) decodeChat(res *response, r *http.Request) (chatRequest, error) {
	body, err := s.readBody(res, r)
	if err != nil {
		return chatRequest{}, err
	}
	req := chatRequest{Stream: s.cfg.DefaultStream, Tuned: map[string]json.RawMessage{}}
	if err := req.decode(body, s.cfg.Models); err != nil {
		return chatRequest{}, err
	}
	req.untune(func(field string) bool { return s.relay != nil && s.relay.Takes(field) })
	if len(req.Ignored) > 0 {
		res.Header().Set("X-Codexpool-Ignored", headerList(req.Ignored))
	}
	return req, nil
}

// readBody reads a JSON body within its limits of type, size and time.
func (s *Server) readBody(res *response, r *http.Request) ([]byte, error) {
	if given := r.Header.Get("Content-Type"); given != "" {
		kind, _, err := mime.ParseMediaType(given)
		if err != nil || (kind != "application/json" && !strings.HasSuffix(kind, "+json")) {
			return nil, errMediaType
		}
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
	case err != nil:
		return nil, &goneError{err}
	}
	return body, nil
}

// decode reads the fields one by one, so that each error names its own.
func (req *chatRequest) decode(body []byte, models Models) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		e := badRequest("", "The body is not a JSON object.")
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			e.Message = fmt.Sprintf("The body is not valid JSON: %v (at byte %d).", syntax, syntax.Offset)
		}
		e.Code = "invalid_json"
		return e
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := fields[name]
		if isNull(value) {
			continue // as if it were not there
		}
		read, known := chatFields[name]
		if !known {
			req.Ignored = append(req.Ignored, name)
		} else if err := read(req, name, value); err != nil {
			return err
		}
	}
	if req.Messages == nil {
		return badRequest("messages", "'messages' is missing.")
	}
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

// fieldReader checks one field and takes what it says.
type fieldReader func(req *chatRequest, name string, value json.RawMessage) error

// chatFields are the fields of a chat completion that have a meaning. Those
// that would change the answer and cannot be honoured yet are refused, those
// that the provider takes are checked and kept for it, and the rest of them
// checked, ignored and named. All others are unknown: ignored and named too.
var chatFields = map[string]fieldReader{
	"model":            field(func(req *chatRequest) *string { return &req.Name }, "a string"),
	"messages":         readMessages,
	"stream":           field(func(req *chatRequest) *bool { return &req.Stream }, "a boolean"),
	"stream_options":   object("include_usage", func(req *chatRequest) *bool { return &req.IncludeUsage }, "a boolean"),
	"reasoning":        object("effort", func(req *chatRequest) *string { return &req.Effort }, "a string"),
	"reasoning_effort": field(func(req *chatRequest) *string { return &req.Effort }, "a string"), // read after reasoning: it wins
	"n":                only("1"),
	"response_format":  readResponseFormat,
	"modalities":       only(`["text"]`),
	"logprobs":         only("false"),
	"top_logprobs":     only("0"),
	"tools":            only("[]"),
	"functions":        only("[]"),
	"tool_choice":      only(`"none"`, `"auto"`),
	"function_call":    only(`"none"`, `"auto"`),
	"stop":             only("[]"),

	"max_tokens":            tokens,
	"max_completion_tokens": tokens,
	"audio":                 refuse,
	"prediction":            refuse,
	"web_search_options":    refuse,

	"temperature":       number(0, 2, tuned),
	"top_p":             number(0, 1, tuned),
	"user":              typed[string]("a string", tuned),
	"safety_identifier": typed[string]("a string", tuned),
	"service_tier":      typed[string]("a string", tuned),
	"verbosity":         typed[string]("a string", tuned),
	"prompt_cache_key":  typed[string]("a string", tuned),
	"metadata":          typed[map[string]string]("an object of strings", tuned),

	// The Responses API has no such fields, or they mean nothing without tools.
	"presence_penalty":    number(-2, 2, ignored),
	"frequency_penalty":   number(-2, 2, ignored),
	"parallel_tool_calls": typed[bool]("a boolean", ignored),
	"seed":                typed[int64]("an integer", ignored),
	"logit_bias":          typed[map[string]float64]("an object of numbers", ignored),
}

// taker does something with a field that was checked.
type taker func(req *chatRequest, name string, value json.RawMessage)

// tuned keeps a field for the provider.
func tuned(req *chatRequest, name string, value json.RawMessage) { req.Tuned[name] = value }

// ignored names a field in the response.
func ignored(req *chatRequest, name string, _ json.RawMessage) {
	req.Ignored = append(req.Ignored, name)
}

// providerNames are the fields of the Responses API that hold what a chat
// completion calls otherwise.
var providerNames = map[string]string{
	"max_completion_tokens": "max_output_tokens",
	"max_tokens":            "max_output_tokens",
	"verbosity":             "text",
}

// untune ignores, and names, what the provider does not take.
func (req *chatRequest) untune(takes func(field string) bool) {
	for name := range req.Tuned {
		if !takes(cmp.Or(providerNames[name], name)) {
			delete(req.Tuned, name)
			req.Ignored = append(req.Ignored, name)
		}
	}
}

func tokens(req *chatRequest, name string, value json.RawMessage) error {
	var n int64
	if err := into(&n, name, value, "an integer"); err != nil {
		return err
	}
	if n < 1 {
		return badRequest(name, "'%s' must be at least 1.", name)
	}
	tuned(req, name, value)
	return nil
}

// into decodes a field, or says what it must be.
func into[T any](to *T, name string, value json.RawMessage, what string) error {
	if err := json.Unmarshal(value, to); err != nil {
		return badRequest(name, "'%s' must be %s.", name, what)
	}
	return nil
}

func refuse(_ *chatRequest, name string, _ json.RawMessage) error { return unsupported(name) }

// only takes the values that ask for nothing special.
func only(values ...string) fieldReader {
	return func(_ *chatRequest, name string, value json.RawMessage) error {
		var compact bytes.Buffer
		if json.Compact(&compact, value) == nil && slices.Contains(values, compact.String()) {
			return nil
		}
		return unsupported(name)
	}
}

func typed[T any](what string, take taker) fieldReader {
	return func(req *chatRequest, name string, value json.RawMessage) error {
		take(req, name, value)
		return into(new(T), name, value, what)
	}
}

func number(least, most float64, take taker) fieldReader {
	return func(req *chatRequest, name string, value json.RawMessage) error {
		var f float64
		if err := into(&f, name, value, "a number"); err != nil {
			return err
		}
		if f < least || f > most {
			return badRequest(name, "'%s' must be between %v and %v.", name, least, most)
		}
		take(req, name, value)
		return nil
	}
}

// field takes a field as it is.
func field[T any](to func(*chatRequest) *T, what string) fieldReader {
	return func(req *chatRequest, name string, value json.RawMessage) error {
		return into(to(req), name, value, what)
	}
}

// object takes one key of an object; the others are ignored and named.
func object[T any](key string, to func(*chatRequest) *T, what string) fieldReader {
	return func(req *chatRequest, name string, value json.RawMessage) error {
		var options map[string]json.RawMessage
		if err := into(&options, name, value, "an object"); err != nil {
			return err
		}
		for _, k := range slices.Sorted(maps.Keys(options)) {
			if k != key {
				req.Ignored = append(req.Ignored, name+"."+k)
			} else if err := into(to(req), name+"."+k, options[k], what); err != nil {
				return err
			}
		}
		return nil
	}
}

func readResponseFormat(_ *chatRequest, name string, value json.RawMessage) error {
	var format map[string]json.RawMessage
	if err := into(&format, name, value, "an object"); err != nil {
		return err
	}
	var kind string
	if err := into(&kind, name+".type", format["type"], "a string"); err != nil {
		return err
	}
	if kind != "text" || len(format) != 1 {
		return unsupported(name)
	}
	return nil
}

func readMessages(req *chatRequest, name string, value json.RawMessage) error {
	var messages []map[string]json.RawMessage
	if err := into(&messages, name, value, "an array of objects"); err != nil {
		return err
	}
	if len(messages) == 0 {
		return badRequest(name, "'messages' must not be empty.")
	}
	for i, fields := range messages {
		m, ignored, err := readMessage(fmt.Sprintf("messages[%d]", i), fields)
		if err != nil {
			return err
		}
		req.Messages = append(req.Messages, m)
		req.Ignored = append(req.Ignored, ignored...)
	}
	return nil
}

// readMessage reads one message; at is where it stands, for errors.
func readMessage(at string, fields map[string]json.RawMessage) (m chatMessage, ignored []string, err error) {
	if err := into(&m.Role, at+".role", fields["role"], "a string"); err != nil {
		return m, nil, err
	}
	switch m.Role {
	case "system":
		m.Role = "developer" // what newer models call it; Codex drops a message of role system
	case "developer", "user", "assistant":
	case "tool", "function":
		return m, nil, unsupported(at + ".role")
	default:
		return m, nil, badRequest(at+".role", "'%s.role' must be one of system, developer, user, assistant.", at)
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		value := fields[key]
		switch {
		case key == "role", key == "content", isNull(value), string(value) == "[]":
		case key == "refusal" && m.Role == "assistant":
		case key == "tool_calls", key == "function_call", key == "tool_call_id", key == "audio":
			return m, nil, unsupported(at + "." + key)
		default:
			ignored = append(ignored, "messages."+key)
		}
	}
	refusal := m.Role == "assistant" && !isNull(fields["refusal"]) // what the assistant once said instead, or too
	if !refusal || !isNull(fields["content"]) {
		var unknown []string
		m.Parts, unknown, err = readContent(at+".content", m.Role, fields["content"])
		ignored = append(ignored, unknown...)
	}
	if refusal && err == nil {
		var text string
		err = into(&text, at+".refusal", fields["refusal"], "a string")
		m.Parts = append(m.Parts, text)
	}
	return m, ignored, err
}

// readContent reads a string, or an array of text parts.
func readContent(at, role string, value json.RawMessage) (texts, ignored []string, err error) {
	if isNull(value) {
		return nil, nil, badRequest(at, "'%s' is missing.", at)
	}
	var text string
	if json.Unmarshal(value, &text) == nil {
		return []string{text}, nil, nil
	}
	var parts []map[string]json.RawMessage
	if err := into(&parts, at, value, "a string or an array of parts"); err != nil {
		return nil, nil, err
	}
	if len(parts) == 0 {
		return nil, nil, badRequest(at, "'%s' must not be empty.", at)
	}
	for i, part := range parts {
		text, err := readPart(fmt.Sprintf("%s[%d]", at, i), role, part)
		if err != nil {
			return nil, nil, err
		}
		texts = append(texts, text)
		for key := range part {
			if key != "type" && key != "text" && key != "refusal" {
				ignored = append(ignored, "messages.content."+key)
			}
		}
	}
	return texts, ignored, nil
}

// readPart reads the text of one part; at is where it stands, for errors.
func readPart(at, role string, part map[string]json.RawMessage) (text string, err error) {
	var kind string
	if err := into(&kind, at+".type", part["type"], "a string"); err != nil {
		return "", err
	}
	switch {
	case kind == "text", kind == "refusal" && role == "assistant":
		if isNull(part[kind]) {
			return "", badRequest(at+"."+kind, "'%s.%s' is missing.", at, kind)
		}
		err = into(&text, at+"."+kind, part[kind], "a string")
		return text, err
	case kind == "image_url", kind == "input_audio", kind == "file":
		return "", unsupported(at)
	}
	return "", badRequest(at+".type", "'%s.type' must be text.", at)
}

func isNull(v json.RawMessage) bool { return len(v) == 0 || string(v) == "null" }

var notHeaderSafe = regexp.MustCompile(`[^A-Za-z0-9_.\-\[\]]`)

// headerList joins names, each once, for a header of at most 1 KB. Names come
// from the client, so only plain characters survive.
func headerList(names []string) string {
	slices.Sort(names)
	list := ""
	for _, n := range slices.Compact(names) {
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

// The response shapes. Keys that OpenAI always sends are always sent.
type (
	usageBody struct {
		Prompt        int64 `json:"prompt_tokens"`
		Completion    int64 `json:"completion_tokens"`
		Total         int64 `json:"total_tokens"`
		PromptDetails struct {
			Cached int64 `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
		CompletionDetails struct {
			Reasoning int64 `json:"reasoning_tokens"`
		} `json:"completion_tokens_details"`
	}

	completionBody struct {
		ID                string             `json:"id"`
		Object            string             `json:"object"`
		Created           int64              `json:"created"`
		Model             string             `json:"model"`
		Choices           []completionChoice `json:"choices"`
		Usage             *usageBody         `json:"usage"`
		SystemFingerprint *string            `json:"system_fingerprint"`
	}

	completionChoice struct {
		Index        int            `json:"index"`
		Message      messageBody    `json:"message"`
		Logprobs     *struct{}      `json:"logprobs"`
		FinishReason finishedReason `json:"finish_reason"`
	}

	messageBody struct {
		Role    string  `json:"role"`
		Content string  `json:"content"`
		Refusal *string `json:"refusal"`
	}

	chunkBody struct {
		ID                string        `json:"id"`
		Object            string        `json:"object"`
		Created           int64         `json:"created"`
		Model             string        `json:"model"`
		SystemFingerprint *string       `json:"system_fingerprint"`
		Choices           []chunkChoice `json:"choices"`
		Usage             usageField    `json:"usage,omitzero"`
	}

	chunkChoice struct {
		Index        int            `json:"index"`
		Delta        deltaBody      `json:"delta"`
		Logprobs     *struct{}      `json:"logprobs"`
		FinishReason finishedReason `json:"finish_reason"`
	}

	deltaBody struct {
		Role    string  `json:"role,omitempty"`
		Content *string `json:"content,omitempty"`
	}
)

// finishedReason is a word, or null while there is none.
type finishedReason string

func (f finishedReason) MarshalJSON() ([]byte, error) {
	if f == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(f))
}

// usageField is the usage of a chunk: left out, null, or there.
type usageField struct {
	present bool
	usage   *usageBody
}

func (u usageField) IsZero() bool { return !u.present }

func (u usageField) MarshalJSON() ([]byte, error) { return json.Marshal(u.usage) }
