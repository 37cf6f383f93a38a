package api

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// chatMessage is one message of a conversation.
type chatMessage struct {
	Role   string // developer, user, assistant or tool
	Parts  []part
	Calls  []toolCall // of an assistant, after its parts
	CallID string     // of a tool: the call that it answers
}

// part is a piece of text, or an image.
type part struct {
	Text   string
	Image  string // a data URL; "" = text
	Detail string // of an image; "" = not given
}

// toolCall is a call that an assistant made.
type toolCall struct{ ID, Name, Arguments string }

// maxImage bounds an image, in bytes; it is OpenAI's own limit.
const maxImage = 50 << 20

func readMessages(req *chatRequest, name string, value json.RawMessage) error {
	var messages []map[string]json.RawMessage
	if err := into(&messages, name, value, "an array of objects"); err != nil {
		return err
	}
	if len(messages) == 0 {
		return badRequest(name, "'messages' must not be empty.")
	}
	var conversation []chatMessage
	legacy := map[string]string{}
	for i, fields := range messages {
		r := messageReader{req: req, at: fmt.Sprintf("messages[%d]", i), fields: fields, legacy: legacy}
		m, err := r.read()
		if err != nil {
			return err
		}
		conversation = append(conversation, m)
	}
	if err := matchCalls(conversation); err != nil {
		return err
	}
	req.Conversations = [][]chatMessage{conversation}
	return nil
}

// messageReader reads one message. Fields that it does not know are ignored and
// named.
type messageReader struct {
	req    *chatRequest
	at     string // where the message stands, for errors
	fields map[string]json.RawMessage
	legacy map[string]string // function_call has no ids: the last one that we gave to a call of each name
}

func (r *messageReader) read() (m chatMessage, err error) {
	if err := into(&m.Role, r.at+".role", r.fields["role"], "a string"); err != nil {
		return m, err
	}
	known := []string{"role", "content"}
	switch m.Role {
	case "system":
		m.Role = "developer" // what newer models call it; Codex drops a message of role system
		fallthrough
	case "developer", "user":
		m.Parts, err = r.content()
	case "assistant":
		known = append(known, "refusal", "tool_calls", "function_call")
		err = r.assistant(&m)
	case "tool":
		known = append(known, "tool_call_id")
		if err = into(&m.CallID, r.at+".tool_call_id", r.fields["tool_call_id"], "a string"); err == nil {
			m.Parts, err = r.content()
		}
	case "function":
		known = append(known, "name")
		m.Role = "tool"
		if err = into(&m.CallID, r.at+".name", r.fields["name"], "a string"); err == nil {
			m.CallID = cmp.Or(r.legacy[m.CallID], m.CallID)
			m.Parts, err = r.content()
		}
	default:
		return m, badRequest(r.at+".role", "'%s.role' must be one of system, developer, user, assistant, tool, function.", r.at)
	}
	for key, value := range r.fields {
		if !slices.Contains(known, key) && !isNull(value) {
			r.req.Ignored = append(r.req.Ignored, "messages."+key)
		}
	}
	return m, err
}

// assistant reads what an assistant said, refused and called.
func (r *messageReader) assistant(m *chatMessage) (err error) {
	if err := r.calls(m); err != nil {
		return err
	}
	refusal := !isNull(r.fields["refusal"]) // what it once said instead, or too
	if !isNull(r.fields["content"]) || (!refusal && len(m.Calls) == 0) {
		if m.Parts, err = r.content(); err != nil {
			return err
		}
	}
	if refusal {
		var p part
		err = into(&p.Text, r.at+".refusal", r.fields["refusal"], "a string")
		m.Parts = append(m.Parts, p)
	}
	if len(m.Calls) > 0 { // clients like to send an empty content beside calls
		m.Parts = slices.DeleteFunc(m.Parts, func(p part) bool { return p == part{} })
	}
	return err
}

// calls reads tool_calls, or the legacy function_call.
func (r *messageReader) calls(m *chatMessage) error {
	if legacy := r.fields["function_call"]; !isNull(legacy) {
		call, err := readCall(r.at+".function_call", legacy)
		call.ID = "call_" + strings.NewReplacer("messages[", "", "]", "").Replace(r.at)
		r.legacy[call.Name] = call.ID
		m.Calls = append(m.Calls, call)
		return err
	}
	if isNull(r.fields["tool_calls"]) {
		return nil
	}
	at := r.at + ".tool_calls"
	var calls []struct {
		ID       json.RawMessage
		Type     json.RawMessage
		Function json.RawMessage
	}
	if err := into(&calls, at, r.fields["tool_calls"], "an array of objects"); err != nil {
		return err
	}
	for i, c := range calls {
		at := fmt.Sprintf("%s[%d]", at, i)
		var kind string
		if err := into(&kind, at+".type", c.Type, "a string"); err != nil {
			return err
		}
		if kind != "function" {
			return badRequest(at+".type", "'%s.type' must be function.", at)
		}
		call, err := readCall(at+".function", c.Function)
		if err == nil {
			err = into(&call.ID, at+".id", c.ID, "a string")
		}
		if err != nil {
			return err
		}
		if slices.ContainsFunc(m.Calls, func(other toolCall) bool { return other.ID == call.ID }) {
			return badRequest(at+".id", "'%s.id' is the id of another call.", at)
		}
		m.Calls = append(m.Calls, call)
	}
	return nil
}

