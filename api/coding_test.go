package api_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/klauspost/compress/zstd"
)

// gzipped is a text in the coding gzip.
func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, text)
	w.Close()
	return b.String()
}

// zstandard is a text in the coding zstd, with a window of so many bytes.
func zstandard(t *testing.T, text string, window int) string {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text[:1]) // in two pieces, so that the frame does not name its size
	w.Flush()
	io.WriteString(w, text[1:])
	w.Close()
	return b.String()
}

func TestBodiesMayBeCompressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		bomb := `{"messages":[{"role":"user","content":"` + strings.Repeat("x", 8<<20) + `"}]}`
		for name, tt := range map[string]struct {
			coding, body string
			want         int
		}{
			"gzip":                    {"gzip", gzipped(hello), 200},
			"in capitals":             {"GZIP", gzipped(hello), 200},
			"zstd":                    {"zstd", zstandard(t, hello, 1<<20), 200},
			"none":                    {"identity", hello, 200},
			"a large one in gzip":     {"gzip", gzipped(bomb), 413},
			"a large one in zstd":     {"zstd", zstandard(t, bomb, 1<<20), 413},
			"half a gzip":             {"gzip", gzipped(hello)[:30], 400},
			"half a zstd":             {"zstd", zstandard(t, hello, 1<<20)[:30], 400},
			"a window of much memory": {"zstd", zstandard(t, hello, 16<<20), 400},
			"no gzip":                 {"gzip", hello, 400},
		} {
			a := h.do(t, withHeader(chat(tt.body), "Content-Encoding", tt.coding))
			if a.Code != tt.want || (a.Code == 200 && !strings.Contains(a.Body.String(), `"content":"hi"`)) {
				t.Errorf("%s: %d %s", name, a.Code, a.Body)
			}
		}
	})
}
