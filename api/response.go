package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// response is the ResponseWriter of one request, with what is reported about it
// afterwards. Only the handler's goroutine uses it.
type response struct {
	http.ResponseWriter
	result       Result // as far as the handler knows it
	access       access
	control      *http.ResponseController
	writeTimeout time.Duration
	end          time.Time // of the last write, however well the client reads; zero = none

	began    time.Time
	status   int  // 0 until the header was sent
	stream   bool // the header with text/event-stream was sent
	child    int  // pid of the child that served it; 0 where there was none, or several choices
	caller   Caller
	failed   func(*Error) []byte // what tells the reader of a stream of an error; nil = a frame with its body
	told     bool                // the provider's own event has told it
	bypassed bool                // /verify let it pass without a key that may
	retried  atomic.Bool         // set by the goroutine of a choice
}

func newResponse(w http.ResponseWriter, writeTimeout time.Duration) *response {
	return &response{ResponseWriter: w, control: http.NewResponseController(w), writeTimeout: writeTimeout, began: time.Now()}
}

// Unwrap lets http.ResponseController reach the connection.
func (res *response) Unwrap() http.ResponseWriter { return res.ResponseWriter }

func (res *response) WriteHeader(status int) {
	if res.status == 0 {
		res.status = status
	}
	res.ResponseWriter.WriteHeader(status)
}

// maxPiece is how much of an answer one write takes, in bytes: a client that reads so
// much within the write timeout is not cut, however long an event is.
const maxPiece = 256 << 10

// send writes and flushes, each piece within the write timeout: a client that stops
// reading loses its answer, and does not hold a child.
func (res *response) send(b []byte) error {
	if res.status == 0 {
		res.WriteHeader(http.StatusOK)
	}
	for ; len(b) > maxPiece; b = b[maxPiece:] {
		if err := res.write(b[:maxPiece]); err != nil {
			return err
		}
	}
	if err := res.write(b); err != nil {
		return err
	}
	if err := res.control.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return &goneError{err}
	}
	return nil
}

// write writes one piece. A recorder in a test has no deadlines and may have no Flush.
func (res *response) write(piece []byte) error {
	until := time.Now().Add(res.writeTimeout)
	if !res.end.IsZero() && until.After(res.end) {
		until = res.end
	}
	if err := res.control.SetWriteDeadline(until); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return &goneError{err}
	}
	n, err := res.Write(piece)
	res.access.sent += int64(n)
	if err != nil {
		return &goneError{err}
	}
	return nil
}

// json writes a whole JSON response.
func (res *response) json(status int, v any) error {
	body, err := encode(v)
	if err != nil {
		return err
	}
	return res.rawJSON(status, body)
}

func (res *response) rawJSON(status int, body []byte) error {
	res.Header().Set("Content-Type", "application/json")
	res.Header().Set("Content-Length", strconv.Itoa(len(body)))
	res.WriteHeader(status)
	return res.send(body)
}

// sse sends the header of a stream.
func (res *response) sse() {
	h := res.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache, no-transform")
	h.Set("X-Accel-Buffering", "no")
	res.stream = true
	res.WriteHeader(http.StatusOK)
}

// token notes that the first text is here.
func (res *response) token() {
	if res.result.FirstToken == 0 {
		res.result.FirstToken = time.Since(res.began)
	}
}

// finish writes the error of a request, if it has one, in the way that is still
// possible. It returns true if the connection must be cut.
func (res *response) finish(e *Error) (abort bool) {
	switch {
	case e == nil:
		return false
	case e.Status == StatusClientGone:
		if res.status == 0 {
			res.status = StatusClientGone
		}
		return true
	case res.status == 0:
		e.header(res.Header())
		res.json(e.Status, e.body()) // a client that cannot read its error has disconnected
		return false
	case res.told:
		return false
	case res.failed != nil:
		res.send(res.failed(e))
	case res.stream:
		if body, err := encode(e.body()); err == nil {
			res.send(frame(nil, body))
		}
	}
	return true
}

// lingerTime is how long a client may take to read what was sent before the connection
// is cut.
const lingerTime = time.Second

// linger lets the client of a stream read what is on its way, and the error: some HTTP
// libraries drop what they have not read when a connection is cut. ctx is the request's;
// it ends when the client disconnects or the daemon stops.
func (res *response) linger(ctx context.Context, e *Error) {
	if !res.stream || e.Status == StatusClientGone {
		return
	}
	timer := time.NewTimer(lingerTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// encode is json.Marshal without the escapes that are for HTML, and with a
// newline at the end.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

// nextLine is U+0085 in UTF-8. Some clients split lines there, as Python's splitlines
// does. Of all such characters it is the only one that the encoder leaves as it is.
var nextLine, nextLineEscaped = []byte("\u0085"), []byte(`\u0085`)

// frame appends one SSE event to b. JSON that ends with a newline holds no other.
func frame(b, jsonLine []byte) []byte {
	if bytes.Contains(jsonLine, nextLine) {
		jsonLine = bytes.ReplaceAll(jsonLine, nextLine, nextLineEscaped)
	}
	b = append(b, "data: "...)
	b = append(b, jsonLine...)
	return append(b, '\n')
}
