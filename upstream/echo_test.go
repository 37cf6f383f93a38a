package upstream_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"codexpool/upstream"
)

// post sends one Responses request and returns the events of the answer.
func post(t *testing.T, ctx context.Context, url, body string) []map[string]any {
	t.Helper()
	req, _ := http.NewRequestWithContext(ctx, "POST", url, strings.NewReader(body))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(res.Body)
		t.Fatalf("%d: %s", res.StatusCode, data)
	}
	var events []map[string]any
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e map[string]any
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			events = append(events, e)
		}
	}
	return events
}

func deltas(events []map[string]any) (pieces []string) {
	for _, e := range events {
		if e["type"] == "response.output_text.delta" {
			pieces = append(pieces, e["delta"].(string))
		}
	}
	return pieces
}

func TestEchoAnswersWithTheLastUserMessageWordByWord(t *testing.T) {
	server := httptest.NewServer(upstream.Echo(0))
	defer server.Close()
	events := post(t, t.Context(), server.URL+"/v1/responses", `{"input":[
		{"role":"developer","content":[{"type":"input_text","text":"be brief"}]},
		{"role":"user","content":[{"type":"input_text","text":"not this"}]},
		{"role":"user","content":[{"type":"input_text","text":"  one\n\ttwo  "},{"type":"input_text","text":"thrée "}]},
		{"role":"assistant","content":[{"type":"output_text","text":"nor this"}]}]}`)
	if got, want := deltas(events), []string{"  one", "\n\ttwo", "  thrée", " "}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	usage := events[len(events)-1]["response"].(map[string]any)["usage"].(map[string]any)
	if usage["input_tokens"] != 9.0 || usage["output_tokens"] != 3.0 || usage["total_tokens"] != 12.0 {
		t.Errorf("usage %v", usage)
	}
}

func TestEchoStopsAtMaxOutputTokens(t *testing.T) {
	server := httptest.NewServer(upstream.Echo(0))
	defer server.Close()
	events := post(t, t.Context(), server.URL+"/v1/responses", `{"max_output_tokens":2,"input":[{"role":"user","content":[{"text":"one two three"}]}]}`)
	last := events[len(events)-1]
	if got := strings.Join(deltas(events), "|"); got != "one| two" || last["type"] != "response.incomplete" {
		t.Errorf("%s, then %v", got, last)
	}
}

func TestEchoOfNothingIsAnEmptyAnswer(t *testing.T) {
	server := httptest.NewServer(upstream.Echo(0))
	defer server.Close()
	events := post(t, t.Context(), server.URL+"/v1/responses", `{"input":[]}`)
	if len(deltas(events)) != 0 || events[len(events)-1]["type"] != "response.completed" {
		t.Errorf("got %v", events)
	}
}

func TestEchoStopsWhenItsClientDisconnects(t *testing.T) {
	ended := make(chan struct{})
	echo := upstream.Echo(time.Hour)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		echo.ServeHTTP(w, r)
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", server.URL+"/v1/responses", strings.NewReader(`{"input":[{"role":"user","content":[{"text":"a"}]}]}`))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	cancel()
	<-ended
}
