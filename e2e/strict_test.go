package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"codexpool/codex/codextest"
)

// The strict provider rejects whatever the published reference of the Responses API does
// not allow, fields that it does not know included. Its rules are the table below. Each
// shape has the name of the schema in OpenAI's published document from which it is:
// https://github.com/openai/openai-openapi (openapi.yaml, components/schemas), version
// 2.3.0. What codexpool never sends is not in the table, and so rejected too.

// newUpstream is a scripted provider that is strict.
func newUpstream(t testing.TB, replies ...http.HandlerFunc) *codextest.Upstream {
	t.Helper()
	up := codextest.NewUpstream(t, replies...)
	up.Check = strict
	return up
}

// strict is why a strict provider rejects the body of a request, nil where it does not.
func strict(body []byte) error {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return err
	}
	if err := request(v); err != nil {
		return err
	}
	return callIDs(v)
}

// shape is what the reference says of a value.
type shape func(v any) error

var request = object("CreateResponse, CreateModelResponseProperties, ModelResponseProperties, ResponseProperties",
	must{"model": text(1, 0), "input": either(text(0, 0), list(inputItem))},
	may{
		"stream":              boolean,
		"store":               boolean,
		"instructions":        text(0, 0),
		"parallel_tool_calls": boolean,
		"max_output_tokens":   number(16, 1e9),
		"temperature":         number(0, 2),
		"top_p":               number(0, 1),
		"user":                text(0, 0),
		"safety_identifier":   text(0, 64),
		"prompt_cache_key":    text(0, 0),
		"service_tier":        word("auto", "default", "flex", "scale", "priority", "fast", "ultrafast"), // ServiceTierResponses
		"metadata":            metadata,
		"include":             list(word("reasoning.encrypted_content")), // IncludeEnum
		"reasoning": object("Reasoning", nil, may{
			"effort":  word("none", "minimal", "low", "medium", "high", "xhigh", "max"), // ReasoningEffort
			"summary": word("auto", "concise", "detailed"),
		}),
		"text": object("ResponseTextParam", nil, may{
			"verbosity": word("low", "medium", "high"), // Verbosity
			"format": byType(map[string]shape{ // TextResponseFormatConfiguration
				"text":        object("ResponseFormatText", nil, nil),
				"json_object": object("ResponseFormatJsonObject", nil, nil),
				"json_schema": object("TextResponseFormatJsonSchema", must{"name": text(1, 64), "schema": schema}, may{"description": text(0, 0), "strict": either(boolean, null)}),
			}),
		}),
		"tools": list(byType(map[string]shape{ // ToolsArray
			"function": object("FunctionTool", must{"name": text(1, 0), "strict": either(boolean, null), "parameters": either(schema, null)}, may{"description": text(0, 0)}),
		})),
		"tool_choice": either(word("none", "auto", "required"), byType(map[string]shape{ // ToolChoiceParam
			"function":      object("ToolChoiceFunction", must{"name": text(1, 0)}, nil),
			"allowed_tools": object("ToolChoiceAllowed", must{"mode": word("auto", "required"), "tools": list(schema)}, nil),
		})),
	})

// inputItem is InputItem. A message of the assistant in parts is an OutputMessage: the parts
// of an EasyInputMessage are those of an input.
func inputItem(v any) error {
	return byType(map[string]shape{
		"message": func(v any) error {
			m, _ := v.(map[string]any)
			if _, parts := m["content"].([]any); parts && m["role"] == "assistant" {
				return answered(v)
			}
			return said(v)
		},
		"function_call":        object("FunctionToolCall", must{"call_id": text(1, 64), "name": text(1, 0), "arguments": text(0, 0)}, may{"id": text(1, 0), "status": status}),
		"function_call_output": object("FunctionCallOutputItemParam", must{"output": either(text(0, 10<<20), list(result))}, may{"call_id": text(1, 64), "id": text(1, 0), "status": status}),
	})(v)
}

