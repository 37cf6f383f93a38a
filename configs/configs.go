// Package configs reads, defaults and validates the environment, and holds what
// operators deploy: the profiles and the children's configuration.
//
// Every setting is one environment variable and one field of [Config], with its
// default and its meaning in the field's tag; "codexpool config" prints that
// table. Nothing is read after the start.
package configs

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// The values of CODEX_UPSTREAM that are not URLs.
const (
	Echo    = "echo"    // the offline echo model
	OpenAI  = "openai"  // https://api.openai.com/v1
	ChatGPT = "chatgpt" // https://chatgpt.com/backend-api/codex, with the login in CODEX_HOME
	Direct  = "direct"  // children call the provider themselves, as CODEX_HOME/config.toml says
)

// maxBody is the largest body of a request, in bytes: in a turn with tools the child
// repeats each item of the history in one line, of which package codex reads 17 MiB.
const maxBody = 16 << 20

// environment is the source of what is in the environment itself.
const environment = "environment"

// DevKey is the API key of the dev profile. It is public, so production refuses it.
const DevKey = "codexpool-dev"

// Config is the whole configuration, checked. Durations are whole milliseconds
// in the environment.
type Config struct {
	Env         string `env:"PROXY_ENV" mean:"dev, or empty for production, which refuses unsafe settings; picks the model prefix"`
	Host        string `env:"PROXY_HOST" default:"127.0.0.1" mean:"address of the public listener"`
	Port        int    `env:"PORT" default:"11435" mean:"port of the public listener; 0 = any free one"`
	AdminAddr   string `env:"PROXY_ADMIN_ADDR" default:"127.0.0.1:11436" empty:"off" mean:"admin listener with /metrics, never public; empty = off"`
	AdminPublic bool   `env:"PROXY_ADMIN_PUBLIC" default:"false" mean:"an admin address beyond loopback is meant"`

	APIKeys       []string `env:"PROXY_API_KEY" secret:"yes" mean:"bearer keys, comma-separated; none only in dev and on loopback"`
	ProtectModels bool     `env:"PROXY_PROTECT_MODELS" default:"true" dev:"false" mean:"whether /v1/models wants a key"`
	CORS          bool     `env:"PROXY_ENABLE_CORS" default:"true" mean:"answer cross-origin requests of PROXY_CORS_ALLOWED_ORIGINS"`
	CORSOrigins   []string `env:"PROXY_CORS_ALLOWED_ORIGINS" dev:"*" empty:"none" mean:"exact origins, comma-separated; * = any, never with credentials"`

	DefaultStream     bool          `env:"PROXY_DEFAULT_STREAM" default:"false" mean:"what a request without stream gets"`
	MaxStreams        int           `env:"PROXY_SSE_MAX_CONCURRENCY" default:"0" mean:"open streams at most; 0 = no limit of its own"`
	Keepalive         time.Duration `env:"PROXY_SSE_KEEPALIVE_MS" default:"15000" mean:"a comment into a stream after that much silence; 0 = off"`
	Commit            time.Duration `env:"PROXY_SSE_COMMIT_MS" default:"2000" mean:"a stream's 200 is sent that long after the turn began, if nothing came before"`
	Timeout           time.Duration `env:"PROXY_TIMEOUT_MS" default:"600000" mean:"a whole request"`
	IdleTimeout       time.Duration `env:"PROXY_IDLE_TIMEOUT_MS" default:"120000" mean:"silence of the model, for answers in one piece"`
	StreamIdleTimeout time.Duration `env:"PROXY_STREAM_IDLE_TIMEOUT_MS" default:"300000" mean:"silence of the model, for streams"`
	WriteTimeout      time.Duration `env:"PROXY_WRITE_TIMEOUT_MS" default:"30000" mean:"one write to a client"`
	MaxBody           int64         `env:"PROXY_MAX_BODY_BYTES" default:"16777216" mean:"request body at most, bytes; 16777216 at most"`
	MaxChoices        int           `env:"PROXY_MAX_CHAT_CHOICES" default:"4" mean:"answers that one request may ask for (n)"`
	Prestop           time.Duration `env:"PROXY_PRESTOP_MS" default:"0" mean:"between not ready and refusing, when stopping"`
	Drain             time.Duration `env:"PROXY_DRAIN_MS" default:"30000" mean:"how long running turns may go on, when stopping"`

	Bin          string        `env:"CODEX_BIN" mean:"the Codex CLI, wrapper or native; empty = the pinned one beside the program, else codex from PATH"`
	Upstream     string        `env:"CODEX_UPSTREAM" mean:"openai, chatgpt, echo, the http(s) base URL of a Responses API, or direct (as CODEX_HOME/config.toml says); empty = openai with a key, chatgpt with a login in CODEX_HOME, else echo, in dev only"`
	UpstreamKey  string        `env:"CODEX_UPSTREAM_API_KEY" secret:"yes" mean:"bearer key for the upstream; the relay adds it, children never see it"`
	OpenAIKey    string        `env:"OPENAI_API_KEY" secret:"yes" mean:"the same, for CODEX_UPSTREAM=openai only"`
	Home         string        `env:"CODEX_HOME" mean:"folder with a ChatGPT login, which is refreshed and written back; with direct also the children's config.toml"`
	RefreshURL   string        `env:"CODEX_REFRESH_TOKEN_URL_OVERRIDE" mean:"Codex's own: where a login is refreshed; for tests"`
	Model        string        `env:"CODEX_MODEL" mean:"the model that the aliases mean; empty = the catalog's default"`
	Sandbox      string        `env:"PROXY_SANDBOX_MODE" default:"read-only" mean:"Codex sandbox; read-only is the only one so far"`
	EchoDelay    time.Duration `env:"CODEX_ECHO_DELAY_MS" default:"20" mean:"between the echo model's words"`
	Workdir      string        `env:"PROXY_CODEX_WORKDIR" mean:"private homes of children; empty = codexpool in the user's cache directory; not below /tmp"`
	StartTimeout time.Duration `env:"CODEX_START_TIMEOUT_MS" default:"15000" mean:"a child's start and handshake"`
	StopGrace    time.Duration `env:"CODEX_STOP_GRACE_MS" default:"2000" mean:"each step of stopping a child"`

	PoolSize       int           `env:"POOL_SIZE" default:"4" mean:"children at most"`
	MinIdle        int           `env:"POOL_MIN_IDLE" default:"4" mean:"children kept warm, at least 1, POOL_SIZE at most"`
	MaxWaiting     int           `env:"POOL_MAX_WAITING" default:"64" mean:"requests in line at most"`
	AcquireTimeout time.Duration `env:"POOL_ACQUIRE_TIMEOUT_MS" default:"30000" mean:"a request's time in line"`
	MaxTurns       int           `env:"POOL_MAX_TURNS" default:"500" mean:"turns of a child before it is replaced; 0 = no limit"`
	MaxAge         time.Duration `env:"POOL_MAX_AGE_MS" default:"3600000" mean:"age of a child before it is replaced; 0 = no limit"`
	MaxChildBytes  int64         `env:"POOL_MAX_CHILD_BYTES" default:"536870912" mean:"private memory of a child and its helpers before it is replaced, bytes; 0 = no limit"`
	MinLife        time.Duration `env:"POOL_MIN_LIFE_MS" default:"60000" mean:"age below which neither turns nor age nor memory replace a child"`
	Jitter         float64       `env:"POOL_JITTER" default:"0.2" mean:"fraction by which the limits of turns and age vary from child to child"`
	ProbeEvery     time.Duration `env:"POOL_PROBE_MS" default:"10000" mean:"an idle child that was silent for that long is asked how it is; 0 = never"`
	ProbeTimeout   time.Duration `env:"POOL_PROBE_TIMEOUT_MS" default:"2000" mean:"its time to answer; with no answer 2 s later either, it is killed and replaced"`
	BackoffMin     time.Duration `env:"POOL_BACKOFF_MIN_MS" default:"500" mean:"pause after a failed start of a child"`
	BackoffMax     time.Duration `env:"POOL_BACKOFF_MAX_MS" default:"30000" mean:"the same, after many"`

	LogLevel  string `env:"LOG_LEVEL" default:"info" mean:"debug, info, warn or error"`
	LogFormat string `env:"LOG_FORMAT" mean:"tint or json; empty = tint on a terminal, else json"`

	// Warnings are what the operator should know, for the log.
	Warnings []string `env:"-"`

	sources map[string]string // variable -> where its value is from
}

