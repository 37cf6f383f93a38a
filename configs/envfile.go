package configs

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// The lines that are accepted mean the same to systemd, Compose and shells: a bare
// value has no character that one of them treats specially, and a quoted value has
// none that is special within its quotes.
var (
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	bareValue    = regexp.MustCompile("^[^\"'`$\\\\]*$")
	quotedValue  = regexp.MustCompile("^(?:'[^']*'|\"[^\"`$\\\\]*\")$")
	comment      = regexp.MustCompile(`\s#`)
)

// readEnvFile reads lines of NAME=value. Values stay as they are: variables are not
// expanded, as godotenv does, and a "#" does not end a value, as in go-envparse.
// Either would change a key without an error. A line that is not accepted is an
// error, which has the line's number but does not quote it, for it may be a secret.
func readEnvFile(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(string(data), "\ufeff")) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if value = strings.TrimSpace(value); !found || !variableName.MatchString(name) {
			return nil, fmt.Errorf("line %d is not NAME=value", number)
		}
		switch {
		case quotedValue.MatchString(value):
			value = value[1 : len(value)-1]
		case !bareValue.MatchString(value) || comment.MatchString(value):
			return nil, fmt.Errorf("line %d: a value with a quote, a backslash, $, a backquote or a comment behind it must be in single quotes as a whole", number)
		}
		values[name] = value
	}
	return values, nil
}
