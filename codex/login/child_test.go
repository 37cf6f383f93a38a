package login_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"codexpool/codex/codextest"
)

func TestMain(m *testing.M) {
	codextest.Main(m, children)
}

// children are what this test binary plays when it is run again: keepers, and a daemon.
var children = map[string]func(){
	"daemon":             daemon,
	"exits-in-handshake": func() { codextest.Play(codextest.Script{codextest.Expect("initialize"), codextest.Exit(7)}) },
	"refreshes-at-its-end": func() {
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Raw("no protocol"), codextest.Hang()})
		refreshed("rt-fresh")
	},
	"refreshes": func() {
		codextest.Play(codextest.Script{
			codextest.Handshake(), codextest.Expect("account/read"),
			codextest.Do(func() { refreshed(rand.Text()) }), codextest.Reply(map[string]any{"account": map[string]any{}}), codextest.Hang(),
		})
	},
	"rejects": func() {
		codextest.Play(codextest.Script{codextest.Handshake(), codextest.Expect("account/read"), codextest.Reply(map[string]any{}), codextest.Hang()})
	},
}

// refreshed puts another refresh token into the child's auth.json.
func refreshed(refresh string) {
	path := filepath.Join(os.Getenv("CODEX_HOME"), "auth.json")
	auth, err := os.ReadFile(path)
	if err == nil {
		auth = regexp.MustCompile(`"refresh_token":"[^"]*"`).ReplaceAll(auth, []byte(`"refresh_token":"`+refresh+`"`))
		os.Remove(path)
		err = os.WriteFile(path, auth, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
