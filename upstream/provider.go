package upstream

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
)

// Provider is the Responses API that the relay forwards to.
type Provider struct {
	// Base is the URL of the API, such as https://api.openai.com/v1.
	Base *url.URL

	// Kind is what the provider supports.
	Kind Kind

	// Credential adds the credential to a request's headers, here and nowhere else.
	// nil means that the provider needs none. An error means that there is no usable
	// credential; then no request is sent.
	Credential func(http.Header) error

	// Version is the version of the Codex CLI. Only [ChatGPT] needs it, for its list of
	// models.
	Version func() string

	// Rejected is called with the headers of a request whose credential the provider
	// rejected (401). It may be nil, and must not block.
	Rejected func(http.Header)
}

// Bearer returns a [Provider.Credential] that adds an API key. It never fails.
func Bearer(key string) func(http.Header) error {
	return func(h http.Header) error {
		h.Set("Authorization", "Bearer "+key)
		return nil
	}
}

// Kind is what a provider supports beside model and input. The zero value
// supports all fields.
type Kind struct {
	fields       []string // of the Responses API, and what input may have of the list below; nil = all
	instructions bool     // rejects a request without instructions
	codex        bool     // serves Codex: see identity.go
	leastOutput  int64    // rejects a smaller max_output_tokens; 0 = no bound
	tiers        []string // values of service_tier; nil = all
	drops        []string // what it rejects of a body that a caller made; nil = all but fields
}

// What the input of a request may have, for [Relay.Supports].
const (
	SystemRole = "system"     // messages of this role; else their role is developer
	ImageURL   = "image_url"  // images with a URL that the provider must fetch
	InputFile  = "input_file" // files

	StoredState = "stored state" // what the provider has stored, by its id
)

// The kinds of provider.
var (
	// Responses is a server of the whole Responses API.
	Responses = Kind{}

	// OpenAI is OpenAI's own API. It rejects a max_output_tokens below 16. Chat
	// completions allow 1, which clients use to see whether a model answers at all.
	OpenAI = Kind{leastOutput: 16}

	// ChatGPT is the backend of a ChatGPT login. It is known to reject
	// max_output_tokens, system messages, a service tier other than priority, and a
	// request without instructions. So it
	// gets the fields that Codex itself sends there, and no others, and what Codex tells
	// of itself. This was not tried against the real backend.
	ChatGPT = Kind{
		fields: []string{
			"include", "parallel_tool_calls", "prompt_cache_key", "reasoning", "service_tier", "text", "tool_choice", "tools",
		},
		instructions: true,
		codex:        true,
		tiers:        []string{"priority"},
		drops: []string{
			"background", "context_management", "max_output_tokens", "max_tool_calls", "metadata", "prompt_cache_options", "prompt_cache_retention",
			"safety_identifier", "stream_options", "temperature", "top_logprobs", "top_p", "truncation", "user",
		},
	}

	// EchoModel is what [Echo] supports.
	EchoModel = Kind{fields: []string{"max_output_tokens", "prompt_cache_key", "reasoning", SystemRole, ImageURL, InputFile}}
)

// core are the fields of any request.
var core = []string{"model", "input", "instructions", "stream", "store", "background"}

// passes reports whether a field that a caller wrote is passed on.
func (k Kind) passes(field string, value json.RawMessage) bool {
	switch {
	case k.drops == nil:
		return k.supports(field) || slices.Contains(core, field)
	case field == "service_tier":
		return k.accepts(field, value)
	}
	return !slices.Contains(k.drops, field)
}

func (k Kind) supports(field string) bool { return k.fields == nil || slices.Contains(k.fields, field) }

// accepts reports whether the provider supports a field with this value.
func (k Kind) accepts(field string, value json.RawMessage) bool {
	if field != "service_tier" || k.tiers == nil {
		return k.supports(field)
	}
	var tier string
	return json.Unmarshal(value, &tier) == nil && slices.Contains(k.tiers, tier)
}
