package api

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// fieldReader checks one field and keeps its value in the request.
type fieldReader func(req *chatRequest, name string, value json.RawMessage) error

// taker keeps a field that was checked, or names it as ignored.
type taker func(req *chatRequest, name string, value json.RawMessage)

// tuned keeps a field for the provider.
func tuned(req *chatRequest, name string, value json.RawMessage) { req.Tuned[name] = value }

// ignored names a field in the response.
func ignored(req *chatRequest, name string, _ json.RawMessage) {
	req.ignore(name)
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
	const what = "a string or an array of strings"
	add := func(_ int, value json.RawMessage) error {
		var one string
		err := into(&one, name, value, what)
		if err == nil && one == "" {
			err = badRequest(name, "'%s' must not have an empty sequence.", name)
		}
		req.Stop = append(req.Stop, one)
		return err
	}
	if isString(value) {
		return add(0, value)
	}
	return req.elements(name, value, what, 4, "sequences", add)
}

func readEffort(req *chatRequest, name string, value json.RawMessage) error {
	req.EffortField = name
	return into(&req.Effort, name, value, "a string")
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
	entries, err := req.members(name, value, "an object of strings")
	if err != nil {
		return err
	}
	for key, v := range entries {
		if !isString(v) {
			return badRequest(name, "'%s.%.100s' must be a string.", name, key)
		}
	}
	tuned(req, name, value)
	return nil
}

func readLogitBias(req *chatRequest, name string, value json.RawMessage) error {
	biases, err := req.members(name, value, "an object of numbers")
	if err != nil {
		return err
	}
	for token, v := range biases {
		var bias float64
		if err := into(&bias, name, v, "an object of numbers"); err != nil {
			return err
		}
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

// maxName bounds a name, in characters: names come back in each chunk of an answer, and
// in errors.
const maxName = 200

// short reads a name.
func short(to *string, name string, value json.RawMessage) error {
	if err := into(to, name, value, "a string"); err != nil {
		return err
	}
	if utf8.RuneCountInString(*to) > maxName {
		return badRequest(name, "'%s' must have at most %d characters.", name, maxName)
	}
	return nil
}

// into decodes a field, or returns a 400 with what it must be. A caller that
// accepts null as an absent field has looked for null before.
func into[T any](to *T, name string, value json.RawMessage, what string) error {
	if err := unmarshal(value, to); err != nil || isNull(value) {
		return badRequest(name, "'%s' must be %s.", name, what)
	}
	return nil
}

// unmarshal is [json.Unmarshal], about nine times as fast for the long strings of
// images, which are decoded once for each object around them. The package is what Go
// 1.27 calls encoding/json/v2. The options are the rules of encoding/json.
func unmarshal(data []byte, to any) error {
	return jsonv2.Unmarshal(data, to, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// rejectField rejects a field that would change the answer and cannot be honoured.
func rejectField(_ *chatRequest, name string, _ json.RawMessage) error { return unsupported(name) }

// only accepts the values that change nothing, and rejects the others.
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

// field keeps a field as it is.
func field[T any](to func(*chatRequest) *T, what string) fieldReader {
	return func(req *chatRequest, name string, value json.RawMessage) error {
		return into(to(req), name, value, what)
	}
}

// object reads the keys of an object; unknown ones are ignored and named.
func object(keys map[string]fieldReader) fieldReader {
	return func(req *chatRequest, name string, value json.RawMessage) error {
		fields, err := req.members(name, value, "an object")
		if err != nil {
			return err
		}
		return req.readFields(name+".", fields, keys)
	}
}

func isNull(v json.RawMessage) bool { return len(v) == 0 || string(v) == "null" }
