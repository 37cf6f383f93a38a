// Package configs reads the settings from the environment, and holds what
// operators deploy: the profiles, and the package.json that pins the Codex CLI.
//
// Every setting is one environment variable and one field of [Config]; the field's
// tags contain its default and its meaning. [Load] has three steps: resolve merges
// the sources and derives what they do not set (resolve.go), check judges the
// result and changes nothing (check.go), and [Config.Settings] shows it
// (show.go). "codexpool config" and REFERENCE.md print that table. Settings are
// read once, at start.
package configs

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// The values of CODEX_UPSTREAM that are not URLs.
const (
	Echo    = "echo"    // the offline echo model
	OpenAI  = "openai"  // https://api.openai.com/v1
	ChatGPT = "chatgpt" // https://chatgpt.com/backend-api/codex, with the login in CODEX_HOME
	Direct  = "direct"  // children call the provider themselves, as CODEX_HOME/config.toml configures it
)

// DevKey is the API key of the dev profile. It is public, so production rejects it.
const DevKey = "codexpool-dev"

// Config is the whole configuration. After [Load] it is resolved and checked: no
// other package applies defaults or checks settings. Durations are whole
// milliseconds in the environment.
//
// The tags of a field: env is its variable; default its default; dev its default in
// dev, where that differs; mean its meaning, with units and what 0 or empty means;
// empty is there if a variable that is set but empty is not the same as one that
// is not set; secret marks a value that is never shown; group begins a group, which
// lasts until the next.
type Config struct {
	Env         string `group:"Listeners" env:"PROXY_ENV" mean:"dev = a developer's machine; empty = production, which rejects unsafe settings. /v1/models lists codex-5-EFFORT in production and codev-5-EFFORT in dev; both work everywhere"`
	Host        string `env:"PROXY_HOST" default:"127.0.0.1" mean:"address of the public listener, such as 127.0.0.1, 0.0.0.0 or ::1"`
	Port        int    `env:"PORT" default:"11435" mean:"TCP port of the public listener; 0 = any free port"`
	AdminAddr   string `env:"PROXY_ADMIN_ADDR" default:"127.0.0.1:11436" empty:"off" mean:"HOST:PORT of the admin listener, which serves /metrics, /pool, /debug/pprof and the health routes; it requires no key; set but empty = no admin listener"`
	AdminPublic bool   `env:"PROXY_ADMIN_PUBLIC" default:"false" mean:"true = PROXY_ADMIN_ADDR may be other than loopback, and other machines may read /metrics and the health routes; the other admin routes answer only this machine, whatever this says"`

	APIKeys       []string      `group:"Who may call" env:"PROXY_API_KEY" secret:"yes" mean:"bearer keys that clients may use, comma-separated; in production each has 20 characters or more; logs and metrics name a key by its number in this list, from 1; in the queue, keys are served in turn; empty = none: without PROXY_API_KEYS_FILE too, clients need no key, which is allowed only in dev and with a loopback PROXY_HOST"`
	APIKeysFile   string        `env:"PROXY_API_KEYS_FILE" mean:"TOML file of keys with names, rights and limits, beside those of PROXY_API_KEY; codexpool key new NAME prints a block for it. It is looked at once a second, and on SIGHUP; a file with a mistake changes nothing; empty = none"`
	RateLimit     bool          `env:"PROXY_RATE_LIMIT_ENABLED" default:"true" mean:"false = PROXY_RATE_LIMIT_MAX has no effect; the limits of the keys file hold all the same"`
	RateMax       int           `env:"PROXY_RATE_LIMIT_MAX" default:"0" mean:"most completions of a key within PROXY_RATE_LIMIT_WINDOW_MS, for each key without requests_per_minute in the keys file; they are regained evenly, one after another; one more fails with 429 rate_limited; 0 = no limit"`
	RateWindow    time.Duration `env:"PROXY_RATE_LIMIT_WINDOW_MS" default:"60000" mean:"time in which a key regains PROXY_RATE_LIMIT_MAX completions, in milliseconds; must be more than 0"`
	RedisURL      string        `env:"PROXY_RATE_LIMIT_REDIS_URL" secret:"yes" mean:"URL of a Redis server, such as rediss://user:password@host:6379/0, through which several daemons share the limits of keys; while it cannot be used, each goes on with its own; empty = none"`
	ProtectModels bool          `env:"PROXY_PROTECT_MODELS" default:"true" dev:"false" mean:"true = clients need a key for /v1/models too"`
	CORS          bool          `env:"PROXY_ENABLE_CORS" default:"true" mean:"true = web pages of the origins in PROXY_CORS_ALLOWED_ORIGINS may call the API; false = no answer has a CORS header, so browsers keep it from pages of other origins"`
	CORSOrigins   []string      `env:"PROXY_CORS_ALLOWED_ORIGINS" dev:"*" empty:"none" mean:"origins whose web pages may call the API, comma-separated, such as https://app.example; also those of apps, such as app://obsidian.md, capacitor://localhost, vscode-webview://ID or chrome-extension://ID; they may send credentials. * = any origin, in dev only and without credentials; empty = none. Where clients need no key, or that of the dev profile will do, only loopback origins are answered, whatever this says"`

	TrustedProxies []netip.Prefix `env:"PROXY_TRUSTED_PROXIES" mean:"addresses or networks of the proxies in front, comma-separated, such as 127.0.0.1,10.0.0.0/8; only these are believed what X-Forwarded-For says of the client's address, and for /verify what X-Forwarded-Method, -Uri and -Host say of its request; empty = none"`

	BypassUntil time.Time `env:"PROXY_FORWARDAUTH_BYPASS_UNTIL" mean:"for an emergency: until this time, such as 2026-01-31T15:04:05Z, at most 24 hours ahead, /verify lets everyone pass, so that an edge goes on without its keys; the API still requires its own; POST and DELETE /auth/bypass on the admin listener do the same without a restart; empty = none"`

	DefaultStream     bool          `group:"Requests" env:"PROXY_DEFAULT_STREAM" default:"false" mean:"true = stream the answer to a request that does not contain stream"`
	MaxStreams        int           `env:"PROXY_SSE_MAX_CONCURRENCY" default:"0" mean:"most streams that are open at once, those in the queue included; one more fails with 429 concurrency_exceeded; 0 = no limit"`
	Keepalive         time.Duration `env:"PROXY_SSE_KEEPALIVE_MS" default:"15000" mean:"silence after which an open stream gets a comment, which keeps the connection open, in milliseconds; 0 = no comments. A client that cannot parse comments gets none: it sends the header X-No-Keepalive: 1 or the parameter ?no_keepalive=1, or its User-Agent contains Obsidian or Electron"`
	Commit            time.Duration `env:"PROXY_SSE_COMMIT_MS" default:"2000" mean:"longest time from the start of a turn until its stream sends status 200, in milliseconds; the first text or reasoning sends it earlier. A failure before that has a status of its own, a later one is an event of the stream; 0 = at once"`
	Timeout           time.Duration `env:"PROXY_TIMEOUT_MS" default:"1800000" mean:"longest time that a request may last after its body was read, in milliseconds; it includes the time in the queue; then the request fails with 504 request_timeout; must be more than 0"`
	IdleTimeout       time.Duration `env:"PROXY_IDLE_TIMEOUT_MS" default:"300000" mean:"longest silence of the provider (any event of its stream counts) during an answer that is not streamed, in milliseconds; it includes the wait for the first token; then the request fails with 504 idle_timeout; must be more than 0"`
	StreamIdleTimeout time.Duration `env:"PROXY_STREAM_IDLE_TIMEOUT_MS" default:"300000" mean:"longest silence of the provider (any event of its stream counts) during a streamed answer, in milliseconds; it includes the wait for the first token; then the stream fails with idle_timeout; must be more than 0"`
	WriteTimeout      time.Duration `env:"PROXY_WRITE_TIMEOUT_MS" default:"30000" mean:"longest time that one write to a client, of at most 256 KiB, may last, in milliseconds; then the connection is closed and the turn ends; must be more than 0"`
	MaxBody           int64         `env:"PROXY_MAX_BODY_BYTES" default:"16777216" mean:"largest request body, in bytes; a larger one fails with 413 request_too_large; from 1 to 16777216"`
	MaxBodies         int64         `env:"PROXY_MAX_BODY_TOTAL_BYTES" default:"268435456" mean:"most bytes of all request bodies together that are in memory, in bytes: from their arrival until their requests are with the provider. A body that finds no room fails with 503 pool_saturated. No body may take more than it leaves to the others, so small ones find room beside large ones; at least PROXY_MAX_BODY_BYTES"`
	MaxChoices        int           `env:"PROXY_MAX_CHAT_CHOICES" default:"4" mean:"most answers to one prompt: n; a request for more fails with 400, as does one in which n times the number of prompts is more than POOL_SIZE + POOL_MAX_WAITING; must be more than 0"`
	Prestop           time.Duration `env:"PROXY_PRESTOP_MS" default:"0" mean:"when stopping, time from being not ready until new completions are rejected with 503, in milliseconds, so that load balancers notice; 0 = none"`
	Drain             time.Duration `env:"PROXY_DRAIN_MS" default:"30000" mean:"when stopping, longest time that running turns may go on after PROXY_PRESTOP_MS, in milliseconds; then they are cut; 0 = they are cut at once"`

	Bin          string        `group:"Codex and the provider" env:"CODEX_BIN" mean:"path or name of the Codex CLI, Node wrapper or native binary; empty = the pinned one beside the program, else codex from PATH"`
	Upstream     string        `env:"CODEX_UPSTREAM" mean:"provider: openai, chatgpt, echo (offline), the http(s) base URL of a Responses API (its query, such as ?api-version=1, is sent with each request), or direct (children call the provider that CODEX_HOME/config.toml configures); empty = openai with a key, else chatgpt with a login in CODEX_HOME, else echo in dev, and an error in production"`
	UpstreamKey  string        `env:"CODEX_UPSTREAM_API_KEY" secret:"yes" mean:"bearer key for the provider behind an http(s) base URL, or for openai, where it wins over OPENAI_API_KEY. Where CODEX_UPSTREAM is empty, it is sent to OpenAI. Children never get it; empty = none"`
	UpstreamFile string        `env:"CODEX_UPSTREAM_API_KEY_FILE" mean:"file that has CODEX_UPSTREAM_API_KEY, as systemd, Compose and Kubernetes give secrets; read once, at the start. A file without a key counts as not set; a key in both is an error; empty = none"`
	OpenAIKey    string        `env:"OPENAI_API_KEY" secret:"yes" mean:"bearer key for OpenAI; the relay sends it to OpenAI only. With CODEX_UPSTREAM=direct, children inherit it; empty = none"`
	OpenAIFile   string        `env:"OPENAI_API_KEY_FILE" mean:"file that has OPENAI_API_KEY, read as CODEX_UPSTREAM_API_KEY_FILE is. Children never get it, also not with CODEX_UPSTREAM=direct; empty = none"`
	Home         string        `env:"CODEX_HOME" mean:"folder with a ChatGPT login, which codexpool refreshes and writes back; with CODEX_UPSTREAM=direct also the folder of config.toml. It has no default: ~/.codex is used only where this names it; empty = none"`
	RefreshURL   string        `env:"CODEX_REFRESH_TOKEN_URL_OVERRIDE" mean:"URL at which Codex refreshes a ChatGPT login, for tests; empty = that of the real service"`
	Model        string        `env:"CODEX_MODEL" mean:"model behind the aliases codex-5 and codex-5-EFFORT; empty = the default of the Codex CLI's catalog"`
	CacheKey     string        `env:"CODEX_PROMPT_CACHE_KEY" default:"auto" mean:"whether the provider gets a prompt_cache_key of ours where the client sends none: on, off, or auto = only OpenAI and the backend of a ChatGPT login, because other servers may reject fields that they do not know. Requests of one client key that begin alike share it"`
	Sandbox      string        `env:"PROXY_SANDBOX_MODE" default:"read-only" mean:"sandbox of the Codex CLI; read-only is the only supported one"`
	EchoDelay    time.Duration `env:"CODEX_ECHO_DELAY_MS" default:"20" mean:"pause before each word of the echo model, in milliseconds; 0 = none"`
	Workdir      string        `env:"PROXY_CODEX_WORKDIR" mean:"folder for the private homes of children; it should not be below /tmp, where Codex does not use its helper binaries; empty = codexpool in the user's cache directory"`
	StartTimeout time.Duration `env:"CODEX_START_TIMEOUT_MS" default:"15000" mean:"longest time that the start of a child may last, in milliseconds; then it is killed and counts as failed; must be more than 0"`
	StopGrace    time.Duration `env:"CODEX_STOP_GRACE_MS" default:"2000" mean:"longest time that a child may take to exit after its input was closed, and again after SIGTERM, in milliseconds; then it is killed; must be more than 0"`

	PoolSize       int           `group:"Pool" env:"POOL_SIZE" default:"4" mean:"most children at once, which is also the most turns at once; from 1 to 1024"`
	MinIdle        int           `env:"POOL_MIN_IDLE" default:"4" mean:"children that are kept idle and warm for the next requests, while POOL_SIZE has room; from 1 to POOL_SIZE; a smaller POOL_SIZE lowers the default"`
	MaxWaiting     int           `env:"POOL_MAX_WAITING" default:"64" mean:"most places in the queue for a child, beside the POOL_SIZE that can run. A request takes a place for each answer: n=4 takes four. A request that finds too few fails with 503 pool_saturated; 0 = no queue"`
	AcquireTimeout time.Duration `env:"POOL_ACQUIRE_TIMEOUT_MS" default:"30000" mean:"longest time that a request waits in the queue for its first child, in milliseconds; then it fails with 503 pool_saturated; must be more than 0"`
	MaxTurns       int           `env:"POOL_MAX_TURNS" default:"500" mean:"turns after which a child is replaced, varied by POOL_JITTER; the children that reached a limit are replaced one at a time, so a busy one may serve a few turns more; 0 = no limit"`
	MaxAge         time.Duration `env:"POOL_MAX_AGE_MS" default:"3600000" mean:"age at which a child is replaced, in milliseconds, varied by POOL_JITTER; the children that reached a limit are replaced one at a time and never during a turn, so one may grow older; 0 = no limit"`
	MaxChildBytes  int64         `env:"POOL_MAX_CHILD_BYTES" default:"536870912" mean:"private memory of a child and its helpers above which the child is replaced, in bytes; one that outgrows it in its turn is killed, which fails the turn; at least 16777216; 0 = no limit"`
	MinLife        time.Duration `env:"POOL_MIN_LIFE_MS" default:"60000" mean:"age before which a child is not replaced for its turns, age or memory, in milliseconds; 0 = none"`
	Jitter         float64       `env:"POOL_JITTER" default:"0.2" mean:"fraction by which POOL_MAX_TURNS and POOL_MAX_AGE_MS vary from child to child, so that not all are replaced at once; from 0 to less than 1; 0 = all alike"`
	ProbeEvery     time.Duration `env:"POOL_PROBE_MS" default:"10000" mean:"time since an idle child last answered, in milliseconds, after which it gets a health probe; 0 = no probes"`
	ProbeTimeout   time.Duration `env:"POOL_PROBE_TIMEOUT_MS" default:"2000" mean:"time within which a child should answer a health probe, in milliseconds; more than 0, at most 8000. After a tenth of it the child is late, and is not lent; after it and 2000 ms more the child is killed and replaced"`
	BackoffMin     time.Duration `env:"POOL_BACKOFF_MIN_MS" default:"500" mean:"pause after the first failed start of a child, in milliseconds; each pause varies by up to half, and doubles with each further failure, up to POOL_BACKOFF_MAX_MS; must be more than 0"`
	BackoffMax     time.Duration `env:"POOL_BACKOFF_MAX_MS" default:"30000" mean:"longest pause between failed starts of children, in milliseconds; no pause is longer, though pauses vary"`

	LogLevel  string `group:"Logs" env:"LOG_LEVEL" default:"info" mean:"least severe level that is logged: debug, info, warn or error"`
	LogFormat string `env:"LOG_FORMAT" mean:"tint = for people, json = for programs; empty = tint on a terminal, else json"`

	// Warnings are for the log: settings that will not do what they seem to, each with
	// the reason.
	Warnings []string `env:"-"`

	sources map[string]string // variable -> the source of its value; without defaults
}

