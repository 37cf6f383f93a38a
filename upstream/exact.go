package upstream

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	jsonv1 "github.com/go-json-experiment/json/v1"

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

// exactDecoder reads the events of a provider for a caller who gets them as they are.
type exactDecoder struct {
	codex bool // the provider serves Codex: see hide and fill
	items []json.RawMessage
	kept  int // bytes of items
}

// exactEvent is what is read of an event.
type exactEvent struct {
	Type     string          `json:"type"`
	Sequence *int64          `json:"sequence_number"`
	Delta    json.RawMessage `json:"delta"`
	Item     json.RawMessage `json:"item"`
	Response json.RawMessage `json:"response"`
}

// decode returns what one event delivers: itself, of whose bytes data is the data, and
// what it is known by. A piece of the answer, of whatever kind, is a TextDelta: only its
// time and its length count. An event that cannot be read is passed on like the others.
func (d *exactDecoder) decode(raw, data []byte) (events []codex.Event, over bool, failure *Failure) {
	var e exactEvent
	_ = jsonv1.Unmarshal(data, &e)
	if d.codex {
		if strings.HasPrefix(e.Type, "codex.") {
			return nil, false, nil // for Codex itself, and unknown to SDKs
		}
		raw, e.Response = d.fill(raw, data, e)
	}
	this := Raw{Bytes: raw, Type: e.Type, Sequence: -1}
	if e.Sequence != nil {
		this.Sequence = *e.Sequence
	}
	switch kind, isDelta := strings.CutSuffix(e.Type, ".delta"); {
	case e.ends():
		this.Response = e.Response
		return append([]codex.Event{this}, exactEnding(e.Response)...), true, nil
	case e.Type == "response.failed":
		return append([]codex.Event{this}, usage(readEnd(e.Response).Usage)...), true, failureInStream(e.Response)
	case e.Type == "error":
		return []codex.Event{this}, true, failureInStream(data)
	case isDelta && !strings.HasPrefix(kind, "response.reasoning"):
		return []codex.Event{this, codex.TextDelta{Text: string(e.Delta)}}, false, nil
	}
	return []codex.Event{this}, false, nil
}

// ends reports whether an event is the last of an answer that did not fail.
func (e exactEvent) ends() bool {
	return e.Type == "response.completed" || e.Type == "response.incomplete"
}

// fill gives the last event the items that came before it. The backend of a ChatGPT login
// leaves them out, and SDKs take the whole answer from there.
func (d *exactDecoder) fill(raw, data []byte, e exactEvent) (filled, response []byte) {
	if d.kept += len(e.Item); e.Type == "response.output_item.done" && d.kept <= maxKept {
		d.items = append(d.items, e.Item)
	}
	var event, answer map[string]json.RawMessage
	var output []json.RawMessage
	if !e.ends() || len(d.items) == 0 || d.kept > maxKept || json.Unmarshal(data, &event) != nil || json.Unmarshal(e.Response, &answer) != nil {
		return raw, e.Response
	}
	if _ = json.Unmarshal(answer["output"], &output); len(output) > 0 {
		return raw, e.Response
	}
	answer["output"] = marshal(d.items)
	event["response"] = marshal(answer)
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", e.Type, marshal(event)), event["response"]
}

// exactEnding is what the last event says of an answer.
func exactEnding(response []byte) []codex.Event {
	end := readEnd(response)
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
