package upstream

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	jsonv1 "github.com/go-json-experiment/json/v1"

	"codexpool/codex"
)

// decoder turns the events of a provider's stream into those of an answer. What the
// provider sends only in an item, or only in the last event, is delivered then.
//
// Gateways are careless with the ids and indexes of items. Text that is delivered
// twice is worse than text that is not delivered, so an item that cannot be matched
// delivers nothing where its text may have come already.
type decoder struct {
	byID    map[string]*item
	byIndex map[int]*item
	calls   map[string]bool // ids of the calls so far
	said    bool            // text or a refusal was delivered
	deltas  bool            // some of it in deltas
	thought *thought        // what was last delivered of the reasoning, nil before any
	known   bool            // an item came of a type that events are for
	foreign string          // the type of the first that came of another
	kept    int             // about the bytes of the maps
}

// maxKept bounds what is remembered of the items of one answer, in bytes. Gateways that
// give each event an id of its own are far below.
const maxKept = 32 << 20

// item is one item of the answer, as far as it was delivered.
type item struct {
	done       string // the id under which it came whole; "" before
	begun      bool   // its beginning was seen
	commentary bool   // a message that is part of the reasoning
	text       bool   // some text was delivered
	refusal    bool   // some refusal was
	summary    bool   // some of the reasoning summary was
	call       int    // the number of the call, from 1; 0 = not delivered
	arguments  bool   // some of the call's arguments were
	half       string // the escape of the first half of a surrogate pair, whose second is still to come
}

// thought is one part of the reasoning. Parts are delivered with an empty line between
// them.
type thought struct {
	item *item
	part int
}

// streamEvent is what is read of the provider's events. Which fields are set depends
// on the type.
type streamEvent struct {
	Type      string          `json:"type"`
	Output    int             `json:"output_index"`
	ItemID    string          `json:"item_id"`
	Part      int             `json:"summary_index"`
	Delta     json.RawMessage `json:"delta"`
	Refusal   string          `json:"refusal"`
	Arguments string          `json:"arguments"`
	Item      *streamItem     `json:"item"`
	Response  json.RawMessage `json:"response"`
}

// streamItem is an item of the answer.
type streamItem struct {
	ID        string       `json:"id"`
	Type      string       `json:"type"`
	Phase     string       `json:"phase"`
	Content   []streamPart `json:"content"`
	Summary   []streamPart `json:"summary"`
	CallID    string       `json:"call_id"`
	Name      string       `json:"name"`
	Arguments string       `json:"arguments"`
}

type streamPart struct {
	Type    string `json:"type"`
	Text    string `json:"text"`
	Refusal string `json:"refusal"`
}

// streamEnd is the response in the last event.
type streamEnd struct {
	Status     string        `json:"status"`
	Output     []*streamItem `json:"output"`
	Incomplete struct {
		Reason string `json:"reason"`
	} `json:"incomplete_details"`
	Usage json.RawMessage `json:"usage"`
}

