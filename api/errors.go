package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"codexpool/codex"
	"codexpool/pool"
	"codexpool/upstream"
)

// StatusClientGone is the Status of a Result whose client disconnected. The number
// is nginx's. It is never sent.
const StatusClientGone = 499

// Error is the error that a client receives, in OpenAI's envelope. Its message
// never carries a path, a stack, a prompt or a key; the cause is for the log.
type Error struct {
	Status  int
	Type    string
	Code    string // "" = null
	Param   string // "" = null
	Message string
	Retry   bool   // send Retry-After
	Wait    string // the value of Retry-After, in seconds, where the provider gave one
	Close   bool   // close the connection after the answer
	Final   bool   // keep SDKs, which retry any 5xx and 429, from a retry that would end as this
	counted string // the metrics' name for it, where Code is not of our own closed list
	fault   Fault  // where it is not that of Kinds
	auth    string // of AuthFailures, where it is a rejected key
	cause   error
}

func (e *Error) Error() string { return e.Message }

// word is the error's name as the client received it, for the log.
func (e *Error) word() string {
	if e.counted == "" {
		return cmp.Or(e.Code, e.Type)
	}
	return cmp.Or(upstream.Loggable(e.Code), upstream.Loggable(e.Type), e.counted) // the provider's words
}

// countAs is the error's name in metrics. It is a label, so it is always of a closed
// list.
func (e *Error) countAs() string { return cmp.Or(e.counted, e.word()) }

// attrs are what the log line of a request says of its error.
func (e *Error) attrs() []slog.Attr {
	attrs := []slog.Attr{slog.String("code", e.word())}
	if e.counted != "" {
		attrs = append(attrs, slog.String("counted", e.counted))
	}
	if e.cause != nil {
		attrs = append(attrs, slog.Any("err", e.cause))
	}
	if f := (*upstream.Failure)(nil); errors.As(e.cause, &f) {
		attrs = append(attrs, f.Attrs()...)
	}
	return attrs
}

// Fault is who must act when a request fails.
type Fault string

// The faults. An error without one, "", is that of nobody: the client disconnected.
const (
	FaultClient   Fault = "client"   // the request is wrong
	FaultLimit    Fault = "limit"    // the caller's key, or the server, has a limit
	FaultCapacity Fault = "capacity" // the pool is full, or drains
	FaultChild    Fault = "child"    // a child failed, or none can be started
	FaultUpstream Fault = "upstream" // the provider failed, or was silent
	FaultDaemon   Fault = "daemon"   // codexpool failed
)

// ours reports whether a fault counts against the daemon's availability.
func (f Fault) ours() bool { return f != "" && f != FaultClient && f != FaultLimit }

// Kind is an error as logs and metrics name it.
type Kind struct {
	Code  string
	Fault Fault
	Any   bool // any route may answer with it, not only those of completions
}

// Kinds is the closed list of errors that have a fault.
var Kinds = []Kind{
	{"invalid_api_key", FaultClient, true},
	{"permission_denied", FaultClient, true},
	{"not_found", FaultClient, true},
	{"model_not_found", FaultClient, true},
	{"method_not_allowed", FaultClient, true},
	{"invalid_json", FaultClient, false},
	{invalidRequest, FaultClient, false},
	{"unsupported_parameter", FaultClient, false},
	{"context_length_exceeded", FaultClient, false},
	{"request_too_large", FaultClient, false},
	{"unsupported_media_type", FaultClient, false},
	{"slow_body", FaultClient, false},
	{"upstream_refused", FaultClient, false},
	{"rate_limited", FaultLimit, true},
	{"concurrency_exceeded", FaultLimit, false},
	{"pool_saturated", FaultCapacity, false},
	{"shutting_down", FaultCapacity, false},
	{"child_exited", FaultChild, false},
	{"backend_unavailable", FaultChild, false},
	{"idle_timeout", FaultUpstream, false},
	{"idle_timeout", FaultChild, false}, // the provider was never asked
	{"request_timeout", FaultUpstream, false},
	{"request_timeout", FaultChild, false},
	{"request_timeout", FaultCapacity, false}, // it was in the queue
	{"upstream_auth", FaultUpstream, false},
	{"upstream_blocked", FaultUpstream, false},
	{"upstream_error", FaultUpstream, false},
	{"answer_too_large", FaultUpstream, false},
	{"upstream_overloaded", FaultUpstream, false},
	{"upstream_rate_limited", FaultUpstream, false},
	{"usage_limit_reached", FaultUpstream, false},
	{"internal_error", FaultDaemon, true},
}

