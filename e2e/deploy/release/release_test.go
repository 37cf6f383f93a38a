// Package release builds what is released, and installs it where there is neither Go nor
// Node: in an empty Debian root. It takes minutes, so make test-deploy runs it, and make
// test does not. It needs root, debootstrap, and Debian's packages.
package release

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// needs skips a test where a program is missing, which has its package's name.
func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		missing(t, program+" is missing: apt-get install "+program)
	}
}

// missing skips a test, but not in CI.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
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
	needs(t, "file")
	checkout, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	for architecture, machine := range map[string]string{"amd64": "x86-64", "arm64": "ARM aarch64"} {
		want := regexp.MustCompile(`^ELF 64-bit LSB (pie )?executable, ` + machine + `, .*(statically|static-pie) linked`)
		for archive, program := range map[string]string{"codexpool_*": "bin/codexpool", "codexpool-codex_*": "lib/codexpool-codex/bin/codex"} {
			dir := t.TempDir()
			unpack(t, released(t, archive+"_linux_"+architecture+".tar.gz"), dir)
			if out, err := exec.Command("file", "--brief", filepath.Join(dir, program)).Output(); err != nil || !want.Match(out) {
				t.Errorf("%s for %s: %s, %v", program, architecture, out, err)
			}
			// Else a build in another folder has other bytes.
			if data, err := os.ReadFile(filepath.Join(dir, program)); err != nil || bytes.Contains(data, []byte(checkout)) {
				t.Errorf("%s for %s names %s, %v", program, architecture, checkout, err)
			}
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
