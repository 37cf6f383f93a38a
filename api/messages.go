package api

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"codexpool/upstream"
)

// chatMessage is one message of a conversation.
type chatMessage struct {
	Role   string // system, developer, user, assistant or tool
	Parts  []part
	Calls  []toolCall // of an assistant, after its parts
	CallID string     // of a tool: the call that it answers
}

// part is a piece of text, an image, or a file. All are JSON strings as the caller
// wrote them: they are not decoded, and reach the provider byte for byte.
type part struct {
	Text   json.RawMessage
	Image  json.RawMessage // a URL; nil = no image
	Detail string          // of an image; "" = not given
	File   json.RawMessage // the members of an input_file of the Responses API; nil = no file
}

func (p part) isText() bool { return p.Image == nil && p.File == nil }

// toolCall is a call that an assistant made.
type toolCall struct {
	ID, Name  string
	Arguments json.RawMessage // a JSON string as the caller wrote it
}

// emptyText is the JSON string of no text.
var emptyText = json.RawMessage(`""`)

func isString(value json.RawMessage) bool { return len(value) > 0 && value[0] == '"' }

// rawString keeps a JSON string as it is.
func rawString(to *json.RawMessage, name string, value json.RawMessage, what string) error {
	if !isString(value) {
		return badRequest(name, "'%s' must be %s.", name, what)
	}
	*to = value
	return nil
}

func readMessages(req *chatRequest, name string, value json.RawMessage) error {
	var conversation []chatMessage
	legacy := map[string]string{}
	err := req.listed(name, value, maxMessages, "messages", func(i int, at string, fields map[string]json.RawMessage) error {
		r := messageReader{req: req, index: i, at: at, fields: fields, legacy: legacy}
		m, err := r.read()
		conversation = append(conversation, m)
		return err
	})
	if err != nil {
		return err
	}
	if len(conversation) == 0 {
		return badRequest(name, "'messages' must not be empty.")
	}
	if err := matchCalls(conversation); err != nil {
		return err
	}
	req.Conversations = [][]chatMessage{conversation}
	return nil
}

// messageReader reads one message. Unknown fields are ignored and named.
type messageReader struct {
	req    *chatRequest
	index  int
	at     string // where the message stands, for errors
	role   string // as the caller wrote it
	fields map[string]json.RawMessage
	legacy map[string]string // the id that we gave to the last function_call of each name: it has none of its own
}

func (r *messageReader) read() (m chatMessage, err error) {
	if err := into(&m.Role, r.at+".role", r.fields["role"], "a string"); err != nil {
		return m, err
	}
	r.role = m.Role
	known := []string{"role", "content"}
	switch m.Role {
	case "system", "developer", "user":
		if m.Parts, err = r.content(); err == nil && len(m.Parts) == 0 {
			err = badRequest(r.at+".content", "'%s.content' must not be empty.", r.at)
		}
	case "assistant":
		known = append(known, "refusal", "tool_calls", "function_call")
		err = r.assistant(&m)
	case "tool":
		known = append(known, "tool_call_id")
		if err = nonEmpty(id, &m.CallID, r.at+".tool_call_id", r.fields["tool_call_id"]); err == nil {
			m.Parts, err = r.content()
		}
	case "function":
		known = append(known, "name")
		m.Role = "tool"
		if err = nonEmpty(short, &m.CallID, r.at+".name", r.fields["name"]); err == nil {
			m.CallID = cmp.Or(r.legacy[m.CallID], m.CallID)
			m.Parts, err = r.content()
		}
	default:
		return m, badRequest(r.at+".role", "'%s.role' must be one of system, developer, user, assistant, tool, function.", r.at)
	}
	r.req.ignoreRest("messages.", r.fields, known...)
	return m, err
}

// nonEmpty reads with read a string that must not be empty.
func nonEmpty(read func(to *string, name string, value json.RawMessage) error, to *string, name string, value json.RawMessage) error {
	if err := read(to, name, value); err != nil {
		return err
	}
	if *to == "" {
		return badRequest(name, "'%s' must not be empty.", name)
	}
	return nil
}

// id reads an id. Some providers put a thousand characters into one.
func id(to *string, name string, value json.RawMessage) error {
	return into(to, name, value, "a string")
}

