package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

func TestTemplateIsDiscardedOnlyWhereItIsAtFault(t *testing.T) {
	const (
		there     = "there"     // the next child has the template
		suspected = "suspected" // the next child goes without, the one after it may have it
		gone      = "gone"
	)
	failed, killed := &codex.ExitError{Status: "exit status 1"}, &codex.ExitError{Status: "signal: killed"}
	rebuilt := []string{"another warning", "Codex rebuilt its local database"}
	type start struct {
		had      bool
		warnings []string
		err      error
	}
	for name, tt := range map[string]struct {
		starts []start
		want   string
	}{
		"nothing happened":                     {nil, there},
		"a child starts with it":               {[]start{{had: true, warnings: []string{"another warning"}}}, there},
		"a child fails with it":                {[]start{{had: true, err: failed}}, suspected},
		"a child is silent with it":            {[]start{{had: true, err: codex.ErrUnresponsive}}, suspected},
		"only without it a child starts":       {[]start{{had: true, err: failed}, {}}, gone},
		"two fail at once, then one without":   {[]start{{had: true, err: failed}, {had: true, err: failed}, {}}, gone},
		"none starts, with it or without":      {[]start{{had: true, err: failed}, {err: failed}}, there},
		"another starts with it meanwhile":     {[]start{{had: true, err: failed}, {had: true}}, there},
		"a child rebuilds the databases":       {[]start{{had: true, warnings: rebuilt}}, gone},
		"a child without it warns":             {[]start{{warnings: rebuilt}}, there},
		"a child is killed with it":            {[]start{{had: true, err: killed}}, there},
		"no process can be made":               {[]start{{had: true, err: errors.New("fork: resource temporarily unavailable")}}, there},
		"the one without it is killed":         {[]start{{had: true, err: failed}, {err: killed}}, suspected},
		"the daemon stops":                     {[]start{{had: true, err: context.Canceled}}, there},
		"a broken CLI is repaired meanwhile":   {[]start{{had: true, err: failed}, {err: failed}, {had: true}}, there},
		"after it was discarded, others start": {[]start{{had: true, warnings: rebuilt}, {}, {err: failed}}, gone},
	} {
		log := new(buffer)
		tmpl := &template{log: slog.New(slog.NewTextHandler(log, nil)), files: map[string][]byte{"a.sqlite": nil}}
		for _, s := range tt.starts {
			tmpl.judge(s.had, s.warnings, s.err)
		}
		got := there
		switch {
		case tmpl.files == nil:
			got = gone
		case tmpl.next() == nil:
			got = suspected
		}
		if logged := strings.Count(log.String(), "template discarded"); got != tt.want || (logged == 1) != (got == gone) {
			t.Errorf("%s: the template is %s, want %s; log %q", name, got, tt.want, log)
		}
	}
}

// The databases hold nothing of the child that made them, and nothing but databases is
// copied.
func TestTemplateIsMadeByAChildThatStartsWithout(t *testing.T) {
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	cmd := codextest.Real(t, up.URL+"/v1")
	tmpl := &template{log: codextest.Log(t)}
	for _, had := range []bool{false, true} {
		before := tmpl.next()
		if (before != nil) != had {
			t.Fatalf("%d files before the start, want a template: %v", len(before), had)
		}
		child, err := startFrom(t.Context(), tmpl, cmd)
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range child.Turn(t.Context(), codex.TurnParams{Items: []json.RawMessage{codextest.UserItem("a secret")}}) {
			if err != nil {
				t.Errorf("%T %v", e, err)
			}
		}
		if warnings := child.Warnings(); len(warnings) > 0 {
			t.Errorf("warnings %q", warnings)
		}
		child.Close()
	}
	size := 0
	for name, data := range tmpl.next() {
		if !strings.HasSuffix(name, ".sqlite") && !strings.HasSuffix(name, ".sqlite-wal") {
			t.Errorf("the template has %s", name)
		}
		for _, foreign := range []string{cmd.Home, up.URL, "a secret"} {
			if bytes.Contains(data, []byte(foreign)) {
				t.Errorf("%s contains %q", name, foreign)
			}
		}
		size += len(data)
	}
	if size == 0 || size > 2<<20 {
		t.Errorf("the template has %d bytes", size)
	}
}

// A corrupt template costs one slow start, and there is no other.
func TestTemplateThatIsCorruptIsDiscarded(t *testing.T) {
	up := codextest.NewUpstream(t, codextest.Text("ok"))
	cmd := codextest.Real(t, up.URL+"/v1")
	log := new(buffer)
	tmpl := &template{log: slog.New(slog.NewTextHandler(log, nil)), files: map[string][]byte{
		"state_5.sqlite": []byte(strings.Repeat("corrupt ", 1000)),
	}}
	for range 2 {
		child, err := startFrom(t.Context(), tmpl, cmd)
		if err != nil {
			t.Fatal(err)
		}
		child.Close()
	}
	if n := strings.Count(log.String(), "template discarded"); n != 1 || tmpl.next() != nil {
		t.Errorf("logged %d times: %s", n, log)
	}
}
