package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestPrepareSweepsOnlyTheHomesOfDeadDaemons(t *testing.T) {
	workdir := filepath.Join(t.TempDir(), "work")
	alive, release, err := claim(workdir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	dead, strange := filepath.Join(workdir, "daemon-1-DEAD"), filepath.Join(workdir, "daemon-2-STRANGE")
	for _, dir := range []string{filepath.Join(dead, "child-A"), strange} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dead, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := prepare(workdir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{alive: true, dead: false, strange: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: there %v, want %v", dir, err == nil, want)
		}
	}
	release()
	remaining, err := filepath.Glob(filepath.Join(workdir, "daemon-*"))
	if err != nil || len(remaining) != 1 {
		t.Errorf("remaining: %q, %v", remaining, err)
	}
}

func TestPrepareSweepsLaterWhatCouldNotBeSwept(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can put something in the way that cannot be removed")
	}
	workdir := t.TempDir()
	dead := filepath.Join(workdir, "daemon-1-DEAD")
	home := filepath.Join(dead, "child-A")
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sweep := func() {
		if err := prepare(workdir, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("tmpfs", home, "tmpfs", 0, ""); err != nil {
		t.Skip("nothing can be mounted here: ", err)
	}
	sweep()
	if err := syscall.Unmount(home, 0); err != nil {
		t.Fatal(err)
	}
	sweep()
	if _, err := os.Stat(dead); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}
