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
	Env         string `group:"Listeners" env:"PROXY_ENV" mean:"dev = a developer's machine; empty = production, which rejects unsafe settings. /v1/models lists codex-5 in production and codev-5 in dev; both work everywhere"`
	Host        string `env:"PROXY_HOST" default:"127.0.0.1" mean:"address of the public listener, such as 127.0.0.1, 0.0.0.0 or ::1"`
	Port        int    `env:"PORT" default:"11435" mean:"TCP port of the public listener; 0 = any free port"`
	AdminAddr   string `env:"PROXY_ADMIN_ADDR" default:"127.0.0.1:11436" empty:"off" mean:"HOST:PORT of the admin listener, which serves /metrics and /pool without a key; set but empty = no admin listener"`
	AdminPublic bool   `env:"PROXY_ADMIN_PUBLIC" default:"false" mean:"true = allow PROXY_ADMIN_ADDR to be other than loopback"`

	APIKeys       []string `group:"Who may call" env:"PROXY_API_KEY" secret:"yes" mean:"bearer keys that clients may use, comma-separated; empty = clients need no key, which is allowed only in dev and with a loopback PROXY_HOST"`
	ProtectModels bool     `env:"PROXY_PROTECT_MODELS" default:"true" dev:"false" mean:"true = clients need a key for /v1/models too"`
	CORS          bool     `env:"PROXY_ENABLE_CORS" default:"true" mean:"true = browsers may send requests from the origins in PROXY_CORS_ALLOWED_ORIGINS"`
	CORSOrigins   []string `env:"PROXY_CORS_ALLOWED_ORIGINS" dev:"*" empty:"none" mean:"origins that may call the API from a browser, comma-separated, such as https://app.example; * = any origin, but without credentials; empty = none"`

	DefaultStream     bool          `group:"Requests" env:"PROXY_DEFAULT_STREAM" default:"false" mean:"true = stream the answer to a request that does not contain stream"`
	MaxStreams        int           `env:"PROXY_SSE_MAX_CONCURRENCY" default:"0" mean:"most streams that are open at once, those in the queue included; one more fails with 429; 0 = no limit"`
	Keepalive         time.Duration `env:"PROXY_SSE_KEEPALIVE_MS" default:"15000" mean:"silence after which an open stream gets a comment, which keeps the connection open, in milliseconds; 0 = no comments"`
	Commit            time.Duration `env:"PROXY_SSE_COMMIT_MS" default:"2000" mean:"longest time from the start of a turn until its stream sends status 200, in milliseconds; a later error is an event of the stream; 0 = at once"`
	Timeout           time.Duration `env:"PROXY_TIMEOUT_MS" default:"600000" mean:"longest time that a request may last, the time in the queue included, in milliseconds"`
	IdleTimeout       time.Duration `env:"PROXY_IDLE_TIMEOUT_MS" default:"120000" mean:"longest silence of the model during an answer that is not streamed, in milliseconds"`
	StreamIdleTimeout time.Duration `env:"PROXY_STREAM_IDLE_TIMEOUT_MS" default:"300000" mean:"longest silence of the model during a streamed answer, in milliseconds"`
	WriteTimeout      time.Duration `env:"PROXY_WRITE_TIMEOUT_MS" default:"30000" mean:"longest time that one write to a client may last, in milliseconds"`
	MaxBody           int64         `env:"PROXY_MAX_BODY_BYTES" default:"16777216" mean:"largest request body, in bytes; must be at most 16777216"`
	MaxChoices        int           `env:"PROXY_MAX_CHAT_CHOICES" default:"4" mean:"most answers to one request: n times the number of prompts"`
	Prestop           time.Duration `env:"PROXY_PRESTOP_MS" default:"0" mean:"when stopping, time from being not ready until new requests are rejected, in milliseconds, so that load balancers notice; 0 = none"`
	Drain             time.Duration `env:"PROXY_DRAIN_MS" default:"30000" mean:"when stopping, longest time that running turns may go on, in milliseconds; 0 = they are cut at once"`

	Bin          string        `group:"Codex and the provider" env:"CODEX_BIN" mean:"path or name of the Codex CLI, Node wrapper or native binary; empty = the pinned one beside the program, else codex from PATH"`
	Upstream     string        `env:"CODEX_UPSTREAM" mean:"provider: openai, chatgpt, echo (offline), the http(s) base URL of a Responses API, or direct (children call the provider that CODEX_HOME/config.toml configures); empty = openai with a key, else chatgpt with a login in CODEX_HOME, else echo, which dev alone allows"`
	UpstreamKey  string        `env:"CODEX_UPSTREAM_API_KEY" secret:"yes" mean:"bearer key for the provider behind an http(s) base URL, or for openai, where it wins over OPENAI_API_KEY; children never get it; empty = none"`
	OpenAIKey    string        `env:"OPENAI_API_KEY" secret:"yes" mean:"bearer key for OpenAI, used with CODEX_UPSTREAM=openai only; empty = none"`
	Home         string        `env:"CODEX_HOME" mean:"folder with a ChatGPT login, which codexpool refreshes and writes back; with CODEX_UPSTREAM=direct also the folder of config.toml; empty = none"`
	RefreshURL   string        `env:"CODEX_REFRESH_TOKEN_URL_OVERRIDE" mean:"URL at which Codex refreshes a ChatGPT login, for tests; empty = that of the real service"`
	Model        string        `env:"CODEX_MODEL" mean:"model behind the aliases codex-5 and codex-5-EFFORT; empty = the default of the Codex CLI's catalog"`
	Sandbox      string        `env:"PROXY_SANDBOX_MODE" default:"read-only" mean:"sandbox of the Codex CLI; read-only is the only supported one"`
	EchoDelay    time.Duration `env:"CODEX_ECHO_DELAY_MS" default:"20" mean:"pause before each word of the echo model, in milliseconds; 0 = none"`
	Workdir      string        `env:"PROXY_CODEX_WORKDIR" mean:"folder for the private homes of children; must not be below /tmp; empty = codexpool in the user's cache directory"`
	StartTimeout time.Duration `env:"CODEX_START_TIMEOUT_MS" default:"15000" mean:"longest time that the start of a child may last, in milliseconds"`
	StopGrace    time.Duration `env:"CODEX_STOP_GRACE_MS" default:"2000" mean:"longest time that each step of stopping a child may last, in milliseconds; then the next, harder step follows"`

	PoolSize       int           `group:"Pool" env:"POOL_SIZE" default:"4" mean:"most children at once, which is also the most turns at once; from 1 to 1024"`
	MinIdle        int           `env:"POOL_MIN_IDLE" default:"4" mean:"children that are kept warm for the next requests; from 1 to POOL_SIZE; a smaller POOL_SIZE lowers the default"`
	MaxWaiting     int           `env:"POOL_MAX_WAITING" default:"64" mean:"most requests in the queue for a child, beside the POOL_SIZE that can run; one more fails with 503; 0 = no queue"`
	AcquireTimeout time.Duration `env:"POOL_ACQUIRE_TIMEOUT_MS" default:"30000" mean:"longest time of a request in the queue for a child, in milliseconds; then it fails with 503"`
	MaxTurns       int           `env:"POOL_MAX_TURNS" default:"500" mean:"turns after which a child is replaced; 0 = no limit"`
	MaxAge         time.Duration `env:"POOL_MAX_AGE_MS" default:"3600000" mean:"age at which a child is replaced, in milliseconds; 0 = no limit"`
	MaxChildBytes  int64         `env:"POOL_MAX_CHILD_BYTES" default:"536870912" mean:"private memory of a child and its helpers at which the child is replaced, in bytes; 0 = no limit"`
	MinLife        time.Duration `env:"POOL_MIN_LIFE_MS" default:"60000" mean:"age before which a child is not replaced for its turns, age or memory, in milliseconds; 0 = none"`
	Jitter         float64       `env:"POOL_JITTER" default:"0.2" mean:"fraction by which POOL_MAX_TURNS and POOL_MAX_AGE_MS vary from child to child, so that not all are replaced at once; from 0 to less than 1; 0 = all alike"`
	ProbeEvery     time.Duration `env:"POOL_PROBE_MS" default:"10000" mean:"time without a sign of an idle child after which it gets a health probe, in milliseconds; 0 = no probes"`
	ProbeTimeout   time.Duration `env:"POOL_PROBE_TIMEOUT_MS" default:"2000" mean:"longest time that a child may need to answer a health probe, in milliseconds, at most 8000; a child that has not answered 2000 ms later is killed and replaced"`
	BackoffMin     time.Duration `env:"POOL_BACKOFF_MIN_MS" default:"500" mean:"pause after the first failed start of a child, in milliseconds; it grows with each further failure"`
	BackoffMax     time.Duration `env:"POOL_BACKOFF_MAX_MS" default:"30000" mean:"longest pause between failed starts of children, in milliseconds"`

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

// LoopbackOnly reports whether no secret protects the API. Then only requests from
// this machine may be served, and none that a web page of another host can send.
func (c Config) LoopbackOnly() bool {
	return len(c.APIKeys) == 0 || slices.Contains(c.APIKeys, DevKey)
}

// OpenUpstream reports whether the provider may have models that no catalog lists.
func (c Config) OpenUpstream() bool {
	return c.Upstream == Direct || strings.Contains(c.Upstream, "://")
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