// LoopbackOnly says that no secret protects the API: only this machine may use
// it, and no web page of another host.
func (c Config) LoopbackOnly() bool {
	return len(c.APIKeys) == 0 || slices.Contains(c.APIKeys, DevKey)
}

// Dev says that this is not production.
func (c Config) Dev() bool { return c.Env == "dev" }

// Load reads the env files in their order, then environ (as os.Environ gives
// it), each over what came before. The error names every problem, a line each.
func Load(environ, envFiles []string) (Config, error) {
	values, sources, err := gather(environ, envFiles)
	if err != nil {
		return Config{}, err
	}
	c := Config{sources: sources}
	fillDefaults(values)
	var problems []error
	if err := env.ParseWithOptions(&c, env.Options{
		Environment: values,
		FuncMap:     map[reflect.Type]env.ParserFunc{reflect.TypeFor[time.Duration](): milliseconds},
	}); err != nil {
		problems = named(err)
	}
	unreadable := map[string]bool{} // said once is enough
	for _, p := range problems {
		unreadable[variableOf(p)] = true
	}
	for _, p := range c.check() {
		if !unreadable[variableOf(p)] {
			problems = append(problems, p)
		}
	}
	problems = append(problems, c.checkProxies(values)...)
	c.warn(values)
	return c, errors.Join(problems...)
}

