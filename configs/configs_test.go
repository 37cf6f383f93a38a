package configs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codexpool/configs"
)

// secret is as long as production wants a key to be.
const secret = "12345678901234567890"

// good is a production environment without a problem.
var good = []string{"HOME=/home/x", "PROXY_API_KEY=" + secret, "CODEX_UPSTREAM=http://127.0.0.1:9/v1"}

func with(entries ...string) []string { return append(slices.Clone(good), entries...) }

func TestLoadNamesEachProblemExactly(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	for _, tt := range []struct {
		env  []string
		want string
	}{
		{[]string{}, "PROXY_API_KEY: production needs a key (for a trial: --env-file configs/profiles/dev.env)\n" +
			"CODEX_UPSTREAM: production needs a provider: set it to openai, chatgpt, echo, direct or the http(s) base URL of a Responses API; or set OPENAI_API_KEY or OPENAI_API_KEY_FILE; or set CODEX_HOME to a folder with a ChatGPT login (codexpool login makes one)"},
		{
			with("POOL_SIZE=zwei", "PROXY_TIMEOUT_MS=1.5", "POOL_JITTER=lots", "PROXY_ENABLE_CORS=maybe"),
			`PROXY_ENABLE_CORS: "maybe" is not a valid bool` + "\n" +
				`PROXY_TIMEOUT_MS: "1.5" is not a number of whole milliseconds` + "\n" +
				`POOL_SIZE: "zwei" is not a valid int` + "\n" +
				`POOL_JITTER: "lots" is not a valid float64`,
		},
		{with("PROXY_TIMEOUT_MS=-1"), `PROXY_TIMEOUT_MS: "-1" is not a number of whole milliseconds`},
		{with("PROXY_ENV=prod"), `PROXY_ENV: "prod" is neither dev nor empty`},
		{with("PORT=65536"), "PORT: 65536 is not a port"},
		{with("POOL_SIZE=-1", "POOL_MIN_IDLE=-1"), "POOL_SIZE: -1 is less than 1\nPOOL_MIN_IDLE: -1 is less than 1: with no warm child the daemon is never ready, and no load balancer sends it a request"},
		{with("POOL_MIN_IDLE=0"), "POOL_MIN_IDLE: 0 is less than 1: with no warm child the daemon is never ready, and no load balancer sends it a request"},
		{with("POOL_SIZE=2", "POOL_MIN_IDLE=3"), "POOL_MIN_IDLE: 3 is more than POOL_SIZE (2)"},
		{with("POOL_SIZE=0"), "POOL_SIZE: 0 is less than 1"},
		{with("POOL_MAX_WAITING=-1"), "POOL_MAX_WAITING: -1 is less than 0"},
		{with("POOL_MAX_CHILD_BYTES=-1"), "POOL_MAX_CHILD_BYTES: -1 is less than 16777216, which a child takes when it has just started; 0 = no limit"},
		{with("POOL_MAX_CHILD_BYTES=16777215"), "POOL_MAX_CHILD_BYTES: 16777215 is less than 16777216, which a child takes when it has just started; 0 = no limit"},
		{with("POOL_PROBE_TIMEOUT_MS=0"), "POOL_PROBE_TIMEOUT_MS: it must be more than 0"},
		{with("POOL_PROBE_TIMEOUT_MS=8001"), "POOL_PROBE_TIMEOUT_MS: it must be at most 8000, because any call to a child fails after 10 s"},
		{with("POOL_JITTER=NaN"), "POOL_JITTER: NaN is not at least 0 and less than 1"},
		{with("PROXY_MAX_BODY_BYTES=16777217"), "PROXY_MAX_BODY_BYTES: 16777217 is more than 16777216, the most that one line of a child can hold"},
		{with("PROXY_MAX_BODY_TOTAL_BYTES=16777215"), "PROXY_MAX_BODY_TOTAL_BYTES: 16777215 is less than PROXY_MAX_BODY_BYTES (16777216)"},
		{with("CODEX_UPSTREAM_API_KEY=sk one"), "CODEX_UPSTREAM_API_KEY: it contains white space or a character that is not ASCII, which an HTTP header cannot carry"},
		{
			with("PROXY_API_KEY=a,,b", "PROXY_CORS_ALLOWED_ORIGINS=nope"),
			"PROXY_API_KEY: one of its keys is empty\n" + `PROXY_CORS_ALLOWED_ORIGINS: "nope" is not an origin such as https://app.example`,
		},
		{with("PROXY_RATE_LIMIT_REDIS_URL=http://:SECRET@h"), "PROXY_RATE_LIMIT_REDIS_URL: it is not the URL of a Redis server, such as rediss://user:password@host:6379/0"},
		{with("PROXY_RATE_LIMIT_MAX=-1", "PROXY_RATE_LIMIT_WINDOW_MS=0"), "PROXY_RATE_LIMIT_MAX: -1 is less than 0\nPROXY_RATE_LIMIT_WINDOW_MS: it must be more than 0"},
		{with("POOL_JITTER=1"), "POOL_JITTER: 1 is not at least 0 and less than 1"},
		{with("POOL_BACKOFF_MIN_MS=9", "POOL_BACKOFF_MAX_MS=8"), "POOL_BACKOFF_MIN_MS: it must be at most POOL_BACKOFF_MAX_MS"},
		{with("PROXY_WRITE_TIMEOUT_MS=0"), "PROXY_WRITE_TIMEOUT_MS: it must be more than 0"},
		{with("PROXY_API_KEY=a,,b"), "PROXY_API_KEY: one of its keys is empty"},
		{with("PROXY_API_KEY=codexpool-dev"), "PROXY_API_KEY: key 1 is public, because a README or profile has it; production needs a secret one, such as openssl rand -hex 24 prints"},
		{with("PROXY_API_KEY=" + secret + ",codex-local-secret"), "PROXY_API_KEY: key 2 is public, because a README or profile has it; production needs a secret one, such as openssl rand -hex 24 prints"},
		{with("PROXY_API_KEY=" + secret + "," + secret[1:]), "PROXY_API_KEY: key 2 has fewer than 20 characters and could be guessed; production needs a long random one, such as openssl rand -hex 24 prints"},
		{[]string{"PROXY_ENV=dev", "PROXY_HOST=0.0.0.0"}, `PROXY_API_KEY: without a key PROXY_HOST must be a loopback address, not "0.0.0.0"`},
		{with("PROXY_ADMIN_ADDR=9090"), `PROXY_ADMIN_ADDR: "9090" is not HOST:PORT`},
		{with("PROXY_ADMIN_ADDR=0.0.0.0:9090"), `PROXY_ADMIN_ADDR: "0.0.0.0:9090" is not a loopback address; set PROXY_ADMIN_PUBLIC=true to allow it`},
		{with("PROXY_CORS_ALLOWED_ORIGINS=a.example"), `PROXY_CORS_ALLOWED_ORIGINS: "a.example" is not an origin such as https://app.example`},
		{with("PROXY_CORS_ALLOWED_ORIGINS=https://*.example"), `PROXY_CORS_ALLOWED_ORIGINS: "https://*.example" is not an origin such as https://app.example`},
		{with("PROXY_FORWARDAUTH_BYPASS_UNTIL=tomorrow"), `PROXY_FORWARDAUTH_BYPASS_UNTIL: "tomorrow" is not a time such as 2026-01-31T15:04:05Z`},
		{with("PROXY_FORWARDAUTH_BYPASS_UNTIL=9999-12-31T00:00:00Z"), "PROXY_FORWARDAUTH_BYPASS_UNTIL: 9999-12-31T00:00:00Z is more than 24 hours ahead: choose an earlier time, and open it again then if need be"},
		{with("PROXY_TRUSTED_PROXIES=10.0.0.1,proxy"), `PROXY_TRUSTED_PROXIES: "proxy" is neither an address nor a network such as 10.0.0.0/8`},
		{with("PROXY_TRUSTED_PROXIES=0.0.0.0/0"), `PROXY_TRUSTED_PROXIES: "0.0.0.0/0" would trust everyone: list the proxies themselves, or their network`},
		{with("PROXY_CORS_ALLOWED_ORIGINS=*"), "PROXY_CORS_ALLOWED_ORIGINS: production needs exact origins such as https://app.example; with * any web page could call the API"},
		{[]string{"PROXY_ENV=dev", "PROXY_CORS_ALLOWED_ORIGINS=https://a,*"}, "PROXY_CORS_ALLOWED_ORIGINS: * stands for every origin, so it must stand alone; list exact origins only, or only *"},
		{with("PROXY_CORS_ALLOWED_ORIGINS=null"), `PROXY_CORS_ALLOWED_ORIGINS: "null" is not an origin such as https://app.example`},
		{with("PROXY_CORS_ALLOWED_ORIGINS=https://a/"), `PROXY_CORS_ALLOWED_ORIGINS: "https://a/" is not an origin such as https://app.example`},
		{with("PROXY_CORS_ALLOWED_ORIGINS=https://a?q"), `PROXY_CORS_ALLOWED_ORIGINS: "https://a?q" is not an origin such as https://app.example`},
		{[]string{"PROXY_ENV=dev", "PROXY_API_KEY=k,codexpool-dev", "PROXY_HOST=0.0.0.0"}, `PROXY_API_KEY: the dev profile's key is public; with it PROXY_HOST must be a loopback address, not "0.0.0.0"`},
		{with("PROXY_SANDBOX_MODE=danger-full-access"), `PROXY_SANDBOX_MODE: "danger-full-access" is not one of read-only`},
		{with("LOG_LEVEL=loud"), `LOG_LEVEL: "loud" is not one of debug, info, warn, error`},
		{with("CODEX_PROMPT_CACHE_KEY=true"), `CODEX_PROMPT_CACHE_KEY: "true" is not one of auto, on, off`},
		{with("LOG_FORMAT=xml"), `LOG_FORMAT: "xml" is not one of tint, json`},
		{with("CODEX_UPSTREAM_API_KEY_FILE=/nowhere"), "CODEX_UPSTREAM_API_KEY_FILE: open /nowhere: no such file or directory"},
		{with("CODEX_UPSTREAM=openai"), "CODEX_UPSTREAM: openai needs OPENAI_API_KEY or CODEX_UPSTREAM_API_KEY, or one of them with _FILE"},
		{with("CODEX_UPSTREAM=chatgpt"), "CODEX_UPSTREAM: chatgpt needs CODEX_HOME"},
		{with("CODEX_UPSTREAM=direct"), "CODEX_UPSTREAM: direct needs CODEX_HOME"},
		{with("CODEX_HOME=/not/there"), `CODEX_HOME: "/not/there" is not a folder`},
		{with("CODEX_UPSTREAM=azure"), "CODEX_UPSTREAM: it must be openai, chatgpt, echo, direct, or the http(s) base URL of a Responses API, such as https://llm.example/v1"},
		{with("CODEX_UPSTREAM=ftp://h/v1"), "CODEX_UPSTREAM: it must be openai, chatgpt, echo, direct, or the http(s) base URL of a Responses API, such as https://llm.example/v1"},
		{with("CODEX_UPSTREAM=https://user:secret@h/v1"), "CODEX_UPSTREAM: the base URL must have no user and no password: the key belongs into CODEX_UPSTREAM_API_KEY"},
		{with("CODEX_UPSTREAM=https://h/v1#x"), "CODEX_UPSTREAM: the base URL must have no fragment, which is what follows #: it is not sent to a server"},
	} {
		_, err := configs.Load(tt.env, nil)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%q:\ngot  %v\nwant %s", tt.env, err, tt.want)
		}
	}
}

