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

// bodyTimeout is how long a body may take to arrive; handle sets it.
const bodyTimeout = time.Minute

// chatRequest is a checked request for completions. It holds what a caller
// wrote: never log it.
type chatRequest struct {
	Name          string // the model as the caller wrote it
	Model         string // its catalog id
	Effort        string // "" = the model's default
	Summary       string // of the reasoning, "" = not asked for
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
}

// choices is how many answers are wanted.
func (req *chatRequest) choices() int { return len(req.Conversations) * req.N }

// conversation is the one that a choice answers.
func (req *chatRequest) conversation(choice int) []chatMessage {
	return req.Conversations[choice/req.N]
}

// decode reads a request of the given fields, and names what it ignores in the
// response. said is the field with what there is to answer.
func (s *Server) decode(res *response, r *http.Request, said string, known map[string]fieldReader) (*chatRequest, error) {
	body, err := s.readBody(res, r)
	if err != nil {
		return nil, err
	}
	req := &chatRequest{Stream: s.cfg.DefaultStream, N: 1, Tuned: map[string]json.RawMessage{}}
	if err := req.decode(body, known); err != nil {
		return nil, err
	}
	if req.Conversations == nil {
		return nil, badRequest(said, "'%s' is missing.", said)
	}
	if err := req.check(s.cfg); err != nil {
		return nil, err
	}
	if err := req.fit(s.relay); err != nil {
		return nil, err
	}
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
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, errEncoding
	}
	if r.ContentLength > s.cfg.MaxBody && r.Header.Get("Expect") != "" {
		return nil, errTooLarge // it asked before it sends
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
	return body, nil
}

// malformed says that what came is no body, such as chunks that are none: net/http
// has no type for that error. A client that has left makes a network error, or a
// body that is too short.
func malformed(err error) bool {
	var network net.Error
	return err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &network)
}

// decode reads the fields one by one, so that each error names its own.
func (req *chatRequest) decode(body []byte, known map[string]fieldReader) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil || !utf8.Valid(body) {
		e := badRequest("", "The body is not a JSON object.")
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			e.Message = fmt.Sprintf("The body is not valid JSON: %v (at byte %d).", syntax, syntax.Offset)
		}
		if !utf8.Valid(body) {
			e.Message = "The body is not valid UTF-8."
		}
		e.Code = "invalid_json"
		return e
	}
	return req.readFields("", fields, known)
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

