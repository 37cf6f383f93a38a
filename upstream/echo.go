package upstream

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
)

// Echo is a model that needs no network. It streams the last user message back,
// word by word, with delay before each word, and counts words as tokens. It serves
// POST /v1/responses as the OpenAI API does with "stream": true, and supports the
// fields of [EchoModel].
func Echo(delay time.Duration) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/responses", func(w http.ResponseWriter, r *http.Request) {
		var req responsesRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			http.Error(w, `{"error":{"message":"the body is not a Responses request","type":"invalid_request_error"}}`, http.StatusBadRequest)
			return
		}
		echo(w, r, req, delay)
	})
	return mux
}

// responsesRequest is the part of a Responses request that the echo reads.
type responsesRequest struct {
	MaxOutputTokens *int `json:"max_output_tokens"`
	Input           []struct {
		Type    string `json:"type"`
		Role    string `json:"role"`
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
	} `json:"input"`
}

// lastUser returns the text of the last user message, and how many words the
// whole input has.
func (req responsesRequest) lastUser() (last string, count int) {
	for _, item := range req.Input {
		var b strings.Builder
		for _, part := range item.Content {
			b.WriteString(part.Text)
		}
		count += len(strings.Fields(b.String()))
		if item.Role == "user" {
			last = b.String()
		}
	}
	return last, count
}

// echo writes one answer. It stops when its client disconnects.
func echo(w http.ResponseWriter, r *http.Request, req responsesRequest, delay time.Duration) {
	answer, input := req.lastUser()
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	send := func(kind string, fields map[string]any) {
		fields["type"] = kind
		data, err := json.Marshal(fields)
		if err != nil {
			panic("BUG: an event that JSON cannot hold: " + err.Error())
		}
		fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, data)
		flush()
	}
	message := func(status string, content ...any) map[string]any {
		return map[string]any{"type": "message", "id": "msg_echo", "role": "assistant", "status": status, "content": append([]any{}, content...)}
	}

	send("response.created", map[string]any{"response": map[string]any{"id": "resp_echo"}})
	send("response.output_item.added", map[string]any{"output_index": 0, "item": message("in_progress")})
	pieces, end := words(answer), "completed"
	if most := req.MaxOutputTokens; most != nil && *most < len(pieces) {
		pieces, end = pieces[:*most], "incomplete"
		answer = strings.Join(pieces, "")
	}
	for _, word := range pieces {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(delay):
		}
		send("response.output_text.delta", map[string]any{"item_id": "msg_echo", "output_index": 0, "content_index": 0, "delta": word})
	}
	send("response.output_item.done", map[string]any{"output_index": 0, "item": message(end,
		map[string]any{"type": "output_text", "text": answer, "annotations": []any{}})})
	output := len(strings.Fields(answer))
	response := map[string]any{"id": "resp_echo", "status": end, "usage": map[string]any{
		"input_tokens": input, "input_tokens_details": map[string]any{"cached_tokens": 0},
		"output_tokens": output, "output_tokens_details": map[string]any{"reasoning_tokens": 0},
		"total_tokens": input + output,
	}}
	if end == "incomplete" {
		response["incomplete_details"] = map[string]any{"reason": "max_output_tokens"}
	}
	send("response."+end, map[string]any{"response": response})
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