// gather merges the sources. A variable that is set but empty counts as not
// set, as Compose and systemd files often have it, but where empty has a meaning.
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

// fillDefaults adds the default of each setting that is not set; dev has some of
// its own. The decoder's defaults would also replace what is set to empty.
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

// milliseconds parses a duration.
func milliseconds(s string) (any, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > int64(365*24*time.Hour/time.Millisecond) {
		return nil, fmt.Errorf("%q is not a number of whole milliseconds", s)
	}
	return time.Duration(n) * time.Millisecond, nil
}

// named says which variable each parse error is about: the decoder names fields.
func named(err error) []error {
	aggregate := env.AggregateError{}
	if !errors.As(err, &aggregate) {
		return []error{err}
	}
	var problems []error
	for _, e := range aggregate.Errors {
		parse := env.ParseError{}
		if errors.As(e, &parse) {
			f, _ := reflect.TypeFor[Config]().FieldByName(parse.Name)
			e = fmt.Errorf("%s: %w", f.Tag.Get("env"), plain(parse))
		}
		problems = append(problems, e)
	}
	return problems
}

// variableOf is the variable that a problem begins with.
func variableOf(problem error) string {
	name, _, _ := strings.Cut(problem.Error(), ":")
	return name
}

// plain takes strconv's own words out of a parse error.
func plain(parse env.ParseError) error {
	if number := (*strconv.NumError)(nil); errors.As(parse.Err, &number) {
		return fmt.Errorf("%q is not a valid %s", number.Num, parse.Type)
	}
	return parse.Err
}

