package upstream

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Overrides are the caller's fields of the provider's request, by their names in
// the Responses API. The child gets none of them.
type Overrides map[string]json.RawMessage

// body makes the body of the provider's request.
func (r *Relay) body(req Request) ([]byte, error) {
	if req.Body != nil {
		return inFront(req.Overrides, req.Body)
	}
	fields := map[string]any{"stream": true, "store": false}
	for name, value := range req.Overrides {
		fields[name] = value
	}
	var most int64
	if least := r.provider.Kind.leastOutput; json.Unmarshal(req.Overrides["max_output_tokens"], &most) == nil && most < least {
		fields["max_output_tokens"] = least
	}
	if r.provider.Kind.instructions {
		fields["instructions"], req.Input = splitInstructions(req.Input)
	}
	rest, err := encode(fields)
	if err != nil {
		return nil, err
	}
	// By hand: the encoder would look at each byte of the conversation again.
	body := append([]byte(`{"input":[`), bytes.Join(asBytes(req.Input), []byte(","))...)
	return append(append(body, "],"...), rest[1:]...), nil
}

// inFront puts fields in front of those of an object, which has none of them.
func inFront(fields Overrides, object []byte) ([]byte, error) {
	if len(fields) == 0 {
		return object, nil
	}
	front, err := encode(fields)
	_, rest, _ := bytes.Cut(object, []byte("{"))
	if bytes.HasPrefix(bytes.TrimSpace(rest), []byte("}")) {
		return front, err
	}
	return append(append(front[:len(front)-1], ','), rest...), err
}

func asBytes(items []json.RawMessage) [][]byte {
	list := make([][]byte, len(items))
	for i, item := range items {
		list[i] = item
	}
	return list
}

// splitInstructions cuts the leading developer messages off input, for a provider
// that needs their text in a field of its own. Where there are none, that is "".
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
	return strings.Join(texts, "\n\n"), input
}

// encode is json.Marshal without the escapes for HTML: text stays as it came.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}
