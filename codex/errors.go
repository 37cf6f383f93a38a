package codex

import (
	"encoding/json"
	"errors"
	"fmt"
)

// ErrUnresponsive says that the child did not answer within its deadline. Such
// a child is killed, not asked to leave.
var ErrUnresponsive = errors.New("child does not answer")

// Codes of JSON-RPC 2.0, 5.1.
const (
	invalidRequest = -32600
	methodNotFound = -32601
	invalidParams  = -32602
)

// RPCError is the child's refusal of one call.
type RPCError struct {
	Code    int64           `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"`
}

func (e *RPCError) Error() string { return fmt.Sprintf("refused by child: %s (%d)", e.Message, e.Code) }

// Invalid says that the child found the call itself wrong.
func (e *RPCError) Invalid() bool { return e.Code == invalidRequest || e.Code == invalidParams }

// TurnError is a turn that failed while the child itself is well.
type TurnError struct {
	Info       string // codexErrorInfo, an open set: "usageLimitExceeded", "serverOverloaded", …, "other"
	HTTPStatus int    // what the upstream answered, 0 where Codex does not say
	Message    string // Codex's sentence, or the upstream's raw body
}

func (e *TurnError) Error() string {
	if e.HTTPStatus != 0 {
		return fmt.Sprintf("turn failed: %s (upstream status %d)", e.Info, e.HTTPStatus)
	}
	return "turn failed: " + e.Info
}

// ToolsError says that the child cannot take the tools of a turn. It is well.
type ToolsError struct{ Problem string }

func (e *ToolsError) Error() string { return "tools: " + e.Problem }

// InfoContextWindow is the Info of a [TurnError] for a history that is too long.
const InfoContextWindow = "contextWindowExceeded"

// ExitError says that the child is gone.
type ExitError struct {
	Status string   // "exit status 1", "signal: killed"
	Stderr []string // its last lines on stderr; may quote what it worked on
}

// Asked says that somebody else wanted the child's end: it was killed, or it left
// as it does on SIGTERM, with status 0.
func (e *ExitError) Asked() bool {
	return e.Status == "signal: killed" || e.Status == "signal: terminated" || e.Status == "exit status 0"
}

func (e *ExitError) Error() string { return "child is gone: " + e.Status }

// ProtocolError says that the child wrote something that the protocol does not
// allow. The child cannot be trusted any more.
type ProtocolError struct{ Problem string }

func (e *ProtocolError) Error() string { return "child broke the protocol: " + e.Problem }
