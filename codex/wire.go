package codex

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	jsonv1 "github.com/go-json-experiment/json/v1"
)

// maxLine bounds one line of the child, in bytes. The longest lines repeat a whole
// answer, half a megabyte for 128,000 tokens. In a turn with tools they repeat one item
// of the history, which may be as long as a request, and a little more.
const maxLine = 17 << 20

// message is one line from the child: a request (method and id), a notification
// (method), or an answer (id). app-server omits the "jsonrpc" member.
type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *RPCError       `json:"error"`

	size int // bytes of the line
}

func (m message) isRequest() bool { return m.Method != "" && m.ID != nil }

func (m message) isNotification() bool { return m.Method != "" && m.ID == nil }

func (m message) answers(id int64) bool {
	return m.Method == "" && string(m.ID) == strconv.FormatInt(id, 10)
}

// outgoing is one line to the child. ID is an *int64 (ours) or the raw id of
// the child's request, which may be 0: hence no plain integer with omitempty.
type outgoing struct {
	ID     any       `json:"id,omitempty"`
	Method string    `json:"method,omitempty"`
	Params any       `json:"params,omitempty"`
	Result any       `json:"result,omitempty"`
	Error  *RPCError `json:"error,omitempty"`
}

// decode reads one line.
func decode(line []byte) (message, error) {
	m := message{size: len(line)}
	if err := jsonv1.Unmarshal(line, &m); err != nil {
		return message{}, &ProtocolError{Problem: fmt.Sprintf("a line of %d bytes is not a message", len(line))}
	}
	if bytes.Equal(m.ID, []byte("null")) {
		m.ID = nil
	}
	if m.Method == "" && m.ID == nil {
		return message{}, &ProtocolError{Problem: "a message has neither method nor id"}
	}
	return m, nil
}

// lineReader reads messages, one a line, each at most maxLine bytes.
type lineReader struct {
	r   *bufio.Reader
	buf []byte // a line longer than r's buffer
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 16<<10)}
}

// next returns the next message, a *ProtocolError, or the error that ended the stream.
// Half a line at the end is dropped: its writer died.
func (l *lineReader) next() (message, error) {
	for {
		line, err := l.line()
		if err != nil {
			return message{}, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return decode(line)
		}
	}
}

// line returns bytes that are valid until the next call.
func (l *lineReader) line() ([]byte, error) {
	chunk, err := l.r.ReadSlice('\n')
	if err == nil {
		return chunk, nil
	}
	l.buf = append(l.buf[:0], chunk...)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(l.buf) > maxLine {
			return nil, &ProtocolError{Problem: fmt.Sprintf("a line is longer than %d bytes", maxLine)}
		}
		chunk, err = l.r.ReadSlice('\n')
		l.buf = append(l.buf, chunk...)
	}
	line := l.buf
	if cap(l.buf) > 1<<20 {
		l.buf = nil // one long line must not hold memory for the child's whole life
	}
	return line, err
}

// drain reads to the end and drops it.
func (l *lineReader) drain() { io.Copy(io.Discard, l.r) }
