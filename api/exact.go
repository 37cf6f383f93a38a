package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"codexpool/upstream"
)

// exactRequest is a request that goes to the provider as the caller wrote it, but for a
// few values.
type exactRequest struct {
	rawObject                    // what came
	body      []byte             // what goes to the provider,
	apart     upstream.Overrides // beside these, which the relay reads; nil for a provider of the whole API,
	header    http.Header        // and with this header
}

// exactFields are the fields that are read of a body that is passed on. Those without a
// reader only matter where the provider or the key has not all that they may ask for.
var exactFields = map[string]fieldReader{
	"model":      readModel,
	"stream":     chatFields["stream"],
	"background": only("false"), // it would outlive the lease

	"store": nil, "input": nil, "tools": nil, "reasoning": nil,
	"previous_response_id": nil, "conversation": nil, "prompt": nil,
}

// standIn is the conversation that a child gets in place of one that only the provider
// gets.
var standIn = []chatMessage{{Role: "user", Parts: []part{{Text: json.RawMessage(`"The relay has the request."`)}}}}

// readExact reads a body that is passed on. A field that is read must mean the same to
// the provider: some servers take the first of two, and some take any case.
func (req *chatRequest) readExact(body []byte) error {
	o, err := parseRaw(body)
	if err != nil {
		return notJSON(body)
	}
	seen := map[string]bool{}
	for _, m := range o.members {
		name := strings.ToLower(m.name)
		read, known := exactFields[name]
		if !known {
			continue
		}
		if name != m.name || seen[name] {
			return badRequest(name, "'%s' must be there once, and be written like this.", name)
		}
		seen[name] = true
		if read == nil || isNull(m.value) {
			continue
		}
		if err := read(req, name, m.value); err != nil {
			return err
		}
	}
	if messages := o.get("messages"); messages != nil && o.get("input") == nil {
		return missing("input", map[string]json.RawMessage{"messages": messages})
	}
	req.Conversations = [][]chatMessage{standIn}
	req.Exact = &exactRequest{rawObject: o}
	return nil
}

// fitExact makes the body for the provider, once the model is known.
func (req *chatRequest) fitExact(relay *upstream.Relay) error {
	e, values := req.Exact, map[string]json.RawMessage{}
	if name := e.get("model"); name == nil && e.get("prompt") != nil {
		req.Model = "" // the provider's prompt may name it
	} else if name == nil || req.Model != req.Name {
		values["model"] = marshal(req.Model)
	}
	if string(e.get("stream")) != "true" {
		values["stream"] = json.RawMessage("true")
	}
	if req.Effort != "" { // of the model's name
		values["reasoning"] = withEffort(e.get("reasoning"), req.Effort)
	}
	if !relay.Supports(upstream.StoredState) {
		if err := req.adapt(relay, values); err != nil {
			return err
		}
	}
	e.body = e.with(values)
	return nil
}

// adapt changes the values for a provider that has not all of the API. What it does not
// take is left out and named, unless it would change the answer.
func (req *chatRequest) adapt(relay *upstream.Relay, values map[string]json.RawMessage) error {
	e := req.Exact
	if err := e.storedState("%s is not supported here: nothing is stored. Send all items in 'input', as clients do with store:false (in the AI SDK: providerOptions.openai.store)."); err != nil {
		return err
	}
	for _, m := range e.members {
		if !relay.Passes(m.name, m.value) {
			values[m.name] = nil
			if !isNull(m.value) {
				req.ignore(m.name)
			}
		}
	}
	if string(e.get("store")) == "true" {
		req.ignore("store")
	}
	values["store"] = json.RawMessage("false")
	if e.get("instructions") == nil {
		values["instructions"] = json.RawMessage(`""`)
	}
	if input := e.get("input"); input != nil && !relay.Supports(upstream.SystemRole) {
		values["input"] = developers(input)
	}
	e.apart = upstream.Overrides{}
	for _, name := range []string{"model", "prompt_cache_key", "reasoning", "service_tier", "client_metadata"} {
		value, changed := values[name]
		if !changed {
			value = e.get(name)
		}
		if values[name] = nil; value != nil {
			e.apart[name] = value
		}
	}
	return nil
}

// developers is an input as a list of items, in which system messages have the newer role.
func developers(input json.RawMessage) json.RawMessage {
	if isString(input) {
		return fmt.Appendf(nil, `[{"type":"message","role":"user","content":[{"type":"input_text","text":%s}]}]`, input)
	}
	out := []byte{'['}
	for i, item := range elements(input) {
		if i > 0 {
			out = append(out, ',')
		}
		if o, err := parseRaw(item); kindOf(item) == '{' && err == nil && o.role() == "system" {
			item = o.with(map[string]json.RawMessage{"role": json.RawMessage(`"developer"`)})
		}
		out = append(out, item...)
	}
	return append(out, ']')
}

