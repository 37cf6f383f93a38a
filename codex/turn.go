package codex

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	jsonv1 "github.com/go-json-experiment/json/v1"
)

// TurnParams is one completion. It holds the caller's messages: never log it.
//
// Items reach the model unchanged, with these exceptions: Codex drops a message
// of role "system", drops a function_call_output whose function_call is missing,
// and gives a function_call without its output the output "aborted". Items must be
// valid JSON on one line: of bytes that are not UTF-8 a child dies, and a line with half
// of a surrogate pair it ignores.
type TurnParams struct {
	Model   string            // catalog id; "" = the catalog's default
	Effort  string            // reasoning effort; "" = the model's default
	Summary string            // of the reasoning: auto, concise, detailed or none; "" = the model's default
	Items   []json.RawMessage // the whole history, as Responses items
	Tools   []Tool            // functions that the model may call; the turn may then end in ToolCalls
	Meta    map[string]string // reaches the upstream in the header x-codex-turn-metadata
	Tick    time.Duration     // how often a Tick is yielded; 0 means 1 s

	// Wake, if not nil, makes the turn yield a Tick at once for each value received: for
	// a reader that has another source of events beside the turn.
	Wake <-chan struct{}
}

var (
	errTick  = errors.New("tick")
	errBreak = errors.New("the reader ended the loop")
)

// Turn runs one turn on a thread of its own. The last pair is Completed or an
// error: a *TurnError or a *ToolsError (the child is well), an *ExitError, a
// *ProtocolError, ErrUnresponsive, an *RPCError, or the cause of ctx's end.
// A loop that ends early, in whatever way, interrupts the turn and waits for its end.
func (c *Client) Turn(ctx context.Context, p TurnParams) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		err := c.turn(ctx, &p, func(e Event) bool { return yield(e, nil) })
		if err != nil && err != errBreak {
			yield(nil, err)
		}
	}
}

func (c *Client) turn(ctx context.Context, p *TurnParams, yield func(Event) bool) error {
	defer c.enter()()
	thread, err := c.thread(ctx, p.Tools)
	if err != nil {
		return unsent(err)
	}
	t := &turn{c: c, thread: thread, commentary: map[string]bool{}, streamed: map[string]bool{}, calls: map[string][]ToolCall{}}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	written, err := t.start(ctx, p)
	if err == nil {
		defer t.end(ctx)
		err = t.events(ctx, p, yield)
	}
	if c.unread(err) >= written {
		return unsent(err)
	}
	return err
}

// unread is how much of its input a child had not read when it failed with err, in bytes.
func (c *Client) unread(err error) int {
	exit := (*ExitError)(nil)
	switch {
	case errors.As(err, &exit):
		return exit.unread
	case c.proc != nil && errors.Is(err, ErrUnresponsive):
		return c.proc.unread()
	}
	return 0
}

// turn is the state of one running turn.
type turn struct {
	c           *Client
	thread      string
	injectID    int64                 // of our thread/inject_items
	injected    bool                  // thread/inject_items is answered
	startID     int64                 // of our turn/start
	id          string                // the turn's, once turn/start is answered
	started     bool                  // turn/start is answered
	interruptID int64                 // of our turn/interrupt, or 0
	interrupted bool                  // turn/interrupt is answered
	over        bool                  // turn/completed has arrived, or turn/start failed
	hasText     bool                  // text was yielded
	every       time.Duration         // how often silent grows
	silent      time.Duration         // since the child last sent anything about this turn
	grown       time.Time             // when silent was last correct
	commentary  map[string]bool       // items of phase commentary
	streamed    map[string]bool       // items whose text arrived in deltas
	thought     *thought              // what was last yielded of the reasoning, nil before any
	usage       Usage                 // the last that arrived
	calls       map[string][]ToolCall // by the id of the turn, so far
	pending     []json.RawMessage     // ids of the child's requests to run calls, not answered
	answers     int                   // of the model that are complete; a direct child may ask for more
	answered    bool                  // the turn's answer is complete: see responded
}

// thought is one part of the reasoning: of a summary, or a message of phase commentary.
type thought struct {
	item string
	part int64
}

