package upstream

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"codexpool/codex"
)

// identity is what a child tells, with its request, of itself and of its turn. The
// backend of a ChatGPT login serves by it: it hides new models from a client that names
// no version, two names, or a session whose id is no UUID of version 7. So it goes there
// as the child wrote it, and changes with the CLI, not with us. The child gives our own
// name as its own: nobody is imitated.
type identity struct {
	header   http.Header
	metadata map[string]string // client_metadata of the body
}

// identityHeaders are the headers of an identity.
var identityHeaders = []string{
	"Originator", "User-Agent", "X-Codex-Beta-Features", turnMetadata, "X-Codex-Window-Id",
	"Session-Id", "Thread-Id", "X-Client-Request-Id",
}

// turnMetadata is a header of the identity, and a field of its metadata: a JSON object,
// which also has the key of the call.
const turnMetadata = "X-Codex-Turn-Metadata"

// hear reads a child's request to its end, and returns what the provider is to know of it.
func (r *Relay) hear(header http.Header, body io.Reader) (identity, error) {
	if !r.provider.Kind.codex {
		_, err := io.Copy(io.Discard, body)
		return identity{}, err
	}
	var end tail
	_, err := io.Copy(&end, body)
	return identity{header, metadataIn(end)}, err
}

// identify returns the headers of the provider's request that say what it belongs to. It
// may add to the request.
func (r *Relay) identify(child identity, request *Request) http.Header {
	var key string
	json.Unmarshal(request.Overrides["prompt_cache_key"], &key)
	if r.provider.Kind.codex {
		return child.speak(request, key)
	}
	h := http.Header{}
	if fitsHeader(key) {
		h.Set("Session-Id", key) // Codex sends both with one value
	}
	return h
}

// speak makes the request that of Codex itself, as it would send it with the login and
// what the caller asked, and returns its headers. All turns with one cache key are one
// session: the child has another thread for each, with which the backend would find
// nothing in its cache.
func (i identity) speak(request *Request, key string) http.Header {
	o := maps.Clone(request.Overrides)
	if o == nil {
		o = Overrides{}
	}
	thread := i.header.Get("Thread-Id")
	session := thread
	if key != "" {
		session = sessionID(key)
	}
	if key != "" && request.Body == nil { // a caller's own body keeps its key
		o["prompt_cache_key"] = marshal(session)
	}
	told := func(name, value string) string {
		if strings.EqualFold(name, turnMetadata) {
			value = turnOf(value, o)
		}
		if thread == "" {
			return value
		}
		return strings.ReplaceAll(value, thread, session)
	}
	h := http.Header{}
	for _, name := range identityHeaders {
		if value := i.header.Get(name); value != "" {
			h.Set(name, told(name, value))
		}
	}
	if version := codex.VersionIn(i.header.Get("User-Agent")); version != "" {
		h.Set("Version", version) // Codex sends it only with a login
	}
	if hint := routingHint(o); fitsHeader(hint) {
		h.Set("X-Codex-Routing-Hint", hint)
	}
	metadata := map[string]string{}
	for name, value := range i.metadata {
		metadata[name] = told(name, value)
	}
	if o["client_metadata"] == nil { // which a Codex CLI that is our caller sends too
		o["client_metadata"] = marshal(metadata)
	}
	request.Overrides = o
	return h
}

// turnOf is a child's metadata of a turn for the caller's request: without what is for
// the relay, or of this machine, and with the caller's model and effort for those of the
// child, whose model is a stand-in.
func turnOf(metadata string, o Overrides) string {
	var turn map[string]json.RawMessage
	if json.Unmarshal([]byte(metadata), &turn) != nil {
		return ""
	}
	delete(turn, MetaKey)
	delete(turn, "workspaces") // paths, where a child runs in a repository
	if turn["model"] != nil {
		turn["model"] = o["model"]
	}
	var reasoning struct{ Effort json.RawMessage }
	if json.Unmarshal(o["reasoning"], &reasoning) == nil && reasoning.Effort != nil {
		turn["reasoning_effort"] = reasoning.Effort
	}
	return string(marshal(turn))
}

// routingHint is a header that Codex sends with a ChatGPT login only.
func routingHint(o Overrides) string {
	var model, tier string
	json.Unmarshal(o["model"], &model)
	json.Unmarshal(o["service_tier"], &tier)
	if tier != "" {
		return "model=" + model + ";tier=" + tier
	}
	return "model=" + model
}

// introduce tells in a request for the list of models who asks, as Codex does: without
// the version, the backend of a ChatGPT login answers 400.
func (r *Relay) introduce(req *http.Request) {
	if !r.provider.Kind.codex {
		return
	}
	version := r.provider.Version()
	req.URL.RawQuery = url.Values{"client_version": {version}}.Encode()
	req.Header.Set("Originator", "codexpool")
	req.Header.Set("User-Agent", "codexpool/"+version)
	req.Header.Set("Version", version)
}

var uuid7 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// sessionID is a UUID for a cache key. It has the form of version 7, as Codex's have; the
// time in it is made up. A key that has this form is the session itself.
func sessionID(key string) string {
	if uuid7.MatchString(key) {
		return key
	}
	id := sha256.Sum256([]byte(key))
	copy(id[:], []byte{0x01, 0x9a}) // October to December of 2025
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// maxTail is how much of the end of a child's body is kept, in bytes.
const maxTail = 16 << 10

// tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	kept := append(*t, b[max(0, len(b)-maxTail):]...)
	*t = kept[max(0, len(kept)-maxTail):]
	return len(b), nil
}

// metadataIn finds the client_metadata in the end of a child's body, which may have
// megabytes of a conversation before it. No text can be taken for it: in a JSON string
// its quotes would be escaped.
func metadataIn(end []byte) (metadata map[string]string) {
	const name = `"client_metadata":`
	if i := bytes.LastIndex(end, []byte(name)); i >= 0 {
		json.NewDecoder(bytes.NewReader(end[i+len(name):])).Decode(&metadata)
	}
	return metadata
}

// marshal is encode for values that JSON can hold.
func marshal(v any) json.RawMessage {
	data, err := encode(v)
	if err != nil {
		panic("BUG: a value that JSON cannot hold: " + err.Error())
	}
	return data
}
