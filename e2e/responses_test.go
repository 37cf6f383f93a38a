package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codexpool/codex/codextest"
)

// newNative is one request to the Responses API.
func (d *daemon) newNative(body []byte) *http.Request {
	d.t.Helper()
	req := d.newRequest("")
	req.URL.Path = "/v1/responses"
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return req
}

// respond sends a request to the Responses API and reads the answer to its end.
func (d *daemon) respond(body []byte) (*http.Response, []byte, error) {
	d.t.Helper()
	res, err := http.DefaultClient.Do(d.newNative(body))
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res, answer, err
}

// exchanged are the streams of testdata/responses, by name, as a provider sends them.
func exchanged(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/responses/*.sse")
	if err != nil || len(paths) == 0 {
		t.Fatal("no streams", err)
	}
	streams := map[string][]byte{}
	for _, path := range paths {
		stream, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		stream = bytes.Replace(stream, []byte("TEN_MEGABYTES"), bytes.Repeat([]byte("iVBORw0KGgo/"), 10<<20/12), 1)
		name := strings.TrimSuffix(filepath.Base(path), ".sse")
		streams[name] = stream
		if name == "text" {
			streams["text, with CRLF"] = bytes.ReplaceAll(stream, []byte("\n"), []byte("\r\n"))
		}
	}
	return streams
}

// inPieces sends a stream in pieces of other sizes than its events.
func inPieces(stream []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		rest := stream
		for len(rest) > 0 {
			n := min(1+rand.IntN(max(len(stream)/20, 300)), len(rest))
			w.Write(rest[:n])
			http.NewResponseController(w).Flush()
			rest = rest[n:]
		}
	}
}

// rested waits until the one child is idle again. It returns its pid, and the files on
// disk.
func (d *daemon) rested() (pid int, files string) {
	d.t.Helper()
	d.full(1)
	err := filepath.WalkDir(d.workdir, func(path string, _ fs.DirEntry, err error) error {
		files += path + "\n"
		return err
	})
	if err != nil {
		d.t.Error(err)
	}
	return d.children()[0], files
}

// TestResponsesAreExactInBothDirections has what a provider says, and what callers send.
func TestResponsesAreExactInBothDirections(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "CODEX_MODEL=gpt-5.5")
	if res, answer, err := d.respond([]byte(`{"input":"hi"}`)); err != nil || res.StatusCode != 200 {
		t.Fatal(err, string(answer))
	}
	pid, files := d.rested()
	asked := len(up.Bodies())

	// exchange sends a body; sent is what the provider must get.
	exchange := func(t *testing.T, body, sent string, want []byte) {
		t.Helper()
		res, answer, err := d.respond([]byte(body))
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%v %.300s", err, answer)
		}
		if !bytes.Equal(answer, want) {
			t.Errorf("the client got %d bytes otherwise\n%.2000s\nwant\n%.2000s", len(answer), answer, want)
		}
		bodies := up.Bodies()
		if asked++; len(bodies) != asked {
			t.Errorf("the provider was asked %d times, want %d", len(bodies), asked)
		}
		if got := bodies[len(bodies)-1]; string(got) != sent {
			t.Errorf("the provider got\n%.2000s\nwant\n%.2000s", got, sent)
		}
		if nowPid, nowFiles := d.rested(); nowPid != pid || nowFiles != files {
			t.Errorf("child %d, was %d; files\n%swere\n%s", nowPid, pid, nowFiles, files)
		}
	}

	for name, stream := range exchanged(t) {
		t.Run(name, func(t *testing.T) {
			up.Script(inPieces(stream))
			exchange(t, `{"model":"gpt-5.5","stream":true,"input":"hi"}`, `{"model":"gpt-5.5","stream":true,"input":"hi"}`, stream)
			lines := bytes.Split(bytes.TrimSpace(stream), []byte("\ndata: "))
			var last struct{ Response json.RawMessage }
			if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil {
				t.Fatal(err)
			}
			exchange(t, `{"model":"codex-5","stream":false,"input":"hi"}`, `{"model":"gpt-5.5","stream":true,"input":"hi"}`, last.Response)
		})
	}

	stream := exchanged(t)["text"]
	deep := strings.Repeat(`{"type":"object","properties":{"a":`, 100) + `{}` + strings.Repeat("}}", 100)
	for name, rest := range map[string]string{
		"unknown":   `"hologram":{"a":[1,null,{"b":"\ud83e"}]},"input":[{"type":"hologram","x":1.50},{"type":"item_reference","id":"rs_1"},7]`,
		"escapes":   `"input": "\u00e9\/\u2028 🧪 <b>&\t\ud83e",` + "\r\n\t" + `"metadata" : {"a":"b"}`,
		"numbers":   `"seed":123456789012345678901234567890,"temperature":1e400,"top_p":0.1000`,
		"a schema":  `"text":{"format":{"type":"json_schema","name":"n","schema":` + deep + `}}`,
		"reasoning": `"include":["reasoning.encrypted_content"],"input":[{"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":"gAAA/+="}],"previous_response_id":"resp_1"`,
		"tools":     `"tools":[{"type":"custom","name":"apply_patch","format":{"type":"grammar","syntax":"lark","definition":"start: x"}},{"type":"mcp","server_label":"s","headers":{"Authorization":"x"}}],"max_output_tokens":1,"parallel_tool_calls":null`,
		"megabytes": `"input":[{"role":"user","content":[{"type":"input_image","image_url":"data:image/png;base64,` + strings.Repeat("A", 16<<20-200) + `"}]}]`,
	} {
		t.Run(name, func(t *testing.T) {
			up.Script(inPieces(stream))
			exchange(t, fmt.Sprintf(`{"model":"codex-5",%s,"stream":true}`, rest), fmt.Sprintf(`{"model":"gpt-5.5",%s,"stream":true}`, rest), stream)
		})
	}
}
