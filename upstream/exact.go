package upstream

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"codexpool/codex"
)

// Opening is the first event of an exact answer: the headers of the provider's answer
// that its caller gets.
type Opening struct {
	codex.Event // never set; for its method
	Header      http.Header
}

// Raw is one event of an exact answer, byte for byte as the provider sent it. What is
// known of the answer beside follows it, as events of other types.
type Raw struct {
	codex.Event        // never set; for its method
	Bytes       []byte // with all that came since the event before, such as comments
	Type        string // "" where it has none
	Sequence    int64  // the provider's number of it, -1 where it has none
	Response    []byte // the whole response, of the last event; nil in others
}

// passed are the headers that an exact answer keeps, with their names for the caller.
var passed = map[string]string{
	"Openai-Model":         "Openai-Model",
	"Openai-Processing-Ms": "Openai-Processing-Ms",
	"X-Codex-Turn-State":   "X-Codex-Turn-State",
	"X-Request-Id":         "X-Upstream-Request-Id",
}

func opening(from http.Header) Opening {
	o := Opening{Header: http.Header{}}
	for theirs, ours := range passed {
		if value := from.Get(theirs); value != "" {
			o.Header.Set(ours, value)
		}
	}
	return o
}

// decodeExact is what one event of the provider delivers to a caller who gets it as it
// is: raw, whose data it is, and what it is known by. A piece of the answer, of whatever
// kind, is a TextDelta: only its time and its length count. An event that cannot be read
// is passed on like the others.
func decodeExact(raw, data []byte) (events []codex.Event, over bool, failure *Failure) {
	var e struct {
		Type     string          `json:"type"`
		Sequence *int64          `json:"sequence_number"`
		Delta    json.RawMessage `json:"delta"`
		Response json.RawMessage `json:"response"`
	}
	_ = json.Unmarshal(data, &e)
	this := Raw{Bytes: raw, Type: e.Type, Sequence: -1}
	if e.Sequence != nil {
		this.Sequence = *e.Sequence
	}
	switch kind, isDelta := strings.CutSuffix(e.Type, ".delta"); {
	case e.Type == "response.completed", e.Type == "response.incomplete":
		this.Response = e.Response
		return append([]codex.Event{this}, exactEnding(e.Response)...), true, nil
	case e.Type == "response.failed":
		var end streamEnd
		_ = json.Unmarshal(e.Response, &end) // as in ending
		return append([]codex.Event{this}, usage(end.Usage)...), true, failureInStream(e.Response)
	case e.Type == "error":
		return []codex.Event{this}, true, failureInStream(data)
	case isDelta && !strings.HasPrefix(kind, "response.reasoning"):
		return []codex.Event{this, codex.TextDelta{Text: string(e.Delta)}}, false, nil
	}
	return []codex.Event{this}, false, nil
}

// exactEnding is what the last event says of an answer.
func exactEnding(response []byte) []codex.Event {
	var end streamEnd
	_ = json.Unmarshal(response, &end) // as in ending
	finish := codex.FinishStop
	switch {
	case end.Incomplete.Reason == "max_output_tokens":
		finish = codex.FinishLength
	case end.Incomplete.Reason == "content_filter":
		finish = codex.FinishContentFilter
	case slices.ContainsFunc(end.Output, func(item *streamItem) bool {
		return item != nil && (item.Type == "function_call" || item.Type == "custom_tool_call")
	}):
		finish = codex.FinishToolCalls
	}
	return append(usage(end.Usage), codex.Completed{Finish: finish})
}