// Load reads the env files in their order, then environ (in the form of
// os.Environ). Each source wins over those before it. The error contains every
// problem, one on each line, which begins with the name of its variable. With an
// error the Config has the values that could be resolved, for [Config.Settings].
func Load(environ, envFiles []string) (Config, error) {
	values, sources, err := gather(environ, envFiles)
	if err != nil {
		return Config{}, err
	}
	c, errs := resolve(values, sources)
	unresolved := map[string]bool{} // one problem for each of these is enough
	for _, p := range errs {
		unresolved[variableOf(p)] = true
	}
	for _, p := range c.check(values) {
		if !unresolved[variableOf(p)] {
			errs = append(errs, p)
		}
	}
	c.Warnings = c.warnings(values)
	return c, errors.Join(errs...)
}

// variableOf is the variable that a problem begins with.
func variableOf(problem error) string {
	name, _, _ := strings.Cut(problem.Error(), ":")
	return name
}

// Dev reports whether this is a developer's machine, not production.
func (c Config) Dev() bool { return c.Env == "dev" }

// Keyless reports whether clients need no key.
func (c Config) Keyless() bool { return len(c.APIKeys) == 0 && c.APIKeysFile == "" }

// LoopbackOnly reports whether no secret protects the API. Then only requests from
// this machine may be served, and none that a web page of another host can send.
func (c Config) LoopbackOnly() bool {
	return c.Keyless() || slices.Contains(c.APIKeys, DevKey)
}

// OpenUpstream reports whether the provider may have models that no catalog lists.
func (c Config) OpenUpstream() bool {
	return c.Upstream == Direct || strings.Contains(c.Upstream, "://")
}

// SendsCacheKey reports whether the provider gets a prompt_cache_key of ours.
func (c Config) SendsCacheKey() bool {
	return c.CacheKey == "on" || c.CacheKey == "auto" && (c.Upstream == OpenAI || c.Upstream == ChatGPT)
}

// Loopback reports whether host is a loopback address or localhost.
func Loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.Unmap().IsLoopback()
}

// The settings as Config's tags describe them: in their order, and by variable.
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

func byVariable(list []reflect.StructField) map[string]reflect.StructField {
	names := map[string]reflect.StructField{}
	for _, f := range list {
		names[f.Tag.Get("env")] = f
	}
	return names
}
