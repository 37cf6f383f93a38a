package codex

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// ErrUnresponsive means that the child did not answer within its deadline. Such
// a child is killed at once when it is stopped.
var ErrUnresponsive = errors.New("child does not answer")

// ErrUnsent marks the error of a turn whose child failed before it read any of the
// conversation. Another child may have the turn: what has killed this one is not in it.
var ErrUnsent = errors.New("nothing of the turn was read")

// Codes of JSON-RPC 2.0, 5.1.
const (
	invalidRequest = -32600
	methodNotFound = -32601
	invalidParams  = -32602
)

// RPCError is an error that the child answered to one call. Message is the child's
// own sentence. It may quote a prompt, and errors are logged, so Error leaves it out.
type RPCError struct {
	Code    int64           `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"`
}

func (e *RPCError) Error() string {
	return fmt.Sprintf("child answered with an error (%d)", e.Code) + shortage(e.Message)
}

// osError is how the CLI ends a sentence about a failed system call.
var osError = regexp.MustCompile(`\(os error (\d+)\)`)

// shortage names what the machine or a limit did not give to the child, in the words
// that our own errors have for it, not the CLI's; "" where its sentences name nothing.
func shortage(sentences ...string) string {
	for _, s := range sentences {
		for _, match := range osError.FindAllStringSubmatch(s, -1) {
			n, _ := strconv.Atoi(match[1])
			switch errno := syscall.Errno(n); errno {
			case syscall.EMFILE, syscall.ENFILE, syscall.EAGAIN, syscall.ENOMEM, syscall.ENOSPC:
				return ": " + errno.Error()
			}
		}
	}
	return ""
}

// Said is what the child said about err in its own words; "" where it said nothing.
// Only before its first turn are they safe to log: then no prompt has reached it.
func Said(err error) string {
	if rpc := (*RPCError)(nil); errors.As(err, &rpc) {
		return plain(rpc.Message)
	}
	return ""
}

// Invalid reports whether the child found the call itself wrong.
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
	if e.Info == infoOther {
		return "turn failed: " + cmp.Or(strings.TrimSpace(ownWords.FindString(e.Message)), e.Info)
	}
	return "turn failed: " + e.Info
}

// infoOther is the Info of a [TurnError] that only its Message explains.
const infoOther = "other"

// ownWords are the beginning of Codex's sentences, up to what they may quote.
var ownWords = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9 ,_-]{0,79}`)

// ToolsError means that the child cannot accept the tools of a turn. The child is
// well.
type ToolsError struct{ Problem string }

func (e *ToolsError) Error() string { return "tools: " + e.Problem }

// InfoContextWindow is the Info of a [TurnError] for a history that is too long.
const InfoContextWindow = "contextWindowExceeded"

// ExitError means that the child is gone.
type ExitError struct {
	Status string   // "exit status 1", "signal: killed"
	Stderr []string // its last lines on stderr; may quote what it worked on

	unread int // bytes of its input that it had not read
}

// Killed reports whether the child was ended from outside: by SIGKILL, as by a
// system without memory, or by SIGTERM, on which it exits with status 0.
func (e *ExitError) Killed() bool {
	return e.Status == "signal: killed" || e.Status == "signal: terminated" || e.Status == "exit status 0"
}

func (e *ExitError) Error() string { return "child is gone: " + e.Status + shortage(e.Stderr...) }

// ProtocolError means that the child wrote something that the protocol does not
// allow. The child cannot be trusted any more.
type ProtocolError struct{ Problem string }

func (e *ProtocolError) Error() string { return "child broke the protocol: " + e.Problem }

// Fault is what is wrong with a child. The zero value means: nothing, as far as
// an error shows.
type Fault string

// The faults of a child.
const (
	FaultExited       Fault = "exited"       // its process is gone
	FaultUnresponsive Fault = "unresponsive" // it did not answer in time
	FaultProtocol     Fault = "protocol"     // it wrote what the protocol does not allow
	FaultCall         Fault = "call"         // it answered a correct call with an error: once can be bad luck
)

// Fatal reports whether the child can do no other turn.
func (f Fault) Fatal() bool { return f != "" && f != FaultCall }

// ChildFault judges an error that a [Client] returned: is it the child's fault,
// and which? This is the only place that decides so. Errors of a turn that the
// provider or the caller caused ([*TurnError], [*ToolsError]) are no fault of the
// child, nor is the end of a context.
func ChildFault(err error) Fault {
	var exit *ExitError
	var protocol *ProtocolError
	var rpc *RPCError
	switch {
	case errors.As(err, &exit):
		return FaultExited
	case errors.Is(err, ErrUnresponsive):
		return FaultUnresponsive
	case errors.As(err, &protocol):
		return FaultProtocol
	case errors.As(err, &rpc) && (!rpc.Invalid() || shortage(rpc.Message) != ""):
		return FaultCall
	}
	return ""
}
