package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"testing"

	"codexpool/codex/codextest"

	"github.com/sashabaranov/go-openai"
)

// TestCommunityGoClientWorksUnmodified has sashabaranov/go-openai. It leaves out the
// content of a message that is empty.
func TestCommunityGoClientWorksUnmodified(t *testing.T) {
	t.Parallel()
	up := newUpstream(t)
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	config := openai.DefaultConfig(key)
	config.BaseURL = d.url + "/v1"
	client := openai.NewClientWithConfig(config)
	request := openai.ChatCompletionRequest{
		Model:    "codex-5",
		Messages: []openai.ChatCompletionMessage{{Role: "user", Content: "hi"}},
		Tools:    []openai.Tool{{Type: "function", Function: &openai.FunctionDefinition{Name: "weather", Parameters: json.RawMessage(`{"type":"object"}`)}}},
	}

	up.Script(codextest.Calls(weatherCall), codextest.Text("7 degrees."), codextest.Text("One", " two"), fail(429))
	asked, err := client.CreateChatCompletion(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	call := asked.Choices[0].Message.ToolCalls[0]
	if call.ID != "call_1" || call.Function.Arguments != weatherCall.Arguments || asked.Choices[0].FinishReason != "tool_calls" {
		t.Errorf("%+v", asked.Choices)
	}
	request.Messages = append(request.Messages, asked.Choices[0].Message, openai.ChatCompletionMessage{Role: "tool", ToolCallID: call.ID}, openai.ChatCompletionMessage{Role: "assistant"})
	answer, err := client.CreateChatCompletion(t.Context(), request)
	if err != nil || answer.Choices[0].Message.Content != "7 degrees." || answer.Usage.TotalTokens != 8 {
		t.Errorf("%+v, %v", answer, err)
	}

	request.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
	stream, err := client.CreateChatCompletionStream(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	text, tokens := "", 0
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, choice := range chunk.Choices {
			text += choice.Delta.Content
		}
		if chunk.Usage != nil {
			tokens = chunk.Usage.TotalTokens
		}
	}
	if text != "One two" || tokens != 9 {
		t.Errorf("%q, %d tokens", text, tokens)
	}

	_, err = client.CreateChatCompletion(t.Context(), request)
	var failed *openai.APIError
	if !errors.As(err, &failed) || failed.HTTPStatusCode != 429 || failed.Code != "upstream_rate_limited" || failed.Message != "The provider's words." {
		t.Errorf("%+v, %v", failed, err)
	}
}
