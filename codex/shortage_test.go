package codex_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// limited is a real child whose shell sets a limit first.
func limited(t *testing.T, limit string) codex.Command {
	t.Helper()
	up := codextest.NewUpstream(t)
	cmd := codextest.Real(t, up.URL+"/v1")
	script := filepath.Join(t.TempDir(), "codex")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"+limit+"\nexec \""+cmd.Path+"\" \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd.Path = script
	return cmd
}

func TestStartSaysThatTheChildHasTooFewDescriptors(t *testing.T) {
	t.Parallel()
	_, err := codex.Start(t.Context(), limited(t, "ulimit -n 10"))
	if err == nil || !strings.Contains(err.Error(), "too many open files") {
		t.Errorf("got %v", err)
	}
}

func TestStartSaysThatTheChildHasTooFewThreads(t *testing.T) {
	_, err := codex.Start(t.Context(), codextest.Command(t, "has-no-threads"))
	if err == nil || !strings.Contains(err.Error(), "resource temporarily unavailable") {
		t.Errorf("got %v", err)
	}
	exit := (*codex.ExitError)(nil)
	if want := []string{"Error: Resource temporarily unavailable (os error 11)"}; !errors.As(err, &exit) || !slices.Equal(exit.Stderr, want) {
		t.Errorf("stderr %q, want %q", exit.Stderr, want)
	}
}

func TestCallThatFailsForWantOfDescriptorsIsTheChildsFault(t *testing.T) {
	c := connect(t, codextest.Handshake(), codextest.Expect("thread/start"), codextest.ReplyError(-32600, "read my prompt: No file descriptors available (os error 24)"))
	err := c.Warm(t.Context())
	if err == nil || !strings.HasSuffix(err.Error(), "(-32600): too many open files") || strings.Contains(err.Error(), "prompt") {
		t.Errorf("got %v", err)
	}
	if fault := codex.ChildFault(err); fault != codex.FaultCall {
		t.Errorf("fault %q", fault)
	}
}