// check returns every problem with the values themselves.
func (c *Config) check() []error {
	var problems []error
	bad := func(when bool, variable, format string, args ...any) {
		if when {
			problems = append(problems, fmt.Errorf(variable+": "+format, args...))
		}
	}
	oneOf := func(variable, value string, allowed ...string) {
		bad(!slices.Contains(allowed, value), variable, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
	atLeast := func(variable string, value, least int64) {
		bad(value < least, variable, "%d is less than %d", value, least)
	}

	bad(c.Env != "" && c.Env != "dev", "PROXY_ENV", "%q is neither dev nor empty", c.Env)
	bad(c.Port < 0 || c.Port > 65535, "PORT", "%d is not a port", c.Port)
	oneOf("PROXY_SANDBOX_MODE", c.Sandbox, "read-only")
	oneOf("LOG_LEVEL", c.LogLevel, "debug", "info", "warn", "error")
	bad(c.LogFormat != "" && c.LogFormat != "tint" && c.LogFormat != "json", "LOG_FORMAT", "%q is not one of tint, json", c.LogFormat)

	atLeast("POOL_SIZE", int64(c.PoolSize), 1)
	bad(c.PoolSize > 1024, "POOL_SIZE", "%d is more than 1024", c.PoolSize)
	bad(c.MinIdle < 1, "POOL_MIN_IDLE", "%d is less than 1: with no warm child it is never ready, and no load balancer sends it a request", c.MinIdle)
	if _, set := c.sources["POOL_MIN_IDLE"]; !set {
		c.MinIdle = min(c.MinIdle, c.PoolSize)
	}
	bad(c.MinIdle > c.PoolSize, "POOL_MIN_IDLE", "%d is more than POOL_SIZE (%d)", c.MinIdle, c.PoolSize)
	atLeast("POOL_MAX_WAITING", int64(c.MaxWaiting), 0)
	atLeast("POOL_MAX_TURNS", int64(c.MaxTurns), 0)
	atLeast("POOL_MAX_CHILD_BYTES", c.MaxChildBytes, 0)
	bad(c.ProbeTimeout > 8*time.Second, "POOL_PROBE_TIMEOUT_MS", "it must be at most 8000: after 10 s any call to a child is given up")
	atLeast("PROXY_SSE_MAX_CONCURRENCY", int64(c.MaxStreams), 0)
	atLeast("PROXY_MAX_BODY_BYTES", c.MaxBody, 1)
	bad(c.MaxBody > maxBody, "PROXY_MAX_BODY_BYTES", "%d is more than %d, which is what a line of a child can hold", c.MaxBody, maxBody)
	atLeast("PROXY_MAX_CHAT_CHOICES", int64(c.MaxChoices), 1)
	bad(!(c.Jitter >= 0 && c.Jitter < 1), "POOL_JITTER", "%v is not at least 0 and less than 1", c.Jitter)
	bad(c.BackoffMin > c.BackoffMax, "POOL_BACKOFF_MIN_MS", "it is more than POOL_BACKOFF_MAX_MS")
	for _, d := range []struct {
		variable string
		value    time.Duration
	}{
		{"PROXY_TIMEOUT_MS", c.Timeout},
		{"PROXY_IDLE_TIMEOUT_MS", c.IdleTimeout},
		{"PROXY_STREAM_IDLE_TIMEOUT_MS", c.StreamIdleTimeout},
		{"PROXY_WRITE_TIMEOUT_MS", c.WriteTimeout},
		{"CODEX_START_TIMEOUT_MS", c.StartTimeout},
		{"CODEX_STOP_GRACE_MS", c.StopGrace},
		{"POOL_ACQUIRE_TIMEOUT_MS", c.AcquireTimeout},
		{"POOL_BACKOFF_MIN_MS", c.BackoffMin},
		{"POOL_PROBE_TIMEOUT_MS", c.ProbeTimeout},
	} {
		bad(d.value <= 0, d.variable, "it must be more than 0")
	}
	for _, problem := range []error{c.checkKeys(), c.checkOrigins(), c.checkAdmin(), c.checkHome(), c.checkUpstreamKeys(), c.checkUpstream(), c.checkWorkdir()} {
		if problem != nil {
			problems = append(problems, problem)
		}
	}
	return problems
}

func (c *Config) checkKeys() error {
	for i, key := range c.APIKeys {
		if c.APIKeys[i] = strings.TrimSpace(key); c.APIKeys[i] == "" {
			return errors.New("PROXY_API_KEY: one of its keys is empty")
		}
	}
	c.Host = strings.Trim(c.Host, "[]") // as an IPv6 address is often written
	switch {
	case len(c.APIKeys) == 0 && !c.Dev():
		return errors.New("PROXY_API_KEY: production needs a key (for a trial: --env-file configs/profiles/dev.env)")
	case len(c.APIKeys) == 0 && !Loopback(c.Host):
		return fmt.Errorf("PROXY_API_KEY: without a key PROXY_HOST must be a loopback address, not %q", c.Host)
	case !Loopback(c.Host) && c.Dev() && slices.Contains(c.APIKeys, DevKey):
		return fmt.Errorf("PROXY_API_KEY: the dev profile's key is public; with it PROXY_HOST must be a loopback address, not %q", c.Host)
	case !c.Dev() && slices.Contains(c.APIKeys, DevKey):
		return errors.New("PROXY_API_KEY: the dev profile's key is public; production needs one of its own")
	}
	return nil
}

func (c *Config) checkOrigins() error {
	for i, origin := range c.CORSOrigins {
		origin = strings.TrimSpace(origin)
		c.CORSOrigins[i] = origin
		u, err := url.Parse(origin)
		if origin != "*" && (err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin || strings.Contains(origin, "*")) {
			return fmt.Errorf("PROXY_CORS_ALLOWED_ORIGINS: %q is not an origin such as https://app.example", origin)
		}
	}
	return nil
}

func (c *Config) checkAdmin() error {
	if c.AdminAddr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(c.AdminAddr)
	if err != nil {
		return fmt.Errorf("PROXY_ADMIN_ADDR: %q is not HOST:PORT", c.AdminAddr)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("PROXY_ADMIN_ADDR: %q is not a port", port)
	}
	if !Loopback(host) && !c.AdminPublic {
		return fmt.Errorf("PROXY_ADMIN_ADDR: %q is not a loopback address; say PROXY_ADMIN_PUBLIC=true if that is meant", c.AdminAddr)
	}
	return nil
}

func (c *Config) checkUpstream() error {
	hasKey := c.UpstreamKey != "" || c.OpenAIKey != ""
	switch {
	case c.Upstream != "":
	case hasKey:
		c.Upstream = OpenAI
	case c.Home != "" && exists(filepath.Join(c.Home, "auth.json")):
		c.Upstream = ChatGPT
	case c.Dev():
		c.Upstream = Echo
	default:
		return errors.New("CODEX_UPSTREAM: production needs it, or OPENAI_API_KEY, or a login in CODEX_HOME: openai, chatgpt, the http(s) base URL of a Responses API, direct, or echo")
	}
	switch {
	case c.Upstream == OpenAI && !hasKey:
		return errors.New("CODEX_UPSTREAM: openai needs OPENAI_API_KEY or CODEX_UPSTREAM_API_KEY")
	case (c.Upstream == ChatGPT || c.Upstream == Direct) && c.Home == "":
		return fmt.Errorf("CODEX_UPSTREAM: %s needs CODEX_HOME", c.Upstream)
	case slices.Contains([]string{Echo, OpenAI, ChatGPT, Direct}, c.Upstream):
		return nil
	}
	u, err := url.Parse(c.Upstream)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
		// The value is not repeated: a URL may hold a password.
		return errors.New("CODEX_UPSTREAM: it is neither openai, nor chatgpt, nor echo, nor direct, nor the http(s) base URL of a Responses API")
	}
	return nil
}

// checkUpstreamKeys takes from the provider's keys the white space that a secret
// read from a file often ends with, and refuses what no header can carry: each
// request would fail.
func (c *Config) checkUpstreamKeys() error {
	for _, k := range []struct {
		variable string
		key      *string
	}{{"CODEX_UPSTREAM_API_KEY", &c.UpstreamKey}, {"OPENAI_API_KEY", &c.OpenAIKey}} {
		*k.key = strings.TrimSpace(*k.key)
		if strings.ContainsFunc(*k.key, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("%s: it holds what an HTTP header cannot: white space, or what is not ASCII", k.variable)
		}
	}
	return nil
}

// checkProxies finds those that net/http would ignore without a word, and call the
// provider directly. Values are not repeated: they may hold a password.
func (c *Config) checkProxies(values map[string]string) (problems []error) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		if c.sources[name] == environment && !isProxy(values[name]) {
			problems = append(problems, fmt.Errorf("%s: it is not the URL of an http, https or socks5 proxy", name))
		}
	}
	return problems
}

