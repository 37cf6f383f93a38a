package e2e

import (
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
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && { echo codex-cli %s; exit; }\nexec '%s' \"$@\"\n", version, codextest.Binary(t))
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
