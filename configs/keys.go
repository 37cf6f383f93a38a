package configs

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// Key is a key that a client may use, with its rights and limits. It holds a digest,
// not the key.
type Key struct {
	Name              string
	Digest            [sha256.Size]byte // of the key
	RequestsPerMinute int               // 0 = none of its own: PROXY_RATE_LIMIT_MAX holds
	TokensPerMinute   int               // 0 = no limit
	Streams           int               // most open streams; 0 = no limit of its own
	Models            []string          // that it may use; empty = all
	Routes            []string          // of KeyRoutes, that it may use; empty = all
	Refuse            []string          // of KeyRefusals, that the Responses route refuses to it
	Expires           time.Time         // zero = never
}

// The words that Routes and Refuse may have.
var (
	KeyRoutes   = []string{"chat", "completions", "responses", "models"}
	KeyRefusals = []string{"stored_state", "hosted_tools"}
)

// Keys are those of PROXY_API_KEY, which are named by their numbers, and those of
// PROXY_API_KEYS_FILE as it is now. Where both have the same key, that of the file counts.
func (c Config) Keys() ([]Key, error) {
	var file []Key
	if c.APIKeysFile != "" {
		text, err := os.ReadFile(c.APIKeysFile)
		if err == nil {
			file, err = ParseKeys(text)
		}
		if err != nil {
			return nil, fmt.Errorf("PROXY_API_KEYS_FILE: %w", err)
		}
	}
	return c.KeysWith(file), nil
}

// KeysWith are the keys of PROXY_API_KEY and those of a keys file.
func (c Config) KeysWith(file []Key) (all []Key) {
	for i, key := range c.APIKeys {
		k := Key{Name: strconv.Itoa(i + 1), Digest: sha256.Sum256([]byte(key))}
		if !slices.ContainsFunc(file, func(f Key) bool { return f.Digest == k.Digest }) {
			all = append(all, k)
		}
	}
	return append(all, file...)
}

// keyEntry is a [[key]] of the keys file. A pointer tells what is not there from 0.
type keyEntry struct {
	Name              string   `toml:"name"`
	SHA256            string   `toml:"sha256"`
	RequestsPerMinute *int     `toml:"requests_per_minute"`
	TokensPerMinute   *int     `toml:"tokens_per_minute"`
	Streams           *int     `toml:"streams"`
	Models            []string `toml:"models"`
	Routes            []string `toml:"routes"`
	Refuse            []string `toml:"refuse"`
	Expires           any      `toml:"expires"` // time.Time would not tell whether there was an offset
}

// ParseKeys reads a keys file. The error names every problem that is not one of TOML, but
// quotes no line: a key may have been pasted into it. A file without a key is an error,
// because a file that is being written looks like that.
func ParseKeys(text []byte) ([]Key, error) {
	var file struct {
		Key []keyEntry `toml:"key"`
	}
	read, err := toml.Decode(string(text), &file)
	if err != nil {
		return nil, plainTOML(err)
	}
	var errs []error
	for _, unknown := range read.Undecoded() {
		errs = append(errs, fmt.Errorf("there is no such field: %s", unknown))
	}
	if len(file.Key) == 0 {
		errs = append(errs, errors.New("it has no [[key]]"))
	}
	var keys []Key
	names, digests := map[string]bool{}, map[[sha256.Size]byte]string{}
	for i, entry := range file.Key {
		k, problems := entry.key()
		if len(problems) == 0 && names[k.Name] {
			problems = append(problems, errors.New("another key has this name"))
		}
		if other, taken := digests[k.Digest]; len(problems) == 0 && taken {
			problems = append(problems, fmt.Errorf("it is the same key as %s", other))
		}
		for _, problem := range problems {
			errs = append(errs, fmt.Errorf("key %d (%.64q): %w", i+1, entry.Name, problem))
		}
		names[k.Name], digests[k.Digest] = true, k.Name
		keys = append(keys, k)
	}
	return keys, errors.Join(errs...)
}

// keyName is a name that fits into logs and labels, and that is no number: those are the
// names of the keys in PROXY_API_KEY.
var keyName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)

// OtherKeys is the label that stands for the keys that have none of their own. No key
// has this name.
const OtherKeys = "other"

func checkKeyName(name string) error {
	if !keyName.MatchString(name) || name == OtherKeys {
		return fmt.Errorf("a name begins with a letter, has at most 64 letters, digits, dots, hyphens and underscores, and is not %q", OtherKeys)
	}
	return nil
}

// key checks an entry.
func (e keyEntry) key() (k Key, problems []error) {
	bad := func(is bool, format string, args ...any) {
		if is {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	k = Key{Name: e.Name, Models: e.Models, Routes: e.Routes, Refuse: e.Refuse}
	if err := checkKeyName(e.Name); err != nil {
		problems = append(problems, err)
	}
	digest, err := hex.DecodeString(e.SHA256)
	bad(err != nil || copy(k.Digest[:], digest) != sha256.Size || len(digest) != sha256.Size, "sha256 is not the SHA-256 of a key, which has 64 hexadecimal digits")
	for _, n := range []struct {
		field string
		from  *int
		to    *int
	}{{"requests_per_minute", e.RequestsPerMinute, &k.RequestsPerMinute}, {"tokens_per_minute", e.TokensPerMinute, &k.TokensPerMinute}, {"streams", e.Streams, &k.Streams}} {
		if n.from != nil {
			bad(*n.from < 1 || *n.from > maxKeyLimit, "%s is not from 1 to %d; leave it out for no limit", n.field, maxKeyLimit)
			*n.to = *n.from
		}
	}
	for _, list := range []struct {
		field          string
		words, allowed []string
	}{{"routes", e.Routes, KeyRoutes}, {"refuse", e.Refuse, KeyRefusals}} {
		for _, word := range list.words {
			bad(!slices.Contains(list.allowed, word), "%s: %q is not one of %s", list.field, word, strings.Join(list.allowed, ", "))
		}
	}
	bad(e.Models != nil && len(e.Models) == 0, "models is empty; leave it out for all models")
	bad(e.Routes != nil && len(e.Routes) == 0, "routes is empty; leave it out for all routes")
	bad(slices.Contains(e.Models, ""), "models has an empty name")
	if e.Expires != nil {
		at, ok := e.Expires.(time.Time)
		bad(!ok || strings.HasSuffix(at.Location().String(), "-local"), "expires is not a time with an offset, without quotes, such as 2027-01-31T00:00:00Z")
		k.Expires = at.UTC()
	}
	return k, problems
}

// maxKeyLimit bounds the limits of a key.
const maxKeyLimit = 1_000_000_000

// NewKey makes a key, and the block that is pasted into a keys file.
func NewKey(name string) (secret, block string, err error) {
	if err := checkKeyName(name); err != nil {
		return "", "", err
	}
	secret = "cpk-" + rand.Text()
	return secret, fmt.Sprintf("[[key]]\nname = %q\nsha256 = \"%x\"\n", name, sha256.Sum256([]byte(secret))), nil
}
