package configs_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codexpool/configs"

	"github.com/google/go-cmp/cmp"
)

// entry is a [[key]] with a digest of its own for each name.
func entry(name string, lines ...string) string {
	return fmt.Sprintf("[[key]]\nname = %q\nsha256 = \"%x\"\n%s\n", name, sha256.Sum256([]byte(name)), strings.Join(lines, "\n"))
}

func TestKeysFileIsReadWithEveryField(t *testing.T) {
	got, err := configs.ParseKeys([]byte(entry("plain") + entry("all",
		"requests_per_minute = 60", "tokens_per_minute = 100000", "streams = 2", `models = ["codex-5", "a/b"]`,
		`routes = ["chat", "completions", "responses", "models"]`, `refuse = ["stored_state", "hosted_tools"]`, "expires = 2027-01-31T02:00:00+02:00")))
	if err != nil {
		t.Fatal(err)
	}
	want := []configs.Key{
		{Name: "plain", Digest: sha256.Sum256([]byte("plain"))},
		{
			Name: "all", Digest: sha256.Sum256([]byte("all")), RequestsPerMinute: 60, TokensPerMinute: 100000, Streams: 2, Models: []string{"codex-5", "a/b"},
			Routes: configs.KeyRoutes, Refuse: configs.KeyRefusals, Expires: time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC),
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestKeysFileWithAMistakeSaysWhichWithoutQuotingIt(t *testing.T) {
	const name = "a name begins with a letter, has at most 64 letters, digits, dots, hyphens and underscores, and is not \"other\""
	for text, want := range map[string]string{
		"":                        "it has no [[key]]",
		"[[key]]\nname = \"a\nb":  "line 2 is not valid TOML",
		"[[key]]\ncpk-SECRET":     "line 2 is not valid TOML",
		"[[key]]\nname = 7":       `line 2 (last key "key.name"): incompatible types: TOML value has type int64; destination has type string`,
		entry("a", "limit = 1"):   "there is no such field: key.limit",
		"[[key]]\nname = \"a\"":   `key 1 ("a"): sha256 is not the SHA-256 of a key, which has 64 hexadecimal digits`,
		entry("a") + entry("a"):   `key 2 ("a"): another key has this name`,
		entry("other"):            `key 1 ("other"): ` + name,
		entry("1"):                `key 1 ("1"): ` + name,
		entry("a", "streams = 0"): `key 1 ("a"): streams is not from 1 to 1000000000; leave it out for no limit`,
		entry("a") + entry("b", `routes = ["chat", "images"]`, `refuse = ["all"]`): `key 2 ("b"): routes: "images" is not one of chat, completions, responses, models` + "\n" +
			`key 2 ("b"): refuse: "all" is not one of stored_state, hosted_tools`,
		entry("a", "routes = []"):          `key 1 ("a"): routes is empty; leave it out for all routes`,
		entry("a", "models = []"):          `key 1 ("a"): models is empty; leave it out for all models`,
		entry("a", "expires = 2027-01-31"): `key 1 ("a"): expires is not a time with an offset, without quotes, such as 2027-01-31T00:00:00Z`,
		entry("a", `expires = "tomorrow"`): `key 1 ("a"): expires is not a time with an offset, without quotes, such as 2027-01-31T00:00:00Z`,
		entry("a") + strings.Replace(entry("a"), `name = "a"`, "name = \"b\"", 1): `key 2 ("b"): it is the same key as a`,
	} {
		if _, err := configs.ParseKeys([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
	}
}

func TestKeysOfTheFileStandBesideThoseOfTheEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.toml")
	if err := os.WriteFile(path, []byte(entry("alice")+entry("k1")), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := configs.Load(with("PROXY_ENV=dev", "PROXY_API_KEY=k0,k1", "PROXY_API_KEYS_FILE="+path), nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := cfg.Keys()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, k := range keys {
		names = append(names, k.Name)
	}
	if got := strings.Join(names, " "); got != "1 alice k1" { // k1 is in both
		t.Errorf("keys %s", got)
	}
	if cfg, err := configs.Load([]string{"CODEX_UPSTREAM=echo", "PROXY_API_KEYS_FILE=" + path}, nil); err != nil || cfg.Keyless() || cfg.LoopbackOnly() {
		t.Errorf("%v; a keys file alone must do in production, and on any address", err)
	}
	for mode, want := range map[os.FileMode]string{
		0o644: "<nil>",
		0o664: "PROXY_API_KEYS_FILE: others can write " + path + ", and so make keys for themselves; chmod go-w it",
		0o606: "PROXY_API_KEYS_FILE: others can write " + path + ", and so make keys for themselves; chmod go-w it",
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := configs.Load([]string{"CODEX_UPSTREAM=echo", "PROXY_API_KEYS_FILE=" + path}, nil); fmt.Sprint(err) != want {
			t.Errorf("mode %o: %v, want %s", mode, err, want)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, p := range map[string]string{"PROXY_API_KEYS_FILE: it has no [[key]]": path, "PROXY_API_KEYS_FILE: open " + path + "x: no such file or directory": path + "x"} {
		if _, err := configs.Load(with("PROXY_API_KEYS_FILE="+p), nil); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestNewKeyIsValidInItsOwnBlock(t *testing.T) {
	secret, block, err := configs.NewKey("alice")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := configs.ParseKeys([]byte(block))
	if err != nil || len(keys) != 1 || keys[0].Name != "alice" || keys[0].Digest != sha256.Sum256([]byte(secret)) {
		t.Errorf("%v, %v of\n%s", keys, err, block)
	}
	if again, _, _ := configs.NewKey("alice"); again == secret || len(secret) < 30 || strings.Contains(block, secret) {
		t.Errorf("%s, %s", secret, again)
	}
	if _, _, err := configs.NewKey("al ice"); err == nil {
		t.Error("a name with a space")
	}
}
