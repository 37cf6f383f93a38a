package configs

import (
	_ "embed"
	"encoding/json"
	"fmt"
)

//go:embed codex/lean.toml
var lean string

// ChildConfig is the config.toml of a lean child whose model catalog is the
// file at catalog and whose only provider is a Responses API at baseURL. The
// child sends it no credential and never retries: a retry would repeat text.
func ChildConfig(catalog, baseURL string) []byte {
	return fmt.Appendf(nil, `model_catalog_json = %s
model_provider = "pool"
%s
[model_providers.pool]
name = "pool"
base_url = %s
wire_api = "responses"
requires_openai_auth = false
supports_websockets = false
request_max_retries = 0
stream_max_retries = 0
stream_idle_timeout_ms = 300000
`, quote(catalog), lean, quote(baseURL))
}

// quote makes a TOML basic string: JSON's escapes are a part of TOML's.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic("BUG: a string that JSON cannot hold: " + err.Error())
	}
	return string(b)
}
