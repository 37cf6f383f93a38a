package lean_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"codexpool/codex/lean"
)

func TestRelayedQuotesHomeAndURL(t *testing.T) {
	got := string(lean.Relayed(`/a "b"\c`, "http://h/v1", nil).Files["config.toml"])
	if !strings.HasPrefix(got, `model_catalog_json = "/a \"b\"\\c/models.json"`+"\n") || !strings.Contains(got, `base_url = "http://h/v1"`) {
		t.Error(got)
	}
}

func TestRelayedUsesTheSystemsRootsForTLSOnly(t *testing.T) {
	for baseURL, want := range map[string]bool{"http://127.0.0.1:1/v1": true, "https://h/v1": false} {
		c := lean.Relayed("/home", baseURL, nil)
		if _, ok := c.Files["nobody.pem"]; ok != want || slices.Contains(c.Env, "SSL_CERT_FILE=/home/nobody.pem") != want {
			t.Errorf("%s: %v", baseURL, c.Env)
		}
	}
}

func TestCatalogFailsWithoutModels(t *testing.T) {
	for _, original := range []string{"", "[]", "{}", `{"models":{}}`, `{"models":[]}`} {
		if _, err := lean.Catalog([]byte(original)); err == nil {
			t.Errorf("%q: no error", original)
		}
		if _, err := lean.StandIn([]byte(original)); err == nil {
			t.Errorf("%q: no error of StandIn", original)
		}
	}
}

// A child may write while its databases are read. What is read is how they were at one
// moment, or an error.
func TestDatabasesAreOfOneMoment(t *testing.T) {
	home := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(home, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	first, second := open("a.sqlite"), open("a.sqlite-wal")
	open("a.sqlite-shm")
	open("installation_id")
	write := func(n int) { // first, then second
		number := fmt.Appendf(nil, "%09d", n)
		first.WriteAt(number, 0)
		second.WriteAt(number, 0)
	}
	write(0)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
				write(n)
				time.Sleep(time.Duration(n%3) * 50 * time.Microsecond) // so that some are read between two writes
			}
		}
	}()
	whole := 0
	for range 5000 {
		files, err := lean.Databases(home)
		if err != nil {
			continue
		}
		whole++
		a, _ := strconv.Atoi(string(files["a.sqlite"]))
		b, _ := strconv.Atoi(string(files["a.sqlite-wal"]))
		if len(files) != 2 || (a != b && a != b+1) {
			t.Fatalf("%d files, %d and %d", len(files), a, b)
		}
	}
	close(stop)
	<-stopped
	if whole == 0 {
		t.Error("none was read")
	}
}

func TestDatabasesFailsWhereThereAreNone(t *testing.T) {
	if files, err := lean.Databases(t.TempDir()); err == nil {
		t.Errorf("got %v", files)
	}
}
