package configs

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// A line is one that systemd, Compose and shells read alike: a bare value has
// none of the characters that one of them treats specially, a quoted one none
// that is special within its quotes.
var (
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	bareValue    = regexp.MustCompile("^[^\"'`$\\\\]*$")
	quotedValue  = regexp.MustCompile("^(?:'[^']*'|\"[^\"`$\\\\]*\")$")
	comment      = regexp.MustCompile(`\s#`)
)

// readEnvFile reads lines of NAME=value. Values are taken as they are: nothing is
// expanded, as godotenv does, nor cut at any "#", as go-envparse does, for that
// would make another key of a key, without a word. What is not understood is
// refused with its line's number and never quoted, for it may be a secret.
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
			return nil, fmt.Errorf("line %d: a value with a quote, a backslash, $, a backquote or a comment behind it must stand in single quotes as a whole", number)
		}
		values[name] = value
	}
	return values, nil
}
