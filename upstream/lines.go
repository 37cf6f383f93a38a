package upstream

import "bytes"

// lines cuts a stream of server-sent events into the data of each. It keeps at most
// most bytes of one event.
type lines struct {
	most int
	keep bool   // raw too
	line []byte // that has not ended
	data []byte // of the event that has not ended
	raw  []byte // all that came since the last event
	cut  bool   // the stream has ended, in the middle of an event
}

// add takes the next bytes of the stream and calls event with the data of each event
// that ends in them; the data is valid until event returns. It returns false for an
// event that is too long, or if event does.
func (l *lines) add(b []byte, event func(data []byte) bool) bool {
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte("\n"))
		if l.keep {
			l.raw = append(l.raw, b[:len(b)-len(rest)]...)
		}
		b = rest
		if max(len(l.line)+len(part)+len(l.data), len(l.raw)) > l.most {
			return false
		}
		if !ended {
			l.line = append(l.line, part...)
			continue
		}
		line := part
		if len(l.line) > 0 {
			l.line = append(l.line, part...)
			line, l.line = l.line, l.line[:0]
		}
		if !l.end(bytes.TrimSuffix(line, []byte("\r")), event) {
			return false
		}
	}
	return true
}

// close calls event with the data of an event that the end of the stream cut off
// before its empty line.
func (l *lines) close(event func(data []byte) bool) {
	l.cut = true
	if l.end(bytes.TrimSuffix(l.line, []byte("\r")), event) {
		l.end(nil, event)
	}
}

// take returns all bytes of the event whose data was just given, and what came before it.
func (l *lines) take() (raw []byte) {
	raw, l.raw = l.raw, nil
	return raw
}

// end takes one whole line.
func (l *lines) end(line []byte, event func(data []byte) bool) bool {
	if len(line) == 0 {
		if len(l.data) == 0 {
			return true
		}
		data := l.data
		l.data = l.data[:0]
		return event(data)
	}
	value, ok := bytes.CutPrefix(line, []byte("data:"))
	if !ok {
		return true // a comment, or the event's name, which its data has too
	}
	if len(l.data) > 0 {
		l.data = append(l.data, '\n')
	}
	l.data = append(l.data, bytes.TrimPrefix(value, []byte(" "))...)
	return true
}