// whose is the fault of an error.
func (e *Error) whose() Fault {
	if e.fault != "" || e.Status == StatusClientGone {
		return e.fault
	}
	for _, k := range Kinds {
		if k.Code == e.countAs() {
			return k.Fault
		}
	}
	return FaultDaemon
}

// by is the same error by another's fault.
func (e *Error) by(f Fault) *Error {
	other := *e
	other.fault = f
	return &other
}

// level is the level of an error's log line. Back-pressure is what was configured
// to happen under load, and a drain is what an operator started: neither is an error
// of the daemon.
func (e *Error) level() slog.Level {
	switch {
	case e.Code == "pool_saturated", e.Code == "shutting_down":
		return slog.LevelWarn
	case e.Status >= 500:
		return slog.LevelError
	}
	return slog.LevelInfo
}

type (
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

func (e *Error) body() errorBody {
	b := errorFields{Message: e.Message, Type: e.Type}
	if e.Param != "" {
		b.Param = &e.Param
	}
	if e.Code != "" {
		b.Code = &e.Code
	}
	return errorBody{b}
}

// header sets the headers that belong to the error.
func (e *Error) header(h http.Header) {
	if e.Retry {
		// Seconds, and not the same for all, so that they do not come back together.
		h.Set("Retry-After", cmp.Or(e.Wait, strconv.Itoa(1+rand.IntN(3))))
	}
	if e.Close {
		h.Set("Connection", "close")
	}
	if e.Final {
		h.Set("X-Should-Retry", "false")
	}
	if e.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="api"`)
	}
}

// The types of OpenAI's errors.
const (
	invalidRequest = "invalid_request_error"
	authentication = "authentication_error"
	permission     = "permission_error"
	rateLimit      = "rate_limit_error"
	serverError    = "server_error"
	timeoutError   = "timeout_error"
)

// badRequest is a 400 that names the parameter and what is wrong with it.
func badRequest(param, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Type: invalidRequest, Param: param, Message: fmt.Sprintf(format, args...)}
}

// unsupported is a 400 that names a parameter which this version does not support.
func unsupported(param string) *Error {
	e := badRequest(param, "'%s' is not supported by this server.", param)
	e.Code = "unsupported_parameter"
	return e
}

var (
	errIdle           = &Error{Status: 504, Type: timeoutError, Code: "idle_timeout", Message: "The model was silent for too long.", Final: true}
	errTimeout        = &Error{Status: 504, Type: timeoutError, Code: "request_timeout", Message: "The request took too long.", Final: true}
	errTooManyStreams = &Error{Status: 429, Type: rateLimit, Code: "concurrency_exceeded", Message: "Too many streams are open.", Retry: true}
	errOwnStreams     = &Error{Status: 429, Type: rateLimit, Code: "concurrency_exceeded", Message: "Too many streams are open with this API key.", Retry: true}
	errTooLarge       = &Error{Status: 413, Type: invalidRequest, Code: "request_too_large", Message: "The request body is too large.", Close: true}
	errLongAnswer     = &Error{Status: 502, Type: serverError, Code: "answer_too_large", Message: "The answer is too large to be sent in one piece.", Final: true}
	errNoRoom         = &Error{Status: 503, Type: serverError, Code: "pool_saturated", Message: "The bodies of all requests together are too large at the moment.", Retry: true, Close: true}
	errSlowBody       = &Error{Status: 408, Type: timeoutError, Code: "slow_body", Message: "The request body took too long to arrive.", Close: true}
	errBadBody        = &Error{Status: 400, Type: invalidRequest, Code: "invalid_json", Message: "The request body is malformed.", Close: true}
	errPacked         = &Error{Status: 400, Type: invalidRequest, Code: "invalid_json", Message: "The request body is not in the coding that Content-Encoding names."}
	errEncoding       = &Error{Status: 415, Type: invalidRequest, Code: "unsupported_media_type", Message: "The body's Content-Encoding must be gzip or zstd, or there must be none."}
	errMediaType      = &Error{Status: 415, Type: invalidRequest, Code: "unsupported_media_type", Message: "The body must be JSON, with the header 'Content-Type: application/json'."}
	errKey            = &Error{Status: 401, Type: authentication, Code: "invalid_api_key", Message: "Incorrect API key provided.", auth: "wrong"}
	errNoKey          = &Error{Status: 401, Type: authentication, Code: "invalid_api_key", Message: "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'.", auth: "missing"}
	errRoute          = &Error{Status: 403, Type: permission, Code: "permission_denied", Message: "This API key may not use this route."}
	errModel          = &Error{Status: 403, Type: permission, Code: "permission_denied", Param: "model", Message: "This API key may not use this model."}
	errTooManyKeys    = &Error{Status: 401, Type: authentication, Code: "invalid_api_key", Message: "Too many wrong API keys came from this address. Try again in a minute.", auth: "throttled"}
	errNotLocal       = &Error{Status: 403, Type: permission, Code: "permission_denied", Message: "This server has no secret key, so it answers only requests from this machine, with a loopback Host and Origin. Set PROXY_API_KEY to a key of your own."}
	errNotLocalAdmin  = &Error{Status: 403, Type: permission, Code: "permission_denied", Message: "The admin routes answer only requests from this machine, with a loopback Host and Origin."}
	errNotFound       = &Error{Status: 404, Type: invalidRequest, Code: "not_found", Message: "There is no such route."}
	errNoResponses    = &Error{Status: 404, Type: invalidRequest, Code: "not_found", Message: "This server has no Responses API, because its children call the upstream themselves (CODEX_UPSTREAM=direct). Use /v1/chat/completions."}
	errWebSocket      = &Error{Status: 426, Type: invalidRequest, Code: "method_not_allowed", Message: "This route answers over HTTP only, not over a WebSocket."}
	errMethod         = &Error{Status: 405, Type: invalidRequest, Code: "method_not_allowed", Message: "The route does not support this method."}
)

func keyExpired(at time.Time) *Error {
	return &Error{Status: 401, Type: authentication, Code: "invalid_api_key", Message: "This API key expired at " + at.Format(time.RFC3339) + ".", auth: "expired"}
}

func modelNotFound(name string) *Error {
	return &Error{Status: 404, Type: invalidRequest, Code: "model_not_found", Param: "model", Message: fmt.Sprintf("The model %.100q does not exist.", name)}
}

func notFound(*response, *http.Request) error         { return errNotFound }
func methodNotAllowed(*response, *http.Request) error { return errMethod }

// goneError is a read or write that failed: the client disconnected, or stopped
// reading.
type goneError struct{ err error }

func (e *goneError) Error() string { return "client: " + e.err.Error() }
func (e *goneError) Unwrap() error { return e.err }

// panicError is a panic of a handler.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

func panicked(value any) error { return &panicError{value, debug.Stack()} }

// describe is the table: it turns every error into what the client receives. ctx
// is the request's.
func describe(ctx context.Context, err error) *Error {
	var told *Error
	var turn *codex.TurnError
	var gone *goneError
	var tools *codex.ToolsError
	switch {
	case errors.As(err, &told):
		return told
	case errors.Is(err, pool.ErrFull):
		return &Error{Status: 503, Type: serverError, Code: "pool_saturated", Message: "All children are busy and the queue is full.", Retry: true}
	case errors.Is(err, pool.ErrTimeout):
		return &Error{Status: 503, Type: serverError, Code: "pool_saturated", Message: "All children are busy; the request waited too long in the queue.", Retry: true}
	case errors.Is(err, pool.ErrDraining), errors.Is(err, pool.ErrClosed):
		return &Error{Status: 503, Type: serverError, Code: "shutting_down", Message: "The server is draining or shutting down.", Retry: true}
	case errors.Is(err, pool.ErrUnavailable):
		return &Error{Status: 503, Type: serverError, Code: "backend_unavailable", Message: "No child can be started at the moment.", Retry: true, cause: err}
	case errors.As(err, &turn):
		return turnFailed(turn)
	case errors.As(err, &tools):
		return badRequest("tools", "The tools cannot be used: %.500s.", tools.Problem)
	case errors.As(err, &gone), ctx.Err() != nil:
		e := &Error{Status: StatusClientGone, Type: invalidRequest, Code: "client_gone", Message: "The client disconnected."}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			e.Code, e.cause = "client_too_slow", err // it is connected, but has stopped reading
		}
		return e
	case codex.ChildFault(err).Fatal():
		return &Error{Status: 502, Type: serverError, Code: "child_exited", Message: "The child that served this request failed.", cause: err}
	}
	return &Error{Status: 500, Type: serverError, Code: "internal_error", Message: "internal error", cause: err}
}

// Failures of the provider. said is its own sentence, and wait is its Retry-After in
// seconds; both are "" where it gave none.

func upstreamOverloaded(said, wait string) *Error {
	return &Error{Status: 503, Type: serverError, Code: "upstream_overloaded", Message: cmp.Or(said, "The upstream is overloaded."), Retry: true, Wait: wait}
}

func upstreamLimited(said, wait string) *Error {
	return &Error{Status: 429, Type: rateLimit, Code: "upstream_rate_limited", Message: cmp.Or(said, "The upstream limits the rate of requests."), Retry: true, Wait: wait}
}

// upstreamExhausted is for a quota. Where nobody says when it is renewed, no retry
// helps.
func upstreamExhausted(said, wait string) *Error {
	return &Error{Status: 429, Type: rateLimit, Code: "usage_limit_reached", Message: cmp.Or(said, "The upstream's usage limit is reached."), Retry: wait != "", Wait: wait, Final: wait == ""}
}

func upstreamFailed(said string) *Error {
	line, _, _ := strings.Cut(said, "\n") // what follows may be a stack
	return &Error{Status: 502, Type: serverError, Code: "upstream_error", Message: cmp.Or(line, "The upstream failed.")}
}

// upstreamAuth does not repeat the provider: its sentence is about our key.
func upstreamAuth() *Error {
	return &Error{Status: 502, Type: serverError, Code: "upstream_auth", Message: "The upstream rejected this server's credentials.", Final: true}
}

// upstreamBlocked is for what rejects this server whoever calls, and its credential is valid.
func upstreamBlocked(said string) *Error {
	return &Error{Status: 502, Type: serverError, Code: "upstream_blocked", Message: said, Final: true}
}

// unpaid is for a 402 without a sentence, such as that of a workspace that is not paid for.
func unpaid(code string) string {
	if code = upstream.Loggable(code); code == "" {
		return "The upstream requires a payment."
	}
	return "The upstream requires a payment: " + code + "."
}

// foreign is an answer whose only items are of a kind that its route has no place for.
func foreign(kind string) *Error {
	return upstreamFailed(fmt.Sprintf("The model answered with an item of the type %.100q only, which this route cannot carry.", kind))
}

// tooLong is a conversation that is too long.
func tooLong(said string) *Error {
	return &Error{Status: 400, Type: invalidRequest, Code: "context_length_exceeded", Param: "messages", Message: cmp.Or(said, "The messages are longer than the model's context window.")}
}

// providerFailed is what the caller is told of the provider's error. Where it is about
// the caller's request, it is the provider's own.
func providerFailed(f *upstream.Failure) *Error {
	e := providerError(f)
	e.cause = f
	return e
}

func providerError(f *upstream.Failure) *Error {
	if f.Item != "" {
		return foreign(f.Item)
	}
	switch cmp.Or(f.Code, f.Type) { // the backend of a ChatGPT login names its errors under type
	case "context_length_exceeded":
		return tooLong(f.Message)
	case "insufficient_quota", "usage_limit_reached", "usage_not_included":
		return upstreamExhausted(f.Message, f.RetryAfter)
	case "rate_limit_exceeded":
		return upstreamLimited(f.Message, f.RetryAfter)
	case "server_is_overloaded", "slow_down":
		return upstreamOverloaded(f.Message, f.RetryAfter)
	}
	switch {
	case f.Status == http.StatusOK && f.Message != "" && (f.Code == "invalid_prompt" || strings.Contains(f.Code, "image")):
		// A response.failed that is about the request. All other codes of its closed
		// list are about the provider.
		return &Error{Status: 400, Type: invalidRequest, Code: f.Code, Message: f.Message, counted: "upstream_refused"}
	case f.Blocked:
		return upstreamBlocked("A firewall before the upstream rejects requests of this server. Its operator can try another network or, with a ChatGPT login, CODEX_UPSTREAM=direct.")
	case f.Region:
		return upstreamBlocked(f.Message)
	case f.Status == http.StatusPaymentRequired:
		return upstreamExhausted(cmp.Or(f.Message, unpaid(f.Code)), f.RetryAfter)
	case f.Status == http.StatusUnauthorized, f.Status == http.StatusForbidden && (f.Message == "" || f.Head != ""):
		return upstreamAuth()
	case f.Status == http.StatusTooManyRequests:
		return upstreamLimited(f.Message, f.RetryAfter)
	case f.Status == http.StatusServiceUnavailable, f.Status == 529: // not in any RFC, but in use for this
		return upstreamOverloaded(f.Message, f.RetryAfter)
	case f.Status == StatusClientGone, f.Status == http.StatusProxyAuthRequired:
		return upstreamFailed(f.Message) // between us and the caller these mean something else
	case f.Status >= 400 && f.Status < 500 && f.Message != "", aboutRequest(f.Status):
		return rejected(f.Status, f)
	}
	return upstreamFailed(f.Message)
}

// aboutRequest reports whether a status is about the caller's request even
// without a message.
func aboutRequest(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// turnFailed is what the caller is told of a failed turn, as far as Codex reports the
// cause. Codex's own messages are not passed on; the provider's message about a bad
// request is.
func turnFailed(turn *codex.TurnError) *Error {
	e := turnError(turn)
	e.cause = turn
	return e
}

func turnError(turn *codex.TurnError) *Error {
	switch {
	case turn.Info == codex.InfoContextWindow:
		return tooLong("")
	case turn.Info == "modelNotFound":
		return &Error{Status: 404, Type: invalidRequest, Code: "model_not_found", Param: "model", Message: "The model does not exist upstream."}
	case turn.Info == "usageLimitExceeded":
		return upstreamExhausted("", "")
	case turn.Info == "rateLimitExceeded", turn.HTTPStatus == http.StatusTooManyRequests:
		return upstreamLimited("", "")
	case turn.Info == "serverOverloaded", turn.HTTPStatus == http.StatusServiceUnavailable:
		return upstreamOverloaded("", "")
	case turn.Info == "unauthorized", turn.HTTPStatus == http.StatusUnauthorized, turn.HTTPStatus == http.StatusForbidden:
		return upstreamAuth()
	}
	if f := upstream.ParseFailure([]byte(turn.Message)); f.Message != "" { // Codex passes on the raw body of a 400
		return rejected(http.StatusBadRequest, f)
	}
	return upstreamFailed("")
}

// rejected is the provider's error about the request itself, in its own words.
func rejected(status int, f *upstream.Failure) *Error {
	said := cmp.Or(f.Message, "The upstream rejected the request.")
	return &Error{Status: status, Type: cmp.Or(f.Type, invalidRequest), Code: f.Code, Param: f.Param, Message: said, counted: "upstream_refused"}
}
