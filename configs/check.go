package configs

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxBody is the largest body of a request, in bytes. In a turn with tools the child
// repeats each item of the history in one line, and package codex reads lines of
// 17 MiB at most.
const maxBody = 16 << 20

// freshChild is the memory that a child takes for itself when it has just started, in
// bytes: 13 to 15 MB. With a lower limit each would be replaced as soon as it may be.
const freshChild = 16 << 20

// problems collects errors, each of which begins with its variable.
type problems []error

func (p *problems) add(bad bool, variable, message string, args ...any) {
	if bad {
		*p = append(*p, fmt.Errorf(variable+": "+message, args...))
	}
}

// check returns every problem with the resolved values. It changes nothing. values
// are the variables that c was resolved from.
func (c Config) check(values map[string]string) []error {
	var p problems
	c.checkWords(&p)
	c.checkNumbers(&p)
	c.checkTimes(&p)
	for _, problem := range []error{c.checkKeys(), c.checkKeysFile(), c.checkRedis(), c.checkOrigins(), c.checkAdmin(), c.checkHome(), c.checkUpstreamKeys(), c.checkUpstream()} {
		if problem != nil {
			p = append(p, problem)
		}
	}
	return append(p, c.checkProxies(values)...)
}

func (c Config) checkWords(p *problems) {
	oneOf := func(variable, value string, allowed ...string) {
		p.add(!slices.Contains(allowed, value), variable, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
	p.add(c.Env != "" && c.Env != "dev", "PROXY_ENV", "%q is neither dev nor empty", c.Env)
	oneOf("PROXY_SANDBOX_MODE", c.Sandbox, "read-only")
	oneOf("CODEX_PROMPT_CACHE_KEY", c.CacheKey, "auto", "on", "off")
	oneOf("LOG_LEVEL", c.LogLevel, "debug", "info", "warn", "error")
	if c.LogFormat != "" {
		oneOf("LOG_FORMAT", c.LogFormat, "tint", "json")
	}
}

func (c Config) checkNumbers(p *problems) {
	atLeast := func(variable string, value, least int64) {
		p.add(value < least, variable, "%d is less than %d", value, least)
	}
	p.add(c.Port < 0 || c.Port > 65535, "PORT", "%d is not a port", c.Port)
	atLeast("POOL_SIZE", int64(c.PoolSize), 1)
	p.add(c.PoolSize > 1024, "POOL_SIZE", "%d is more than 1024", c.PoolSize)
	_, set := c.sources["POOL_MIN_IDLE"] // a default that is too small comes from POOL_SIZE
	p.add(set && c.MinIdle < 1, "POOL_MIN_IDLE", "%d is less than 1: with no warm child the daemon is never ready, and no load balancer sends it a request", c.MinIdle)
	p.add(c.MinIdle > c.PoolSize, "POOL_MIN_IDLE", "%d is more than POOL_SIZE (%d)", c.MinIdle, c.PoolSize)
	atLeast("POOL_MAX_WAITING", int64(c.MaxWaiting), 0)
	atLeast("POOL_MAX_TURNS", int64(c.MaxTurns), 0)
	p.add(c.MaxChildBytes != 0 && c.MaxChildBytes < freshChild, "POOL_MAX_CHILD_BYTES", "%d is less than %d, which a child takes when it has just started; 0 = no limit", c.MaxChildBytes, freshChild)
	p.add(!(c.Jitter >= 0 && c.Jitter < 1), "POOL_JITTER", "%v is not at least 0 and less than 1", c.Jitter) // written so that NaN fails too
	atLeast("PROXY_SSE_MAX_CONCURRENCY", int64(c.MaxStreams), 0)
	atLeast("PROXY_RATE_LIMIT_MAX", int64(c.RateMax), 0)
	p.add(c.RateMax > maxKeyLimit, "PROXY_RATE_LIMIT_MAX", "%d is more than %d", c.RateMax, maxKeyLimit)
	atLeast("PROXY_MAX_BODY_BYTES", c.MaxBody, 1)
	p.add(c.MaxBody > maxBody, "PROXY_MAX_BODY_BYTES", "%d is more than %d, the most that one line of a child can hold", c.MaxBody, maxBody)
	p.add(c.MaxBodies < c.MaxBody, "PROXY_MAX_BODY_TOTAL_BYTES", "%d is less than PROXY_MAX_BODY_BYTES (%d)", c.MaxBodies, c.MaxBody)
	atLeast("PROXY_MAX_CHAT_CHOICES", int64(c.MaxChoices), 1)
}

func (c Config) checkTimes(p *problems) {
	p.add(c.ProbeTimeout > 8*time.Second, "POOL_PROBE_TIMEOUT_MS", "it must be at most 8000, because any call to a child fails after 10 s")
	p.add(time.Until(c.BypassUntil) > 24*time.Hour, "PROXY_FORWARDAUTH_BYPASS_UNTIL", "%s is more than 24 hours ahead: choose an earlier time, and open it again then if need be", c.BypassUntil.Format(time.RFC3339))
	p.add(c.BackoffMin > c.BackoffMax, "POOL_BACKOFF_MIN_MS", "it must be at most POOL_BACKOFF_MAX_MS")
	for _, d := range []struct {
		variable string
		value    time.Duration
	}{
		{"PROXY_TIMEOUT_MS", c.Timeout},
		{"PROXY_IDLE_TIMEOUT_MS", c.IdleTimeout},
		{"PROXY_STREAM_IDLE_TIMEOUT_MS", c.StreamIdleTimeout},
		{"PROXY_WRITE_TIMEOUT_MS", c.WriteTimeout},
		{"PROXY_RATE_LIMIT_WINDOW_MS", c.RateWindow},
		{"CODEX_START_TIMEOUT_MS", c.StartTimeout},
		{"CODEX_STOP_GRACE_MS", c.StopGrace},
		{"POOL_ACQUIRE_TIMEOUT_MS", c.AcquireTimeout},
		{"POOL_BACKOFF_MIN_MS", c.BackoffMin},
		{"POOL_PROBE_TIMEOUT_MS", c.ProbeTimeout},
	} {
		p.add(d.value <= 0, d.variable, "it must be more than 0")
	}
}

func (c Config) checkKeys() error {
	devKey := slices.Contains(c.APIKeys, DevKey)
	switch {
	case slices.Contains(c.APIKeys, ""):
		return errors.New("PROXY_API_KEY: one of its keys is empty")
	case c.Keyless() && !c.Dev():
		return errors.New("PROXY_API_KEY: production needs a key (for a trial: --env-file configs/profiles/dev.env)")
	case c.Keyless() && !Loopback(c.Host):
		return fmt.Errorf("PROXY_API_KEY: without a key PROXY_HOST must be a loopback address, not %q", c.Host)
	case devKey && c.Dev() && !Loopback(c.Host):
		return fmt.Errorf("PROXY_API_KEY: the dev profile's key is public; with it PROXY_HOST must be a loopback address, not %q", c.Host)
	case c.Dev():
		return nil
	}
	for i, key := range c.APIKeys {
		switch {
		case slices.Contains(wellKnown, key):
			return fmt.Errorf("PROXY_API_KEY: key %d is public, because a README or profile has it; production needs a secret one, such as openssl rand -hex 24 prints", i+1)
		case len(key) < minKey:
			return fmt.Errorf("PROXY_API_KEY: key %d has fewer than %d characters and could be guessed; production needs a long random one, such as openssl rand -hex 24 prints", i+1, minKey)
		}
	}
	return nil
}

func (c Config) checkKeysFile() error {
	if _, err := c.Keys(); err != nil || c.APIKeysFile == "" || c.Dev() {
		return err
	}
	info, err := os.Stat(c.APIKeysFile)
	if err == nil && info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("PROXY_API_KEYS_FILE: others can write %s, and so make keys for themselves; chmod go-w it", c.APIKeysFile)
	}
	return err
}

func (c Config) checkRedis() error {
	u, err := url.Parse(c.RedisURL)
	if c.RedisURL != "" && (err != nil || u.Host == "" || (u.Scheme != "redis" && u.Scheme != "rediss")) {
		// The value is not repeated: it may hold a password.
		return errors.New("PROXY_RATE_LIMIT_REDIS_URL: it is not the URL of a Redis server, such as rediss://user:password@host:6379/0")
	}
	return nil
}

// wellKnown are keys that anyone may know: that of the dev profile, and that of the Node
// proxy's README.
var wellKnown = []string{DevKey, "codex-local-secret"}

// minKey is the length of the shortest key that production accepts.
const minKey = 20

// checkOrigins allows * in dev alone: in production it would let any web page call the
// API, and beside exact origins, which may send credentials, it would open those too.
func (c Config) checkOrigins() error {
	all := slices.Contains(c.CORSOrigins, "*")
	switch {
	case all && len(c.CORSOrigins) > 1:
		return errors.New("PROXY_CORS_ALLOWED_ORIGINS: * stands for every origin, so it must stand alone; list exact origins only, or only *")
	case all && c.CORS && !c.Dev():
		return errors.New("PROXY_CORS_ALLOWED_ORIGINS: production needs exact origins such as https://app.example; with * any web page could call the API")
	}
	for _, origin := range c.CORSOrigins {
		u, err := url.Parse(origin)
		if origin != "*" && (err != nil || u.Scheme == "" || u.Host == "" || u.Scheme+"://"+u.Host != origin || strings.Contains(origin, "*")) {
			return fmt.Errorf("PROXY_CORS_ALLOWED_ORIGINS: %q is not an origin such as https://app.example", origin)
		}
	}
	return nil
}

func (c Config) checkAdmin() error {
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
		return fmt.Errorf("PROXY_ADMIN_ADDR: %q is not a loopback address; set PROXY_ADMIN_PUBLIC=true to allow it", c.AdminAddr)
	}
	return nil
}