// isProxy knows, as net/http does, that a proxy without a scheme speaks HTTP.
func isProxy(value string) bool {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	return err == nil && u.Hostname() != "" && slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// OpenUpstream says that the provider may have models that no catalog lists.
func (c Config) OpenUpstream() bool {
	return c.Upstream == Direct || strings.Contains(c.Upstream, "://")
}

// checkHome makes CODEX_HOME absolute: children have another working directory.
func (c *Config) checkHome() error {
	if c.Home == "" {
		return nil
	}
	abs, err := filepath.Abs(c.Home)
	if err != nil {
		return fmt.Errorf("CODEX_HOME: %w", err)
	}
	if info, err := os.Stat(abs); err != nil || !info.IsDir() {
		return fmt.Errorf("CODEX_HOME: %q is not a folder", c.Home)
	}
	c.Home = abs
	return nil
}

func (c *Config) checkWorkdir() error {
	if c.Workdir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("PROXY_CODEX_WORKDIR: it must be set: %w", err)
		}
		c.Workdir = filepath.Join(cache, "codexpool")
	}
	abs, err := filepath.Abs(c.Workdir)
	if err != nil {
		return fmt.Errorf("PROXY_CODEX_WORKDIR: %w", err)
	}
	c.Workdir = abs
	return nil
}

