package configs

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
)

//go:embed codex/lean.toml
var lean string

// nobody is a root certificate whose key was never kept: nobody can be vouched
// for by it.
//
//go:embed codex/nobody.pem
var nobody []byte

// Child is what a lean child is given at its start.
type Child struct {
	Args  []string          // after "app-server"
	Files map[string][]byte // for its CODEX_HOME
	Env   []string          // beside what the daemon adds, such as PATH
}

// LeanChild configures a child whose CODEX_HOME is home, whose models are those
// of catalog, and whose only provider is a Responses API at baseURL. The child
// sends it no credential and never retries: a retry would repeat text.
func LeanChild(home, baseURL string, catalog []byte) Child {
	c := Child{
		Files: map[string][]byte{"models.json": catalog},
		// A child runs one turn at a time; the default is a thread for every core.
		Env: []string{"TOKIO_WORKER_THREADS=1"},
	}
	c.Files["config.toml"] = fmt.Appendf(nil, `model_catalog_json = %s
model_provider = "pool"
%s
[model_providers.pool]
name = "pool"
base_url = %s
wire_api = "responses"
requires_openai_auth = false
supports_websockets = false
request_max_retries = 0
stream_max_retries = 0
stream_idle_timeout_ms = 300000
`, quote(filepath.Join(home, "models.json")), lean, quote(baseURL))
	if strings.HasPrefix(baseURL, "http:") {
		// Codex parses all roots that it trusts for every single turn, though it
		// speaks plain HTTP: 10 ms of CPU for a system's bundle, nothing for this.
		c.Files["nobody.pem"] = nobody
		c.Env = append(c.Env, "SSL_CERT_FILE="+filepath.Join(home, "nobody.pem"))
	}
	return c
}

// KeeperChild configures the child that refreshes a ChatGPT login: it keeps it
// in a file, calls the login's own service, and runs no turn.
func KeeperChild() Child {
	return Child{
		Files: map[string][]byte{"config.toml": []byte("cli_auth_credentials_store = \"file\"\n" + lean)},
		Env:   []string{"TOKIO_WORKER_THREADS=1"},
	}
}

// DirectChild configures a child that calls the provider that CODEX_HOME/config.toml
// names, here given as config. It is lean by its arguments, which win over the
// file.
func DirectChild(home string, config, catalog []byte) Child {
	c := Child{
		Files: map[string][]byte{"models.json": catalog, "config.toml": config},
		Args:  []string{"-c", "model_catalog_json=" + quote(filepath.Join(home, "models.json"))},
		Env:   []string{"TOKIO_WORKER_THREADS=1"},
	}
	for _, setting := range leanSettings() {
		c.Args = append(c.Args, "-c", setting)
	}
	return c
}

// leanSettings is lean.toml as the arguments of -c: one "a.b.c=value" a line.
func leanSettings() []string {
	var settings []string
	table := ""
	for line := range strings.Lines(lean) {
		line = strings.TrimSpace(line)
		name, value, set := strings.Cut(line, " = ")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			table = strings.Trim(line, "[]") + "."
		case set:
			settings = append(settings, table+name+"="+value)
		}
	}
	return settings
}

// quote makes a TOML basic string: JSON's escapes are a part of TOML's.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic("BUG: a string that JSON cannot hold: " + err.Error())
	}
	return string(b)
}