type streamUsage struct {
	Input        int64 `json:"input_tokens"`
	InputDetails struct {
		Cached int64 `json:"cached_tokens"`
	} `json:"input_tokens_details"`
	Output        int64 `json:"output_tokens"`
	OutputDetails struct {
		Reasoning int64 `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	Total int64 `json:"total_tokens"`
}

// usage reads the count of an answer's tokens. One that cannot be is as if it were not
// there.
func usage(data json.RawMessage) (list []codex.Event) {
	var u *streamUsage
	if json.Unmarshal(data, &u) != nil || u == nil {
		return nil
	}
	count := codex.Usage{
		Input: u.Input, Cached: u.InputDetails.Cached, Output: u.Output, Reasoning: u.OutputDetails.Reasoning,
		Total: cmp.Or(u.Total, u.Input+u.Output),
	}
	if !count.Plausible() {
		return nil
	}
	return []codex.Event{count}
}

func newDecoder() *decoder {
	return &decoder{byID: map[string]*item{}, byIndex: map[int]*item{}, calls: map[string]bool{}}
}

// decode returns what one event of the provider delivers. over is true for the last
// event of an answer, and failure is then not nil if it is not whole. Events that are
// not JSON, and those of unknown types, deliver nothing.
func (d *decoder) decode(data []byte) (events []codex.Event, over bool, failure *Failure) {
	if d.kept > maxKept {
		return nil, true, &Failure{Status: http.StatusOK, Code: "too_many_items"}
	}
	var e streamEvent
	if jsonv1.Unmarshal(data, &e) != nil && e.Type == "" {
		return nil, false, nil
	}
	switch e.Type {
	case "response.output_text.delta":
		d.deltas = true
		it := d.find(e.ItemID, e.Output)
		return d.text(it, it.join(e.Delta)), false, nil
	case "response.refusal.delta":
		d.deltas = true
		it := d.find(e.ItemID, e.Output)
		return d.refuse(it, it.join(e.Delta)), false, nil
	case "response.refusal.done":
		if it := d.find(e.ItemID, e.Output); !it.refusal {
			return d.refuse(it, e.Refusal), false, nil
		}
	case "response.reasoning_summary_text.delta":
		it := d.find(e.ItemID, e.Output)
		it.summary = true
		return d.reason(thought{it, e.Part}, it.join(e.Delta)), false, nil
	case "response.function_call_arguments.delta":
		it := d.find(e.ItemID, e.Output)
		return d.argue(it, it.join(e.Delta)), false, nil
	case "response.function_call_arguments.done":
		if it := d.find(e.ItemID, e.Output); !it.arguments {
			return d.argue(it, e.Arguments), false, nil
		}
	case "response.output_item.added":
		if e.Item != nil {
			return d.begin(e.Item, e.Output), false, nil
		}
	case "response.output_item.done":
		if e.Item != nil {
			return d.finish(e.Item, e.Output), false, nil
		}
	case "response.completed", "response.incomplete":
		events, failure = d.ending(e.Type, e.Response)
		return events, true, failure
	case "response.failed":
		return usage(readEnd(e.Response).Usage), true, failureInStream(e.Response)
	case "error":
		return nil, true, failureInStream(data)
	}
	return nil, false, nil
}

// readEnd reads the response of the last event. Fields that cannot be read are as if they
// were not there.
func readEnd(response []byte) (end streamEnd) {
	_ = json.Unmarshal(response, &end)
	return end
}

func failureInStream(report []byte) *Failure {
	f, _ := parseFailure(report)
	f.Status = http.StatusOK
	return f
}

// find returns the item that an event is about. Some gateways leave out the id, some
// the index, some change the id on the way.
func (d *decoder) find(id string, index int) *item {
	it := d.byID[id]
	if it == nil || id == "" {
		it = d.byIndex[index]
	}
	if it == nil {
		it = &item{}
		d.byIndex[index] = it
		d.kept += entry
	}
	d.remember(id, it)
	return it
}

// entry is about what an entry of a map takes, in bytes, with its item.
const entry = 128

// remember finds it again by its id.
func (d *decoder) remember(id string, it *item) {
	if id != "" && d.byID[id] != it {
		d.byID[id] = it
		d.kept += entry + len(id)
	}
}

// text delivers text of a message.
func (d *decoder) text(it *item, text string) []codex.Event {
	if text == "" {
		return nil
	}
	it.text, d.said = true, true
	if it.commentary {
		return d.reason(thought{it, 0}, text)
	}
	return []codex.Event{codex.TextDelta{Text: text}}
}

func (d *decoder) refuse(it *item, text string) []codex.Event {
	if text == "" {
		return nil
	}
	it.refusal, d.said = true, true
	return []codex.Event{codex.Refusal{Text: text}}
}

// reason delivers a piece of the reasoning, with an empty line where another part
// begins.
func (d *decoder) reason(of thought, text string) []codex.Event {
	if text == "" {
		return nil
	}
	if d.thought != nil && *d.thought != of {
		text = "\n\n" + text
	}
	d.thought = &of
	return []codex.Event{codex.ReasoningDelta{Text: text}}
}

// argue delivers a piece of a call's arguments. One without a beginning is none.
func (d *decoder) argue(it *item, arguments string) []codex.Event {
	if it.call == 0 || arguments == "" {
		return nil
	}
	it.arguments = true
	return []codex.Event{codex.ToolCallDelta{Index: it.call - 1, Arguments: arguments}}
}

// begin takes an item that has just begun: a call's name and id are delivered at once.
func (d *decoder) begin(s *streamItem, index int) []codex.Event {
	it := &item{begun: true, commentary: s.Phase == "commentary"}
	d.byIndex[index] = it
	d.kept += entry
	d.remember(s.ID, it)
	d.note(s.Type)
	if s.Type != "function_call" {
		return nil
	}
	return d.name(it, s)
}

// note notes the type of an item. A call is known when it is delivered.
func (d *decoder) note(kind string) {
	switch kind {
	case "message", "reasoning":
		d.known = true
	default:
		d.foreign = cmp.Or(d.foreign, kind)
	}
}

// name delivers the beginning of a call.
func (d *decoder) name(it *item, s *streamItem) []codex.Event {
	if it.call > 0 || s.Name == "" {
		return nil
	}
	it.call = len(d.calls) + 1
	id := cmp.Or(s.CallID, s.ID, fmt.Sprintf("call_%d", it.call))
	d.calls[id] = true
	d.kept += entry + len(id)
	return []codex.Event{codex.ToolCallDelta{Index: it.call - 1, ID: id, Name: s.Name}}
}

// finish delivers what came only in a whole item.
func (d *decoder) finish(s *streamItem, index int) (events []codex.Event) {
	it := d.find(s.ID, index)
	if it.done != "" && s.ID != it.done { // a gateway that gives all items one index
		it = &item{}
		d.remember(s.ID, it)
	}
	it.done = s.ID
	d.note(s.Type)
	switch s.Type {
	case "message":
		if !it.begun && d.deltas {
			return nil // its deltas may have come under another id
		}
		it.commentary = it.commentary || s.Phase == "commentary"
		return d.message(it, s)
	case "reasoning":
		if !it.summary {
			return d.summary(it, s)
		}
	case "function_call":
		events = d.name(it, s)
		if !it.arguments {
			events = append(events, d.argue(it, s.Arguments)...)
		}
	}
	return events
}

// message delivers the parts of a message of which no delta came.
func (d *decoder) message(it *item, s *streamItem) (events []codex.Event) {
	text, refusal := it.text, it.refusal // as delivered before
	for _, p := range s.Content {
		if p.Type == "refusal" && !refusal {
			events = append(events, d.refuse(it, p.Refusal)...)
		} else if p.Type != "refusal" && !text {
			events = append(events, d.text(it, p.Text)...)
		}
	}
	return events
}

// summary delivers a reasoning summary of which no delta came.
func (d *decoder) summary(it *item, s *streamItem) (events []codex.Event) {
	for part, p := range s.Summary {
		it.summary = true
		events = append(events, d.reason(thought{it, part}, p.Text)...)
	}
	return events
}

// rest delivers the items of the last event that came in no event before.
func (d *decoder) rest(output []*streamItem) (events []codex.Event) {
	said, thought := d.said, d.thought != nil
	for _, s := range output {
		if s == nil {
			continue
		}
		d.note(s.Type)
		switch {
		case s.Type == "message" && !said:
			events = append(events, d.message(&item{commentary: s.Phase == "commentary"}, s)...)
		case s.Type == "reasoning" && !thought:
			events = append(events, d.summary(&item{}, s)...)
		case s.Type == "function_call" && !d.calls[cmp.Or(s.CallID, s.ID)]:
			it := &item{}
			events = append(events, d.name(it, s)...)
			events = append(events, d.argue(it, s.Arguments)...)
		}
	}
	return events
}

// ending delivers the rest of an answer: what came in no event before, its usage, and
// why it ended.
func (d *decoder) ending(kind string, response []byte) (events []codex.Event, failure *Failure) {
	end := readEnd(response)
	events = d.rest(end.Output)
	events = append(events, usage(end.Usage)...)
	finish := codex.FinishStop
	switch reason := end.Incomplete.Reason; {
	case kind != "response.incomplete" && end.Status != "incomplete":
		if d.foreign != "" && !d.known && !d.said && d.thought == nil && len(d.calls) == 0 {
			return events, &Failure{Status: http.StatusOK, Item: d.foreign}
		}
		if len(d.calls) > 0 {
			finish = codex.FinishToolCalls
		}
	case reason == "max_output_tokens":
		finish = codex.FinishLength
	case reason == "content_filter":
		finish = codex.FinishContentFilter
	default:
		return events, &Failure{Status: http.StatusOK, Code: "incomplete"}
	}
	return append(events, codex.Completed{Finish: finish}), nil
}

// join decodes a delta. Some providers cut an emoji between the two halves of its
// surrogate pair: the first half then waits for the second.
func (it *item) join(delta json.RawMessage) string {
	if len(delta) < 2 || delta[0] != '"' {
		return ""
	}
	inner := it.half + string(delta[1:len(delta)-1])
	it.half = ""
	if cut := len(inner) - len(`\ud83d`); cut >= 0 && firstHalf(inner[cut:]) && !escaped(inner[:cut]) {
		inner, it.half = inner[:cut], inner[cut:]
	}
	if !strings.Contains(inner, `\`) {
		return inner
	}
	var text string
	if json.Unmarshal([]byte(`"`+inner+`"`), &text) != nil {
		return ""
	}
	return text
}

// firstHalf reports whether an escape such as \ud83d is of the first half of a
// surrogate pair.
func firstHalf(escape string) bool {
	e := strings.ToLower(escape)
	return strings.HasPrefix(e, `\ud`) && e[3] >= '8' && e[3] <= 'b'
}

// escaped reports whether a backslash behind before is itself escaped.
func escaped(before string) bool {
	n := len(before) - len(strings.TrimRight(before, `\`))
	return n%2 == 1
}