var (
	status = word("in_progress", "completed", "incomplete")
	role   = word("user", "assistant", "system", "developer")

	said     = object("EasyInputMessage", must{"role": role, "content": either(text(0, 0), list(part))}, nil)
	answered = object("OutputMessage", must{"id": text(1, 0), "role": word("assistant"), "status": status, "content": list(byType(map[string]shape{ // OutputMessageContent
		"output_text": object("OutputTextContent", must{"text": text(0, 0), "annotations": list(nothing), "logprobs": list(nothing)}, nil),
		"refusal":     object("RefusalContent", must{"refusal": text(0, 0)}, nil),
	}))}, nil)

	detail = word("auto", "low", "high", "original") // ImageDetail, DetailEnum
	file   = may{"file_id": text(1, 0), "filename": text(0, 0), "file_data": text(0, 0), "file_url": text(0, 0)}

	part = byType(map[string]shape{ // InputContent
		"input_text":  object("InputTextContent", must{"text": text(0, 0)}, nil),
		"input_image": object("InputImageContent", must{"detail": detail}, may{"image_url": text(1, 0)}),
		"input_file":  object("InputFileContent", nil, file),
	})
	result = byType(map[string]shape{
		"input_text":  object("InputTextContentParam", must{"text": text(0, 10<<20)}, nil),
		"input_image": object("InputImageContentParamAutoParam", nil, may{"image_url": text(1, 20<<20), "detail": detail}),
		"input_file":  object("InputFileContentParam", nil, file),
	})
)

// callIDs is what FunctionToolCall and FunctionCallOutputItemParam say in words: a call's
// id is unique, and an output has that of a call.
func callIDs(v any) error {
	input, _ := v.(map[string]any)["input"].([]any)
	open := map[any]bool{} // calls without an output so far
	seen := map[any]bool{}
	for _, v := range input {
		switch m := v.(map[string]any); m["type"] {
		case "function_call":
			if seen[m["call_id"]] {
				return fmt.Errorf("two calls have the id %v", m["call_id"])
			}
			seen[m["call_id"]], open[m["call_id"]] = true, true
		case "function_call_output":
			if !open[m["call_id"]] {
				return fmt.Errorf("an output without a call: %v", m["call_id"])
			}
			delete(open, m["call_id"])
		}
	}
	return nil
}

type (
	must map[string]shape // the fields that must be there
	may  map[string]shape // those that may
)

