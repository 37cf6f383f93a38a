package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/tools/txtar"
)

// Clients that need care, each with what it is known to choke on. Obsidian and
// Electron are in TestKeepalivesAreOmittedForClientsThatChokeOnThem.

// TestFinishComesBeforeUsageForLangChain: it takes the chunk with the usage for
// the last, and drops what comes behind it.
func TestFinishComesBeforeUsageForLangChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 2)
		for _, n := range []int{1, 2} {
			a := h.do(t, chat(fmt.Sprintf(`{"n":%d,"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"one two"}]}`, n)))
			finishes, usages := 0, 0
			for _, e := range parseSSE(a.Body.String()) {
				finishes += strings.Count(e, `"finish_reason":"stop"`)
				if strings.Contains(e, `"prompt_tokens"`) {
					usages++
					if finishes != n || !strings.Contains(e, `"choices":[]`) {
						t.Errorf("the usage comes after %d of %d finishes: %s", finishes, n, e)
					}
				}
			}
			if usages != 1 {
				t.Errorf("%d usages in %s", usages, a.Body)
			}
		}
	})
}

// shapes are the keys of OpenAI's reference, by the path at which they stand; those
// with a "?" may be left out. reasoning_content is not of OpenAI's, but in wide
// use, and only there when it was asked for.
var shapes = map[string][]string{
	"chat.completion":               {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"},
	"chat.completion/choices":       {"index", "message", "logprobs", "finish_reason"},
	"chat.completion/message":       {"role", "content", "refusal", "reasoning_content?", "tool_calls?", "function_call?"},
	"chat.completion.chunk":         {"id", "object", "created", "model", "choices", "usage?", "system_fingerprint"},
	"chat.completion.chunk/choices": {"index", "delta", "logprobs", "finish_reason"},
	"chat.completion.chunk/delta":   {"role?", "content?", "refusal?", "reasoning_content?", "tool_calls?", "function_call?"},
	"text_completion":               {"id", "object", "created", "model", "choices", "usage?", "system_fingerprint"},
	"text_completion/choices":       {"index", "text", "logprobs", "finish_reason"},
}

// TestShapesAreThoseOfTheSpec holds every answer of the transcripts
// against the keys that clients with a schema take.
func TestShapesAreThoseOfTheSpec(t *testing.T) {
	paths, err := filepath.Glob("testdata/chat/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal(err)
	}
	looked := map[string]bool{}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(string(archive.Files[2].Data), "\n\n")
		bodies := parseSSE(body)
		if len(bodies) == 0 {
			bodies = strings.Split(strings.TrimSpace(body), "\n")[:1]
		}
		for _, b := range bodies {
			var v map[string]any
			if b == "[DONE]" || json.Unmarshal([]byte(b), &v) != nil || v["error"] != nil {
				continue
			}
			kind := v["object"].(string)
			looked[kind] = true
			fits(t, path, kind, v)
			for _, c := range v["choices"].([]any) {
				choice := c.(map[string]any)
				fits(t, path, kind+"/choices", choice)
				for _, key := range []string{"message", "delta"} {
					if m, ok := choice[key].(map[string]any); ok {
						fits(t, path, kind+"/"+key, m)
					}
				}
			}
		}
	}
	if len(looked) != 3 {
		t.Errorf("looked at %v only", looked)
	}
}

func fits(t *testing.T, path, shape string, v map[string]any) {
	t.Helper()
	for _, key := range shapes[shape] {
		if _, there := v[key]; !there && !strings.HasSuffix(key, "?") {
			t.Errorf("%s: %s without %s", path, shape, key)
		}
	}
	for key := range maps.Keys(v) {
		if !slices.Contains(shapes[shape], key) && !slices.Contains(shapes[shape], key+"?") {
			t.Errorf("%s: %s has %s", path, shape, key)
		}
	}
}

// TestModelsListTheModelThatAnIDEIsSetTo: many look for it in the list before they
// start, and ask for it by its own path.
func TestModelsListTheModelThatAnIDEIsSetTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		var list struct {
			Object string
			Data   []struct {
				ID, Object string
				OwnedBy    string `json:"owned_by"`
				Created    int64
			}
		}
		a := h.do(t, request("GET", "/v1/models", ""))
		if err := json.Unmarshal(a.Body.Bytes(), &list); err != nil || list.Object != "list" || len(list.Data) < 3 {
			t.Fatalf("%v %s", err, a.Body)
		}
		for _, m := range list.Data {
			if m.Object != "model" || m.OwnedBy == "" || m.Created == 0 {
				t.Errorf("%+v", m)
			}
			for _, path := range []string{"/v1/models/" + m.ID, "/v1/models/" + m.ID + "/"} {
				if a := h.do(t, request("GET", path, "")); a.Code != 200 || !strings.Contains(a.Body.String(), `"id":"`+m.ID+`"`) {
					t.Errorf("%s: %d %s", path, a.Code, a.Body)
				}
			}
			if a := h.do(t, chat(`{"model":"`+m.ID+`","messages":[{"role":"user","content":"x"}]}`)); a.Code != 200 || !strings.Contains(a.Body.String(), `"model":"`+m.ID+`"`) {
				t.Errorf("%s: %d %s", m.ID, a.Code, a.Body)
			}
		}
	})
}