// start writes the history and the start of the turn at once: the child takes its
// lines in their order, and need not wait for us between the two. A child that takes some
// of a long history within each call timeout is busy, not dead. The items are dropped:
// they may have megabytes, and the turn may last. start returns how many bytes it wrote.
func (t *turn) start(ctx context.Context, p *TurnParams) (written int, err error) {
	ctx, abandon := abandonable(ctx)
	defer abandon(context.Canceled)
	again := expire(ctx, t.c.callTimeout, abandon)
	t.injectID, t.startID = t.c.newID(), t.c.newID()
	history := injectLine(t.injectID, t.thread, p.Items)
	p.Items, p.Tools = nil, nil
	written, err = t.c.writeLines(ctx, again,
		history,
		outgoing{ID: &t.startID, Method: "turn/start", Params: turnStartParams{
			ThreadID:       t.thread,
			Input:          []string{},
			Model:          p.Model,
			Effort:         p.Effort,
			Summary:        p.Summary,
			ClientMetadata: p.Meta,
		}},
	)
	t.heard()
	return written, err
}

// unsent marks the fault of a child that read nothing of the conversation.
func unsent(err error) error {
	if ChildFault(err).Fatal() {
		return fmt.Errorf("%w: %w", ErrUnsent, err)
	}
	return err
}

// events yields the turn's events until its end. The answer to turn/start is
// one message among them, so that nothing that overtakes it is lost.
func (t *turn) events(ctx context.Context, p *TurnParams, yield func(Event) bool) error {
	t.every = cmp.Or(max(p.Tick, 0), time.Second)
	ticker := time.NewTicker(t.every)
	defer ticker.Stop()
	if !yield(Tick{}) {
		return errBreak
	}
	for !t.over && !t.answered {
		events, err := t.next(ctx, ticker.C, p.Wake)
		if err != nil {
			return err
		}
		for _, e := range events {
			if !yield(e) {
				return errBreak
			}
		}
	}
	return nil
}

// next handles one message, or a tick.
func (t *turn) next(ctx context.Context, tick <-chan time.Time, wake <-chan struct{}) ([]Event, error) {
	m, err := t.c.inbox.next(ctx, tick, wake)
	switch {
	case err == errTick:
		return t.tick(ctx)
	case err != nil:
		return nil, err
	}
	events, err := t.handle(ctx, m)
	if t.answered {
		t.interrupt(ctx) // before the events are yielded, because the reader may be slow
	}
	return events, err
}

func (t *turn) tick(ctx context.Context) ([]Event, error) {
	// More than this between two ticks is no silence: this process was stopped, and what
	// the child has sent meanwhile is not read yet.
	t.silent += min(time.Since(t.grown), 2*t.every)
	t.grown = time.Now()
	if t.id == "" && t.silent > t.c.callTimeout {
		t.c.spoil(ErrUnresponsive)
		return nil, fmt.Errorf("turn/start: %w", ErrUnresponsive)
	}
	if t.silent >= callsHeld {
		t.release(ctx)
	}
	return []Event{Tick{Silent: t.silent}}, nil
}

// heard notes that the child has sent something about this turn.
func (t *turn) heard() { t.silent, t.grown = 0, time.Now() }

// handle handles one message. It returns no events for a message that the reader does
// not need.
func (t *turn) handle(ctx context.Context, m message) ([]Event, error) {
	switch {
	case m.isRequest():
		t.heard()
		t.requested(ctx, m)
		return nil, nil
	case m.answers(t.injectID):
		if t.injected = true; m.Error != nil {
			return nil, fmt.Errorf("thread/inject_items: %w", m.Error) // the turn is interrupted
		}
		return nil, nil
	case m.answers(t.startID) && m.Error != nil:
		t.started, t.over = true, true
		return nil, fmt.Errorf("turn/start: %w", m.Error)
	case m.answers(t.startID):
		t.started = true
		var r turnStartResult
		if err := json.Unmarshal(m.Result, &r); err != nil || r.Turn.ID == "" {
			err := &ProtocolError{Problem: "turn/start was answered without a turn id"}
			t.c.spoil(err)
			return nil, err
		}
		t.id = r.Turn.ID
		t.heard()
		return nil, nil
	case t.interruptID != 0 && m.answers(t.interruptID):
		t.interrupted = true
		return nil, nil
	case !m.isNotification():
		return nil, nil
	}
	var n notification
	if err := jsonv1.Unmarshal(m.Params, &n); err != nil {
		err := &ProtocolError{Problem: "params of " + m.Method + " cannot be read"}
		t.c.spoil(err)
		return nil, err
	}
	if n.ThreadID != t.thread {
		return nil, nil
	}
	t.heard()
	return t.notified(m.Method, &n)
}

