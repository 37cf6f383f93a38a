package api_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"codexpool/pool"
)

// listening is a provider that keeps the last body.
type listening struct {
	says
	body string
}

func (l *listening) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	l.body = string(body)
	return l.says.RoundTrip(req)
}

func TestConversationReachesTheProviderByteForByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider := &listening{says: "ok"}
		relay := relayTo(provider)
		h := openWith(t, config(), pool.Config{Size: 1}, relay)
		const (
			system = `"sys\u00e9 \/ <b> \ud83e\uddea \ud83e"`
			image  = `"data:image\/png;base64,iVBORw0KGgo="`
			args   = `"{\"n\": 12345678901234567890, \u0022e\u0022:1e400}"`
		)
		a := h.do(t, chat(`{"messages":[{"role":"system","content":`+system+`},
			{"role":"user","content":[{"type":"text","text":"a\u2028b"},{"type":"image_url","image_url":{"url":`+image+`,"detail":"low"}}]},
			{"role":"assistant","content":"","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":`+args+`}}]},
			{"role":"tool","tool_call_id":"c","content":[{"type":"text","text":"\ud83e"},{"type":"text","text":"\uddea"}]}]}`))
		if a.Code != 200 {
			t.Fatalf("%d %s", a.Code, a.Body)
		}
		want := `{"input":[{"type":"message","role":"system","content":[{"type":"input_text","text":` + system + `}]},` +
			`{"type":"message","role":"user","content":[{"type":"input_text","text":"a\u2028b"},{"type":"input_image","image_url":` + image + `,"detail":"low"}]},` +
			`{"type":"function_call","call_id":"c","name":"f","arguments":` + args + `},` +
			`{"type":"function_call_output","call_id":"c","output":"\ud83e\uddea"}],`
		if !strings.HasPrefix(provider.body, want) {
			t.Errorf("got  %.600s\nwant %s", provider.body, want)
		}
	})
}

// TestWhatACallerSendsReachesTheProviderByteForByte has what a child would change, drop or
// choke on.
func TestWhatACallerSendsReachesTheProviderByteForByte(t *testing.T) {
	deep := strings.Repeat(`{"type":"object","properties":{"a":`, 100) + `{}` + strings.Repeat(`}}`, 100)
	for name, tt := range map[string]struct{ more, content, want string }{
		"an image that cannot be decoded": {"", `[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]`, `"image_url":"data:image/png;base64,iVBORw0KGgo="`},
		"a schema 200 deep":               {`"tools":[{"type":"function","function":{"name":"f","parameters":` + deep + `}}],`, `"hi"`, `"parameters":` + deep},
		"3 MB of text":                    {"", `"` + strings.Repeat(`w\u00f6rd `, 3<<20/10) + `"`, strings.Repeat(`w\u00f6rd `, 3<<20/10)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				provider := &listening{says: "ok"}
				relay := relayTo(provider)
				cfg := config()
				cfg.MaxBody = 16 << 20
				h := openWith(t, cfg, pool.Config{Size: 1}, relay)
				if a := h.do(t, chat(`{`+tt.more+`"messages":[{"role":"user","content":`+tt.content+`}]}`)); a.Code != 200 {
					t.Fatalf("%d %s", a.Code, a.Body)
				}
				if !strings.Contains(provider.body, tt.want) {
					t.Errorf("got %.300s", provider.body)
				}
			})
		})
	}
}
