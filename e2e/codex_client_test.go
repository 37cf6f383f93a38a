package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// codexExec runs the real CLI as a client, in a project of its own. config is its
// config.toml. It returns the project, and what the CLI said.
func codexExec(t *testing.T, config, prompt string) (project, said, log string) {
	t.Helper()
	home := codextest.Workdir(t)
	project = t.TempDir()
	config += "[analytics]\nenabled = false\n[features]\nplugins = false\nremote_plugin = false\n"
	if err := os.WriteFile(filepath.Join(home, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, codextest.Binary(t), "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", prompt)
	cmd.Dir = project
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "CODEX_HOME=" + home, "CODEXPOOL_API_KEY=" + key, "CODEX_API_KEY=" + key, "RUST_LOG=warn",
		"HTTPS_PROXY=http://127.0.0.1:9", "HTTP_PROXY=http://127.0.0.1:9", "NO_PROXY=127.0.0.1", // it gets nowhere else
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("codex exec: %v\n%s", err, &stderr)
	}
	return project, strings.TrimSpace(stdout.String()), stderr.String()
}

// codexProvider is what README has operators paste.
func codexProvider(d *daemon) string {
	return `model = "gpt-5.5"
model_provider = "codexpool"
[model_providers.codexpool]
name = "codexpool"
base_url = "` + d.url + `/v1"
env_key = "CODEXPOOL_API_KEY"
wire_api = "responses"
`
}

// TestCodexCLIWorksAsAClient has a Codex CLI edit a file and call a function, behind a
// daemon whose own children are Codex CLIs.
func TestCodexCLIWorksAsAClient(t *testing.T) {
	t.Parallel()
	step := func(write func(*sequence)) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			s := begin(w, "codex")
			write(s)
			s.end()
		}
	}
	up := codextest.NewUpstream(t,
		step(func(s *sequence) {
			s.custom("call_1", "apply_patch", "*** Begin Patch\n*** Add File: note.txt\n+sëven degrees\n*** End Patch")
		}),
		step(func(s *sequence) {
			s.call("call_2", "exec_command", `{"cmd":"cat note.txt"}`)
		}),
		step(func(s *sequence) { s.text("The note", " is written.") }),
	)
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	project, said, log := codexExec(t, codexProvider(d), "Write a note.")
	if note, err := os.ReadFile(filepath.Join(project, "note.txt")); err != nil || string(note) != "sëven degrees\n" {
		t.Errorf("the note: %q, %v", note, err)
	}
	if said != "The note is written." || strings.Contains(log, "ERROR") || strings.Contains(log, "failed to decode") {
		t.Errorf("it said %q\n%s", said, log)
	}
	bodies := up.Bodies()
	var last struct {
		Input []struct{ Type, Output, Input string }
		Store *bool
	}
	if err := json.Unmarshal(bodies[len(bodies)-1], &last); err != nil || len(bodies) != 3 || last.Store == nil || *last.Store {
		t.Errorf("%d requests, %v: %.300s", len(bodies), err, bodies[len(bodies)-1])
	}
	kinds := ""
	for _, item := range last.Input {
		kinds += item.Type + " "
	}
	if result := last.Input[len(last.Input)-1]; !strings.HasSuffix(kinds, "custom_tool_call custom_tool_call_output function_call function_call_output ") || !strings.Contains(result.Output, "sëven degrees") {
		t.Errorf("the last request has %s, the last with %q", kinds, result.Output)
	}
	if got := d.total("codexpool_http_requests_total", `route="responses"`); got != 3 {
		t.Errorf("it sent %v requests", got)
	}
}

// TestCodexCLITurnsToHTTPAtOnce has a CLI whose own provider is redirected: it tries a
// WebSocket first.
func TestCodexCLITurnsToHTTPAtOnce(t *testing.T) {
	t.Parallel()
	up := codextest.NewUpstream(t, func(w http.ResponseWriter, _ *http.Request) {
		s := begin(w, "codex")
		s.text("Hello.")
		s.end()
	})
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	_, said, log := codexExec(t, "model = \"gpt-5.5\"\nopenai_base_url = \""+d.url+"/v1\"\n", "Say hello.")
	if said != "Hello." || len(up.Bodies()) != 1 {
		t.Errorf("it said %q, the provider was asked %d times\n%s", said, len(up.Bodies()), log)
	}
	turned, served := d.total("codexpool_http_requests_total", `route="responses"`, `code="other"`), d.total("codexpool_http_requests_total", `route="responses"`, `code="200"`)
	if turned == 0 || served != 1 || strings.Contains(log, "Reconnecting") {
		t.Errorf("it was turned to HTTP %v times, and served %v times\n%s", turned, served, log)
	}
}
