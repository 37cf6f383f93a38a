package configs

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// environment is the source of a value that the environment itself contains.
const environment = "environment"

// gather merges the sources: the value of each variable, and where it is from. A
// variable that is set but empty counts as not set, because Compose and systemd
// files often contain such ones, unless empty has a meaning of its own.
func gather(environ, envFiles []string) (values, sources map[string]string, err error) {
	values, sources = map[string]string{}, map[string]string{}
	set := func(name, value, source string) {
		if value == "" && variables[name].Tag.Get("empty") == "" {
			return
		}
		values[name], sources[name] = value, source
	}
	for _, path := range envFiles {
		file, err := readEnvFile(path)
		if err != nil {
			return nil, nil, fmt.Errorf("--env-file %s: %w", path, err)
		}
		for name, value := range file {
			set(name, value, path)
		}
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		set(name, value, environment)
	}
	return values, sources, nil
}

// resolve adds the defaults to values, decodes them, and derives what they do not
// set. The errors are about values that cannot be decoded or derived; check finds
// the others.
func resolve(values, sources map[string]string) (Config, []error) {
	c := Config{sources: sources}
	fillDefaults(values)
	errs := c.decode(values)
	errs = append(errs, c.readSecrets()...)
	c.normalize()
	errs = append(errs, c.resolvePaths()...)
	c.chooseUpstream()
	return c, errs
}

// fillDefaults adds the default of each setting that is not set; some differ in
// dev. The decoder's own defaults would also replace a value that is set to empty.
func fillDefaults(values map[string]string) {
	for name, f := range variables {
		if _, set := values[name]; set {
			continue
		}
		value, has := f.Tag.Lookup("default")
		if dev, differs := f.Tag.Lookup("dev"); differs && values["PROXY_ENV"] == "dev" {
			value, has = dev, true
		}
		if has {
			values[name] = value
		}
	}
}

// decode parses values into c. A setting with a problem keeps its zero value.
func (c *Config) decode(values map[string]string) []error {
	err := env.ParseWithOptions(c, env.Options{
		Environment: values,
		FuncMap: map[reflect.Type]env.ParserFunc{
			reflect.TypeFor[time.Duration]():  milliseconds,
			reflect.TypeFor[[]netip.Prefix](): networks,
		},
	})
	aggregate := env.AggregateError{}
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &aggregate):
		return []error{err}
	}
	var errs []error
	for _, e := range aggregate.Errors {
		parse := env.ParseError{}
		if errors.As(e, &parse) { // it names the field, not the variable
			f, _ := reflect.TypeFor[Config]().FieldByName(parse.Name)
			e = fmt.Errorf("%s: %w", f.Tag.Get("env"), plain(parse))
		}
		errs = append(errs, e)
	}
	return errs
}

// milliseconds parses a duration, of a year at most.
func milliseconds(s string) (any, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > int64(365*24*time.Hour/time.Millisecond) {
		return nil, fmt.Errorf("%q is not a number of whole milliseconds", s)
	}
	return time.Duration(n) * time.Millisecond, nil
}

// networks parses addresses and networks, of which none may hold every address.
func networks(s string) (any, error) {
	var list []netip.Prefix
	for item := range strings.SplitSeq(s, ",") {
		item = strings.TrimSpace(item)
		network, err := netip.ParsePrefix(item)
		if addr, notNetwork := netip.ParseAddr(item); notNetwork == nil {
			network, err = addr.Prefix(addr.BitLen())
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is neither an address nor a network such as 10.0.0.0/8", item)
		case network.Bits() == 0:
			return nil, fmt.Errorf("%q would trust everyone: list the proxies themselves, or their network", item)
		}
		list = append(list, network.Masked())
	}
	return list, nil
}

// plain removes the standard library's own words from a parse error.
func plain(parse env.ParseError) error {
	if at := (*time.ParseError)(nil); errors.As(parse.Err, &at) {
		return fmt.Errorf("%q is not a time such as 2026-01-31T15:04:05Z", at.Value)
	}
	if number := (*strconv.NumError)(nil); errors.As(parse.Err, &number) {
		return fmt.Errorf("%q is not a valid %s", number.Num, parse.Type)
	}
	return parse.Err
}

// readSecrets reads the secrets that have a file of their own.
func (c *Config) readSecrets() (errs []error) {
	for _, s := range []struct {
		variable, path string
		value          *string
	}{{"CODEX_UPSTREAM_API_KEY", c.UpstreamFile, &c.UpstreamKey}, {"OPENAI_API_KEY", c.OpenAIFile, &c.OpenAIKey}} {
		if s.path == "" {
			continue
		}
		text, err := os.ReadFile(s.path)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s_FILE: %w", s.variable, err))
		case strings.TrimSpace(string(text)) == "": // as a variable that is set but empty
		case *s.value != "":
			errs = append(errs, fmt.Errorf("%s_FILE: %s is set too; leave one of them out", s.variable, s.variable))
		default:
			*s.value, c.sources[s.variable] = string(text), s.path
		}
	}
	return errs
}

// normalize brings values that may be written in several ways into one form.
func (c *Config) normalize() {
	c.Host = strings.Trim(c.Host, "[]") // an IPv6 address is often written in brackets
	for i, key := range c.APIKeys {
		c.APIKeys[i] = strings.TrimSpace(key)
	}
	for i, origin := range c.CORSOrigins {
		c.CORSOrigins[i] = strings.TrimSpace(origin)
	}
	// A secret that was read from a file often ends with a line break.
	c.UpstreamKey, c.OpenAIKey = strings.TrimSpace(c.UpstreamKey), strings.TrimSpace(c.OpenAIKey)
	if _, set := c.sources["POOL_MIN_IDLE"]; !set {
		c.MinIdle = min(c.MinIdle, c.PoolSize)
	}
}

// resolvePaths makes the folders absolute, because children have another working
// directory.
func (c *Config) resolvePaths() (errs []error) {
	if c.Workdir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			errs = append(errs, fmt.Errorf("PROXY_CODEX_WORKDIR: it must be set: %w", err))
		} else {
			c.Workdir = filepath.Join(cache, "codexpool")
		}
	}
	for _, p := range []struct {
		variable string
		path     *string
	}{{"CODEX_HOME", &c.Home}, {"PROXY_CODEX_WORKDIR", &c.Workdir}, {"PROXY_API_KEYS_FILE", &c.APIKeysFile}} {
		if *p.path == "" {
			continue
		}
		abs, err := filepath.Abs(*p.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.variable, err))
			continue
		}
		*p.path = abs
	}
	return errs
}

// chooseUpstream picks the provider where CODEX_UPSTREAM is empty. In production
// without any credential it stays empty.
func (c *Config) chooseUpstream() {
	switch {
	case c.Upstream != "":
	case c.hasKey():
		c.Upstream = OpenAI
	case c.Home != "" && exists(filepath.Join(c.Home, "auth.json")):
		c.Upstream = ChatGPT
	case c.Dev():
		c.Upstream = Echo
	}
}

func (c Config) hasKey() bool { return c.UpstreamKey != "" || c.OpenAIKey != "" }

// exists is also true of what may not be seen: whoever needs it then says so.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil || errors.Is(err, fs.ErrPermission)
}
