package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/shared"
)

// TestGoClientWorksUnmodified plays the scenarios of the provider with
// openai-go.
func TestGoClientWorksUnmodified(t *testing.T) {
	t.Parallel()
	p, d, open := stage(t, formatOf("report", "{"+reportFields+"}"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	options := []option.RequestOption{option.WithBaseURL(d.url + "/v1"), option.WithAPIKey(key), option.WithMaxRetries(0)}
	chat := openai.NewChatCompletionService(options...)

	t.Run("chat", func(t *testing.T) {
		answer, err := chat.New(ctx, say("chat"))
		if err != nil {
			t.Fatal(err)
		}
		if c := answer.Choices[0]; c.Message.Content != "Hello there." || c.FinishReason != "stop" || len(answer.Choices) != 1 {
			t.Errorf("%+v", answer.Choices)
		}
		if u := answer.Usage; u.PromptTokens != 7 || u.CompletionTokens != 3 || u.TotalTokens != 10 {
			t.Errorf("%+v", u)
		}
	})

	t.Run("stream", func(t *testing.T) {
		var deltas, finishes []string
		stream := chat.NewStreaming(ctx, say("stream"))
		for stream.Next() {
			choice := stream.Current().Choices[0]
			finishes = append(finishes, choice.FinishReason)
			if choice.Delta.Content != "" {
				deltas = append(deltas, choice.Delta.Content)
				p.hear()
			}
		}
		if err := stream.Err(); err != nil || !slices.Equal(deltas, []string{"One", " two", " three."}) {
			t.Errorf("%q, %v", deltas, err)
		}
		if strings.Join(finishes, "") != "stop" || finishes[len(finishes)-1] != "stop" {
			t.Errorf("it finished %q", finishes)
		}
	})

	t.Run("usage", func(t *testing.T) {
		params := say("usage")
		params.StreamOptions.IncludeUsage = openai.Bool(true)
		var whole openai.ChatCompletionAccumulator
		var last, before openai.ChatCompletionChunk
		stream := chat.NewStreaming(ctx, params)
		for stream.Next() {
			before, last = last, stream.Current()
			whole.AddChunk(last)
		}
		if err := stream.Err(); err != nil || whole.Choices[0].Message.Content != "Four tokens came out." {
			t.Errorf("%+v, %v", whole.Choices, err)
		}
		if len(last.Choices) != 0 || last.Usage.TotalTokens != 11 || before.Choices[0].FinishReason != "stop" {
			t.Errorf("it ends with %+v and %+v", before, last)
		}
	})

	t.Run("abort", func(t *testing.T) {
		listening, leave := context.WithCancel(ctx)
		defer leave()
		stream := chat.NewStreaming(listening, say("abort"))
		for stream.Next() {
			if stream.Current().Choices[0].Delta.Content != "" {
				leave()
			}
		}
		if err := stream.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		if err := p.left(); err != nil {
			t.Error(err)
		}
		if _, err := chat.New(ctx, say("chat")); err != nil {
			t.Errorf("the next: %v", err)
		}
	})

	t.Run("cut", func(t *testing.T) {
		content := ""
		stream := chat.NewStreaming(ctx, say("cut"))
		for stream.Next() {
			content += stream.Current().Choices[0].Delta.Content
		}
		if err := stream.Err(); err == nil || !strings.Contains(err.Error(), "upstream_error") || content != "Hal" {
			t.Errorf("%q, %v", content, err)
		}
	})

	t.Run("tools", func(t *testing.T) {
		params := sayWithTools(t, "tools")
		asked, err := chat.New(ctx, params)
		if err != nil {
			t.Fatal(err)
		}
		finishTools(t, chat, params, asked.Choices[0])
	})

	t.Run("streamed tools", func(t *testing.T) {
		params := sayWithTools(t, "streamed tools")
		var asked openai.ChatCompletionAccumulator
		stream := chat.NewStreaming(ctx, params)
		for stream.Next() {
			asked.AddChunk(stream.Current())
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		finishTools(t, chat, params, asked.Choices[0])
	})

	t.Run("forced tool", func(t *testing.T) {
		params := sayWithTools(t, "forced tool")
		params.ToolChoice = openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "weather"})
		answer, err := chat.New(ctx, params)
		if err != nil {
			t.Fatal(err)
		}
		calls := answer.Choices[0].Message.ToolCalls
		if len(calls) != 1 || calls[0].ID != "call_1" || calls[0].Function.Arguments != `{"city":"Oslo","unit":"C"}` {
			t.Errorf("%+v", calls)
		}
	})

	t.Run("structured output", func(t *testing.T) {
		params := say("structured output")
		params.ResponseFormat.OfJSONSchema = &shared.ResponseFormatJSONSchemaParam{JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{
			Name: "report", Strict: openai.Bool(true), Schema: json.RawMessage("{" + reportFields + "}"),
		}}
		answer, err := chat.New(ctx, params)
		if err != nil {
			t.Fatal(err)
		}
		var report struct {
			City    string
			Degrees float64
		}
		if err := json.Unmarshal([]byte(answer.Choices[0].Message.Content), &report); err != nil || report.City != "Oslo" || report.Degrees != 7 {
			t.Errorf("%+v, %v", report, err)
		}
	})

	t.Run("image", func(t *testing.T) {
		params := say("")
		params.Messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{
			openai.TextContentPart("image"),
			openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: image, Detail: "low"}),
		})}
		answer, err := chat.New(ctx, params)
		if err != nil || answer.Choices[0].Message.Content != "A dot." {
			t.Errorf("%+v, %v", answer, err)
		}
	})

	for _, tt := range []struct {
		name    string
		options []option.RequestOption // beside the usual ones
		status  int
		code    string
		param   string
	}{
		{"fail 400", nil, 400, "some_code", "input[0]"},
		{"fail 404", nil, 404, "some_code", "input[0]"},
		{"fail 429", nil, 429, "upstream_rate_limited", ""},
		{"fail 500", nil, 502, "upstream_error", ""},
		{"fail 503", nil, 503, "upstream_overloaded", ""},
		{"a wrong key", []option.RequestOption{option.WithAPIKey("wrong")}, 401, "invalid_api_key", ""},
		{"a page of another host", []option.RequestOption{option.WithBaseURL(open.url + "/v1"), option.WithHeader("Origin", "https://elsewhere.example")}, 403, "permission_denied", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := chat.New(ctx, say(tt.name), tt.options...)
			var failed *openai.Error
			if !errors.As(err, &failed) || failed.StatusCode != tt.status || failed.Code != tt.code || failed.Param != tt.param {
				t.Errorf("got %+v, %v", failed, err)
			}
		})
	}
}

