package api

import "encoding/json"

// The response shapes. Keys that OpenAI always sends are always sent.
type (
	usageBody struct {
		Prompt        int64 `json:"prompt_tokens"`
		Completion    int64 `json:"completion_tokens"`
		Total         int64 `json:"total_tokens"`
		PromptDetails struct {
			Cached int64 `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
		CompletionDetails struct {
			Reasoning int64 `json:"reasoning_tokens"`
		} `json:"completion_tokens_details"`
		Estimated bool `json:"estimated,omitempty"` // not OpenAI's
	}

	// completionBody is an answer in one piece. Its choices are of one of the
	// types completionChoice and textChoice.
	completionBody struct {
		ID                string     `json:"id"`
		Object            string     `json:"object"`
		Created           int64      `json:"created"`
		Model             string     `json:"model"`
		Choices           []any      `json:"choices"`
		Usage             *usageBody `json:"usage"`
		SystemFingerprint *string    `json:"system_fingerprint"`
	}

	completionChoice struct {
		Index        int            `json:"index"`
		Message      messageBody    `json:"message"`
		Logprobs     *struct{}      `json:"logprobs"`
		FinishReason finishedReason `json:"finish_reason"`
	}

	messageBody struct {
		Role         string        `json:"role"`
		Content      *string       `json:"content"`
		Refusal      *string       `json:"refusal"`
		Reasoning    string        `json:"reasoning_content,omitempty"`
		ToolCalls    []callBody    `json:"tool_calls,omitempty"`
		FunctionCall *functionBody `json:"function_call,omitempty"` // legacy
	}

	callBody struct {
		Index    *int         `json:"index,omitempty"` // in streams
		ID       string       `json:"id,omitempty"`
		Type     string       `json:"type,omitempty"`
		Function functionBody `json:"function"`
	}

	functionBody struct {
		Name      string `json:"name,omitempty"`
		Arguments string `json:"arguments"`
	}

	// chunkBody is a part of a stream. Its choices are of one of the types
	// chunkChoice and textChoice.
	chunkBody struct {
		ID                string     `json:"id"`
		Object            string     `json:"object"`
		Created           int64      `json:"created"`
		Model             string     `json:"model"`
		SystemFingerprint *string    `json:"system_fingerprint"`
		Choices           []any      `json:"choices"`
		Usage             usageField `json:"usage,omitzero"`
	}

	chunkChoice struct {
		Index        int            `json:"index"`
		Delta        deltaBody      `json:"delta"`
		Logprobs     *struct{}      `json:"logprobs"`
		FinishReason finishedReason `json:"finish_reason"`
	}

	deltaBody struct {
		Role         string        `json:"role,omitempty"`
		Content      *string       `json:"content,omitempty"`
		Refusal      string        `json:"refusal,omitempty"`
		Reasoning    string        `json:"reasoning_content,omitempty"`
		ToolCalls    []callBody    `json:"tool_calls,omitempty"`
		FunctionCall *functionBody `json:"function_call,omitempty"` // legacy
	}

	// textChoice is a choice of a legacy completion, in one piece or a stream.
	textChoice struct {
		Index        int            `json:"index"`
		Text         string         `json:"text"`
		Logprobs     *struct{}      `json:"logprobs"`
		FinishReason finishedReason `json:"finish_reason"`
	}

	errorBody struct {
		Error errorFields `json:"error"`
	}

	errorFields struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    *string `json:"code"`
	}

	// errorEvent is an error in a stream of the Responses API.
	errorEvent struct {
		Type     string      `json:"type"`
		Sequence int64       `json:"sequence_number"`
		Message  string      `json:"message"`
		Param    *string     `json:"param"`
		Code     *string     `json:"code"`
		Error    errorFields `json:"error"`
	}
)

// finishedReason is a word, or null while there is none.
type finishedReason string

func (f finishedReason) MarshalJSON() ([]byte, error) {
	if f == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(f))
}

// usageField is the usage of a chunk: absent, null, or present.
type usageField struct {
	present bool
	usage   *usageBody
}

func (u usageField) IsZero() bool { return !u.present }

func (u usageField) MarshalJSON() ([]byte, error) { return json.Marshal(u.usage) }
