// Package configs reads the settings from the environment, and holds what
// operators deploy: the profiles and the children's configuration.
//
// Every setting is one environment variable and one field of [Config]; the field's
// tags contain its default and its meaning. [Load] has three steps: resolve merges
// the sources and derives what they leave open (resolve.go), check judges the
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

	// Warnings are for the log: settings that have no effect, each with its reason.
	Warnings []string `env:"-"`

	sources map[string]string // variable -> the source of its value; without defaults
}

// Load reads the env files in their order, then environ (in the form of
// os.Environ). Each source wins over those before it. The error contains every
// problem, one on each line, which begins with the name of its variable. The Config
// is not usable then, but for its Settings.
func Load(environ, envFiles []string) (Config, error) {
	values, sources, err := gather(environ, envFiles)
	if err != nil {
		return Config{}, err
	}
	c, problems := resolve(values, sources)
	unresolved := map[string]bool{} // one problem for each of these is enough
	for _, p := range problems {
		unresolved[variableOf(p)] = true
	}
	for _, p := range c.check(values) {
		if !unresolved[variableOf(p)] {
			problems = append(problems, p)
		}
	}
	c.Warnings = c.warnings(values)
	return c, errors.Join(problems...)
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

func byVariable(fields []reflect.StructField) map[string]reflect.StructField {
	names := map[string]reflect.StructField{}
	for _, f := range fields {
		names[f.Tag.Get("env")] = f
	}
	return names
}
