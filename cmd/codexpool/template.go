package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"codexpool/codex"
	"codexpool/codex/lean"
)

// template is the databases of a child that did nothing yet. A child that finds them
// in its CODEX_HOME does not have to make them, which takes half of its start. Each CLI
// that is found has a template of its own, made by the first of its children.
//
// It is 0.5 MB in memory: a file could be damaged, or be missing, when it is needed.
type template struct {
	log *slog.Logger

	mu        sync.Mutex
	files     map[string][]byte // nil where there is no template; guarded by mu
	suspect   error             // why a child with the template failed to start, until it is known whose fault that was; guarded by mu
	discarded bool              // there will be no other; guarded by mu
}

// next returns the files for the next child, nil where it is to start without.
func (t *template) next() map[string][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.suspect != nil {
		return nil
	}
	return t.files
}

// made offers the databases of a child that started without a template and did nothing
// yet. home is its CODEX_HOME. They become the template if there is none.
func (t *template) made(home string) {
	files, err := lean.Databases(home)
	if err != nil {
		t.log.Debug("no template of this child", "err", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.files == nil && !t.discarded {
		t.files = files
	}
}

// judge learns from the start of a child: whether it had the template, the child's
// warnings, and the error.
//
// A child with the template that fails says little: the CLI may be broken. So the next
// one starts without. Where it fails too, the template is not at fault. Where it does
// not, the template is discarded.
func (t *template) judge(had bool, warnings []string, err error) {
	if fault := t.verdict(had, warnings, err); fault != nil {
		t.log.Warn("template discarded: children start more slowly", "err", fault)
	}
}

// verdict is judge without the log: it returns why the template was discarded.
func (t *template) verdict(had bool, warnings []string, err error) (fault error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.files == nil || (err != nil && !ownFault(err)):
		return nil
	case had && err != nil:
		t.suspect = err
		return nil
	case had:
		t.suspect, fault = nil, rebuilt(warnings)
	case err != nil:
		t.suspect = nil
	default:
		fault = t.suspect
	}
	if fault != nil {
		t.files, t.suspect, t.discarded = nil, nil, true
	}
	return fault
}

// ownFault reports whether a start failed by the fault of the child. A full disk, too
// many processes, a signal from outside and our own end are no fault of it.
func ownFault(err error) bool {
	if exit := (*codex.ExitError)(nil); errors.As(err, &exit) {
		return !exit.Killed()
	}
	return codex.ChildFault(err) != ""
}

// rebuilt returns the warning of a child that set the databases it found aside, because
// it could not use them, and made others.
func rebuilt(warnings []string) error {
	for _, w := range warnings {
		if strings.Contains(w, "rebuilt its local database") {
			return fmt.Errorf("the child warns: %s", w)
		}
	}
	return nil
}