func (c Config) checkHome() error {
	if c.Home == "" {
		return nil
	}
	if info, err := os.Stat(c.Home); err != nil || !info.IsDir() {
		return fmt.Errorf("CODEX_HOME: %q is not a folder", c.Home)
	}
	return nil
}

func (c Config) checkUpstream() error {
	switch {
	case c.Upstream == "":
		return errors.New("CODEX_UPSTREAM: production needs a provider: set it to openai, chatgpt, echo, direct or the http(s) base URL of a Responses API; or set OPENAI_API_KEY or OPENAI_API_KEY_FILE; or set CODEX_HOME to a folder with a ChatGPT login (codexpool login makes one)" + c.fileWithoutKey())
	case c.Upstream == OpenAI && !c.hasKey():
		return errors.New("CODEX_UPSTREAM: openai needs OPENAI_API_KEY or CODEX_UPSTREAM_API_KEY, or one of them with _FILE" + c.fileWithoutKey())
	case (c.Upstream == ChatGPT || c.Upstream == Direct) && c.Home == "":
		return fmt.Errorf("CODEX_UPSTREAM: %s needs CODEX_HOME", c.Upstream)
	case slices.Contains([]string{Echo, OpenAI, ChatGPT, Direct}, c.Upstream):
		return nil
	}
	// The value is not repeated: a URL may hold a password.
	u, err := url.Parse(c.Upstream)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return errors.New("CODEX_UPSTREAM: it must be openai, chatgpt, echo, direct, or the http(s) base URL of a Responses API, such as https://llm.example/v1")
	case u.User != nil:
		return errors.New("CODEX_UPSTREAM: the base URL must have no user and no password: the key belongs into CODEX_UPSTREAM_API_KEY")
	case u.Fragment != "":
		return errors.New("CODEX_UPSTREAM: the base URL must have no fragment, which is what follows #: it is not sent to a server")
	}
	return nil
}

