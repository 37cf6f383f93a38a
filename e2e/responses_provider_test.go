package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// native is a provider for clients of the Responses API. The last text of the user is the
// name of a scenario, as for [provider]. It sends each event that the API has.
type native struct {
	*httptest.Server
	t     testing.TB
	ended chan struct{} // the request that never ends has ended

	mu     sync.Mutex
	bodies map[string][]string // of the requests, by scenario; guarded by mu
}

func newNative(t testing.TB) *native {
	t.Helper()
	n := &native{t: t, ended: make(chan struct{}, 1), bodies: map[string][]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/responses", n.respond)
	mux.HandleFunc("POST /left", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-n.ended:
		case <-time.After(time.Second):
			http.Error(w, "a second later the provider's request still runs", http.StatusGatewayTimeout)
		}
	})
	n.Server = httptest.NewServer(mux)
	t.Cleanup(n.Close)
	return n
}

// said are the bodies of the requests of a scenario.
func (n *native) said(scenario string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bodies[scenario]
}

func (n *native) respond(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req struct{ Input any }
	if err := errors.Join(err, json.Unmarshal(body, &req)); err != nil {
		n.t.Error(err)
		return
	}
	name, asText := req.Input.(string)
	if !asText {
		name = lastSaid(req.Input)
	}
	n.mu.Lock()
	n.bodies[name] = append(n.bodies[name], string(body))
	n.mu.Unlock()
	if code, found := strings.CutPrefix(name, "fail "); found {
		status, _ := strconv.Atoi(code)
		fail(status)(w, r)
		return
	}
	s := begin(w, name)
	switch answered := strings.Contains(string(body), `_call_output"`); {
	case name == "tools" && !answered:
		s.reasoning()
		s.call(weatherCall.ID, weatherCall.Name, weatherCall.Arguments)
		s.call(clockCall.ID, clockCall.Name, clockCall.Arguments)
	case name == "tools":
		s.text("At noon", " it is 7 degrees.")
	case name == "custom tool" && !answered:
		s.custom("call_p", "apply_patch", "*** Begin Patch\n+\"é\"\n*** End Patch")
	case name == "handoff" && !answered:
		s.call("call_h", "transfer_to_poet", `{}`)
	case name == "structured output":
		s.text(`{"city":"Oslo",`, `"degrees":7}`)
	case name == "failed":
		s.text("Hal")
		s.fail()
		return
	case name == "cut":
		s.text("Hal")
		panic(http.ErrAbortHandler)
	case name == "abort":
		s.open()
		s.delta("Well")
		<-r.Context().Done()
		n.ended <- struct{}{}
		return
	default:
		s.reasoning()
		s.text("Hello", " there.")
	}
	s.end()
}

// sequence is an answer that is being written, with each event of it.
type sequence struct {
	w       http.ResponseWriter
	name    string
	next    int // sequence_number
	output  []any
	message string // its text so far
}

// members are those of a JSON object.
type members = map[string]any

func begin(w http.ResponseWriter, name string) *sequence {
	w.Header().Set("Content-Type", "text/event-stream")
	s := &sequence{w: w, name: strings.ReplaceAll(name, " ", "_"), output: []any{}}
	s.event("response.created", members{"response": s.response("in_progress")})
	s.event("response.in_progress", members{"response": s.response("in_progress")})
	return s
}

func (s *sequence) event(kind string, fields members) {
	fields["type"], fields["sequence_number"] = kind, s.next
	s.next++
	data, _ := json.Marshal(fields)
	fmt.Fprintf(s.w, "event: %s\ndata: %s\n\n", kind, data)
	http.NewResponseController(s.w).Flush()
}

func (s *sequence) response(status string) members {
	return members{
		"id": "resp_" + s.name, "object": "response", "created_at": 1761000000, "status": status, "model": "gpt-provider", "output": s.output,
		"error": nil, "incomplete_details": nil, "instructions": nil, "metadata": members{}, "parallel_tool_calls": true, "temperature": 1, "tool_choice": "auto",
		"tools": []any{}, "top_p": 1, "usage": nil, "text": members{"format": members{"type": "text"}}, "store": true,
	}
}

// at is the place of the item that is being written.
func (s *sequence) at(fields members) members {
	fields["output_index"] = len(s.output)
	return fields
}

func (s *sequence) added(item members) {
	s.event("response.output_item.added", s.at(members{"item": item}))
}

func (s *sequence) done(item members) {
	s.event("response.output_item.done", s.at(members{"item": item}))
	s.output = append(s.output, item)
}

func (s *sequence) reasoning() {
	item := members{"type": "reasoning", "id": "rs_" + s.name, "summary": []any{}, "encrypted_content": "gAAAAAB+/="}
	s.added(item)
	s.done(item)
}

func (s *sequence) messageItem(status string, content ...any) members {
	return members{"type": "message", "id": "msg_" + s.name, "role": "assistant", "status": status, "content": append([]any{}, content...)}
}

func (s *sequence) part(text string) members {
	return members{"type": "output_text", "text": text, "annotations": []any{}, "logprobs": []any{}}
}

func (s *sequence) inMessage(fields members) members {
	fields["item_id"], fields["content_index"] = "msg_"+s.name, 0
	return s.at(fields)
}

func (s *sequence) open() {
	s.added(s.messageItem("in_progress"))
	s.event("response.content_part.added", s.inMessage(members{"part": s.part("")}))
}

func (s *sequence) delta(text string) {
	s.message += text
	s.event("response.output_text.delta", s.inMessage(members{"delta": text, "logprobs": []any{}}))
}

// text writes a message.
func (s *sequence) text(deltas ...string) {
	s.open()
	for _, d := range deltas {
		s.delta(d)
	}
	s.event("response.output_text.done", s.inMessage(members{"text": s.message, "logprobs": []any{}}))
	s.event("response.content_part.done", s.inMessage(members{"part": s.part(s.message)}))
	s.done(s.messageItem("completed", s.part(s.message)))
}

func (s *sequence) call(id, name, arguments string) {
	item := func(status, arguments string) members {
		return members{"type": "function_call", "id": "fc_" + id, "call_id": id, "name": name, "arguments": arguments, "status": status}
	}
	s.added(item("in_progress", ""))
	s.event("response.function_call_arguments.delta", s.at(members{"item_id": "fc_" + id, "delta": arguments}))
	s.event("response.function_call_arguments.done", s.at(members{"item_id": "fc_" + id, "name": name, "arguments": arguments}))
	s.done(item("completed", arguments))
}

func (s *sequence) custom(id, name, input string) {
	item := func(status, input string) members {
		return members{"type": "custom_tool_call", "id": "ctc_" + id, "call_id": id, "name": name, "input": input, "status": status}
	}
	s.added(item("in_progress", ""))
	s.event("response.custom_tool_call_input.delta", s.at(members{"item_id": "ctc_" + id, "delta": input}))
	s.event("response.custom_tool_call_input.done", s.at(members{"item_id": "ctc_" + id, "input": input}))
	s.done(item("completed", input))
}

func (s *sequence) end() {
	r := s.response("completed")
	r["usage"] = members{
		"input_tokens": 7, "input_tokens_details": members{"cached_tokens": 0}, "output_tokens": 3, "output_tokens_details": members{"reasoning_tokens": 1}, "total_tokens": 10,
	}
	s.event("response.completed", members{"response": r})
}

func (s *sequence) fail() {
	r := s.response("failed")
	r["error"] = members{"code": "server_error", "message": "The provider's words."}
	s.event("response.failed", members{"response": r})
}