// object is a schema's object. Its type, if it has one, was looked at by byType.
func object(_ string, required must, optional may) shape {
	return func(v any) error {
		m, ok := v.(map[string]any)
		if !ok {
			return errors.New("it is no object")
		}
		for name := range required {
			if _, there := m[name]; !there {
				return errors.New("it lacks " + name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(m)) {
			of := required[name]
			if of == nil {
				of = optional[name]
			}
			switch {
			case name == "type" && of == nil:
			case of == nil:
				return errors.New("unknown field " + name)
			default:
				if err := of(m[name]); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
		return nil
	}
}

// byType is a union whose members differ in their type.
func byType(members map[string]shape) shape {
	return func(v any) error {
		m, _ := v.(map[string]any)
		kind, _ := m["type"].(string)
		if members[kind] == nil {
			return fmt.Errorf("no such type: %q", kind)
		}
		return members[kind](v)
	}
}

func list(of shape) shape {
	return func(v any) error {
		values, ok := v.([]any)
		if !ok {
			return errors.New("it is no list")
		}
		for i, v := range values {
			if err := of(v); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	}
}

func either(shapes ...shape) shape {
	return func(v any) error {
		var all []error
		for _, s := range shapes {
			err := s(v)
			if err == nil {
				return nil
			}
			all = append(all, err)
		}
		return errors.Join(all...)
	}
}

// text is a string of that many characters; most is 0 where there is no bound.
func text(least, most int) shape {
	return func(v any) error {
		s, ok := v.(string)
		if n := utf8.RuneCountInString(s); !ok || n < least || most > 0 && n > most {
			return fmt.Errorf("it is no text of %d to %d characters", least, most)
		}
		return nil
	}
}

func number(least, most float64) shape {
	return func(v any) error {
		if n, ok := v.(float64); !ok || n < least || n > most {
			return fmt.Errorf("it is no number from %v to %v", least, most)
		}
		return nil
	}
}

func word(words ...string) shape {
	return func(v any) error {
		if s, ok := v.(string); !ok || !slices.Contains(words, s) {
			return fmt.Errorf("%v is none of %s", v, strings.Join(words, ", "))
		}
		return nil
	}
}

func boolean(v any) error {
	if _, ok := v.(bool); !ok {
		return errors.New("it is no boolean")
	}
	return nil
}

func null(v any) error {
	if v != nil {
		return errors.New("it is not null")
	}
	return nil
}

func nothing(any) error { return errors.New("it is not empty") }

// schema is an object that is the caller's.
func schema(v any) error {
	if _, ok := v.(map[string]any); !ok {
		return errors.New("it is no object")
	}
	return nil
}

// metadata is Metadata: 16 pairs, keys of 64 characters, values of 512.
func metadata(v any) error {
	m, ok := v.(map[string]any)
	if !ok || len(m) > 16 {
		return errors.New("it is no object of 16 pairs")
	}
	for key, value := range m {
		if err := errors.Join(text(0, 64)(key), text(0, 512)(value)); err != nil {
			return err
		}
	}
	return nil
}

// TestStrictProviderRejectsWhatTheReferenceDoesNotAllow: else the scenarios that pass
// through it show nothing.
func TestStrictProviderRejectsWhatTheReferenceDoesNotAllow(t *testing.T) {
	const ok = `"model":"m","input":[` +
		`{"type":"message","role":"system","content":[{"type":"input_text","text":"s"}]},` +
		`{"type":"message","role":"assistant","id":"msg_0","status":"completed","content":[{"type":"output_text","text":"a","annotations":[],"logprobs":[]}]},` +
		`{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"x"}]`
	if err := strict([]byte(`{` + ok + `,"temperature":1,"tools":[{"type":"function","name":"f","parameters":{},"strict":false}],"tool_choice":"auto"}`)); err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{
		`{"input":"x"}`,
		`{` + ok + `,"seed":1}`,
		`{` + ok + `,"temperature":3}`,
		`{` + ok + `,"max_output_tokens":15}`,
		`{` + ok + `,"metadata":{"a":1}}`,
		`{` + ok + `,"reasoning":{"summary":"none"}}`,
		`{` + ok + `,"tools":[{"type":"function","name":"f","parameters":{}}]}`,
		`{` + ok + `,"tools":[{"type":"function","function":{"name":"f"}}]}`,
		`{` + ok + `,"tool_choice":"any"}`,
		`{` + ok + `,"text":{"format":{"type":"json_schema","schema":{}}}}`,
		`{` + strings.Replace(ok, `"id":"msg_0",`, "", 1) + `}`,
		`{` + strings.Replace(ok, `,"annotations":[]`, "", 1) + `}`,
		`{` + strings.Replace(ok, `"role":"system"`, `"role":"tool"`, 1) + `}`,
		`{` + strings.Replace(ok, `"input_text"`, `"text"`, 1) + `}`,
		`{` + strings.Replace(ok, `"call_id":"c"`, `"call_id":"`+strings.Repeat("c", 65)+`"`, 1) + `}`,
		`{` + strings.Replace(ok, `"call_id":"c"`, `"call_id":"d"`, 1) + `}`,
		`{` + strings.Replace(ok, `{"type":"function_call",`, `{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call",`, 1) + `}`,
		`{"model":"m","input":[{"type":"message","role":"user","content":[{"type":"input_image","image_url":"data:,"}]}]}`,
	} {
		if strict([]byte(body)) == nil {
			t.Errorf("it takes %s", body)
		}
	}
}
