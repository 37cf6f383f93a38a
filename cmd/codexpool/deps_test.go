package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rules are, for each package, those of ours that it may import, and the dependencies
// that it is the home of; only JSON has several homes. why is what the package does, which
// needs no other import.
// Another arrow is a change of the plan: think first, then write the reason here.
var rules = map[string]struct {
	ours  []string
	third []string
	why   string
}{
	"codex":           {nil, []string{"github.com/go-json-experiment/json"}, "speaks to one child, and needs nothing of the daemon; its lines have up to 17 MB"},
	"codex/lean":      {nil, nil, "makes the configuration of a child, as data: it starts no child"},
	"codex/codextest": {[]string{"codex", "codex/lean"}, nil, "plays a child; its real one is as lean as in production"},
	"codex/login":     {[]string{"codex"}, nil, "keeps a login fresh through one child; its caller configures that child"},
	"pool":            {[]string{"codex"}, []string{"github.com/jackc/puddle/v2", "github.com/cenkalti/backoff/v5", "github.com/prometheus/procfs"}, "lends children"},
	"upstream":        {[]string{"codex"}, []string{"github.com/go-json-experiment/json"}, "serves children over HTTP; its answers are made of the events of a turn, and it reads one event a token"},
	"api/limits":      {nil, []string{"golang.org/x/time", "github.com/redis/go-redis/v9"}, "counts what keys use, whatever for"},
	"runbooks":        {nil, []string{"github.com/yuin/goldmark"}, "holds pages"},
	"api":             {[]string{"api/limits", "pool", "codex", "upstream", "runbooks"}, []string{"github.com/julienschmidt/httprouter", "github.com/rs/cors", "golang.org/x/sync", "github.com/go-json-experiment/json", "github.com/klauspost/compress", "golang.org/x/image"}, "turns requests into turns, and reads bodies of many megabytes, also in zstd"},
	"metrics":         {[]string{"pool", "api", "upstream"}, []string{"github.com/prometheus/client_golang"}, "counts what the others report"},
	"metrics/traces":  {[]string{"pool", "api", "upstream"}, []string{"go.opentelemetry.io/otel"}, "tells a collector what the others report"},
	"configs":         {nil, []string{"github.com/caarlos0/env/v11", "github.com/BurntSushi/toml"}, "reads the environment, and needs nothing of the daemon; TOML because config.toml must be read as Codex reads it"},
	"configs/grafana": {nil, nil, "makes dashboards, as data: only tests use it"},
	"cmd/codexpool":   {[]string{"api", "api/limits", "codex", "codex/lean", "codex/login", "configs", "metrics", "metrics/traces", "pool", "runbooks", "upstream"}, []string{"github.com/lmittmann/tint", "golang.org/x/term", "github.com/coreos/go-systemd/v22"}, "wires them"},
}

func TestImportsPointOneWay(t *testing.T) {
	list := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	list.Dir = "../.."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, "codexpool/")
		rule, ok := rules[name]
		if !ok {
			t.Errorf("there is no rule for package %s", name)
		}
		for _, imported := range p.Imports {
			ours, isOurs := strings.CutPrefix(imported, "codexpool/")
			switch {
			case isOurs && !slices.Contains(rule.ours, ours):
				t.Errorf("%s must not import %s: it %s", name, ours, rule.why)
			case !isOurs && strings.Contains(imported, ".") && !under(imported, rule.third):
				t.Errorf("%s must not import %s: another package is the home of it", name, imported)
			}
		}
	}
}

func under(path string, roots []string) bool {
	return slices.ContainsFunc(roots, func(root string) bool { return path == root || strings.HasPrefix(path, root+"/") })
}
