package codex

import "encoding/json"

// These are the fields that we send and read, and only those. The contract test compares
// them with the schemas that the CLI generates of itself.

// unread are the notifications that the child does not need to send: nobody reads them.
var unread = []string{
	"account/rateLimits/updated",
	"mcpServer/startupStatus/updated",
	"remoteControl/status/changed",
	"thread/closed",
	"thread/started",
	"thread/status/changed",
	"turn/started",
}

type initializeParams struct {
	ClientInfo   clientInfo   `json:"clientInfo"`
	Capabilities capabilities `json:"capabilities"`
}

type clientInfo struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	Version string `json:"version"`
}

type capabilities struct {
	ExperimentalAPI           bool     `json:"experimentalApi"` // for dynamicTools, environments, experimentalRawEvents, responsesapiClientMetadata, server/diagnostics
	OptOutNotificationMethods []string `json:"optOutNotificationMethods"`
}

type initializeResult struct {
	UserAgent string `json:"userAgent"`
}

type threadStartParams struct {
	Ephemeral        bool     `json:"ephemeral"`
	BaseInstructions string   `json:"baseInstructions"` // "" and not absent: absent means Codex's own
	Sandbox          string   `json:"sandbox"`
	ApprovalPolicy   string   `json:"approvalPolicy"`
	Environments     []string `json:"environments"` // [] and not absent: no shell, no files

	// For turns with tools only: raw events repeat the whole history, 10 ms for a
	// megabyte, and a plain turn needs none of them.
	DynamicTools          []dynamicTool `json:"dynamicTools,omitempty"`
	ExperimentalRawEvents bool          `json:"experimentalRawEvents,omitempty"`
}

type dynamicTool struct {
	Type        string `json:"type"`
	Name        string `json:"name"`
	Description string `json:"description"`
	InputSchema any    `json:"inputSchema"`
}

type threadStartResult struct {
	Thread struct {
		ID string `json:"id"`
	} `json:"thread"`
}

type threadParams struct {
	ThreadID string `json:"threadId"`
}

type injectItemsParams struct {
	ThreadID string            `json:"threadId"`
	Items    []json.RawMessage `json:"items"`
}

type turnStartParams struct {
	ThreadID       string            `json:"threadId"`
	Input          []string          `json:"input"` // always empty: the history is injected
	Model          string            `json:"model,omitempty"`
	Effort         string            `json:"effort,omitempty"`
	Summary        string            `json:"summary,omitempty"`
	ClientMetadata map[string]string `json:"responsesapiClientMetadata,omitempty"`
}

type turnStartResult struct {
	Turn struct {
		ID string `json:"id"`
	} `json:"turn"`
}

type turnInterruptParams struct {
	ThreadID string `json:"threadId"`
	TurnID   string `json:"turnId"`
}

// toolCallResult answers item/tool/call.
type toolCallResult struct {
	ContentItems []string `json:"contentItems"` // always empty
	Success      bool     `json:"success"`
}

type diagnosticsResult struct {
	Process struct {
		ResidentMemoryBytes int64 `json:"residentMemoryBytes"`
	} `json:"process"`
	Gauges []struct {
		Name  string `json:"name"`
		Value int64  `json:"value"`
	} `json:"gauges"`
}

// notification is the union of the params that a turn reads; which fields are
// set depends on the method.
type notification struct {
	ThreadID string `json:"threadId"`
	TurnID   string `json:"turnId"`

	// item/agentMessage/delta, item/reasoning/summaryTextDelta
	ItemID string `json:"itemId"`
	Delta  string `json:"delta"`
	Part   int64  `json:"summaryIndex"`

	// item/started, item/completed, rawResponseItem/completed
	Item struct {
		ID    string  `json:"id"`
		Type  string  `json:"type"`
		Text  string  `json:"text"`
		Phase *string `json:"phase"`

		Summary json.RawMessage `json:"summary"` // strings in item/completed, where Type is reasoning

		CallID    string          `json:"call_id"`
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"` // a string where Type is function_call
	} `json:"item"`

	// thread/tokenUsage/updated
	TokenUsage struct {
		Total tokenUsage `json:"total"`
	} `json:"tokenUsage"`

	// rawResponse/completed
	Usage *tokenUsage `json:"usage"`

	// turn/completed
	Turn struct {
		ID     string      `json:"id"`
		Status string      `json:"status"`
		Error  *turnFailed `json:"error"`
	} `json:"turn"`

	// error
	Error     *turnFailed `json:"error"`
	WillRetry bool        `json:"willRetry"`
}

type tokenUsage struct {
	Input     int64 `json:"inputTokens"`
	Cached    int64 `json:"cachedInputTokens"`
	Output    int64 `json:"outputTokens"`
	Reasoning int64 `json:"reasoningOutputTokens"`
	Total     int64 `json:"totalTokens"`
}

type turnFailed struct {
	Message string          `json:"message"`
	Info    json.RawMessage `json:"codexErrorInfo"` // a string, or an object of one key
}

func (f *turnFailed) turnError() *TurnError {
	e := &TurnError{Info: infoOther, Message: f.Message}
	var name string
	if json.Unmarshal(f.Info, &name) == nil && name != "" {
		e.Info = name
		return e
	}
	var object map[string]struct {
		HTTPStatusCode int `json:"httpStatusCode"`
	}
	if json.Unmarshal(f.Info, &object) == nil {
		for name, detail := range object {
			e.Info, e.HTTPStatus = name, detail.HTTPStatusCode
		}
	}
	return e
}
