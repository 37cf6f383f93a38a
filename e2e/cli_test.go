package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// install puts a CLI at path that is the real one, but for the version that it
// gives. It is replaced in one step, as package managers do.
func install(t *testing.T, path, version string) {
	t.Helper()
	installWith(t, path, version, "")
}

// installWith is [install] of a CLI that runs a line of shell before it starts a child.
func installWith(t *testing.T, path, version, line string) {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && { echo codex-cli %s; exit; }\n[ \"$1\" = app-server ] && { %s\n}\nexec '%s' \"$@\"\n", version, cmp.Or(line, ":"), codextest.Binary(t))
	if err := os.WriteFile(path+"-new", []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"-new", path); err != nil {
		t.Fatal(err)
	}
}

// Many package managers replace a version by moving a link, and remove the old one.
func TestCLILinkMayMoveWhileServing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "current")
	move := func(version string) {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		install(t, filepath.Join(dir, version, "codex"), version)
		if err := os.Symlink(version, link+"-new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+"-new", link); err != nil {
			t.Fatal(err)
		}
	}
	move("0.998.0")
	d := start(t, "POOL_SIZE=1", "CODEX_BIN="+filepath.Join(link, "codex"))
	old := d.children()[0]
	move("0.999.0")
	if err := os.RemoveAll(filepath.Join(dir, "0.998.0")); err != nil {
		t.Fatal(err)
	}
	d.operate("recycle")
	eventually(t, time.Minute, "child of the new one", func() bool {
		b := d.pool()
		return b.Failure == nil && len(b.Children) == 1 && b.Children[0].PID != old && b.Children[0].State == "idle"
	})
	if !strings.Contains(d.logged(), `"version":"0.999.0"`) {
		t.Error("the new version is not logged")
	}
}

func TestCLIMayBeReplacedOrRemovedWhileServing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "codex")
	install(t, path, codex.Pinned)
	d := start(t, "POOL_SIZE=1", "CODEX_BIN="+path, "POOL_BACKOFF_MAX_MS=500")
	version := func(v string) bool {
		for name := range d.metrics() {
			if strings.HasPrefix(name, `codexpool_build_info{codex_version="`+v+`"`) {
				return true
			}
		}
		return false
	}
	kill := func() { syscall.Kill(d.children()[0], syscall.SIGKILL) }

	install(t, path, "0.999.0")
	kill()
	eventually(t, time.Minute, "a child of the new one", func() bool { return version("0.999.0") && d.ready() == `200 {"ready":true}` })
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Errorf("with the new one: %v", err)
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	kill()
	eventually(t, time.Minute, "backend_unavailable", func() bool { return d.ready() == `503 {"ready":false,"reason":"backend_unavailable"}` })
	install(t, path, codex.Pinned)
	eventually(t, time.Minute, "readiness", func() bool { return d.ready() == `200 {"ready":true}` })
	if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
		t.Errorf("when it is there again: %v", err)
	}
}

// The first child makes the template, from which those after it start.
func TestChildrenStartFromATemplate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "codex")
	put := func(version string) {
		installWith(t, path, version, fmt.Sprintf(`echo $(cd "$CODEX_HOME" && ls | grep 'sqlite$') >>'%s'`, filepath.Join(dir, version)))
	}
	// found lists, for each child of that version, the databases that it found.
	found := func(version string) []string {
		list, err := os.ReadFile(filepath.Join(dir, version))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(list), "\n"), "\n")
	}
	recycle := func(d *daemon, gone int) {
		d.operate("recycle")
		eventually(t, time.Minute, "other children", func() bool {
			return d.pool().in("idle") == 2 && strings.Count(d.logged(), `"child gone"`) == gone
		})
	}
	assert := func(version string) {
		t.Helper()
		children := found(version)
		if len(children) != 4 || children[0] != "" {
			t.Errorf("%s: want 4 children, the first without a template: %q", version, children)
		}
		for _, databases := range children[2:] { // two start at once
			if !strings.Contains(databases, "state_") || !strings.Contains(databases, "logs_") {
				t.Errorf("%s: a child started with %q", version, databases)
			}
		}
	}
	put(codex.Pinned)
	d := start(t, "POOL_SIZE=2", "CODEX_BIN="+path)
	recycle(d, 2)
	assert(codex.Pinned)
	for range 4 {
		if chunks, err := d.stream("one two"); err != nil || len(chunks) == 0 {
			t.Errorf("from a template: %v", err)
		}
	}
	ids := map[string]bool{}
	homes, _ := filepath.Glob(filepath.Join(d.workdir, "daemon-*", "*", "codex", "installation_id"))
	for _, home := range homes {
		id, err := os.ReadFile(home)
		if err != nil {
			t.Error(err)
		}
		ids[string(id)] = true
	}
	if len(ids) != 2 {
		t.Errorf("%d children with %d installation ids", len(homes), len(ids))
	}

	put("0.999.0")
	recycle(d, 4)
	recycle(d, 6)
	assert("0.999.0")
	if log := d.logged(); strings.Contains(log, "template") || strings.Contains(log, "config warning") {
		t.Error("a template that works is in the log")
	}
}

// With a template that no child can use the pool is warm all the same.
func TestTemplateThatChildrenCannotUseIsDiscarded(t *testing.T) {
	t.Parallel()
	const found = `[ -e "$CODEX_HOME"/state_*.sqlite ]`
	for name, line := range map[string]string{
		"children exit": found + " && exit 1",
		"children hang": found + " && exec sleep 1000",
		"it is corrupt": found + ` && for f in "$CODEX_HOME"/*.sqlite*; do echo corrupt >"$f"; done`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "codex")
			installWith(t, path, codex.Pinned, line)
			d := start(t, "POOL_SIZE=4", "CODEX_BIN="+path, "CODEX_START_TIMEOUT_MS=4000", "POOL_BACKOFF_MIN_MS=100")
			if chunks, err := d.stream("hi"); err != nil || len(chunks) == 0 {
				t.Errorf("without a template: %v", err)
			}
			if n := strings.Count(d.logged(), "template discarded"); n != 1 {
				t.Errorf("logged %d times", n)
			}
		})
	}
}
