package upstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// maxEvent is the largest event, in bytes. An answer has half a megabyte at most,
	// and Codex needs a minute for an event of 30 MB.
	maxEvent = 8 << 20

	maxRest  = 1 << 20         // of a provider's body behind the last event, bytes
	restTime = 5 * time.Second // until that body must have ended, or that of an error
)

// flow is a provider's stream on its way to a child. It watches the events that
// pass, and reads on to the end when the child has disconnected after the last.
type flow struct {
	call      *Call
	body      io.ReadCloser
	received  func(bytes int)
	lines     lineWatch
	completed atomic.Bool // the last event has passed, such as response.completed
}

// Read reads from the provider's body, and watches what it read.
func (f *flow) Read(b []byte) (int, error) {
	n, err := f.body.Read(b)
	f.received(n)
	f.lines.watch(b[:n], f.event)
	if len(f.lines.line) > maxEvent {
		f.call.failure.Store(&Failure{Status: http.StatusOK, Code: "event_too_long"})
		return 0, errors.New("an event is too long")
	}
	return n, err
}

// Close ends the provider's request. After the last event it first reads the rest,
// so that the connection can be used again.
func (f *flow) Close() error {
	if f.completed.Load() {
		copyRest(io.Discard, f.body, maxRest)
	}
	return f.body.Close()
}

// watched are the types of event that the relay decodes. All others, which are
// nearly all, pass without being decoded.
var watched = [][]byte{[]byte("response.completed"), []byte("response.incomplete"), []byte("response.failed"), []byte("response.refusal.done"), []byte(`"error"`)}

// event looks at the data of one event.
func (f *flow) event(data []byte) {
	if !slices.ContainsFunc(watched, func(kind []byte) bool { return bytes.Contains(data, kind) }) {
		return
	}
	var e struct {
		Type     string          `json:"type"`
		Refusal  string          `json:"refusal"`
		Response json.RawMessage `json:"response"`
	}
	_ = json.Unmarshal(data, &e) // data that is not JSON has no type, and only passes
	switch e.Type {
	case "response.completed", "response.incomplete":
		f.completed.Store(true)
	case "response.refusal.done":
		f.call.refusal.Store(&e.Refusal)
	case "response.failed":
		f.fail(e.Response)
	case "error":
		f.fail(data)
	}
}

// fail keeps the error that a stream reports in its last event.
func (f *flow) fail(report []byte) {
	f.completed.Store(true)
	failure := ParseFailure(report)
	failure.Status = http.StatusOK
	f.call.failure.Store(failure)
}

// copyRest copies the rest of body into w: at most so many bytes, and only those
// that come within restTime.
func copyRest(w io.Writer, body io.ReadCloser, most int64) {
	timer := time.AfterFunc(restTime, func() { body.Close() }) // which ends a read
	defer timer.Stop()
	_, _ = io.CopyN(w, body, most)
}

// lineWatch cuts a stream into lines and passes on those that are data. Its owner
// ends a stream whose line grows too long.
type lineWatch struct{ line []byte }

func (l *lineWatch) watch(b []byte, data func([]byte)) {
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte("\n"))
		l.line = append(l.line, part...)
		if ended {
			if d, ok := bytes.CutPrefix(l.line, []byte("data:")); ok {
				data(bytes.TrimSpace(d))
			}
			l.line = l.line[:0]
		}
		b = rest
	}
}