// assistant reads the content, the refusal and the calls of an assistant.
func (r *messageReader) assistant(m *chatMessage) (err error) {
	if err := r.calls(m); err != nil {
		return err
	}
	if m.Parts, err = r.content(); err != nil {
		return err
	}
	if refusal := r.fields["refusal"]; !isNull(refusal) && string(refusal) != `""` { // instead of the content, or beside it
		var p part
		err = rawString(&p.Text, r.at+".refusal", refusal, "a string")
		m.Parts = append(m.Parts, p)
	}
	if len(m.Parts) == 0 && len(m.Calls) == 0 {
		m.Parts = []part{{Text: emptyText}}
	}
	if len(m.Calls) > 0 { // some clients send an empty content beside calls
		m.Parts = slices.DeleteFunc(m.Parts, func(p part) bool { return p.isText() && bytes.Equal(p.Text, emptyText) })
	}
	return err
}

// calls reads tool_calls, or the legacy function_call.
func (r *messageReader) calls(m *chatMessage) error {
	listed, legacy := r.fields["tool_calls"], r.fields["function_call"]
	if isNull(listed) && isNull(legacy) {
		return nil
	}
	if isNull(listed) {
		call, err := r.call(r.at+".function_call", legacy)
		call.ID = fmt.Sprintf("function_call_%d", r.index)
		r.legacy[call.Name] = call.ID
		m.Calls = append(m.Calls, call)
		return err
	}
	if !isNull(legacy) {
		r.req.ignore("messages.function_call")
	}
	ids := map[string]bool{}
	return r.req.listed(r.at+".tool_calls", listed, maxParts, "calls", func(_ int, at string, fields map[string]json.RawMessage) error {
		var kind string
		if err := into(&kind, at+".type", fields["type"], "a string"); err != nil {
			return err
		}
		if kind != "function" {
			return badRequest(at+".type", "'%s.type' must be function.", at)
		}
		call, err := r.call(at+".function", fields["function"])
		if err == nil {
			err = nonEmpty(id, &call.ID, at+".id", fields["id"])
		}
		if err != nil {
			return err
		}
		if ids[call.ID] {
			return badRequest(at+".id", "'%s.id' is the id of another call.", at)
		}
		ids[call.ID] = true
		r.req.ignoreRest("messages.tool_calls.", fields, "type", "function", "id", "index") // some clients send the index of a stream back
		m.Calls = append(m.Calls, call)
		return nil
	})
}

// call reads the name and the arguments of a call.
func (r *messageReader) call(at string, value json.RawMessage) (c toolCall, err error) {
	fields, err := r.req.members(at, value, "an object")
	if err != nil {
		return c, err
	}
	if err := nonEmpty(short, &c.Name, at+".name", fields["name"]); err != nil {
		return c, err
	}
	r.req.ignoreRest("messages.tool_calls.function.", fields, "name", "arguments")
	return c, rawString(&c.Arguments, at+".arguments", fields["arguments"], "a string")
}

// matchCalls makes sure that every call is answered before the conversation goes
// on, and that every answer has a call: providers reject anything else, and Codex
// would invent answers. Both get the ids that the provider sees.
func matchCalls(conversation []chatMessage) error {
	open := map[string]bool{} // the caller's ids of calls without an answer
	ids := newCallIDs()
	for i := range conversation {
		m := &conversation[i]
		if m.Role == "tool" {
			if !open[m.CallID] {
				return badRequest(fmt.Sprintf("messages[%d]", i), "messages[%d] refers to tool call %.100q, which no earlier assistant message made.", i, m.CallID)
			}
			delete(open, m.CallID)
			m.CallID = ids.last[m.CallID]
			continue
		}
		if len(open) > 0 {
			break
		}
		for j := range m.Calls {
			c := &m.Calls[j]
			open[c.ID] = true
			c.ID = ids.assign(c.ID)
		}
	}
	if len(open) > 0 {
		return badRequest("messages", "Each tool call of an assistant message must be answered by a tool message right after it. %d calls have no answer, %.100q among them.", len(open), slices.Sorted(maps.Keys(open))[0])
	}
	return nil
}

// content reads a string, or an array of parts. There may be none: clients leave out
// what is empty in the answers and results that they send back.
func (r *messageReader) content() ([]part, error) {
	at, value := r.at+".content", r.fields["content"]
	if isNull(value) {
		return nil, nil
	}
	if isString(value) {
		return []part{{Text: value}}, nil
	}
	if kindOf(value) != '[' {
		return nil, badRequest(at, "'%s' must be a string or an array of parts.", at)
	}
	var parts []part
	err := r.req.listed(at, value, maxParts, "parts", func(_ int, at string, fields map[string]json.RawMessage) error {
		p, err := r.part(at, fields)
		parts = append(parts, p)
		return err
	})
	return parts, err
}