// notified turns a notification of the turn into events. It is one switch over the
// methods, so that their meanings are in one place.
func (t *turn) notified(method string, n *notification) ([]Event, error) {
	switch method {
	case "item/started":
		if n.Item.Type == "contextCompaction" {
			// The history is too long. Codex is about to have the model summarize it, at
			// full price, and to answer the summary instead.
			return nil, &TurnError{Info: InfoContextWindow, Message: "the conversation is longer than the model's context window"}
		}
		t.commentary[n.Item.ID] = n.Item.Phase != nil && *n.Item.Phase == "commentary"
	case "item/agentMessage/delta":
		t.streamed[n.ItemID] = true
		return t.text(n.ItemID, n.Delta), nil
	case "item/completed":
		if !t.streamed[n.Item.ID] { // by an upstream that sends no deltas
			return t.whole(n), nil
		}
	case "item/reasoning/summaryTextDelta":
		t.streamed[n.ItemID] = true
		return t.reason(thought{n.ItemID, n.Part}, n.Delta), nil
	case "rawResponseItem/completed":
		t.rawItem(n)
	case "rawResponse/completed":
		return t.responded(n), nil
	case "thread/tokenUsage/updated":
		if u := Usage(n.TokenUsage.Total); u.Plausible() {
			t.usage = u
			return []Event{u}, nil
		}
	case "error":
		if n.WillRetry && n.Error != nil && t.hasText {
			// The retry would repeat the answer from its beginning.
			return nil, n.Error.turnError()
		}
	case "turn/completed":
		t.over = true
		return t.completed(n)
	}
	return nil, nil
}

func (t *turn) text(item, text string) []Event {
	if text == "" {
		return nil
	}
	if t.commentary[item] {
		return t.reason(thought{item: item}, text)
	}
	t.hasText = true
	return []Event{TextDelta{Text: text}}
}

// whole is the text of an item that came in one piece.
func (t *turn) whole(n *notification) (events []Event) {
	switch n.Item.Type {
	case "agentMessage":
		return t.text(n.Item.ID, n.Item.Text)
	case "reasoning":
		var parts []string
		json.Unmarshal(n.Item.Summary, &parts) // one that cannot be read is as if it were not there
		for i, text := range parts {
			events = append(events, t.reason(thought{n.Item.ID, int64(i)}, text)...)
		}
	}
	return events
}

// reason is a piece of the reasoning, with an empty line where another part begins.
func (t *turn) reason(of thought, text string) []Event {
	if text == "" {
		return nil
	}
	if t.thought != nil && *t.thought != of {
		text = "\n\n" + text
	}
	t.thought = &of
	return []Event{ReasoningDelta{Text: text}}
}

// completed reads the end of the turn. Codex reports an answer that the upstream cut
// short as a failure, with the reason in a sentence.
func (t *turn) completed(n *notification) ([]Event, error) {
	switch {
	case n.Turn.Status == "completed":
		return []Event{Completed{Finish: FinishStop}}, nil
	case n.Turn.Error == nil:
		return nil, &TurnError{Info: n.Turn.Status, Message: "the turn ended as " + n.Turn.Status}
	case strings.HasSuffix(n.Turn.Error.Message, "reason: max_output_tokens"):
		return t.cut(n.Turn.ID, FinishLength), nil
	case strings.HasSuffix(n.Turn.Error.Message, "reason: content_filter"):
		return t.cut(n.Turn.ID, FinishContentFilter), nil
	}
	return nil, n.Turn.Error.turnError()
}

// cut is the end of an answer that was cut short. Its calls are complete.
func (t *turn) cut(id string, finish Finish) []Event {
	if calls := t.calls[id]; len(calls) > 0 {
		return []Event{ToolCalls{Calls: calls}, Completed{Finish: finish}}
	}
	return []Event{Completed{Finish: finish}}
}

// interrupt sends turn/interrupt, once, as soon as the turn has an id.
func (t *turn) interrupt(ctx context.Context) {
	if t.interruptID != 0 || t.id == "" || t.over {
		return
	}
	ctx, cancel := t.c.callContext(ctx)
	defer cancel()
	t.interruptID, _ = t.c.send(ctx, "turn/interrupt", turnInterruptParams{ThreadID: t.thread, TurnID: t.id}) // an error spoils the child
}

// end makes sure that the turn is over: a second turn/start on a busy thread would
// steer the old turn, and an abandoned turn costs the caller money. It interrupts the
// turn, then waits for turn/completed and for the answers to our own requests.
func (t *turn) end(ctx context.Context) {
	ctx, cancel := Patience(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	for !t.over || !t.injected || !t.started || (t.interruptID != 0 && !t.interrupted) {
		t.interrupt(ctx)
		if t.c.Err() != nil {
			return
		}
		m, err := t.c.inbox.next(ctx, nil, nil)
		if err != nil {
			t.c.spoil(err)
			return
		}
		t.handle(ctx, m) // its events are dropped
	}
}
