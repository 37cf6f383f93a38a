package codex

import "context"

// Sent are all requests that we send, for the contract test: method -> params. Fields
// that are omitted when empty are set.
var Sent = map[string]any{
	"initialize":          initializeParams{Capabilities: capabilities{OptOutNotificationMethods: unread}},
	"thread/start":        threadStartParams{Sandbox: "read-only", ApprovalPolicy: "never", Environments: []string{}, DynamicTools: []dynamicTool{{}}, ExperimentalRawEvents: true},
	"thread/unsubscribe":  threadParams{},
	"thread/inject_items": injectItemsParams{},
	"turn/start":          turnStartParams{Input: []string{}, Model: "m", Effort: "low", Summary: "auto", ClientMetadata: map[string]string{"k": "v"}},
	"turn/interrupt":      turnInterruptParams{},
	"account/read":        accountReadParams{RefreshToken: true},
	"server/diagnostics":  struct{}{},
}

// Read are the notifications that a turn reads; Unread those that we opt out of.
var (
	Read = []string{
		"configWarning", "error", "item/agentMessage/delta", "item/completed", "item/reasoning/summaryTextDelta",
		"item/started", "thread/tokenUsage/updated", "turn/completed",
	}
	Unread = unread
)

// Answered are the requests of the child that we have an answer for.
var Answered = []string{
	"item/commandExecution/requestApproval", "item/fileChange/requestApproval", "item/tool/call",
	"execCommandApproval", "applyPatchApproval", "mcpServer/elicitation/request",
}

// Schemas are the schema files of messages that are in no list of methods, with the
// fields that we write or read.
var Schemas = map[string][]string{
	"DynamicToolCallResponse.json":                 {"contentItems", "success"},
	"v2/RawResponseItemCompletedNotification.json": {"threadId", "turnId", "item"},
	"v2/RawResponseCompletedNotification.json":     {"threadId", "turnId", "usage"},
	"v2/ThreadTokenUsageUpdatedNotification.json":  {"threadId", "turnId", "tokenUsage"},
}

// Models are those that the child itself lists, in its order. The contract test compares
// [Catalog] with them.
func (c *Client) Models(ctx context.Context) ([]Model, error) {
	defer c.enter()()
	var answer struct {
		Data []struct {
			ID      string `json:"id"`
			Default bool   `json:"isDefault"`
			Efforts []struct {
				Effort string `json:"reasoningEffort"`
			} `json:"supportedReasoningEfforts"`
		} `json:"data"`
	}
	if err := c.call(ctx, "model/list", struct{}{}, &answer); err != nil {
		return nil, err
	}
	var models []Model
	for _, m := range answer.Data {
		model := Model{ID: m.ID, Default: m.Default}
		for _, e := range m.Efforts {
			model.Efforts = append(model.Efforts, e.Effort)
		}
		models = append(models, model)
	}
	return models, nil
}

// Waiting is how much of its input a child has not read yet, in bytes.
func Waiting(c *Client) int { return c.proc.unread() }
