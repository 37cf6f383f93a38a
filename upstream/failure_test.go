package upstream_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"codexpool/upstream"
)

func TestParseFailureReadsEachFormOfAnError(t *testing.T) {
	for body, want := range map[string]upstream.Failure{
		`{"error":{"message":"m","type":"t","param":"p","code":"c"}}`:    {Message: "m", Type: "t", Param: "p", Code: "c"},
		`{"error":{"message":"m","type":"t","param":null,"code":null}}`:  {Message: "m", Type: "t"},
		`{"error":{"message":"m","code":42,"param":7.5}}`:                {Message: "m", Code: "42", Param: "7.5"},
		`{"error":{"message":"m","code":[],"param":["p"],"type":{}}}`:    {Message: "m"},
		`{"type":"error","code":"c","message":"m"}`:                      {Message: "m", Type: "error", Code: "c"},
		`{"type":"error","error":{"type":"t","code":"c","message":"m"}}`: {Message: "m", Type: "t", Code: "c"},
		`{"error":"m"}`:  {Message: "m"},
		`{"detail":"m"}`: {Message: "m"},
		`{"error":{"message":"m","code":"usage_limit_reached","resets_in_seconds":16.2}}`: {Message: "m", Code: "usage_limit_reached", RetryAfter: "17"},
		`{"error":{"message":"m","resets_in_seconds":1e300}}`:                             {Message: "m"},
		`{"error":{"message":"m","resets_in_seconds":-1}}`:                                {Message: "m"},
		`[{"error":{"message":"m","code":400}}]`:                                          {Message: "m", Code: "400"},
		`{"detail":[{"loc":["body"],"msg":"m","type":"missing"}]}`:                        {Message: "m"},
		`{"detail":{"code":"c","message":"m"}}`:                                           {Message: "m", Code: "c"},
		`{"detail":{"code":"deactivated_workspace"}}`:                                     {Code: "deactivated_workspace"},
		`{"detail":{"msg":"m"}}`:                                                          {Message: "m"},
		`{"errors":[{"code":7,"message":"m"}]}`:                                           {Message: "m"},
		`{"title":"m","status":400}`:                                                      {Message: "m"},
		`{"error":{"message":"` + strings.Repeat("é", 600) + `"}}`:                        {Message: strings.Repeat("é", 500) + "…"},
		`{"error":{}}`:          {},
		`{}`:                    {},
		`[{"error":{}}]`:        {},
		`"stream disconnected"`: {},
		`null`:                  {},
		`<html>`:                {},
		``:                      {},
	} {
		if got := upstream.ParseFailure([]byte(body)); got == nil || *got != want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", body, got, want)
		}
	}
}

func TestWordsOfAProvidersErrorAreCut(t *testing.T) {
	long := strings.Repeat("ä", 1<<20)
	f := upstream.ParseFailure([]byte(`{"error":{"message":"` + long + `","type":"` + long + `","code":"` + long + `","param":"a` + long + `"}}`))
	if want := strings.Repeat("ä", 100); f.Type != want || f.Code != want || f.Param != "a"+want[:198] || f.Message != strings.Repeat("ä", 500)+"…" {
		t.Errorf("%d %d %d %d bytes", len(f.Type), len(f.Code), len(f.Param), len(f.Message))
	}
}

