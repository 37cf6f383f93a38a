package configs_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"codexpool/configs"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite REFERENCE.md")

const referenceHead = `# Settings

*Generated from the table that ` + "`codexpool config`" + ` prints: ` + "`go test ./configs -update`" + ` writes it.*

Every setting is one environment variable. ` + "`codexpool config`" + ` prints the values in effect, and where each is from. An
env file (` + "`--env-file FILE`" + `, which may be given more than once) is read before the environment, which wins. A variable
that is set but empty counts as not set, unless its meaning is about that.
`

const referenceTail = `
## The way to the network

These variables are no settings of codexpool. Go and Codex read them, from the environment only, not from an env file.

| variable | meaning |
|---|---|
| ` + "`HTTPS_PROXY`, `HTTP_PROXY`" + ` | URL of the proxy for requests to a provider that has an https or an http URL. Loopback addresses are called without it |
| ` + "`NO_PROXY`" + ` | hosts that are called without a proxy, comma-separated |
| ` + "`SSL_CERT_FILE`, `SSL_CERT_DIR`" + ` | certificates of the authorities that may vouch for the provider, in place of the system's |
| ` + "`ALL_PROXY`, `CODEX_CA_CERTIFICATE`" + ` | Codex's own; only the child that refreshes a ChatGPT login gets them, and with ` + "`CODEX_UPSTREAM=direct`" + ` every child |

## Limits that are no settings

| limit | value |
|---|---|
| the headers of a client's request arrive within | 10 s; then the connection is closed |
| the body of a client's request arrives within | 60 s; then the request fails with 408 |
| a connection to the provider is made within | 10 s, and its TLS handshake within 10 s more |
| a request to the provider is tried again | once, where the first try cannot have cost anything: there was no connection, 502, 503 or 504 came within 1 s, or 429 came with a Retry-After of at most 2 s |
| a call to a child is answered within | 10 s; a child that does not answer is replaced |
`

// reference is the table of settings in Markdown.
func reference(settings []configs.Setting) string {
	var b strings.Builder
	b.WriteString(referenceHead)
	group := ""
	for _, s := range settings {
		if s.Group != group {
			group = s.Group
			fmt.Fprintf(&b, "\n## %s\n\n| variable | default | meaning |\n|---|---|---|\n", group)
		}
		standard := "none"
		if s.Default != "" {
			standard = "`" + s.Default + "`"
		}
		if s.DevDefault != "" {
			standard += "; in dev `" + s.DevDefault + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.Name, standard, s.Meaning)
	}
	b.WriteString(referenceTail)
	return b.String()
}

func TestReferenceIsCurrent(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	cfg, err := configs.Load(good, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := reference(cfg.Settings())
	if *update {
		if err := os.WriteFile("REFERENCE.md", []byte(want), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("REFERENCE.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("go test ./configs -update makes REFERENCE.md current (-want +got)\n%s", diff)
	}
}

func TestSettingsAreUnderstandableAlone(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	cfg, err := configs.Load(good, nil)
	if err != nil || len(cfg.Settings()) == 0 {
		t.Fatal(err)
	}
	for _, s := range cfg.Settings() {
		if s.Group == "" || s.Meaning == "" || strings.Contains(s.Meaning, "|") {
			t.Errorf("%s: group %q, meaning %q", s.Name, s.Group, s.Meaning)
		}
		if strings.HasSuffix(s.Name, "_MS") && !strings.Contains(s.Meaning, "milliseconds") || strings.HasSuffix(s.Name, "_BYTES") && !strings.Contains(s.Meaning, "bytes") {
			t.Errorf("%s has no unit: %s", s.Name, s.Meaning)
		}
		if s.Default == "" && !strings.Contains(s.Meaning, "empty = ") {
			t.Errorf("%s has no default, and no meaning of empty: %s", s.Name, s.Meaning)
		}
		if s.Default == "0" && !strings.Contains(s.Meaning, "0 = ") {
			t.Errorf("%s has no meaning of 0: %s", s.Name, s.Meaning)
		}
	}
}
