package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"codexpool/codex/codextest"
)

// makeIn runs make in a checkout, with these programs before all others on PATH.
func makeIn(t *testing.T, checkout, programs string, args ...string) (output string, err error) {
	t.Helper()
	cmd := exec.Command("make", args...)
	cmd.Dir = checkout
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"), "MAKEFLAGS=", "GOFLAGS=", "GOENV=off")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestMakeNamesWhatIsTooOldAndWhatIsNeeded(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ program, script, target, want string }{
		{"go", "echo go version go1.19.8 linux/amd64; [ \"$1\" = version ]", "need-go", "go is too old (go version go1.19.8 linux/amd64), and fetched no newer one: install Go 1.26.8 or newer"},
		{"node", "echo v18.20.4", "need-npm", "node is too old (v18.20.4): install Node 20 or newer"},
	} {
		programs := t.TempDir()
		if err := os.WriteFile(filepath.Join(programs, tt.program), []byte("#!/bin/sh\n"+tt.script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := makeIn(t, "..", programs, tt.target); err == nil || !strings.Contains(out, tt.want) {
			t.Errorf("%v, without %q:\n%s", err, tt.want, out)
		}
	}
	for _, target := range []string{"need-go", "need-npm"} {
		if out, err := makeIn(t, "..", t.TempDir(), target); err != nil {
			t.Errorf("%s fails with what is here: %v\n%s", target, err, out)
		}
	}
}

func TestMakeRunTakesACLIInAFolderWithASpace(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "it's a folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(folder, "codex")
	if err := os.Symlink(codextest.Binary(t), link); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(root, link)
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "make-run")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncd ..\nMAKEFLAGS= exec make run CODEX_BIN=\""+relative+"\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	startProgram(t, script, "POOL_SIZE=1", "POOL_MIN_IDLE=1", "CODEX_BIN=/nowhere", "GOCACHE="+os.Getenv("GOCACHE"), "GOFLAGS=")
}

// git does not read such a checkout, and go build would fail for want of the commit.
func TestMakeBuildsInACheckoutOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	checkout := filepath.Join(t.TempDir(), "codexpool")
	if out, err := exec.Command("git", "clone", "--quiet", "--depth=1", "file://"+root, checkout).CombinedOutput(); err != nil {
		t.Skipf("this checkout cannot be cloned: %v: %s", err, out)
	}
	makefile, err := os.ReadFile("../Makefile") // as it is, committed or not
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(checkout, "Makefile"), makefile, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "-R", "54321", checkout).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := makeIn(t, checkout, t.TempDir(), "bin/codexpool"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
