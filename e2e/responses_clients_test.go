package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

// TestResponsesClientsWorkUnmodified plays clients that use the Responses API, by default
// or by name, against a provider of all its events.
func TestResponsesClientsWorkUnmodified(t *testing.T) {
	t.Parallel()
	// asked are the requests that a client must have made of a scenario: parts of the last.
	type asked map[string][]string
	for _, tt := range []struct {
		name, more string
		last       asked
	}{
		{"openai", "", asked{"chat": {`"input":"chat"`}, "tools": {`"id":"rs_tools"`, `"encrypted_content":"gAAAAAB+/="`}, "custom tool": {`"syntax":"lark"`}}},
		{"openai", "OPENAI=openai-7", asked{"chat": {`"input":"chat"`}}},
		{"agents", "", asked{"handoff": {`"call_h"`}, "tools": {`"call_1"`, `"call_2"`}}},
		{"langchain", "", asked{"tools": {`"call_1"`}, "second turn": {`"id":"rs_second_turn"`, `"id":"msg_second_turn"`}}},
		{"ai-sdk", "", asked{"tools": {`"store":false`, `"encrypted_content":"gAAAAAB+/="`}}},
	} {
		t.Run(strings.TrimSpace(tt.name+" "+tt.more), func(t *testing.T) {
			t.Parallel()
			n := newNative(t)
			d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+n.URL+"/v1", "CODEX_UPSTREAM_API_KEY="+upstreamKey)
			play(t, tt.name+"-responses", tt.more, "PROVIDER_URL="+n.URL, "BASE_URL="+d.url+"/v1", "API_KEY="+key)
			for scenario, parts := range tt.last {
				said := n.said(scenario)
				for _, part := range parts {
					if len(said) == 0 || !strings.Contains(said[len(said)-1], part) {
						t.Errorf("%s: no %s in %s", scenario, part, said)
					}
				}
			}
			if tt.name == "ai-sdk" && !strings.Contains(n.said("tools")[1], `"type":"item_reference","id":"rs_tools"`) {
				t.Errorf("no item_reference in %s", n.said("tools")[1])
			}
			if got := d.metrics()[`codexpool_child_starts_total{outcome="ok"}`]; got != 1 {
				t.Errorf("%v children were started", got)
			}
		})
	}
}

func TestResponsesGoClientWorksUnmodified(t *testing.T) {
	t.Parallel()
	n := newNative(t)
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+n.URL+"/v1")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := responses.NewResponseService(option.WithBaseURL(d.url+"/v1"), option.WithAPIKey(key), option.WithMaxRetries(0))
	ask := func(text string) responses.ResponseNewParams {
		return responses.ResponseNewParams{Model: "codex-5", Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(text)}}
	}

	answer, err := client.New(ctx, ask("chat"))
	if err != nil || answer.OutputText() != "Hello there." || answer.Usage.TotalTokens != 10 {
		t.Errorf("%+v, %v", answer, err)
	}
	text, last := "", ""
	stream := client.NewStreaming(ctx, ask("stream"))
	for stream.Next() {
		e := stream.Current()
		text += e.Delta
		last = e.Type
	}
	if err := stream.Err(); err != nil || text != "Hello there." || last != "response.completed" {
		t.Errorf("%q, then %s, %v", text, last, err)
	}
	text = ""
	stream = client.NewStreaming(ctx, ask("cut"))
	for stream.Next() {
		text += stream.Current().Delta
	}
	if err := stream.Err(); err == nil || text != "Hal" {
		t.Errorf("%q, %v", text, err)
	}
	_, err = client.New(ctx, ask("fail 400"))
	var failed *openai.Error
	if !errors.As(err, &failed) || failed.StatusCode != 400 || failed.Code != "some_code" || failed.Param != "input[0]" {
		t.Errorf("%+v, %v", failed, err)
	}

	asked, err := client.New(ctx, ask("tools"))
	if err != nil {
		t.Fatal(err)
	}
	items := responses.ResponseInputParam{responses.ResponseInputItemParamOfMessage("tools", responses.EasyInputMessageRoleUser)}
	for _, item := range asked.Output {
		if item.Type == "function_call" {
			call := item.AsFunctionCall()
			result := responses.ResponseInputItemParamOfFunctionCallOutput("7 degrees")
			result.OfFunctionCallOutput.CallID = openai.String(call.CallID)
			items = append(items, responses.ResponseInputItemParamOfFunctionCall(call.Arguments, call.CallID, call.Name), result)
		}
	}
	params := ask("")
	params.Input = responses.ResponseNewParamsInputUnion{OfInputItemList: items}
	if answer, err := client.New(ctx, params); err != nil || answer.OutputText() != "At noon it is 7 degrees." {
		t.Errorf("%+v, %v", answer, err)
	}
}
