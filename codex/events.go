package codex

import "time"

// Event is one of [Tick], [TextDelta], [Refusal], [ReasoningDelta], [ToolCallDelta],
// [ToolCalls], [Usage], [Completed].
type Event interface{ event() }

// Tick is yielded as soon as the turn was sent, and then every TurnParams.Tick while
// it runs, so that its reader can act on silence without a goroutine of its own.
type Tick struct {
	Silent time.Duration // since the child last sent anything about this turn
}

// TextDelta is the next piece of the answer.
type TextDelta struct{ Text string }

// Refusal is what the model said instead of an answer. Codex drops it, so a [Client]
// never yields one. The api makes this event of what the relay reads in the provider's
// stream.
type Refusal struct{ Text string }

// ReasoningDelta is the next piece of the reasoning summary, or of a message
// that the model marks as commentary.
type ReasoningDelta struct{ Text string }

// ToolCallDelta is the next piece of a function call, as the model writes it. The
// first piece of a call has its ID and Name. A [Client] never yields one, because
// Codex passes calls on when they are whole: see [ToolCalls].
type ToolCallDelta struct {
	Index     int    // of the call in the answer, from 0
	ID, Name  string // in the first piece of the call only
	Arguments string // the next piece, exactly as written
}

// ToolCalls are all the functions that the answer calls, in its order. Their results
// belong into the history of another turn: the call as an item of type
// function_call, its result as a function_call_output.
type ToolCalls struct{ Calls []ToolCall }

// Usage is the upstream's count of the tokens of the whole turn.
type Usage struct {
	Input, Cached     int64 // Cached is part of Input
	Output, Reasoning int64 // Reasoning is part of Output
	Total             int64
}

// Plausible reports whether the counts can be of one answer: so none is negative, and
// sums of them are none either.
func (u Usage) Plausible() bool {
	const most = 1 << 40
	for _, n := range []int64{u.Input, u.Cached, u.Output, u.Reasoning, u.Total} {
		if n < 0 || n > most {
			return false
		}
	}
	return true
}

// Completed is the last event of a turn that did not fail.
type Completed struct{ Finish Finish }

// Finish is why the model stopped.
type Finish string

// The ends of an answer.
const (
	FinishStop          Finish = "stop"
	FinishToolCalls     Finish = "tool_calls"
	FinishLength        Finish = "length"
	FinishContentFilter Finish = "content_filter"
)

// Visible reports whether an event is a piece of the answer itself: text, a refusal or a
// call.
func Visible(e Event) bool {
	switch e.(type) {
	case TextDelta, Refusal, ToolCallDelta, ToolCalls:
		return true
	}
	return false
}

func (Tick) event()           {}
func (TextDelta) event()      {}
func (Refusal) event()        {}
func (ReasoningDelta) event() {}
func (ToolCallDelta) event()  {}
func (ToolCalls) event()      {}
func (Usage) event()          {}
func (Completed) event()      {}