func TestFailureKeepsTheProvidersOwnError(t *testing.T) {
	envelope := `{"error":{"message":"m","type":"t","param":"p","code":"c"}}`
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   upstream.Failure
	}{
		"400":               {status(400, "", envelope), upstream.Failure{Status: 400, Message: "m", Type: "t", Param: "p", Code: "c"}},
		"429":               {status(429, "Retry-After: 17", envelope), upstream.Failure{Status: 429, Message: "m", Type: "t", Param: "p", Code: "c", RetryAfter: "17"}},
		"500 with a page":   {status(500, "X-Request-Id: req-7", "<html><TITLE>\n500 Internal &amp; so on </title><p>"), upstream.Failure{Status: 500, Message: "500 Internal & so on", RequestID: "req-7", Kind: "text/html; charset=utf-8", Head: "<html><TITLE>\n500 Internal &amp; so on </title><p>"}},
		"404 as text":       {status(404, "Content-Type: text/plain", "\nno such page\n  at main.go:1\n"), upstream.Failure{Status: 404, Message: "no such page", Kind: "text/plain", Head: "\nno such page\n  at main.go:1\n"}},
		"502 in bytes":      {status(502, "Retry-After: 9", "\x00\xff"), upstream.Failure{Status: 502, RetryAfter: "9", Kind: "application/octet-stream", Head: "\x00\xff"}},
		"403 of a firewall": {status(403, "Content-Type: text/html", "<html>"), upstream.Failure{Status: 403, Kind: "text/html", Head: "<html>", Blocked: true}},
		"403 with its mark": {status(403, "Cf-Mitigated: challenge", `{"message":"m"}`), upstream.Failure{Status: 403, Message: "m", Blocked: true}},
		"403 as text":       {status(403, "Content-Type: text/plain", "no"), upstream.Failure{Status: 403, Message: "no", Kind: "text/plain", Head: "no"}},
		"an error event":    {status(400, "Content-Type: text/event-stream", "event: error\ndata: "+envelope+"\n\n"), upstream.Failure{Status: 400, Message: "m", Type: "t", Param: "p", Code: "c"}},
		"our address and key": {
			func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(404)
				fmt.Fprintf(w, `{"error":{"message":"No %s %s%s for %s.","param":%q}}`, r.Method, "https://"+r.Host, r.URL.Path, "sk-real-key", r.URL.Path)
			},
			upstream.Failure{Status: 404, Message: "No POST … for ….", Param: "…"},
		},
		"numbers":         {status(422, "", `{"error":{"message":"m","code":42,"param":7}}`), upstream.Failure{Status: 422, Message: "m", Code: "42", Param: "7"}},
		"other types":     {status(422, "", `{"error":{"message":"m","code":[],"param":["p"],"type":{}}}`), upstream.Failure{Status: 422, Message: "m"}},
		"error as text":   {status(400, "", `{"error":"m"}`), upstream.Failure{Status: 400, Message: "m"}},
		"detail as text":  {status(404, "", `{"detail":"m"}`), upstream.Failure{Status: 404, Message: "m"}},
		"no envelope":     {status(400, "", `{"object":"error","message":"m","type":"t","param":null,"code":400}`), upstream.Failure{Status: 400, Message: "m", Type: "t", Code: "400"}},
		"JSON with a 200": {status(200, "Content-Type: application/json", envelope), upstream.Failure{Status: 200, Message: "m", Type: "t", Param: "p", Code: "c"}},
		"HTML with a 200": {status(200, "Content-Type: text/html", "<html>"), upstream.Failure{Status: 200, Kind: "text/html", Head: "<html>"}},
		"response.failed": {
			sse(`{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"slow down"}}}`),
			upstream.Failure{Status: 200, Code: "rate_limit_exceeded", Message: "slow down"},
		},
		"response.failed, long": {
			sse(`{"type":"response.failed","response":{"instructions":"` + strings.Repeat("x", 1<<20) + `","error":{"code":"c","message":"m"}}}`),
			upstream.Failure{Status: 200, Code: "c", Message: "m"},
		},
		"response.failed, its type last": {
			sse(`{"response":{"error":{"code":"c","message":"m"},"instructions":"` + strings.Repeat("x", 300) + `"},"type":"response.failed"}`),
			upstream.Failure{Status: 200, Code: "c", Message: "m"},
		},
		"response.failed without a word": {sse(`{"type":"response.failed","response":null}`), upstream.Failure{Status: 200}},
		"error":                          {sse(`{"type":"error","code":"c","message":"m","param":null}`), upstream.Failure{Status: 200, Type: "error", Code: "c", Message: "m"}},
		"error in an envelope":           {sse(`{"type":"error","error":{"type":"t","code":"c","message":"m"}}`), upstream.Failure{Status: 200, Type: "t", Code: "c", Message: "m"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t, tt.answer)
			r, base := relay(t, p, upstream.Hooks{})
			call := prepare(t.Context(), r, upstream.Request{})
			defer call.Done()
			child(t.Context(), base, call.Key)
			if got := failure(call); got == nil || *got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
