package upstream

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Failure is a provider's error, or the lack of an answer.
type Failure struct {
	Status     int    // HTTP status; 0 where there was no answer; 200 where the error came instead of a stream, or in it
	Type       string // of the provider's error, as are Code, Param and Message; each may be empty
	Code       string
	Param      string
	Message    string // at most maxSentence long; it may quote the prompt: never log it
	RetryAfter string // whole seconds; "" where the provider gave none
	RequestID  string // the provider's own; "" where it gave none
	Head       string // the beginning of an answer that is not JSON, and
	Kind       string // its content type
	Blocked    bool   // a firewall before the provider answered
	Region     bool   // the provider does not serve our account where this machine is
	Item       string // the type of an item of the answer, where all are of types that no event is for
	Cause      error  // why there was no answer, why it was cut, or why no request was sent

	unsent bool
}

// Error is for the log, so it does not contain Message.
func (f *Failure) Error() string {
	if f.Cause != nil {
		return f.Cause.Error()
	}
	if f.Item != "" {
		return fmt.Sprintf("the provider's answer has only items such as %.100q", f.Item)
	}
	return fmt.Sprintf("provider failed: status %d, type %q, code %q", f.Status, Loggable(f.Type), Loggable(f.Code))
}

// Attrs are what may be logged of the provider's answer.
func (f *Failure) Attrs() (attrs []slog.Attr) {
	add := func(name, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(name, value))
		}
	}
	if f.Status != 0 && !f.unsent {
		attrs = append(attrs, slog.Int("upstream_status", f.Status))
	}
	add("upstream_code", Loggable(cmp.Or(f.Code, f.Type)))
	add("upstream_request", Loggable(f.RequestID))
	add("upstream_content_type", f.Kind)
	add("upstream_body", f.Head)
	return attrs
}

var word = regexp.MustCompile(`^[\w.:/-]{1,100}$`)

// Loggable is a code or an id of a provider, and "" where the text may be more than
// that: nothing says that it does not quote the prompt.
func Loggable(s string) string {
	if !word.MatchString(s) {
		return ""
	}
	return s
}

// ParseFailure reads the body of a provider's error, or an event that reports
// one. It supports OpenAI's envelope, {"error":{"message":…}}; the same fields
// without the envelope, or with another; and a text, or a list of errors, under other names in use. A
// number as type, code or param becomes text.
//
// What is too long for an error is cut. The result is never nil. Fields that body does
// not have are empty, which are all of them where body is no JSON object. Status is 0:
// body does not contain it.
func ParseFailure(body []byte) *Failure {
	f, _ := parseFailure(body)
	f.bound()
	return f
}

// bound cuts what is too long for an error.
func (f *Failure) bound() {
	f.Message = bounded(f.Message)
	f.Type, f.Code, f.Param = cut(f.Type, maxWord), cut(f.Code, maxWord), cut(f.Param, maxWord)
}

// parseFailure is [ParseFailure] without a cut, and reports whether body is
// JSON.
func parseFailure(body []byte) (_ *Failure, ok bool) {
	var v any
	if json.Unmarshal(body, &v) != nil {
		return &Failure{}, false
	}
	b := object(v)
	for _, name := range []string{"error", "detail"} {
		if envelope, ok := b[name].(map[string]any); ok {
			b = envelope
			break
		}
	}
	f := &Failure{
		Type: text(b["type"]), Code: text(b["code"]), Param: text(b["param"]),
		Message: cmp.Or(text(b["message"]), text(b["msg"]), text(b["error"]), text(b["detail"]), sentence(b["detail"]), sentence(b["errors"]), text(b["title"])),
	}
	if wait := untilReset(b); wait > 0 && wait < maxReset {
		f.RetryAfter = wholeSeconds(wait)
	}
	return f, true
}

// untilReset is in how many seconds the usage limit of a ChatGPT login ends; 0 where it
// does not say.
func untilReset(b map[string]any) float64 {
	if wait, ok := b["resets_in_seconds"].(float64); ok {
		return wait
	}
	if at, ok := b["resets_at"].(float64); ok {
		return at - float64(time.Now().Unix())
	}
	return 0
}

// object is v, or the first of a list, if it is an object.
func object(v any) map[string]any {
	if list, ok := v.([]any); ok && len(list) > 0 {
		v = list[0]
	}
	b, _ := v.(map[string]any)
	return b
}

// sentence is the sentence of the first of a list of errors.
func sentence(v any) string {
	b := object(v)
	return cmp.Or(text(b["message"]), text(b["msg"]))
}

// wholeSeconds formats seconds as a Retry-After, rounded up.
func wholeSeconds(s float64) string { return strconv.FormatFloat(math.Ceil(s), 'f', 0, 64) }

// The most that is passed on of a provider's error, beside maxSentence for its message.
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
