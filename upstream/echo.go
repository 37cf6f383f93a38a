package upstream

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// Echo is a model that needs no network. It streams the last user message back,
// word by word, with delay before each word, and counts words as tokens. It serves
// POST /v1/responses as the OpenAI API does with "stream": true, event for event, and
// supports the fields of [EchoModel].
func Echo(delay time.Duration) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/responses", func(w http.ResponseWriter, r *http.Request) {
		var req responsesRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			http.Error(w, `{"error":{"message":"the body is not a Responses request","type":"invalid_request_error"}}`, http.StatusBadRequest)
			return
		}
		e := echo{w: w, req: req, id: rand.Text(), created: time.Now().Unix()}
		e.answer(r.Context(), delay)
	})
	return mux
}

// responsesRequest is the part of a Responses request that the echo reads.
type responsesRequest struct {
	Model           string    `json:"model"`
	MaxOutputTokens *int      `json:"max_output_tokens"`
	Instructions    *string   `json:"instructions"`
	Input           echoInput `json:"input"`
}

// echoInput is the items of a conversation. A string is the message of a user.
type echoInput []struct {
	Role    string   `json:"role"`
	Content echoText `json:"content"`
}

// UnmarshalJSON implements [json.Unmarshaler].
func (i *echoInput) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		data, _ = json.Marshal([]map[string]string{{"role": "user", "content": text}})
	}
	type items echoInput
	return json.Unmarshal(data, (*items)(i))
}

// echoText is the text of a message: a string, or parts.
type echoText string

// UnmarshalJSON implements [json.Unmarshaler].
func (t *echoText) UnmarshalJSON(data []byte) error {
	if json.Unmarshal(data, (*string)(t)) == nil {
		return nil
	}
	var parts []struct{ Text string }
	err := json.Unmarshal(data, &parts)
	for _, p := range parts {
		*t += echoText(p.Text)
	}
	return err
}

// lastUser returns the text of the last user message, and how many words the
// whole input has.
func (req responsesRequest) lastUser() (last string, count int) {
	for _, item := range req.Input {
		count += len(strings.Fields(string(item.Content)))
		if item.Role == "user" {
			last = string(item.Content)
		}
	}
	return last, count
}

// echo is one answer that is being written.
type echo struct {
	w       http.ResponseWriter
	req     responsesRequest
	id      string
	created int64
	next    int // sequence_number
}

// members are those of a JSON object.
type members = map[string]any

// answer writes the answer. It stops when ctx ends.
func (e *echo) answer(ctx context.Context, delay time.Duration) {
	answer, input := e.req.lastUser()
	pieces, end := words(answer), "completed"
	if most := e.req.MaxOutputTokens; most != nil && *most < len(pieces) {
		pieces, end = pieces[:*most], "incomplete"
		answer = strings.Join(pieces, "")
	}
	message := func(status string, content ...any) members {
		return members{"type": "message", "id": "msg_" + e.id, "role": "assistant", "status": status, "content": append([]any{}, content...)}
	}
	part := func(text string) members {
		return members{"type": "output_text", "text": text, "annotations": []any{}, "logprobs": []any{}}
	}
	ofItem := func(fields members) members {
		fields["item_id"], fields["output_index"], fields["content_index"] = "msg_"+e.id, 0, 0
		return fields
	}

	e.w.Header().Set("Content-Type", "text/event-stream")
	e.send("response.created", members{"response": e.response("in_progress", nil)})
	e.send("response.in_progress", members{"response": e.response("in_progress", nil)})
	e.send("response.output_item.added", members{"output_index": 0, "item": message("in_progress")})
	e.send("response.content_part.added", ofItem(members{"part": part("")}))
	for _, word := range pieces {
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		e.send("response.output_text.delta", ofItem(members{"delta": word, "logprobs": []any{}}))
	}
	e.send("response.output_text.done", ofItem(members{"text": answer, "logprobs": []any{}}))
	e.send("response.content_part.done", ofItem(members{"part": part(answer)}))
	whole := message(end, part(answer))
	e.send("response.output_item.done", members{"output_index": 0, "item": whole})
	output := len(strings.Fields(answer))
	e.send("response."+end, members{"response": e.response(end, members{
		"input_tokens": input, "input_tokens_details": members{"cached_tokens": 0},
		"output_tokens": output, "output_tokens_details": members{"reasoning_tokens": 0},
		"total_tokens": input + output,
	}, whole)})
}

// send writes one event.
func (e *echo) send(kind string, fields members) {
	fields["type"], fields["sequence_number"] = kind, e.next
	e.next++
	data, err := json.Marshal(fields)
	if err != nil {
		panic("BUG: an event that JSON cannot hold: " + err.Error())
	}
	fmt.Fprintf(e.w, "event: %s\ndata: %s\n\n", kind, data)
	_ = http.NewResponseController(e.w).Flush() // a recorder in a test may have none
}

// response is the whole answer so far, with all that the published reference requires.
func (e *echo) response(status string, usage members, output ...any) members {
	r := members{
		"id": "resp_" + e.id, "object": "response", "created_at": e.created, "status": status, "model": e.req.Model,
		"output": append([]any{}, output...), "usage": usage, "error": nil, "incomplete_details": nil,
		"instructions": e.req.Instructions, "max_output_tokens": e.req.MaxOutputTokens, "metadata": members{},
		"parallel_tool_calls": true, "previous_response_id": nil, "reasoning": members{"effort": nil, "summary": nil},
		"store": false, "temperature": 1, "text": members{"format": members{"type": "text"}}, "tool_choice": "auto",
		"tools": []any{}, "top_p": 1, "truncation": "disabled",
	}
	if status == "incomplete" {
		r["incomplete_details"] = members{"reason": "max_output_tokens"}
	}
	return r
}

// words cuts s before each word; the pieces together are s.
func words(s string) []string {
	var pieces []string
	start, inSpace := 0, true
	for i, r := range s {
		space := unicode.IsSpace(r)
		if space && !inSpace && i > start {
			pieces = append(pieces, s[start:i])
			start = i
		}
		inSpace = space
	}
	if start < len(s) {
		pieces = append(pieces, s[start:])
	}
	return pieces
}
