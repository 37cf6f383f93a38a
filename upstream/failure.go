package upstream

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Failure is a provider's error, or the lack of an answer.
type Failure struct {
	Status     int    // HTTP status; 0 where there was no answer; 200 where the error came instead of a stream, or in it
	Type       string // of the provider's error, as are Code, Param and Message; each may be empty
	Code       string
	Param      string
	Message    string // it may quote the prompt: never log it
	RetryAfter string // whole seconds; "" where the provider gave none
	Item       string // the type of an item of the answer, where all are of types that no event is for
	Cause      error  // why there was no answer, or why no request was sent
}

// Error is for the log, so it does not contain Message.
func (f *Failure) Error() string {
	if f.Cause != nil && f.Status != 0 {
		return "no request sent to the provider: " + f.Cause.Error()
	}
	if f.Cause != nil {
		return "provider not reached: " + f.Cause.Error()
	}
	if f.Item != "" {
		return fmt.Sprintf("the provider's answer has only items such as %.100q", f.Item)
	}
	return fmt.Sprintf("provider failed: status %d, type %q, code %q", f.Status, f.Type, f.Code)
}

// ParseFailure reads the body of a provider's error, or an event that reports
// one. It supports OpenAI's envelope, {"error":{"message":…}}; the same fields
// without the envelope; and a plain text under "error" or "detail". A number as
// type, code or param becomes text.
//
// What is too long for an error is cut. The result is never nil. Fields that body does not have are empty, which are all
// of them where body is no JSON object. Status is 0: body does not contain it.
func ParseFailure(body []byte) *Failure {
	var b map[string]any
	if json.Unmarshal(body, &b) != nil {
		return &Failure{}
	}
	if envelope, ok := b["error"].(map[string]any); ok {
		b = envelope
	}
	f := &Failure{
		Type: cut(text(b["type"]), maxWord), Code: cut(text(b["code"]), maxWord), Param: cut(text(b["param"]), maxWord),
		Message: cut(cmp.Or(text(b["message"]), text(b["error"]), text(b["detail"])), maxFailure),
	}
	if wait, ok := b["resets_in_seconds"].(float64); ok && wait > 0 && wait < maxReset { // a ChatGPT login's usage limit
		f.RetryAfter = wholeSeconds(wait)
	}
	return f
}

// wholeSeconds formats seconds as a Retry-After, rounded up.
func wholeSeconds(s float64) string { return strconv.FormatFloat(math.Ceil(s), 'f', 0, 64) }

// The most that is passed on of a provider's error, beside maxFailure for its message.
const (
	maxWord  = 200     // of a type, a code or a param, bytes
	maxReset = 1 << 30 // seconds
)

// cut is s, or its first bytes.
func cut(s string, most int) string {
	return strings.ToValidUTF8(s[:min(len(s), most)], "")
}

// text returns a JSON string, or a number as text; "" for all else.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return ""
}
