// Package lean configures a child: its arguments, files and environment.
// They make a plain model of Codex, which is an agent by itself. The provider gets
// the caller's messages and nothing else, and no tool runs on this machine.
//
// The daemon calls it for each child that it starts.
package lean

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
)

//go:embed lean.toml
var profile string

// nobody is a root certificate whose private key was never stored: no server has a
// certificate of it.
//
//go:embed nobody.pem
var nobody []byte

// Child is what one child is started with, beside what the daemon adds, such as
// PATH. The caller owns it and may add to it.
type Child struct {
	Args  []string          // after "app-server"
	Files map[string][]byte // for its CODEX_HOME
	Env   []string
}

// Relayed configures a child whose only provider is a Responses API at baseURL.
// The child sends it no credential and never retries: a retry would repeat text.
// home is the child's CODEX_HOME; catalog is its model catalog, from [StandIn].
func Relayed(home, baseURL string, catalog []byte) Child {
	config := fmt.Appendf(nil, `model_catalog_json = %s
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
stream_idle_timeout_ms = 86400000
`, quote(filepath.Join(home, catalogName)), profile, quote(baseURL))
	c := child(map[string][]byte{"config.toml": config, catalogName: catalog})
	if strings.HasPrefix(baseURL, "http:") {
		// Codex parses all trusted roots for every turn, although it speaks plain HTTP:
		// 10 ms of CPU for a system's bundle, nothing for this one.
		c.Files["nobody.pem"] = nobody
		c.Env = append(c.Env, "SSL_CERT_FILE="+filepath.Join(home, "nobody.pem"))
	}
	return c
}

// Direct configures a child that calls the provider itself, according to config, the
// operator's config.toml. The child is lean by its arguments, which win over that
// file. home is the child's CODEX_HOME; catalog is its model catalog, from [Catalog].
func Direct(home string, config, catalog []byte) Child {
	c := child(map[string][]byte{"config.toml": config, catalogName: catalog})
	c.Args = []string{"-c", "model_catalog_json=" + quote(filepath.Join(home, catalogName))}
	for _, setting := range profileSettings() {
		c.Args = append(c.Args, "-c", setting)
	}
	return c
}

// Keeper configures the child that refreshes a ChatGPT login. It stores the login
// in a file, calls the login's own service, and runs no turn.
func Keeper() Child {
	return child(map[string][]byte{"config.toml": []byte("cli_auth_credentials_store = \"file\"\n" + profile)})
}

// child has what every child needs.
func child(files map[string][]byte) Child {
	// A child runs one turn at a time; the default is a thread for every core.
	return Child{Files: files, Env: []string{"TOKIO_WORKER_THREADS=1"}}
}

// profileSettings is lean.toml as values of the argument -c: "a.b.c=value".
func profileSettings() []string {
	var settings []string
	table := ""
	for line := range strings.Lines(profile) {
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