// Loopback says that host is a loopback address or localhost.
func Loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.Unmap().IsLoopback()
}

// warn notes what is not an error: variables that this version does not know
// are named, whether they are misspelt, not there yet, or of the older proxy.
func (c *Config) warn(values map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if _, known := variables[name]; known {
			continue
		}
		if slices.Contains(Network(), name) {
			if c.sources[name] != environment {
				c.Warnings = append(c.Warnings, name+" has no effect in an env file: set it in the environment")
			}
			continue
		}
		if why, old := gone[name]; old {
			c.Warnings = append(c.Warnings, name+" has no effect: "+why)
		} else if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			c.Warnings = append(c.Warnings, name+" has no effect: this version does not know it")
		}
	}
	if c.OpenAIKey != "" && c.Upstream != OpenAI {
		c.Warnings = append(c.Warnings, "OPENAI_API_KEY has no effect: CODEX_UPSTREAM is not openai, and OpenAI's key is nobody else's business (see CODEX_UPSTREAM_API_KEY)")
	}
}

// prefixes mark the variables that are meant for us.
var prefixes = []string{"PROXY_", "POOL_", "CODEX_", "WORKER_"}

// gone are settings of the older proxy that mean nothing here.
var gone = map[string]string{
	"PROXY_MAX_PROMPT_TOKENS":         "the provider knows the limit and says so",
	"PROXY_USE_APP_SERVER":            "app-server is the only way",
	"CODEX_FORCE_PROVIDER":            "see CODEX_UPSTREAM",
	"PROXY_SUPPRESS_TAIL_AFTER_TOOLS": "tool calls are not text here",
	"PROXY_OUTPUT_MODE":               "tool calls are not text here",
	"PROXY_KILL_ON_DISCONNECT":        "a disconnect always cancels",
	"PROXY_TEST_ENDPOINTS":            "there are none",
}

// Secrets are the variables of ours whose value no child may see. OPENAI_API_KEY
// is not one of them: it is also Codex's own.
func Secrets() []string {
	var names []string
	for _, f := range fields {
		if name := f.Tag.Get("env"); f.Tag.Get("secret") != "" && name != "OPENAI_API_KEY" {
			names = append(names, name)
		}
	}
	return names
}

// Network are the variables that say how to reach the outside. They are no settings
// of ours: Go and Codex read them for themselves, from the environment only.
func Network() []string {
	return []string{
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "CODEX_CA_CERTIFICATE",
	}
}

// Setting is one row of the reference.
type Setting struct {
	Name    string // the variable
	Value   string // in effect; secrets are masked
	Default string
	Source  string // "default", "environment", or the env file
	Meaning string
}

// Settings lists every setting with its value in effect; none where the sources
// could not be read.
func (c Config) Settings() []Setting {
	if c.sources == nil {
		return nil
	}
	value := reflect.ValueOf(c)
	var settings []Setting
	for _, f := range fields {
		name := f.Tag.Get("env")
		s := Setting{
			Name:    name,
			Value:   show(value.FieldByIndex(f.Index).Interface()),
			Default: f.Tag.Get("default"),
			Source:  cmp.Or(c.sources[name], "default"),
			Meaning: f.Tag.Get("mean"),
		}
		if s.Value != "" && (f.Tag.Get("secret") != "" || (name == "CODEX_UPSTREAM" && strings.ContainsAny(s.Value, "@?"))) {
			s.Value = "(set)" // a URL with a user or a query is refused, but may hold a secret all the same
		}
		settings = append(settings, s)
	}
	return settings
}

func show(v any) string {
	switch v := v.(type) {
	case time.Duration:
		return strconv.FormatInt(v.Milliseconds(), 10)
	case []string:
		return strings.Join(v, ",")
	}
	return fmt.Sprint(v)
}

// What Config's tags say, read once: the settings in their order, and by name.
var (
	fields    = settingFields()
	variables = byVariable(fields)
)

func settingFields() []reflect.StructField {
	return slices.DeleteFunc(reflect.VisibleFields(reflect.TypeFor[Config]()), func(f reflect.StructField) bool {
		name := f.Tag.Get("env")
		return name == "" || name == "-"
	})
}

func byVariable(fields []reflect.StructField) map[string]reflect.StructField {
	names := map[string]reflect.StructField{}
	for _, f := range fields {
		names[f.Tag.Get("env")] = f
	}
	return names
}
