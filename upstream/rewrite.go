package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
)

// Overrides are the caller's fields of the provider's request, by their names in
// the Responses API. They are not sent to the child. The relay copies only input,
// and model if there is none here, from the child's request, so that nothing of
// Codex's own reaches the provider.
type Overrides map[string]json.RawMessage

// childRequest is the part of a child's request that the relay reads.
type childRequest struct {
	Model json.RawMessage   `json:"model"`
	Input []json.RawMessage `json:"input"`
}

// endsInResult reports whether the last item is the result of a tool.
func (c childRequest) endsInResult() bool {
	var last struct {
		Type string `json:"type"`
	}
	if n := len(c.Input); n > 0 {
		json.Unmarshal(c.Input[n-1], &last) // an item that is no object is no result
	}
	return strings.HasSuffix(last.Type, "_output")
}

// rewrite makes the provider's body: model and input of the child's request,
// without what Codex added to the items, and the caller's own fields.
func (r *Relay) rewrite(ctx context.Context, c childRequest, call *Call) ([]byte, error) {
	input := make([]json.RawMessage, len(c.Input))
	details := call.details
	for i, item := range c.Input {
		input[i] = withoutCodex(item, &details)
	}
	fields := map[string]any{"model": c.Model, "input": input, "stream": true, "store": false}
	for name, value := range call.overrides {
		fields[name] = value
		if r.hooks.Overridden != nil {
			r.hooks.Overridden(ctx, name)
		}
	}
	var most int64
	if least := r.provider.Kind.leastOutput; json.Unmarshal(call.overrides["max_output_tokens"], &most) == nil && most < least {
		fields["max_output_tokens"] = least
	}
	if r.provider.Kind.instructions {
		fields["instructions"], fields["input"] = splitInstructions(input)
	}
	return encode(fields)
}

// splitInstructions cuts the leading developer messages off input, for a provider
// that needs their text in a field of its own.
func splitInstructions(input []json.RawMessage) (instructions string, rest []json.RawMessage) {
	var texts []string
	for len(input) > 0 {
		var m struct {
			Role    string
			Content []struct{ Text string }
		}
		if json.Unmarshal(input[0], &m) != nil || m.Role != "developer" {
			break
		}
		for _, part := range m.Content {
			texts = append(texts, part.Text)
		}
		input = input[1:]
	}
	if len(texts) == 0 {
		return "You are a helpful assistant.", input
	}
	return strings.Join(texts, "\n\n"), input
}

// withoutCodex removes from an item what Codex added to it: an id, and the detail
// of images. details are the caller's values for the images that are still to come.
func withoutCodex(item json.RawMessage, details *[]string) json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(item, &fields) != nil {
		return item
	}
	switch string(fields["type"]) {
	case `"message"`, `"function_call"`, `"function_call_output"`:
	default:
		return item // the provider may need the ids of other items
	}
	delete(fields, "id")
	var parts []map[string]json.RawMessage
	if json.Unmarshal(fields["content"], &parts) == nil && setDetails(parts, details) {
		fields["content"], _ = encode(parts) // cannot fail: the parts came from JSON
	}
	if b, err := encode(fields); err == nil {
		return b
	}
	return item
}

// setDetails writes the caller's details into the images among parts. It reports
// whether there were images.
func setDetails(parts []map[string]json.RawMessage, details *[]string) (images bool) {
	for _, part := range parts {
		if string(part["type"]) != `"input_image"` {
			continue
		}
		images = true
		delete(part, "detail")
		if len(*details) > 0 {
			if d := (*details)[0]; d != "" {
				part["detail"], _ = encode(d)
			}
			*details = (*details)[1:]
		}
	}
	return images
}

// encode is json.Marshal without the escapes for HTML: text stays as it came.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}
