package lean

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
)

// catalogName is the file of a child's model catalog, in its CODEX_HOME.
const catalogName = "models.json"

// Catalog returns a copy of the CLI's model catalog whose models are all plain.
// With the original, newer models add Codex's own instructions and a 10 KB
// JavaScript tool to every request, whatever config.toml contains.
func Catalog(original []byte) ([]byte, error) {
	return edited(original, func(models []map[string]any) []map[string]any {
		for _, m := range models {
			maps.Copy(m, plain)
		}
		return models
	})
}

// StandIn returns a catalog of one plain model, for children behind a relay, which
// writes the caller's model into the provider's request. A child reads its catalog
// anew for every thread. The model has the fields of one in the CLI's own catalog,
// so that the CLI can read it.
func StandIn(original []byte) ([]byte, error) {
	return edited(original, func(models []map[string]any) []map[string]any {
		model := models[0]
		maps.Copy(model, plain)
		maps.Copy(model, standIn)
		return models[:1]
	})
}

// edited is a copy of a catalog, which has at least one model, with other models.
func edited(original []byte, edit func(models []map[string]any) []map[string]any) ([]byte, error) {
	var catalog map[string]json.RawMessage
	if err := json.Unmarshal(original, &catalog); err != nil {
		return nil, fmt.Errorf("model catalog: %w", err)
	}
	var models []map[string]any
	if err := json.Unmarshal(catalog["models"], &models); err != nil {
		return nil, fmt.Errorf("models of the model catalog: %w", err)
	}
	if len(models) == 0 {
		return nil, errors.New("model catalog: it has no models")
	}
	var err error
	if catalog["models"], err = json.Marshal(edit(models)); err != nil {
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

// standIn are the fields of a model that stands for all of the provider's. It accepts
// what any of them accepts, and has no texts, tiers or offers that a child would
// have to read.
var standIn = map[string]any{
	"slug":                           "stand-in",
	"display_name":                   "",
	"description":                    "",
	"visibility":                     "list",
	"priority":                       0,
	"supported_in_api":               true,
	"input_modalities":               []string{"text", "image"},
	"supports_image_detail_original": true,
	"supported_reasoning_levels":     []string{},
	"additional_speed_tiers":         []string{},
	"service_tiers":                  []string{},
	"availability_nux":               nil,
	"upgrade":                        nil,
}