func TestTrustedProxiesAreAddressesOrNetworks(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	cfg, err := configs.Load(with("PROXY_TRUSTED_PROXIES=127.0.0.1, ::1 ,10.1.2.3/8"), nil)
	if got, want := fmt.Sprint(cfg.TrustedProxies), "[127.0.0.1/32 ::1/128 10.0.0.0/8]"; err != nil || got != want {
		t.Errorf("got %s, want %s, %v", got, want, err)
	}
	for _, s := range cfg.Settings() {
		if want := "127.0.0.1/32,::1/128,10.0.0.0/8"; s.Name == "PROXY_TRUSTED_PROXIES" && s.Value != want {
			t.Errorf("shown as %s, want %s", s.Value, want)
		}
	}
}

func TestOriginsOfAppsMayBeListed(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	list := "https://app.example:8443,http://localhost:3000,app://obsidian.md,capacitor://localhost,vscode-webview://1a2b3c,chrome-extension://abcdefghijklmnop"
	cfg, err := configs.Load(with("PROXY_CORS_ALLOWED_ORIGINS="+list), nil)
	if err != nil || strings.Join(cfg.CORSOrigins, ",") != list {
		t.Errorf("%q, %v", cfg.CORSOrigins, err)
	}
}

func TestDefaultsAreThoseOfProductionUnlessDevIsSet(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	prod, err := configs.Load(good, nil)
	if err != nil {
		t.Fatal(err)
	}
	if prod.Dev() || !prod.ProtectModels || len(prod.CORSOrigins) != 0 || prod.Timeout != 30*time.Minute || prod.PoolSize != 4 {
		t.Errorf("production: %+v", prod)
	}
	dev, err := configs.Load([]string{"PROXY_ENV=dev"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !dev.Dev() || dev.ProtectModels || !slices.Equal(dev.CORSOrigins, []string{"*"}) || dev.Upstream != configs.Echo {
		t.Errorf("dev: %+v", dev)
	}
}

// Of both keys, the file form: each is read as it comes from an editor, and an empty file
// is as an empty variable.
func TestSecretsMayBeInFiles(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	dir := t.TempDir()
	file := func(text string) string {
		path := filepath.Join(dir, fmt.Sprint(len(text)))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for variable, value := range map[string]func(configs.Config) string{
		"CODEX_UPSTREAM_API_KEY": func(c configs.Config) string { return c.UpstreamKey },
		"OPENAI_API_KEY":         func(c configs.Config) string { return c.OpenAIKey },
	} {
		path := file("sk-of-a-file\n")
		cfg, err := configs.Load([]string{"PROXY_API_KEY=" + secret, variable + "_FILE=" + path}, nil)
		if err != nil || value(cfg) != "sk-of-a-file" || cfg.Upstream != configs.OpenAI {
			t.Errorf("%s: %q, upstream %q, %v", variable, value(cfg), cfg.Upstream, err)
		}
		for _, s := range cfg.Settings() {
			if s.Name == variable && (s.Value != "(set)" || s.Source != path) {
				t.Errorf("%s is shown as %q from %q", variable, s.Value, s.Source)
			}
		}
		both := variable + "_FILE: " + variable + " is set too; leave one of them out"
		if _, err := configs.Load(with(variable+"=sk-1", variable+"_FILE="+path), nil); err == nil || err.Error() != both {
			t.Errorf("both are set: %v", err)
		}
		cfg, err = configs.Load(with(variable+"=sk-1", variable+"_FILE="+file("\n")), nil)
		if err != nil || value(cfg) != "sk-1" {
			t.Errorf("an empty file: %q, %v", value(cfg), err)
		}
		blank := file("sk one\n")
		if _, err := configs.Load(with(variable+"_FILE="+blank), nil); err == nil || !strings.HasPrefix(err.Error(), variable+": it contains white space") {
			t.Errorf("a key that no header can carry: %v", err)
		}
	}
}

// Servers other than OpenAI's may reject a field that they do not know.
func TestCacheKeyIsSentToOtherProvidersOnlyWhereItIsTurnedOn(t *testing.T) {
	for _, tt := range []struct {
		upstream, setting string
		want              bool
	}{
		{"openai", "auto", true},
		{"chatgpt", "auto", true},
		{"https://llm.example/v1", "auto", false},
		{"echo", "auto", false},
		{"https://llm.example/v1", "on", true},
		{"openai", "off", false},
	} {
		cfg, err := configs.Load(with("CODEX_UPSTREAM="+tt.upstream, "OPENAI_API_KEY=sk", "CODEX_HOME="+t.TempDir(), "CODEX_PROMPT_CACHE_KEY="+tt.setting), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.SendsCacheKey(); got != tt.want {
			t.Errorf("%s with %s: %v", tt.upstream, tt.setting, got)
		}
	}
}

func TestEnvironmentWinsOverTheFilesAndTheLastFileOverTheFirst(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	write := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first := write("first.env", "PORT=1\nPOOL_SIZE=1\nPOOL_MAX_WAITING=1\n# a comment\nPROXY_API_KEY='k one'\n")
	second := write("second.env", "POOL_SIZE=2\nPOOL_MAX_WAITING=2\nPOOL_MAX_TURNS=\n")
	cfg, err := configs.Load([]string{"PROXY_ENV=dev", "CODEX_UPSTREAM=echo", "POOL_MAX_WAITING=3", "PORT="}, []string{first, second})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Port != 1 || cfg.PoolSize != 2 || cfg.MaxWaiting != 3 || cfg.MaxTurns != 500 || cfg.APIKeys[0] != "k one" {
		t.Errorf("%+v", cfg)
	}
	if cfg.MinIdle != 2 {
		t.Errorf("the default of POOL_MIN_IDLE is %d where POOL_SIZE is 2", cfg.MinIdle)
	}
	sources := map[string]string{}
	for _, s := range cfg.Settings() {
		sources[s.Name] = s.Source
		if strings.Contains(s.Value, "k one") {
			t.Error("the key is shown")
		}
	}
	for name, want := range map[string]string{"PORT": first, "POOL_SIZE": second, "POOL_MAX_WAITING": "environment", "POOL_MAX_TURNS": "default"} {
		if sources[name] != want {
			t.Errorf("%s is from %s, want %s", name, sources[name], want)
		}
	}
	if _, err := configs.Load(good, []string{"missing.env"}); err == nil || !strings.Contains(err.Error(), "--env-file missing.env") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestEnvFileIsReadUnchangedOrRejectedWithoutQuotingIt(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	path := filepath.Join(t.TempDir(), "x.env")
	for text, want := range map[string]string{
		"PROXY_API_KEY=a#b":                "a#b",
		"  PROXY_API_KEY=a=b \r\n":         "a=b",
		"\ufeffPROXY_API_KEY=\"a # b\"":    "a # b",
		"PROXY_API_KEY='a$HOME\\\"`'":      "a$HOME\\\"`",
		"#PORT=x\n\n # y\nPROXY_API_KEY=a": "a",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if cfg, err := configs.Load([]string{"PROXY_ENV=dev"}, []string{path}); err != nil || len(cfg.APIKeys) != 1 || cfg.APIKeys[0] != want {
			t.Errorf("%q: %q, %v", text, cfg.APIKeys, err)
		}
	}
	const quoted = "line 2: a value with a quote, a backslash, $, a backquote or a comment behind it must be in single quotes as a whole"
	for line, want := range map[string]string{
		"sk-secret":                  "line 2 is not NAME=value",
		"my-name=sk-secret":          "line 2 is not NAME=value",
		"export PORT=sk-secret":      "line 2 is not NAME=value",
		"PROXY_API_KEY=sk$secret":    quoted,
		"PROXY_API_KEY=sk-secret #":  quoted,
		"PROXY_API_KEY='sk-secret":   quoted,
		`PROXY_API_KEY="sk\nsecret"`: quoted,
		`PROXY_API_KEY="sk$secret"`:  quoted,
		`PROXY_API_KEY='sk'secret'`:  quoted,
	} {
		if err := os.WriteFile(path, []byte("PORT=1\n"+line+"\nLOG_LEVEL=info\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := configs.Load(nil, []string{path})
		if err == nil || err.Error() != "--env-file "+path+": "+want {
			t.Errorf("%q: %v", line, err)
		}
		if len(cfg.Settings()) > 0 {
			t.Errorf("%q: settings that are not in effect are shown", line)
		}
	}
}

func TestValuesAreBroughtIntoOneForm(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	folder := t.TempDir()
	t.Chdir(folder)
	cfg, err := configs.Load(with("PROXY_ENV=dev", "PROXY_API_KEY= a ,b", "CODEX_UPSTREAM_API_KEY=sk-1\n", "PROXY_CORS_ALLOWED_ORIGINS=https://a, https://b", "PROXY_HOST=[::1]", "CODEX_HOME=.", "PROXY_CODEX_WORKDIR=work"), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%q %q %q %q %s %s", cfg.APIKeys, cfg.UpstreamKey, cfg.CORSOrigins, cfg.Host, cfg.Home, cfg.Workdir)
	if want := `["a" "b"] "sk-1" ["https://a" "https://b"] "::1" ` + folder + " " + folder + "/work"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEmptyAdminAddressTurnsTheListenerOff(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	cfg, err := configs.Load(with("PROXY_ADMIN_ADDR=", "PROXY_HOST="), nil)
	if err != nil || cfg.AdminAddr != "" || cfg.Host != "127.0.0.1" {
		t.Errorf("admin %q, host %q, %v", cfg.AdminAddr, cfg.Host, err)
	}
	dev, err := configs.Load([]string{"PROXY_ENV=dev", "PROXY_CORS_ALLOWED_ORIGINS="}, nil)
	if err != nil || len(dev.CORSOrigins) != 0 {
		t.Errorf("origins %q, %v", dev.CORSOrigins, err)
	}
}

func TestWarningsNameWhatHasNoEffect(t *testing.T) {
	t.Setenv("HOME", "/home/x")
	openAIKey := "OPENAI_API_KEY has no effect: it is sent to OpenAI only, and CODEX_UPSTREAM is not openai (for another provider use CODEX_UPSTREAM_API_KEY)"
	upstreamKey := "CODEX_UPSTREAM_API_KEY has no effect: CODEX_UPSTREAM=%s does not use it"
	workdir := "PROXY_CODEX_WORKDIR is below /tmp: there Codex does not use its helper binaries; children serve all the same"
	soon := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	openAIKeyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(openAIKeyFile, []byte("sk-3"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := []string{"OPENAI_API_KEY=sk-1", "CODEX_UPSTREAM_API_KEY=sk-2", "CODEX_HOME=" + t.TempDir()}
	for _, tt := range []struct{ entries, want []string }{
		{[]string{"POOL_SZIE=9", "PROXY_OUTPUT_MODE=text", "PATH=/bin"}, []string{
			"POOL_SZIE has no effect: this version has no such setting",
			"PROXY_OUTPUT_MODE has no effect: tool calls are not sent as text",
		}},
		{keys, []string{openAIKey}},
		{append(keys, "CODEX_UPSTREAM=openai"), nil},
		{append(keys, "CODEX_UPSTREAM=echo"), []string{openAIKey, fmt.Sprintf(upstreamKey, "echo")}},
		{append(keys, "CODEX_UPSTREAM=chatgpt"), []string{openAIKey, fmt.Sprintf(upstreamKey, "chatgpt")}},
		{append(keys, "CODEX_UPSTREAM=direct"), []string{fmt.Sprintf(upstreamKey, "direct")}}, // children inherit OPENAI_API_KEY
		{[]string{"PROXY_FORWARDAUTH_BYPASS_UNTIL=" + soon}, []string{"PROXY_FORWARDAUTH_BYPASS_UNTIL: /verify lets everyone pass until " + soon}},
		{[]string{"PROXY_FORWARDAUTH_BYPASS_UNTIL=2020-01-01T00:00:00Z"}, []string{"PROXY_FORWARDAUTH_BYPASS_UNTIL has no effect: 2020-01-01T00:00:00Z has passed"}},
		{[]string{"PROXY_CODEX_WORKDIR=/tmp"}, []string{workdir}},
		{[]string{"PROXY_CODEX_WORKDIR=/tmp/a/b"}, []string{workdir}},
		{[]string{"PROXY_CODEX_WORKDIR=/tmpfs"}, nil},
		{[]string{keys[2], "CODEX_UPSTREAM=direct", "OPENAI_API_KEY_FILE=" + openAIKeyFile}, []string{"OPENAI_API_KEY_FILE has no effect: with CODEX_UPSTREAM=direct children inherit OPENAI_API_KEY alone"}},
	} {
		cfg, err := configs.Load(with(tt.entries...), nil)
		if err != nil || !slices.Equal(cfg.Warnings, tt.want) {
			t.Errorf("%q: %v, got %q", tt.entries, err, cfg.Warnings)
		}
	}
}

func TestProxyThatWouldBeIgnoredIsRejected(t *testing.T) {
	for value, ok := range map[string]bool{
		"proxy.example:3128":                   true,
		"localhost:3128":                       true,
		"proxy.example":                        true,
		"http://user:pass@proxy.example:3128":  true,
		"https://proxy.example":                true,
		"socks5://127.0.0.1:1080":              true,
		"http://user:hunter2%zz@proxy.example": false,
		"http://proxy.example:hunter2":         false,
		"ftp://hunter2.example":                false,
		"http://:3128":                         false,
		"/hunter2":                             false,
	} {
		for _, name := range []string{"HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"} {
			_, err := configs.Load(with(name+"="+value), nil)
			if (err == nil) != ok {
				t.Errorf("%s=%s: %v", name, value, err)
			}
			if err != nil && (strings.Contains(err.Error(), "hunter2") || !strings.HasPrefix(err.Error(), name+": ")) {
				t.Errorf("%s=%s: %v", name, value, err)
			}
		}
	}
}

func TestNetworkVariablesHaveNoEffectInAnEnvFile(t *testing.T) {
	t.Setenv("HOME", "/home/x")
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("HTTPS_PROXY=%zz\nSSL_CERT_FILE=/roots\nCODEX_CA_CERTIFICATE=/roots\nOTEL_SERVICE_NAME=x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := configs.Load(with("SSL_CERT_FILE=/roots", "NO_PROXY=localhost"), []string{file})
	want := []string{
		"CODEX_CA_CERTIFICATE has no effect in an env file: set it in the environment",
		"HTTPS_PROXY has no effect in an env file: set it in the environment",
		"OTEL_SERVICE_NAME has no effect in an env file: set it in the environment",
	}
	if err != nil || !slices.Equal(cfg.Warnings, want) {
		t.Errorf("%v, got %q", err, cfg.Warnings)
	}
}

func TestUpstreamIsChosenByTheCredential(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Chdir(t.TempDir())
	if err := os.WriteFile("auth.json", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env  []string
		want string
	}{
		{[]string{"PROXY_ENV=dev"}, configs.Echo},
		{[]string{"PROXY_ENV=dev", "OPENAI_API_KEY=sk"}, configs.OpenAI},
		{[]string{"PROXY_API_KEY=" + secret, "CODEX_UPSTREAM_API_KEY=sk"}, configs.OpenAI},
		{[]string{"PROXY_API_KEY=" + secret, "OPENAI_API_KEY=sk", "CODEX_UPSTREAM=echo"}, configs.Echo},
		{with("CODEX_UPSTREAM_API_KEY=sk"), "http://127.0.0.1:9/v1"},
		{[]string{"PROXY_API_KEY=" + secret, "CODEX_HOME=."}, configs.ChatGPT},
		{[]string{"PROXY_API_KEY=" + secret, "CODEX_HOME=.", "OPENAI_API_KEY=sk"}, configs.OpenAI},
		{[]string{"PROXY_ENV=dev", "CODEX_HOME=" + t.TempDir()}, configs.Echo},
	} {
		cfg, err := configs.Load(tt.env, nil)
		if err != nil || cfg.Upstream != tt.want {
			t.Errorf("%q: %q, %v", tt.env, cfg.Upstream, err)
		}
	}
}

func TestProfilesLoad(t *testing.T) {
	t.Setenv("HOME", "/home/x") // a folder below /tmp would be a warning
	profiles, err := filepath.Glob("profiles/*.env")
	if err != nil || len(profiles) < 3 {
		t.Fatal("no profiles", err)
	}
	for _, path := range profiles {
		cfg, err := configs.Load([]string{"CODEX_UPSTREAM=echo", "PROXY_API_KEY=" + secret}, []string{path})
		if err != nil || len(cfg.Warnings) > 0 {
			t.Errorf("%s: %v %v", path, err, cfg.Warnings)
		}
	}
}
