package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/configs"
)

// keysText is a keys file with these names; the key of each is its name.
func keysText(names ...string) string {
	text := ""
	for _, name := range names {
		text += fmt.Sprintf("[[key]]\nname = %q\nsha256 = \"%x\"\n", name, sha256.Sum256([]byte(name)))
	}
	return text
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// watched watches a file of the key a in a bubble. names are those of the keys in force.
func watched(t *testing.T, path string) (file *keysFile, names *string, log *buffer, ask func()) {
	t.Helper()
	log, names = new(buffer), new(string)
	file = &keysFile{path: path, log: slog.New(slog.NewTextHandler(log, nil)), ok: true}
	file.apply = func(keys []configs.Key) {
		*names = ""
		for _, k := range keys {
			*names += k.Name
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	asked := make(chan struct{}, 1)
	go file.watch(ctx, asked)
	return file, names, log, func() { asked <- struct{}{} }
}

// TestKeysFileIsFollowedHoweverItChanges gives each change the time within which a
// removed key must be rejected.
func TestKeysFileIsFollowedHoweverItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "keys.toml")
		put(t, path, keysText("a"))
		_, names, _, ask := watched(t, path)
		replace := func(name string) error {
			put(t, path+".new", keysText(name))
			return os.Rename(path+".new", path)
		}
		link := func(generation, name string) error { // as Kubernetes mounts a secret
			if err := os.Mkdir(filepath.Join(dir, generation), 0o700); err != nil {
				return err
			}
			put(t, filepath.Join(dir, generation, "keys.toml"), keysText(name))
			if err := os.Symlink(generation, filepath.Join(dir, "..data.new")); err != nil {
				return err
			}
			return os.Rename(filepath.Join(dir, "..data.new"), filepath.Join(dir, "..data"))
		}
		for _, step := range []struct {
			want   string
			within time.Duration
			change func() error
		}{
			{"a", 2 * time.Second, func() error { return nil }},
			{"b", 2 * time.Second, func() error { put(t, path, keysText("b")); return nil }},
			{"c", 2 * time.Second, func() error { return replace("c") }},
			{"d", 2 * time.Second, func() error {
				if err := link("..1", "d"); err != nil {
					return err
				}
				_ = os.Remove(path)
				return os.Symlink(filepath.Join("..data", "keys.toml"), path)
			}},
			{"e", 2 * time.Second, func() error { return link("..2", "e") }},
			{"f", keysSettled, func() error { put(t, path, keysText("f")); ask(); return nil }},
		} {
			if err := step.change(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(step.within)
			synctest.Wait()
			if *names != step.want {
				t.Errorf("in force %q, want %q", *names, step.want)
			}
		}
	})
}

func TestKeysFileWithAMistakeChangesNothingAndIsReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "keys.toml")
		put(t, path, keysText("a"))
		file, names, log, _ := watched(t, path)
		time.Sleep(2 * time.Second)
		since := time.Now()
		for _, bad := range []string{"", keysText("a", "a"), "[[key]]\ncpk-SECRET"} {
			before := len(log.String())
			put(t, path, bad)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if ok, at := file.stat(); ok || at.After(since) || *names != "a" {
				t.Errorf("%q: ok %v, in force %q since %v", bad, ok, *names, at)
			}
			if got := log.String()[before:]; strings.Count(got, "level=ERROR") != 1 || strings.Contains(got, "SECRET") {
				t.Errorf("%q is logged as\n%s", bad, got)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if ok, _ := file.stat(); ok || *names != "a" {
			t.Errorf("without a file: ok %v, in force %q", ok, *names)
		}
		put(t, path, keysText("a", "b"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if ok, at := file.stat(); !ok || !at.After(since) || *names != "ab" {
			t.Errorf("after the repair: ok %v since %v, in force %q", ok, at, *names)
		}
	})
}

// TestKeysFileThatIsBeingWrittenIsNotRead has a writer that pauses after each key.
func TestKeysFileThatIsBeingWrittenIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "keys.toml")
		put(t, path, keysText("a", "b", "c"))
		_, names, log, _ := watched(t, path)
		time.Sleep(2*time.Second - keysSettled/2) // the next look comes within a pause
		for n := range 4 {
			put(t, path, keysText([]string{"a", "b", "c"}[:n]...))
			time.Sleep(keysSettled * 3 / 4)
			synctest.Wait()
			if *names != "abc" {
				t.Errorf("half a file is in force: %q", *names)
			}
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if *names != "abc" || strings.Contains(log.String(), "ERROR") {
			t.Errorf("in force %q\n%s", *names, log.String())
		}
	})
}

func TestNewKeyIsPrintedOnceAndItsBlockAlone(t *testing.T) {
	code, block, said := runOnce(t, []string{"key", "new", "alice"})
	keys, err := configs.ParseKeys([]byte(block))
	if code != exitOK || err != nil || len(keys) != 1 {
		t.Fatalf("exit code %d, %v\n%s", code, err, block)
	}
	secret := strings.Fields(said[strings.Index(said, "\n    "):])[0]
	if sha256.Sum256([]byte(secret)) != keys[0].Digest || strings.Count(said+block, secret) != 1 {
		t.Errorf("said\n%s\nblock\n%s", said, block)
	}
	for _, args := range [][]string{{"key"}, {"key", "new"}, {"key", "old", "a"}, {"key", "new", "a", "b"}, {"key", "new", "a b"}} {
		if code, out, said := runOnce(t, args); code != exitBadUsage || out != "" || said == "" {
			t.Errorf("%v: exit code %d, %s%s", args, code, out, said)
		}
	}
}
