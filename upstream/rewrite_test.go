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

func TestProviderGetsTheCallersFieldsAndNothingOfCodex(t *testing.T) {
	p := newProvider(t, sse(completed))
	var sent, received int64
	var overridden []string
	r, base := relay(t, p, upstream.Hooks{
		Sent:       func(_ context.Context, n int64) { sent += n },
		Received:   func(_ context.Context, n int64) { received += n },
		Overridden: func(_ context.Context, field string) { overridden = append(overridden, field) },
	})
	call := r.Prepare(t.Context(), upstream.Overrides{"temperature": json.RawMessage("0.20"), "prompt_cache_key": json.RawMessage(`"k"`)})
	defer call.Done()
	if code, _, err := child(t.Context(), base, call.Key); code != 200 || err != nil {
		t.Fatal(code, err)
	}
	requests, bodies, _ := p.seen()
	want := `{"input":[{"content":[{"type":"input_text","text":"hi <b>"}],"role":"user","type":"message"},` +
		`{"arguments":"{}","call_id":"c","name":"f","type":"function_call"},{"call_id":"c","output":"<b>","type":"function_call_output"},` +
		`{"type":"reasoning","id":"rs_1","summary":[]}],` +
		`"model":"m","prompt_cache_key":"k","store":false,"stream":true,"temperature":0.20}`
	if diff := cmp.Diff(want, bodies[0]); diff != "" {
		t.Errorf("body (-want +got)\n%s", diff)
	}
	got := requests[0]
	if got.URL.Path != "/base/v1/responses" || got.Header.Get("Authorization") != "Bearer sk-real" || got.Header.Get("Session-Id") != "k" {
		t.Errorf("%s %v", got.URL, got.Header)
	}
	for name := range got.Header {
		if !slices.Contains([]string{"Accept", "Accept-Encoding", "Authorization", "Content-Length", "Content-Type", "Session-Id", "User-Agent"}, name) {
			t.Errorf("header %s: %s", name, got.Header.Get(name))
		}
	}
	if call.Failure() != nil {
		t.Errorf("a failure: %+v", call.Failure())
	}
	p.rest(t)
	if sent != int64(len(want)) || received != int64(len("data: "+completed+"\n\n")) || len(overridden) != 2 {
		t.Errorf("counted %d bytes sent, %d received, and the overrides %v", sent, received, overridden)
	}
}

func TestImagesKeepTheCallersDetail(t *testing.T) {
	p := newProvider(t, sse(completed))
	r, base := relay(t, p, upstream.Hooks{})
	call := r.Prepare(t.Context(), nil, "low", "")
	defer call.Done()
	image := `{"type":"input_image","image_url":"data:","detail":"original"}`
	body := `{"model":"m","input":[{"type":"message","role":"user","content":[` + image + `]},{"type":"message","role":"user","content":[{"type":"input_text","text":"<"},` + image + `]}]}`
	if code, _, err := childPosts(t.Context(), base, call.Key, body); code != 200 || err != nil {
		t.Fatal(code, err)
	}
	_, bodies, _ := p.seen()
	want := `{"input":[{"content":[{"detail":"low","image_url":"data:","type":"input_image"}],"role":"user","type":"message"},` +
		`{"content":[{"text":"<","type":"input_text"},{"image_url":"data:","type":"input_image"}],"role":"user","type":"message"}],"model":"m","store":false,"stream":true}`
	if diff := cmp.Diff(want, bodies[0]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
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
		call := r.Prepare(t.Context(), upstream.Overrides{"max_output_tokens": json.RawMessage(tt.value)})
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
			"be\n\nbrief\n\nand kind", `[{"content":[],"role":"user","type":"message"},{"content":[],"role":"developer","type":"message"}]`,
		},
		{`[{"type":"message","role":"user","content":[]}]`, "You are a helpful assistant.", `[{"content":[],"role":"user","type":"message"}]`},
	} {
		call := r.Prepare(t.Context(), nil)
		defer call.Done()
		if code, _, err := childPosts(t.Context(), server.URL, call.Key, `{"model":"m","input":`+tt.input+`}`); code != 200 || err != nil {
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
