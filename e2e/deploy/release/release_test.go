// Package release builds what is released, and installs it where there is neither Go nor
// Node: in an empty Debian root. It takes minutes, so make test-deploy runs it, and make
// test does not. It needs root, debootstrap, and Debian's packages.
package release

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var folder string // of what this run makes

func TestMain(m *testing.M) {
	if numbers := os.Getenv(filterVar); numbers != "" {
		fmt.Fprintln(os.Stderr, filtered(numbers)) // it returns only with an error
		os.Exit(1)
	}
	temp, err := os.MkdirTemp("", "codexpool-release-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	folder = temp
	code := m.Run()
	if err := os.RemoveAll(temp); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// released is a file of the release that make release has built. version is its version.
func released(t *testing.T, name string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join("../../../bin/release", name))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q, %v; make release builds it", name, found, err)
	}
	return found[0]
}

func version(t *testing.T) string {
	t.Helper()
	return strings.Split(filepath.Base(released(t, "codexpool_*_amd64.deb")), "_")[1]
}

func TestReleaseHasTheSameBytesTwice(t *testing.T) {
	first, err := os.ReadFile(released(t, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	mask := syscall.Umask(0o077) // of another builder
	defer syscall.Umask(mask)
	other := filepath.Join(folder, "another folder")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(folder, "again")
	cmd := exec.Command("../../../configs/release/build", "v"+version(t), again)
	cmd.Env = append(os.Environ(), "TMPDIR="+other, "GOFLAGS=-race", "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer os.RemoveAll(again)
	second, err := os.ReadFile(filepath.Join(again, "SHA256SUMS"))
	if err != nil || !bytes.Equal(first, second) || bytes.Count(first, []byte("\n")) != 8 {
		t.Errorf("%v\n%s\n%s", err, first, second)
	}
}

func TestReleaseIsStaticForEachPlatform(t *testing.T) {
	for architecture, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		for archive, program := range map[string]string{"codexpool_*": "bin/codexpool", "codexpool-codex_*": "lib/codexpool-codex/bin/codex"} {
			dir := t.TempDir()
			unpack(t, released(t, archive+"_linux_"+architecture+".tar.gz"), dir)
			file, err := elf.Open(filepath.Join(dir, program))
			if err != nil {
				t.Fatal(err)
			}
			libraries, err := file.ImportedLibraries()
			if file.Machine != machine || err != nil || len(libraries) > 0 {
				t.Errorf("%s for %s: %v, with %q, %v", program, architecture, file.Machine, libraries, err)
			}
			file.Close()
		}
	}
}

func TestReleaseIsRefusedWithoutAVersionOrItsChanges(t *testing.T) {
	for given, want := range map[string]string{"": "a version such as v0.1.0", "1.2": "a version such as v0.1.0", "v9.9.9": "no section '## 9.9.9 - DATE'"} {
		cmd := exec.Command("make", "release", "VERSION="+given)
		cmd.Dir, cmd.Env = "../../..", append(os.Environ(), "MAKEFLAGS=")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("VERSION=%q: %v\n%s", given, err, out)
		}
	}
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", dir, "-xzf", archive).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