func readCall(at string, value json.RawMessage) (c toolCall, err error) {
	var f struct{ Name, Arguments json.RawMessage }
	if err := into(&f, at, value, "an object"); err != nil {
		return c, err
	}
	if err := into(&c.Name, at+".name", f.Name, "a string"); err != nil {
		return c, err
	}
	return c, into(&c.Arguments, at+".arguments", f.Arguments, "a string")
}

// matchCalls makes sure that every call is answered before the conversation goes
// on, and nothing else is: providers refuse it, and Codex would invent answers.
func matchCalls(conversation []chatMessage) error {
	var open []string // ids of calls without an answer
	for i, m := range conversation {
		if m.Role == "tool" {
			at := slices.Index(open, m.CallID)
			if at < 0 {
				return badRequest(fmt.Sprintf("messages[%d]", i), "messages[%d] answers a call %.100q that the messages before it do not make.", i, m.CallID)
			}
			open = slices.Delete(open, at, at+1)
			continue
		}
		if len(open) > 0 {
			break
		}
		for _, c := range m.Calls {
			open = append(open, c.ID)
		}
	}
	if len(open) > 0 {
		return badRequest("messages", "The calls of an assistant must be answered by the messages that follow it. Without an answer: %.200q.", open)
	}
	return nil
}

// content reads a string, or an array of parts.
func (r *messageReader) content() ([]part, error) {
	at, value := r.at+".content", r.fields["content"]
	if isNull(value) {
		return nil, badRequest(at, "'%s' is missing.", at)
	}
	var text string
	if json.Unmarshal(value, &text) == nil {
		return []part{{Text: text}}, nil
	}
	var fields []map[string]json.RawMessage
	if err := into(&fields, at, value, "a string or an array of parts"); err != nil {
		return nil, err
	}
	if len(fields) == 0 {
		return nil, badRequest(at, "'%s' must not be empty.", at)
	}
	var parts []part
	for i, f := range fields {
		p, err := r.part(fmt.Sprintf("%s[%d]", at, i), f)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// part reads one part; at is where it stands, for errors.
func (r *messageReader) part(at string, fields map[string]json.RawMessage) (p part, err error) {
	var kind, role string
	if err := into(&kind, at+".type", fields["type"], "a string"); err != nil {
		return p, err
	}
	json.Unmarshal(r.fields["role"], &role) // read has checked it
	switch {
	case kind == "text", kind == "refusal" && role == "assistant":
		if isNull(fields[kind]) {
			return p, badRequest(at+"."+kind, "'%s.%s' is missing.", at, kind)
		}
		err = into(&p.Text, at+"."+kind, fields[kind], "a string")
	case kind == "image_url" && role == "user":
		p.Image, p.Detail, err = readImage(at+".image_url", fields["image_url"])
	case kind == "input_audio", kind == "file":
		return p, unsupported(at)
	default:
		return p, badRequest(at+".type", "'%s.type' must be text, or for a user image_url.", at)
	}
	for key := range maps.Keys(fields) {
		if key != "type" && key != kind {
			r.req.Ignored = append(r.req.Ignored, "messages.content."+key)
		}
	}
	return p, err
}

// readImage checks that an image is there, whole, and what it says it is:
// nothing is fetched, neither by us nor by Codex.
func readImage(at string, value json.RawMessage) (url, detail string, err error) {
	var f struct{ URL, Detail json.RawMessage }
	if err := into(&f, at, value, "an object"); err != nil {
		return "", "", err
	}
	if err := into(&url, at+".url", f.URL, "a string"); err != nil {
		return "", "", err
	}
	if !isNull(f.Detail) {
		if err := into(&detail, at+".detail", f.Detail, "a string"); err != nil {
			return "", "", err
		}
		if !slices.Contains([]string{"auto", "low", "high", "original"}, detail) {
			return "", "", badRequest(at+".detail", "'%s.detail' must be one of auto, low, high, original.", at)
		}
	}
	head, data, _ := strings.Cut(url, ",")
	kind, isData := strings.CutPrefix(head, "data:")
	kind, isBase64 := strings.CutSuffix(kind, ";base64")
	if !isData || !isBase64 {
		return "", "", badRequest(at+".url", "'%s.url' must be a data URL such as data:image/png;base64,...: this server fetches no images.", at)
	}
	image, err := base64.StdEncoding.DecodeString(data)
	switch {
	case err != nil:
		return "", "", badRequest(at+".url", "'%s.url' is not valid base64.", at)
	case len(image) > maxImage:
		return "", "", badRequest(at+".url", "'%s.url' is larger than %d MB.", at, maxImage>>20)
	case !slices.Contains([]string{"image/png", "image/jpeg", "image/webp", "image/gif"}, kind):
		return "", "", badRequest(at+".url", "'%s.url' must be a PNG, JPEG, WebP or GIF image.", at)
	case http.DetectContentType(image) != kind:
		return "", "", badRequest(at+".url", "'%s.url' does not hold the %s that it says.", at, kind)
	}
	return url, detail, nil
}