// cacheKey is the same for requests that begin alike: see the function of this name.
func (e *exactRequest) cacheKey(caller Caller) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %s %s %s", caller.Key, e.apart["model"], e.get("tools"), e.get("instructions"))
	for _, item := range objects(e.get("input")) {
		if role := item.role(); role != "system" && role != "developer" {
			break
		}
		fmt.Fprintf(h, " %s", item.get("content"))
	}
	return "codexpool-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// withEffort is a caller's reasoning with an effort, unless it has one.
func withEffort(reasoning json.RawMessage, effort string) json.RawMessage {
	values := map[string]json.RawMessage{"effort": marshal(effort)}
	if reasoning == nil {
		return marshal(values)
	}
	o, err := parseRaw(reasoning)
	if kindOf(reasoning) != '{' || err != nil || o.get("effort") != nil {
		return reasoning
	}
	return o.with(values)
}

// refused is the error for what the caller's key is refused, nil where the request has
// nothing of it.
func (e *exactRequest) refused(words []string) error {
	const sentence = "This API key may not use %s."
	if slices.Contains(words, "stored_state") {
		if string(e.get("store")) != "false" {
			return without("store", sentence+" Send store:false.", "the provider's storage, which is the default")
		}
		if err := e.storedState(sentence); err != nil {
			return err
		}
	}
	if slices.Contains(words, "hosted_tools") {
		return e.hostedTools(sentence)
	}
	return nil
}

// storedState is the error for a request that needs what the provider has stored.
func (e *exactRequest) storedState(sentence string) error {
	for _, name := range []string{"previous_response_id", "conversation", "prompt"} {
		if e.get(name) != nil {
			return without(name, sentence, "'"+name+"'")
		}
	}
	for i, item := range objects(e.get("input")) {
		types := item.types()
		bare := len(types) == 0 && item.get("role") == nil && item.get("id") != nil // which is a reference too
		if bare || slices.Contains(types, "item_reference") {
			at := fmt.Sprintf("input[%d]", i)
			return without(at, sentence, "the item_reference in '"+at+"'")
		}
	}
	return nil
}

// hostedTools is the error for a request with a tool that the provider runs. A prompt of
// the provider's may have such tools.
func (e *exactRequest) hostedTools(sentence string) error {
	if e.get("prompt") != nil {
		return without("prompt", sentence, "'prompt'")
	}
	if kind, hosted := hostedIn(e.get("tools")); hosted {
		return without("tools", sentence, "tools that the provider runs, such as "+kind)
	}
	for i, item := range objects(e.get("input")) { // as the Codex CLI sends its tools to some models
		if kind, hosted := hostedIn(item.get("tools")); hosted {
			return without(fmt.Sprintf("input[%d]", i), sentence, "tools that the provider runs, such as "+kind)
		}
	}
	return nil
}

// without is the error for a request that must do without something.
func without(param, sentence, what string) *Error {
	e := unsupported(param)
	e.Message = fmt.Sprintf(sentence, what)
	return e
}

// ownTools are the types of tools that the caller runs itself.
var ownTools = []string{"function", "custom", "namespace", "local_shell", "apply_patch"}

// hostedIn returns the type of the first tool that the caller does not run itself.
func hostedIn(tools json.RawMessage) (kind string, hosted bool) {
	for _, tool := range objects(tools) {
		types := tool.types()
		if len(types) != 1 || !slices.Contains(ownTools, types[0]) {
			return fmt.Sprintf("%.100q", types), true
		}
		if kind, hosted := hostedIn(tool.get("tools")); hosted { // of a namespace
			return kind, true
		}
	}
	return "", false
}

// exactHeader is what the provider gets of a caller's header, with a body of the
// caller's own. Without these, clients of the Codex family do not work.
func exactHeader(from http.Header) http.Header {
	to := http.Header{}
	for name, values := range from {
		if name == "Openai-Beta" || name == "X-Codex-Turn-State" || strings.HasPrefix(name, "X-Openai-Internal-Codex-") {
			to[name] = values
		}
	}
	return to
}

// textLength is how long the text of a body is, in bytes. The bytes of images and files
// say nothing of their tokens.
func textLength(body []byte) int {
	n := len(body)
	for {
		_, data, found := bytes.Cut(body, []byte(`"data:`))
		if !found {
			return n
		}
		if body = data; bytes.IndexByte(data, '"') > 0 {
			n -= bytes.IndexByte(data, '"')
		}
	}
}