// fileWithoutKey names the file that the operator has yet to fill, where there is no key.
func (c Config) fileWithoutKey() string {
	switch {
	case c.OpenAIFile != "":
		return ". The file of OPENAI_API_KEY_FILE has no key"
	case c.UpstreamFile != "":
		return ". The file of CODEX_UPSTREAM_API_KEY_FILE has no key"
	}
	return ""
}

// checkUpstreamKeys finds a key that no header can carry, with which each request
// would fail.
func (c Config) checkUpstreamKeys() error {
	for _, k := range []struct{ variable, key string }{
		{"CODEX_UPSTREAM_API_KEY", c.UpstreamKey}, {"OPENAI_API_KEY", c.OpenAIKey},
	} {
		if strings.ContainsFunc(k.key, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("%s: it contains white space or a character that is not ASCII, which an HTTP header cannot carry", k.variable)
		}
	}
	return nil
}

// checkProxies finds those that net/http would ignore without an error, and then call
// the provider directly. Values are not repeated: they may hold a password.
func (c Config) checkProxies(values map[string]string) (found []error) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		if c.sources[name] == environment && !isProxy(values[name]) {
			found = append(found, fmt.Errorf("%s: it is not the URL of an http, https or socks5 proxy", name))
		}
	}
	return found
}

