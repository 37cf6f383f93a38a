package configs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/BurntSushi/toml"
)

// Programs names the keys of a config.toml that make Codex run programs, whatever
// the lean settings are: those turn off hooks, plugins and apps, but arguments
// cannot remove a server from a table. It looks at the top level only. Codex 0.169.0
// ignores both keys in [profiles.NAME], and does not start a thread at all with a
// profile selected in config.toml.
//
// The error names the first line that is not TOML. It does not quote the line,
// which may contain a secret.
func Programs(config []byte) ([]string, error) {
	var top map[string]any
	if _, err := toml.Decode(string(config), &top); err != nil {
		return nil, plainTOML(err)
	}
	var found []string
	for _, key := range []string{"notify", "mcp_servers"} {
		if _, set := top[key]; set {
			found = append(found, key)
		}
	}
	return found, nil
}

// plainTOML names the line that is not TOML, and does not quote it.
func plainTOML(err error) error {
	if parse := (toml.ParseError{}); errors.As(err, &parse) {
		return fmt.Errorf("line %d is not valid TOML", parse.Position.Line)
	}
	return errors.New(strings.TrimPrefix(err.Error(), "toml: ")) // a value of a wrong type: only its name and type are in it
}
