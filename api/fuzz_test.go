package api_test

import (
	"encoding/json"
	"errors"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"codexpool/api"
)

// FuzzDecode: a body is refused as what is wrong with it, or becomes JSON for
// the child and for the provider.
func FuzzDecode(f *testing.F) {
	for _, body := range []string{
		hello, `{"prompt":["a","b"],"n":2,"stop":["x"]}`, `{"prompt":["a","b"],"n":6917529027641081856}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"low"}}]}]}`,
		`{"messages":[{"role":"assistant","content":null,"refusal":"r","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{"}}]},{"role":"tool","tool_call_id":"c","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"},"strict":true}}],"tool_choice":{"type":"function","function":{"name":"f"}}}`,
		`{"messages":[{"role":"assistant","function_call":{"name":"f","arguments":""}},{"role":"function","name":"f","content":[{"type":"text","text":"x"}]}],"functions":[{"name":"f"}],"function_call":{"name":"f"}}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://a/\u0062"}},{"type":"file","file":{"file_id":"\u0066","filename":"\""}}]},` + calling("c") + `,` + calling("c") + `,{"role":"assistant"}]}`,
		`{"messages":[` + strings.Replace(calling("c"), `"x"`, `[{"type":"file","file":{"file_data":"d"}},{"type":"text","text":"t"}]`, 1) + `],"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}}}`,
		`{"model":"codex-5-high","messages":[{"role":"system","content":"\ud800"}],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{}}},"temperature":1e0,"metadata":{"a":"b"},"x":[1,{"y":null}]}`,
	} {
		for _, legacy := range []bool{false, true} {
			f.Add([]byte(body), legacy, false)
			f.Add([]byte(body), legacy, true)
		}
	}
	provider := relayTo(unplugged{})
	f.Fuzz(func(t *testing.T, body []byte, legacy, direct bool) {
		relay := provider
		if direct {
			relay = nil
		}
		items, fields, ignored, err := api.Decoded(body, legacy, config(), relay)
		if told := (*api.Error)(nil); err != nil && (!errors.As(err, &told) || told.Status < 400 || told.Status > 499 || told.Message == "") {
			t.Errorf("%T %v", err, err)
		}
		for _, item := range items {
			if !json.Valid(item) {
				t.Errorf("item %s", item)
			}
		}
		for name, value := range fields {
			if !json.Valid(value) {
				t.Errorf("%s: %s", name, value)
			}
		}
		if strings.ContainsAny(ignored, "\r\n\x00") || len(ignored) > 1024 {
			t.Errorf("a header of %d bytes: %q", len(ignored), ignored)
		}
	})
}

// FuzzStream: any text, split anywhere, comes back whole through a parser as the
// HTML standard describes it.
func FuzzStream(f *testing.F) {
	f.Add("Hello, world", 3)
	f.Add("data: [DONE]\n\n\r\n\rdata: {}", 2)
	f.Add("\u2028🧪\x00<b>", 1)
	f.Fuzz(func(t *testing.T, text string, size int) {
		if !utf8.ValidString(text) {
			return // a child writes JSON: its text is valid
		}
		w := httptest.NewRecorder()
		if err := api.StreamText(w, split(text, size)); err != nil {
			t.Fatal(err)
		}
		events := parseSSE(w.Body.String())
		if n := len(events); n < 3 || events[n-1] != "[DONE]" {
			t.Fatalf("%q", events)
		}
		var got string
		for _, e := range events[:len(events)-1] {
			var chunk struct {
				Choices []struct{ Delta struct{ Content string } }
			}
			if err := json.Unmarshal([]byte(e), &chunk); err != nil || len(chunk.Choices) != 1 {
				t.Fatalf("%v in %q", err, e)
			}
			got += chunk.Choices[0].Delta.Content
		}
		if got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	})
}

// FuzzStop: however the text is split, it ends before the first sequence in it.
func FuzzStop(f *testing.F) {
	f.Add("one two three", "two", "e t", 1)
	f.Add("aaab", "aab", "x", 2)
	f.Fuzz(func(t *testing.T, text, a, b string, size int) {
		if a == "" || b == "" {
			return // refused before
		}
		want := text
		for _, stop := range []string{a, b} {
			if before, _, found := strings.Cut(text, stop); found && len(before) < len(want) {
				want = before
			}
		}
		// A sequence that is complete earlier wins, though another begins before it.
		got := api.Cut(split(text, size), []string{a, b})
		if whole := api.Cut([]string{text}, []string{a, b}); whole != want {
			t.Errorf("in one piece: got %q, want %q", whole, want)
		}
		if !strings.HasPrefix(text, got) || len(got) < len(want) || strings.Contains(got, a) || strings.Contains(got, b) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// split cuts text into pieces of size runes.
func split(text string, size int) (pieces []string) {
	runes := []rune(text)
	if !utf8.ValidString(text) {
		return []string{text}
	}
	size = max(1, size%16)
	for len(runes) > size {
		pieces = append(pieces, string(runes[:size]))
		runes = runes[size:]
	}
	return append(pieces, string(runes))
}

// parseSSE gives the data of each event.
func parseSSE(stream string) (events []string) {
	stream = strings.TrimPrefix(stream, "\ufeff")
	stream = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(stream)
	var data []string
	for line := range strings.SplitSeq(stream, "\n") {
		name, value, _ := strings.Cut(line, ":")
		switch {
		case line == "" && data != nil:
			events = append(events, strings.Join(data, "\n"))
			data = nil
		case name == "data":
			data = append(data, strings.TrimPrefix(value, " "))
		}
	}
	return events
}

// FuzzUnmarshal: fields are decoded by the rules of encoding/json.
func FuzzUnmarshal(f *testing.F) {
	for _, body := range []string{
		`{"a":1,"a":2,"b":null}`, `{"a":"\ud800","b":"\u00e9"}`, "{\"a\":\"\xff\"}", `[{"a":[]},null]`, `"a\/b"`, `1e400`, `1.0`, `-0`, ` true `, `{} {}`, `{"A":1,"a":2}`, "\ufeff{}", `"` + "\x01" + `"`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		same[map[string]json.RawMessage](t, body)
		same[[]map[string]json.RawMessage](t, body)
		same[map[string]any](t, body)
		same[map[string]*string](t, body)
		same[[]string](t, body)
		same[string](t, body)
		same[float64](t, body)
		same[int](t, body)
		same[bool](t, body)
	})
}

// same decodes a body by both packages. What remains of a body that both refuse
// does not matter.
func same[T any](t *testing.T, body []byte) {
	t.Helper()
	var got, want T
	gotErr, wantErr := api.Unmarshal(body, &got), json.Unmarshal(body, &want)
	if (gotErr == nil) != (wantErr == nil) || (gotErr == nil && !reflect.DeepEqual(got, want)) {
		t.Errorf("%q as %T: got %v (%v), encoding/json %v (%v)", body, got, got, gotErr, want, wantErr)
	}
}
