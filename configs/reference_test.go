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
