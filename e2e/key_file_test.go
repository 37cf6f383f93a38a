package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const keyInAFile = "k-in-a-file-0123456789"

// TestProvidersKeyInAFileIsNowhereElse has the key as editors and secret stores write it,
// with a line break.
func TestProvidersKeyInAFileIsNowhereElse(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{"OPENAI_API_KEY_FILE", "CODEX_UPSTREAM_API_KEY_FILE"} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			setting := variable + "=" + written(t, "key", keyInAFile+"\n")
			o := newOpenAI(t)
			d := start(t, append(o.env, setting, "LOG_LEVEL=debug")...)
			got, _ := d.complete(hi, false)
			o.mu.Lock()
			if got.String() != `assistant content "ok" finish stop` || o.authorization != "Bearer "+keyInAFile {
				t.Errorf("%s, and the provider got Authorization %q", got, o.authorization)
			}
			o.mu.Unlock()
			for _, pid := range d.children() {
				holdsNot(t, pid, keyInAFile)
			}
			environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", d.cmd.Process.Pid))
			if err != nil || strings.Contains(string(environ), keyInAFile) {
				t.Errorf("in the daemon's own environment: %s, %v", environ, err)
			}
			if strings.Contains(d.logged(), keyInAFile) {
				t.Error("in the log")
			}
			for _, command := range []string{"config", "check"} {
				out, code := subcommand(t, command, append(d.cmd.Env, setting, "HTTPS_PROXY=http://127.0.0.1:1")...)
				if strings.Contains(out, keyInAFile) || command == "config" && (code != 0 || !strings.Contains(out, "(set)")) {
					t.Errorf("%s: exit code %d\n%s", command, code, out)
				}
			}
		})
	}
}

// TestKeyFileWithAMistakeIsAWrongConfiguration runs the daemon as a user who may not read
// every file.
func TestKeyFileWithAMistakeIsAWrongConfiguration(t *testing.T) {
	t.Parallel()
	if err := os.Chmod(filepath.Dir(t.TempDir()), 0o711); err != nil { // that user gets in
		t.Fatal(err)
	}
	file := func(text string, mode os.FileMode) string {
		path := written(t, "key", text)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, variable := range []string{"OPENAI_API_KEY", "CODEX_UPSTREAM_API_KEY"} {
		needsOne := "CODEX_UPSTREAM: production needs a provider"
		noKey := "The file of " + variable + "_FILE has no key"
		for _, tt := range []struct {
			path, value string // of the two forms
			want        []string
		}{
			{"/nowhere", "", []string{variable + "_FILE: open /nowhere: no such file"}},
			{t.TempDir(), "", []string{variable + "_FILE: read ", "is a directory"}},
			{file(keyInAFile, 0), "", []string{variable + "_FILE: open ", "permission denied"}},
			{file("", 0o644), "", []string{needsOne, noKey}},
			{file(" \n\n", 0o644), "", []string{needsOne, noKey}},
			{file(keyInAFile+"\nanother\n", 0o644), "", []string{variable + ": it contains white space"}},
			{file(keyInAFile, 0o644), "k-in-the-environment", []string{variable + "_FILE: " + variable + " is set too; leave one of them out"}},
		} {
			cmd := exec.Command(program)
			cmd.Env = []string{"HOME=/nowhere", "PORT=0", "CODEX_BIN=/nowhere/codex", "PROXY_API_KEY=" + key, variable + "_FILE=" + tt.path, variable + "=" + tt.value}
			if os.Geteuid() == 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
			}
			out, _ := cmd.CombinedOutput()
			for _, part := range tt.want {
				if !strings.Contains(string(out), part) {
					t.Errorf("no %q in\n%s", part, out)
				}
			}
			if code := cmd.ProcessState.ExitCode(); code != 2 || strings.Contains(string(out), keyInAFile) || strings.Contains(string(out), "k-in-the-environment") {
				t.Errorf("exit code %d\n%s", code, out)
			}
		}
	}
}
