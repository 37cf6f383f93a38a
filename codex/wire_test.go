package codex

import (
	"bytes"
	"strings"
	"testing"
	"testing/iotest"
)

func FuzzLines(f *testing.F) {
	f.Add([]byte("{\"id\":1,\"result\":{}}\n{\"method\":\"a\"}\n"))
	f.Add([]byte("\n \r\n{\"id\":0,\"method\":\"a\",\"params\":null}\nhalf a li"))
	f.Add([]byte("{\"id\":null}\n[]\n\"\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// However the bytes are split, the same messages come out.
		whole := readAll(newLineReader(bytes.NewReader(data)))
		bytewise := readAll(newLineReader(iotest.OneByteReader(bytes.NewReader(data))))
		if whole != bytewise {
			t.Errorf("whole:\n%s\nbyte by byte:\n%s", whole, bytewise)
		}
	})
}

func readAll(r *lineReader) string {
	var b strings.Builder
	for {
		m, err := r.next()
		if err != nil {
			return b.String() + err.Error()
		}
		if m.isRequest() == m.isNotification() && m.Method != "" {
			return "BUG: neither or both"
		}
		b.WriteString(m.Method + " " + string(m.ID) + " " + string(m.Params) + "\n")
	}
}

func TestLinesMayBeLongerThanTheBuffer(t *testing.T) {
	long := `{"method":"m","params":"` + strings.Repeat("x", 3<<20) + `"}` + "\n"
	r := newLineReader(strings.NewReader(long + long))
	for range 2 {
		if m, err := r.next(); err != nil || len(m.Params) != 3<<20+2 {
			t.Fatalf("%d bytes, %v", len(m.Params), err)
		}
	}
}
