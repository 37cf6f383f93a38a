package lean

import (
	"encoding/json"
	"fmt"
	"maps"
)

// catalogName is the file of a child's model catalog, in its CODEX_HOME.
const catalogName = "models.json"

// Catalog returns a copy of the CLI's model catalog whose models are all plain.
// With the original, newer models add Codex's own instructions and a 10 KB
// JavaScript tool to every request, whatever config.toml contains.
func Catalog(original []byte) ([]byte, error) {
	var catalog map[string]json.RawMessage
	if err := json.Unmarshal(original, &catalog); err != nil {
		return nil, fmt.Errorf("model catalog: %w", err)
	}
	var models []map[string]any
	if err := json.Unmarshal(catalog["models"], &models); err != nil {
		return nil, fmt.Errorf("models of the model catalog: %w", err)
	}
	for _, m := range models {
		maps.Copy(m, plain)
	}
	var err error
	if catalog["models"], err = json.Marshal(models); err != nil {
		return nil, err
	}
	return json.Marshal(catalog)
}

// plain are the fields that turn an agent's model into a plain one. The provider
// decides how long a history may be: Codex estimates a token for every four bytes,
// uses only a third of the model's real window, and compacts what it finds too long.
var plain = map[string]any{
	"context_window":               1_000_000_000,
	"max_context_window":           1_000_000_000,
	"apply_patch_tool_type":        nil,
	"base_instructions":            "",
	"experimental_supported_tools": []string{},
	"model_messages":               nil,
	"multi_agent_version":          nil,
	"supports_search_tool":         false,
	"tool_mode":                    nil,
	"use_responses_lite":           false,
}
