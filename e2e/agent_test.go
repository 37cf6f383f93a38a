package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// TestCodingAgentRunsItsToolLoop has a coding agent, pi, whose model writes a file, reads
// it, and says what is in it. The agent runs the tools itself.
func TestCodingAgentRunsItsToolLoop(t *testing.T) {
	t.Parallel()
	call := func(name, arguments string) codex.ToolCall {
		return codex.ToolCall{ID: "call_" + name, Name: name, Arguments: arguments}
	}
	up := newUpstream(t,
		codextest.Calls(call("write", `{"path":"note.txt","content":"seven degrees"}`)),
		codextest.Calls(call("bash", `{"command":"cat note.txt"}`)),
		codextest.Text("The note", " says seven degrees."))
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	home, project := t.TempDir(), t.TempDir()
	models := `{"providers":{"codexpool":{"baseUrl":"` + d.url + `/v1","api":"openai-completions","apiKey":"` + key + `","models":[{"id":"codex-5"}]}}}`
	if err := os.WriteFile(filepath.Join(home, "models.json"), []byte(models), 0o600); err != nil {
		t.Fatal(err)
	}

	pi, err := filepath.Abs("clients/node_modules/.bin/pi")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, pi, "--offline", "--no-session", "--model", "codexpool/codex-5", "--print", "Write a note.")
	cmd.Dir, cmd.Env = project, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "PI_CODING_AGENT_DIR=" + home}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	said, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(said)) != "The note says seven degrees." {
		t.Errorf("it said %q, %v\n%s", said, err, &stderr)
	}

	note, err := os.ReadFile(filepath.Join(project, "note.txt"))
	if err != nil || string(note) != "seven degrees" {
		t.Errorf("the note: %q, %v", note, err)
	}
	bodies := up.Bodies()
	var last struct {
		Input []struct {
			Type, Output string
		}
	}
	if err := json.Unmarshal(bodies[len(bodies)-1], &last); err != nil {
		t.Fatal(err)
	}
	result := last.Input[len(last.Input)-1]
	if len(bodies) != 3 || result.Type != "function_call_output" || strings.TrimSpace(result.Output) != "seven degrees" {
		t.Errorf("%d requests; the last result is %+v", len(bodies), result)
	}
}