// check looks at what the fields say together.
func (req *chatRequest) check(cfg Config) error {
	if req.N > cfg.MaxChoices || req.choices() > cfg.MaxChoices { // the first bounds the product
		return badRequest("n", "More choices are wanted than the %d that this server gives.", cfg.MaxChoices)
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
	if !models.effort(req.Effort) && req.Effort != "" {
		return badRequest("reasoning_effort", "'reasoning_effort' is not one of %s.", strings.Join(efforts, ", "))
	}
	return nil
}

// fieldReader checks one field and takes what it says.
type fieldReader func(req *chatRequest, name string, value json.RawMessage) error

// chatFields are the fields of a chat completion that have a meaning. Those
// that would change the answer and cannot be honoured are refused, those that the
// provider may take are checked and kept for it, and the rest of them checked,
// ignored and named. All others are unknown: ignored and named too.
var chatFields = map[string]fieldReader{
	"messages": readMessages,

	"model":             field(func(req *chatRequest) *string { return &req.Name }, "a string"),
	"stream":            field(func(req *chatRequest) *bool { return &req.Stream }, "a boolean"),
	"stream_options":    object(streamOptions),
	"n":                 readN,
	"stop":              readStop,
	"include_reasoning": readIncludeReasoning, // read before reasoning: a summary of its own wins
	"reasoning": object(map[string]fieldReader{
		"effort":  field(func(req *chatRequest) *string { return &req.Effort }, "a string"),
		"summary": readSummary,
	}),
	"reasoning_effort": field(func(req *chatRequest) *string { return &req.Effort }, "a string"), // read after reasoning: it wins
	"functions":        readFunctions,
	"tools":            readTools, // read after functions: beside them it is refused
	"tool_choice":      readToolChoice,
	"function_call":    readToolChoice,
	"response_format":  readResponseFormat,

	"modalities":         only(`["text"]`),
	"logprobs":           only("false"),
	"top_logprobs":       only("0"),
	"audio":              refuse,
	"prediction":         refuse,
	"web_search_options": refuse,

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
	"seed":              typed[int64]("an integer", ignored),
	"logit_bias":        readLogitBias,
}

var streamOptions = map[string]fieldReader{
	"include_usage": field(func(req *chatRequest) *bool { return &req.IncludeUsage }, "a boolean"),
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

// fit leaves to the provider what it takes. What only tunes the answer is
// otherwise ignored, and named; what makes it another is refused. Without a relay
// nothing but Codex's own words reaches the provider.
func (req *chatRequest) fit(relay *upstream.Relay) error {
	takes := func(field string) bool { return relay != nil && relay.Takes(field) }
	for name := range req.Tuned {
		if !takes(cmp.Or(providerNames[name], name)) || (name == "parallel_tool_calls" && len(req.Tools) == 0) {
			delete(req.Tuned, name)
			req.Ignored = append(req.Ignored, name)
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
		req.Ignored = append(req.Ignored, "tools")
		req.Tools = nil
	case relay == nil && slices.ContainsFunc(req.Tools, func(t tool) bool { return t.Strict }):
		req.Ignored = append(req.Ignored, "tools.function.strict")
	}
	return nil
}

func readN(req *chatRequest, name string, value json.RawMessage) error {
	if err := into(&req.N, name, value, "an integer"); err != nil {
		return err
	}
	if req.N < 1 {
		return badRequest(name, "'%s' must be at least 1.", name)
	}
	return nil
}

// readStop reads a sequence, or up to four.
func readStop(req *chatRequest, name string, value json.RawMessage) error {
	var one string
	if json.Unmarshal(value, &one) == nil {
		req.Stop = []string{one}
	} else if err := into(&req.Stop, name, value, "a string or an array of strings"); err != nil {
		return err
	}
	if len(req.Stop) > 4 || slices.Contains(req.Stop, "") {
		return badRequest(name, "'%s' must be at most 4 sequences, none of them empty.", name)
	}
	return nil
}

func readSummary(req *chatRequest, name string, value json.RawMessage) error {
	if err := into(&req.Summary, name, value, "a string"); err != nil {
		return err
	}
	if summaries := []string{"auto", "concise", "detailed", "none"}; !slices.Contains(summaries, req.Summary) {
		return badRequest(name, "'%s' must be one of %s.", name, strings.Join(summaries, ", "))
	}
	return nil
}

func readMetadata(req *chatRequest, name string, value json.RawMessage) error {
	var entries map[string]*string
	if err := into(&entries, name, value, "an object of strings"); err != nil {
		return err
	}
	for key, v := range entries {
		if v == nil {
			return badRequest(name, "'%s.%.100s' must be a string.", name, key)
		}
	}
	tuned(req, name, value)
	return nil
}

func readLogitBias(req *chatRequest, name string, value json.RawMessage) error {
	var biases map[string]float64
	if err := into(&biases, name, value, "an object of numbers"); err != nil {
		return err
	}
	for token, bias := range biases {
		if bias < -100 || bias > 100 {
			return badRequest(name, "'%s.%.100s' must be between -100 and 100.", name, token)
		}
	}
	ignored(req, name, value)
	return nil
}

func readIncludeReasoning(req *chatRequest, name string, value json.RawMessage) error {
	var include bool
	err := into(&include, name, value, "a boolean")
	if include {
		req.Summary = "auto"
	}
	return err
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

// into decodes a field, or says what it must be. Where null is as if the field
// were not there, the caller has looked.
func into[T any](to *T, name string, value json.RawMessage, what string) error {
	if err := json.Unmarshal(value, to); err != nil || isNull(value) {
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

// object takes the keys of an object; those that are not known are ignored and
// named.
func object(keys map[string]fieldReader) fieldReader {
	return func(req *chatRequest, name string, value json.RawMessage) error {
		var fields map[string]json.RawMessage
		if err := into(&fields, name, value, "an object"); err != nil {
			return err
		}
		return req.readFields(name+".", fields, keys)
	}
}

func isNull(v json.RawMessage) bool { return len(v) == 0 || string(v) == "null" }

var notHeaderSafe = regexp.MustCompile(`[^A-Za-z0-9_.\-\[\]]`)

// headerList joins names, each once, for a header of at most 1 KB. Names come
// from the client, so only plain characters survive.
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

	// completionBody is an answer in one piece. Its choices are of one of the
	// types completionChoice and textChoice.
	completionBody struct {
		ID                string     `json:"id"`
		Object            string     `json:"object"`
		Created           int64      `json:"created"`
		Model             string     `json:"model"`
		Choices           []any      `json:"choices"`
		Usage             *usageBody `json:"usage"`
		SystemFingerprint *string    `json:"system_fingerprint"`
	}

	completionChoice struct {
		Index        int            `json:"index"`
		Message      messageBody    `json:"message"`
		Logprobs     *struct{}      `json:"logprobs"`
		FinishReason finishedReason `json:"finish_reason"`
	}

	messageBody struct {
		Role         string        `json:"role"`
		Content      *string       `json:"content"`
		Refusal      *string       `json:"refusal"`
		Reasoning    string        `json:"reasoning_content,omitempty"`
		ToolCalls    []callBody    `json:"tool_calls,omitempty"`
		FunctionCall *functionBody `json:"function_call,omitempty"` // legacy
	}

	callBody struct {
		Index    *int         `json:"index,omitempty"` // in streams
		ID       string       `json:"id,omitempty"`
		Type     string       `json:"type,omitempty"`
		Function functionBody `json:"function"`
	}

	functionBody struct {
		Name      string `json:"name,omitempty"`
		Arguments string `json:"arguments"`
	}

	// chunkBody is a part of a stream. Its choices are of one of the types
	// chunkChoice and textChoice.
	chunkBody struct {
		ID                string     `json:"id"`
		Object            string     `json:"object"`
		Created           int64      `json:"created"`
		Model             string     `json:"model"`
		SystemFingerprint *string    `json:"system_fingerprint"`
		Choices           []any      `json:"choices"`
		Usage             usageField `json:"usage,omitzero"`
	}

	chunkChoice struct {
		Index        int            `json:"index"`
		Delta        deltaBody      `json:"delta"`
		Logprobs     *struct{}      `json:"logprobs"`
		FinishReason finishedReason `json:"finish_reason"`
	}

	deltaBody struct {
		Role         string        `json:"role,omitempty"`
		Content      *string       `json:"content,omitempty"`
		Refusal      string        `json:"refusal,omitempty"`
		Reasoning    string        `json:"reasoning_content,omitempty"`
		ToolCalls    []callBody    `json:"tool_calls,omitempty"`
		FunctionCall *functionBody `json:"function_call,omitempty"` // legacy
	}

	// textChoice is a choice of a legacy completion, in one piece or a stream.
	textChoice struct {
		Index        int            `json:"index"`
		Text         string         `json:"text"`
		Logprobs     *struct{}      `json:"logprobs"`
		FinishReason finishedReason `json:"finish_reason"`
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
