package upstream_test

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"codexpool/upstream"

	"github.com/google/go-cmp/cmp"
)

func TestProviderGetsTheCallersRequestAndNothingOfCodex(t *testing.T) {
	p := newProvider(t, sse(completed))
	var sent, received int64
	r, base := relay(t, p, upstream.Hooks{
		Sent:     func(_ context.Context, n int64) { sent += n },
		Received: func(_ context.Context, n int64) { received += n },
	})
	call := prepare(t.Context(), r, upstream.Request{
		Input:     items(`{"role":"user","type":"message","content":[{"image_url":"data:\/<b>","type":"input_image","unknown":1.50}]}`, `{"type":"reasoning","id":"rs_1"}`),
		Overrides: upstream.Overrides{"model": json.RawMessage(`"mine"`), "temperature": json.RawMessage("0.20"), "prompt_cache_key": json.RawMessage(`"k"`)},
	})
	defer call.Done()
	if code, _, err := child(t.Context(), base, call.Key); code != 200 || err != nil {
		t.Fatal(code, err)
	}
	requests, bodies, _ := p.seen()
	want := `{"input":[{"role":"user","type":"message","content":[{"image_url":"data:\/<b>","type":"input_image","unknown":1.50}]},` +
		`{"type":"reasoning","id":"rs_1"}],"model":"mine","prompt_cache_key":"k","store":false,"stream":true,"temperature":0.20}`
	if diff := cmp.Diff(want, bodies[0]); diff != "" {
		t.Errorf("body (-want +got)\n%s", diff)
	}
	got := requests[0]
	if got.URL.Path != "/base/v1/responses" || got.Header.Get("Authorization") != "Bearer sk-real-key" || got.Header.Get("Session-Id") != "k" {
		t.Errorf("%s %v", got.URL, got.Header)
	}
	for name := range got.Header {
		if !slices.Contains([]string{"Accept", "Accept-Encoding", "Authorization", "Content-Length", "Content-Type", "Session-Id", "User-Agent"}, name) {
			t.Errorf("header %s: %s", name, got.Header.Get(name))
		}
	}
	if f := failure(call); f != nil {
		t.Errorf("a failure: %+v", f)
	}
	p.rest(t)
	if sent != int64(len(want)) || received != int64(len("data: "+completed+"\n\n")) {
		t.Errorf("counted %d bytes sent, %d received", sent, received)
	}
}

func items(list ...string) (input []json.RawMessage) {
	for _, item := range list {
		input = append(input, json.RawMessage(item))
	}
	return input
}

func TestMaxOutputTokensIsRaisedToWhatOpenAIAccepts(t *testing.T) {
	p := newProvider(t, sse(completed))
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind        upstream.Kind
		value, want string
	}{
		{upstream.OpenAI, "1", `"max_output_tokens":16`},
		{upstream.OpenAI, "17", `"max_output_tokens":17`},
		{upstream.Responses, "1", `"max_output_tokens":1`},
	} {
		r := upstream.NewRelay(upstream.Provider{Base: base, Kind: tt.kind}, p.Client().Transport, upstream.Hooks{})
		server := httptest.NewServer(r)
		defer server.Close()
		call := prepare(t.Context(), r, upstream.Request{Overrides: upstream.Overrides{"max_output_tokens": json.RawMessage(tt.value)}})
		defer call.Done()
		if code, _, err := child(t.Context(), server.URL, call.Key); code != 200 || err != nil {
			t.Fatal(code, err)
		}
		_, bodies, _ := p.seen()
		if got := bodies[len(bodies)-1]; !strings.Contains(got, tt.want+",") {
			t.Errorf("max_output_tokens %s: %s", tt.value, got)
		}
	}
}

func TestChatGPTGetsInstructionsAndOnlyTheFieldsItSupports(t *testing.T) {
	p := newProvider(t, sse(completed))
	base, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	r := upstream.NewRelay(upstream.Provider{Base: base, Kind: upstream.ChatGPT}, flight{p.Client().Transport, p}, upstream.Hooks{})
	server := httptest.NewServer(r)
	defer server.Close()
	if r.Supports("max_output_tokens") || r.Supports("temperature") || !r.Supports("tools") {
		t.Error("it supports other fields")
	}
	for _, tt := range []struct{ input, instructions, rest string }{
		{
			`[{"type":"message","role":"developer","content":[{"type":"input_text","text":"be"},{"type":"input_text","text":"brief"}]},
		   {"type":"message","role":"developer","content":[{"type":"input_text","text":"and kind"}]},
		   {"type":"message","role":"user","content":[]},{"type":"message","role":"developer","content":[]}]`,
			"be\n\nbrief\n\nand kind", `[{"type":"message","role":"user","content":[]},{"type":"message","role":"developer","content":[]}]`,
		},
		{`[{"type":"message","role":"user","content":[]}]`, "", `[{"type":"message","role":"user","content":[]}]`},
	} {
		var input []json.RawMessage
		if err := json.Unmarshal([]byte(tt.input), &input); err != nil {
			t.Fatal(err)
		}
		call := prepare(t.Context(), r, upstream.Request{Input: input})
		defer call.Done()
		if code, _, err := child(t.Context(), server.URL, call.Key); code != 200 || err != nil {
			t.Fatal(code, err)
		}
		_, bodies, _ := p.seen()
		var got struct {
			Instructions string
			Input        json.RawMessage
		}
		if err := json.Unmarshal([]byte(bodies[len(bodies)-1]), &got); err != nil {
			t.Fatal(err)
		}
		if got.Instructions != tt.instructions || string(got.Input) != tt.rest {
			t.Errorf("instructions %q, input %s", got.Instructions, got.Input)
		}
	}
}