// isProxy reports whether net/http accepts the value. A proxy without a scheme
// speaks HTTP.
func isProxy(value string) bool {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	return err == nil && u.Hostname() != "" && slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme)
}

// warnings names what is no error but will not do what it seems to: variables that
// this version does not have, because they are misspelt, newer, or of the Node proxy
// "Codex Completions API", which codexpool replaces; keys that nobody gets; and a
// folder that Codex does not like.
func (c Config) warnings(values map[string]string) (found []string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if _, known := variables[name]; known {
			continue
		}
		if slices.Contains(Network(), name) || strings.HasPrefix(name, "OTEL_") {
			if c.sources[name] != environment {
				found = append(found, name+" has no effect in an env file: set it in the environment")
			}
			continue
		}
		if why, old := gone[name]; old {
			found = append(found, name+" has no effect: "+why)
		} else if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			found = append(found, name+" has no effect: this version has no such setting")
		}
	}
	if c.OpenAIKey != "" && c.Upstream != OpenAI && c.Upstream != Direct {
		found = append(found, "OPENAI_API_KEY has no effect: it is sent to OpenAI only, and CODEX_UPSTREAM is not openai (for another provider use CODEX_UPSTREAM_API_KEY)")
	}
	if c.UpstreamKey != "" && slices.Contains([]string{Echo, ChatGPT, Direct}, c.Upstream) {
		found = append(found, "CODEX_UPSTREAM_API_KEY has no effect: CODEX_UPSTREAM="+c.Upstream+" does not use it")
	}
	if c.Upstream == Direct && c.OpenAIKey != "" && c.sources["OPENAI_API_KEY"] == c.OpenAIFile {
		found = append(found, "OPENAI_API_KEY_FILE has no effect: with CODEX_UPSTREAM=direct children inherit OPENAI_API_KEY alone")
	}
	switch until := c.BypassUntil.Format(time.RFC3339); {
	case c.BypassUntil.IsZero():
	case time.Until(c.BypassUntil) > 0:
		found = append(found, "PROXY_FORWARDAUTH_BYPASS_UNTIL: /verify lets everyone pass until "+until)
	default:
		found = append(found, "PROXY_FORWARDAUTH_BYPASS_UNTIL has no effect: "+until+" has passed")
	}
	if strings.HasPrefix(c.Workdir+"/", "/tmp/") {
		found = append(found, "PROXY_CODEX_WORKDIR is below /tmp: there Codex does not use its helper binaries; children serve all the same")
	}
	return found
}

// prefixes mark the variables that are meant for codexpool.
var prefixes = []string{"PROXY_", "POOL_", "CODEX_", "WORKER_"}

// gone are settings of the Node proxy "Codex Completions API" that have no meaning
// here, each with the reason.
var gone = map[string]string{
	"PROXY_MAX_PROMPT_TOKENS":         "the provider has a limit of its own",
	"PROXY_USE_APP_SERVER":            "children always run codex app-server",
	"CODEX_FORCE_PROVIDER":            "use CODEX_UPSTREAM",
	"PROXY_SUPPRESS_TAIL_AFTER_TOOLS": "tool calls are not sent as text",
	"PROXY_OUTPUT_MODE":               "tool calls are not sent as text",
	"PROXY_KILL_ON_DISCONNECT":        "a disconnect always cancels the request",
	"PROXY_TEST_ENDPOINTS":            "there are no test endpoints",
}