// part reads one part; at is where it stands, for errors.
func (r *messageReader) part(at string, fields map[string]json.RawMessage) (p part, err error) {
	var kind string
	if err := into(&kind, at+".type", fields["type"], "a string"); err != nil {
		return p, err
	}
	given := slices.Contains([]string{"user", "tool", "function"}, r.role)
	switch {
	case kind == "text", kind == "refusal" && r.role == "assistant":
		if isNull(fields[kind]) {
			return p, badRequest(at+"."+kind, "'%s.%s' is missing.", at, kind)
		}
		err = rawString(&p.Text, at+"."+kind, fields[kind], "a string")
	case kind == "image_url" && given:
		p.Image, p.Detail, err = r.image(at+".image_url", fields["image_url"])
	case kind == "file" && given:
		r.req.need(upstream.InputFile, unsupported(at))
		p.File, err = r.file(at+".file", fields["file"])
	case kind == "input_audio":
		return p, unsupported(at)
	default:
		return p, badRequest(at+".type", "'%s.type' must be text, or for a user or a tool image_url or file.", at)
	}
	r.req.ignoreRest("messages.content.", fields, "type", kind)
	return p, err
}

// image checks that an image is a data URL and of a type that Codex can read, or has a
// URL for a provider that fetches images: neither we nor Codex do.
func (r *messageReader) image(at string, value json.RawMessage) (raw json.RawMessage, detail string, err error) {
	fields, err := r.req.members(at, value, "an object")
	if err != nil {
		return nil, "", err
	}
	var url string
	if err := into(&url, at+".url", fields["url"], "a string"); err != nil {
		return nil, "", err
	}
	if !isNull(fields["detail"]) {
		if err := into(&detail, at+".detail", fields["detail"], "a string"); err != nil {
			return nil, "", err
		}
		if !slices.Contains([]string{"auto", "low", "high", "original"}, detail) {
			return nil, "", badRequest(at+".detail", "'%s.detail' must be one of auto, low, high, original.", at)
		}
	}
	r.req.ignoreRest("messages.content.image_url.", fields, "url", "detail")
	if strings.HasPrefix(url, "https://") || strings.HasPrefix(url, "http://") {
		r.req.need(upstream.ImageURL, badRequest(at+".url", "'%s.url' must be a data URL such as data:image/png;base64,...: neither this server nor its upstream fetches images.", at))
		return fields["url"], detail, nil
	}
	head, data, _ := strings.Cut(url, ",")
	kind, isData := strings.CutPrefix(head, "data:")
	kind, isBase64 := strings.CutSuffix(kind, ";base64")
	if !isData || !isBase64 || !strings.HasPrefix(kind, "image/") {
		return nil, "", badRequest(at+".url", "'%s.url' must be a data URL such as data:image/png;base64,..., or an http(s) URL.", at)
	}
	image, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, "", badRequest(at+".url", "'%s.url' is not valid base64.", at)
	}
	if large(image) {
		r.req.LargeImage = badRequest(at+".url", "'%s.url' must hold an image of at most %d pixels.", at, maxPixels)
	}
	// The content counts, not the declared type: image/jpg is no type, but in wide use.
	if !slices.Contains([]string{"image/png", "image/jpeg", "image/webp", "image/gif"}, http.DetectContentType(image)) {
		return nil, "", badRequest(at+".url", "'%s.url' must hold a PNG, JPEG, WebP or GIF image.", at)
	}
	return fields["url"], detail, nil
}

// file reads a file part as the members of an input_file.
func (r *messageReader) file(at string, value json.RawMessage) (members json.RawMessage, err error) {
	fields, err := r.req.members(at, value, "an object")
	if err != nil {
		return nil, err
	}
	if isNull(fields["file_data"]) && isNull(fields["file_id"]) {
		return nil, badRequest(at, "'%s' must have file_data or file_id.", at)
	}
	known := []string{"file_data", "file_id", "filename"}
	for _, name := range known {
		if isNull(fields[name]) {
			continue
		}
		var value json.RawMessage
		if err := rawString(&value, at+"."+name, fields[name], "a string"); err != nil {
			return nil, err
		}
		members = fmt.Appendf(members, `,"%s":%s`, name, value)
	}
	r.req.ignoreRest("messages.content.file.", fields, known...)
	return members, nil
}