// oneInThreeSeconds are the settings of a daemon that takes one request of each key in three seconds.
var oneInThreeSeconds = []string{"POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=1", "PROXY_RATE_LIMIT_MAX=1", "PROXY_RATE_LIMIT_WINDOW_MS=3000"}

// refusedOnce expects that of a client's two requests, and of one retry.
func (d *daemon) refusedOnce() {
	d.t.Helper()
	if refused := d.total("codexpool_http_errors_total", `error="rate_limited"`); refused != 1 {
		d.t.Errorf("%v requests were refused; one must be, and one retry must do", refused)
	}
}

// TestOpenAIClientObeysTheLimitOfItsKey has a client that is refused once, waits as long as
// it is told, and is served.
func TestOpenAIClientObeysTheLimitOfItsKey(t *testing.T) {
	t.Parallel()
	d := start(t, oneInThreeSeconds...)
	client := openai.NewClient(option.WithBaseURL(d.url+"/v1"), option.WithAPIKey(key), option.WithMaxRetries(1))
	for range 2 {
		if answer, err := client.Chat.Completions.New(t.Context(), say("hi")); err != nil || answer.Choices[0].Message.Content != "hi" {
			t.Errorf("%+v, %v", answer, err)
		}
	}
	d.refusedOnce()
}

func say(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "codex-5", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)}}
}

// sayWithTools offers the provider's tools too. Only strict tools have the field
// strict.
func sayWithTools(t *testing.T, text string) openai.ChatCompletionNewParams {
	t.Helper()
	var functions []shared.FunctionDefinitionParam
	if err := json.Unmarshal([]byte(providerTools), &functions); err != nil {
		t.Fatal(err)
	}
	params := say(text)
	for _, f := range functions {
		if !f.Strict.Value {
			f.Strict = param.Opt[bool]{}
		}
		params.Tools = append(params.Tools, openai.ChatCompletionFunctionTool(f))
	}
	return params
}

// finishTools sends the results of the model's calls, and asserts the model's
// answer.
func finishTools(t *testing.T, chat openai.ChatCompletionService, params openai.ChatCompletionNewParams, asked openai.ChatCompletionChoice) {
	t.Helper()
	if asked.FinishReason != "tool_calls" || asked.Message.Content != "" {
		t.Errorf("its calls are %+v", asked)
	}
	params.Messages = append(params.Messages, asked.Message.ToParam())
	results := map[string]string{
		`weather {"city":"Oslo","unit":"C"}`: "7 degrees",
		`clock {"city":"Oslo"}`:              "noon",
	}
	for _, c := range asked.Message.ToolCalls {
		params.Messages = append(params.Messages, openai.ToolMessage(results[c.Function.Name+" "+c.Function.Arguments], c.ID))
	}
	answer, err := chat.New(t.Context(), params)
	if err != nil || answer.Choices[0].Message.Content != "At noon it is 7 degrees." {
		t.Errorf("%+v, %v", answer, err)
	}
}
