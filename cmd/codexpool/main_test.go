package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codexpool/api"
	"codexpool/api/limits"
	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/configs"
	"codexpool/pool"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMain(m *testing.M) {
	codextest.Main(m, nil)
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// runOnce runs the program with args and environment until it is ready, then
// stops it.
func runOnce(t *testing.T, args []string, environ ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs buffer
	environ = append([]string{"PROXY_ENV=dev", "PORT=0", "PROXY_ADMIN_ADDR=127.0.0.1:0", "POOL_SIZE=1", "PROXY_CODEX_WORKDIR=" + t.TempDir()}, environ...)
	code = run(ctx, func() <-chan struct{} { return nil }, args, environ, &out, &errs, func(string) { cancel() })
	return code, out.String(), errs.String()
}

// script writes an executable that plays the CLI.
func script(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "codex")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRunExitsWithTheCodeForArgsAndEnvironment(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	cli := "CODEX_BIN=" + codextest.Binary(t)

	for _, tt := range []struct {
		name    string
		args    []string
		environ []string
		code    int
		prints  string // on stdout or stderr
	}{
		{"help", []string{"--help"}, nil, 0, "usage: codexpool"},
		{"help as a command", []string{"help"}, nil, 0, "usage: codexpool"},
		{"version", []string{"version"}, nil, 0, "\nCodex CLI " + codex.Pinned + ", which it was tested with\n"},
		{"version as a flag", []string{"--version"}, nil, 0, "codexpool "},
		{"a flag before its command", []string{"--env-file", "../../configs/profiles/dev.env", "config"}, nil, 0, "POOL_SIZE"},
		{"a misspelt setting", []string{"config"}, []string{"POOL_SIZ=3"}, 0, "warning: POOL_SIZ has no effect"},
		{"a CLI that is not on PATH", nil, []string{"CODEX_BIN=no-such-program"}, 2, "executable file not found in $PATH"},
		{"health needs no key", []string{"health"}, []string{"PROXY_ENV=", "PORT=1"}, 1, "connection refused"},
		{"config", []string{"config"}, []string{"POOL_SIZE=3"}, 0, "POOL_SIZE"},
		{"config as JSON", []string{"config", "--json"}, []string{"POOL_SIZE=3"}, 0, `"name": "POOL_SIZE",`},
		{"JSON of another command", []string{"check", "--json"}, nil, 2, "--json is for config"},
		{"a code of another command", []string{"check", "--device-auth"}, nil, 2, "--device-auth is for login"},
		{"JSON where there is a table", []string{"metrics", "--json"}, nil, 2, "--json is for config and pool"},
		{"pool without a daemon", []string{"pool"}, []string{"PROXY_ENV=", "PROXY_ADMIN_ADDR=127.0.0.1:1"}, 1, "connection refused (see codexpool runbook Down)"},
		{"pool without an admin listener", []string{"pool"}, []string{"PROXY_ADMIN_ADDR="}, 1, "the admin listener is off, because PROXY_ADMIN_ADDR is set but empty"},
		{"metrics without an admin listener", []string{"metrics"}, []string{"PROXY_ADMIN_ADDR="}, 1, "the admin listener is off"},
		{"pool at a port that nobody knows", []string{"pool"}, nil, 1, "set it for this command"},
		{"a bad expression", []string{"metrics", "("}, nil, 2, "missing closing )"},
		{"two expressions", []string{"metrics", "a", "b"}, nil, 2, "unexpected argument: b"},
		{"unknown command", []string{"dance"}, nil, 2, "no such command: dance"},
		{"unknown flag", []string{"--fast"}, nil, 2, "flag provided but not defined: -fast"},
		{"too many words", []string{"check", "it"}, nil, 2, "unexpected argument: it"},
		{"missing env file", []string{"--env-file", "nowhere.env"}, nil, 2, "nowhere.env"},
		{"two bad settings", nil, []string{"POOL_SIZE=0", "LOG_LEVEL=loud"}, 2, "POOL_SIZE: 0 is less than 1\n"},
		{"CODEX_BIN is missing", nil, []string{"CODEX_BIN=/nowhere/codex"}, 2, "CODEX_BIN: lstat /nowhere: no such file or directory"},
		{"CODEX_BIN is a folder", nil, []string{"CODEX_BIN=/"}, 2, "is a directory"},
		{"CODEX_BIN cannot be executed", nil, []string{"CODEX_BIN=" + script(t, "", 0o644)}, 2, "permission denied"},
		{"CODEX_BIN is not Codex", nil, []string{"CODEX_BIN=" + script(t, "echo hello", 0o755)}, 2, "is not the Codex CLI"},
		{"CODEX_BIN fails", nil, []string{"CODEX_BIN=" + script(t, "echo kaputt >&2; exit 3", 0o755)}, 2, "exit status 3: kaputt"},
		{"CODEX_BIN gets PATH of the environment", nil, []string{"PATH=/given", "CODEX_BIN=" + script(t, "echo PATH is $PATH >&2; exit 3", 0o755)}, 2, "PATH is /given"},
		{"CODEX_BIN has no catalog", nil, []string{"CODEX_BIN=" + script(t, "echo codex-cli 9.9.9", 0o755)}, 2, "no catalog"},
		{"another version is a warning", nil, []string{"CODEX_BIN=" + script(t, "echo codex-cli 9.9.9", 0o755)}, 2, "not the Codex CLI that codexpool was tested with"},
		{"port in use", nil, []string{cli, "PORT=" + port}, 1, "set PORT to another port: listen tcp 127.0.0.1:" + port + ": bind: address already in use"},
		{"admin port in use", nil, []string{cli, "PROXY_ADMIN_ADDR=127.0.0.1:" + port}, 1, "set PROXY_ADMIN_ADDR to another port"},
		{"health without a daemon", []string{"health"}, []string{"PORT=1"}, 1, "connection refused"},
		{"check of what is not Codex", []string{"check"}, []string{"CODEX_BIN=/bin/echo"}, 1, "is not the Codex CLI"},
		{"serve until a signal", nil, []string{cli}, 0, "The offline echo model answers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := runOnce(t, tt.args, tt.environ...)
			if code != tt.code || !strings.Contains(strings.ReplaceAll(stdout+stderr, `\"`, `"`), tt.prints) {
				t.Errorf("exit code %d, want %d; stdout:\n%s\nstderr:\n%s", code, tt.code, stdout, stderr)
			}
		})
	}
}

func TestRunPrintsEveryProblemOfTheConfiguration(t *testing.T) {
	_, _, stderr := runOnce(t, nil, "POOL_SIZE=0", "LOG_LEVEL=loud")
	want := "codexpool: configuration:\n  LOG_LEVEL: \"loud\" is not one of debug, info, warn, error\n  POOL_SIZE: 0 is less than 1\n"
	if !strings.HasPrefix(stderr, want) {
		t.Errorf("got\n%s", stderr)
	}
}

func TestConfigFitsATerminalAndIsTheSameAsJSON(t *testing.T) {
	environ := []string{"PROXY_CODEX_WORKDIR=/w", "POOL_SIZE=3", "PROXY_API_KEY=sk-never-to-be-seen"}
	_, text, _ := runOnce(t, []string{"config"}, environ...)
	_, asJSON, _ := runOnce(t, []string{"config", "--json"}, environ...)
	var settings []struct{ Name, Value, Source, Meaning string }
	if err := json.Unmarshal([]byte(asJSON), &settings); err != nil || len(settings) < 40 {
		t.Fatalf("%d settings, %v", len(settings), err)
	}
	for line := range strings.Lines(text) {
		if len(line) > 80+len("\n") {
			t.Errorf("%d columns: %s", len(line)-1, line)
		}
	}
	words := strings.Join(strings.Fields(text), " ")
	for _, s := range settings {
		if want := fmt.Sprintf("%s=%s (%s) %s", s.Name, s.Value, s.Source, s.Meaning); !strings.Contains(words, want) {
			t.Errorf("no %q in the text", want)
		}
	}
}

func TestCheckPrintsWhatItFound(t *testing.T) {
	binary := codextest.Binary(t)
	code, stdout, _ := runOnce(t, []string{"check"}, "CODEX_BIN="+binary, "PROXY_OUTPUT_MODE=text")
	for _, want := range []string{"warning:    PROXY_OUTPUT_MODE", "binary:     " + binary, "version:    0.169.0", "upstream:   echo", "child:      warm after", "\nok\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestKeysAreNeverPrinted(t *testing.T) {
	key := "sk-never-to-be-seen"
	asked := 0
	provider := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer "+key {
			asked++
		}
	}))
	defer provider.Close()
	for _, command := range []string{"config", "check", "serve"} {
		code, stdout, stderr := runOnce(t, []string{command}, "CODEX_BIN="+codextest.Binary(t), "CODEX_UPSTREAM="+provider.URL+"/v1",
			"PROXY_API_KEY="+key, "CODEX_UPSTREAM_API_KEY="+key, "OPENAI_API_KEY="+key, "LOG_LEVEL=debug")
		if code != 0 || strings.Contains(stdout+stderr, key) {
			t.Errorf("%s: exit code %d\n%s\n%s", command, code, stdout, stderr)
		}
	}
	if asked != 1 {
		t.Errorf("the provider got the key %d times: this test proves little", asked)
	}
}

func TestCheckFailsWithoutAWorkdir(t *testing.T) {
	file := script(t, "", 0o600)
	code, _, stderr := runOnce(t, []string{"check"}, "CODEX_BIN="+codextest.Binary(t), "PROXY_CODEX_WORKDIR="+file)
	if code != 1 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestPoolConfigHasEverySetting gives each setting a value of its own.
func TestPoolConfigHasEverySetting(t *testing.T) {
	cfg, err := configs.Load([]string{
		"PROXY_ENV=dev", "PROXY_CODEX_WORKDIR=/w", "POOL_SIZE=2", "POOL_MIN_IDLE=1", "POOL_MAX_WAITING=3",
		"POOL_MAX_TURNS=4", "POOL_MAX_AGE_MS=5", "POOL_MAX_CHILD_BYTES=60000000", "POOL_MIN_LIFE_MS=7", "POOL_JITTER=0.8",
		"POOL_PROBE_MS=9", "POOL_PROBE_TIMEOUT_MS=10", "POOL_BACKOFF_MIN_MS=11", "POOL_BACKOFF_MAX_MS=12", "POOL_ACQUIRE_TIMEOUT_MS=13",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := poolConfig(cfg, nil, pool.Hooks{}, nil)
	want := pool.Config{
		Size: 2, MinIdle: 1, MaxWaiting: 3, MaxTurns: 4, MaxAge: 5 * time.Millisecond, MaxMemory: 60000000, MinLife: 7 * time.Millisecond, Jitter: 0.8,
		ProbeEvery: 9 * time.Millisecond, ProbeTimeout: 10 * time.Millisecond, BackoffMin: 11 * time.Millisecond, BackoffMax: 12 * time.Millisecond, AcquireTimeout: 13 * time.Millisecond,
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for i, v := 0, reflect.ValueOf(want); i < v.NumField(); i++ {
		name := v.Type().Field(i).Name
		if v.Field(i).IsZero() && !slices.Contains([]string{"UpkeepEvery", "Spawn", "Hooks", "Log"}, name) {
			t.Errorf("this test does not check %s", name)
		}
	}
}

// TestAPIConfigHasEverySetting gives each setting a value of its own
// and expects each in the API's configuration.
func TestAPIConfigHasEverySetting(t *testing.T) {
	cfg, err := configs.Load([]string{
		"PROXY_ENV=dev", "PROXY_API_KEY=codexpool-dev", "PROXY_ADMIN_PUBLIC=true", "PROXY_PROTECT_MODELS=true", "PROXY_CORS_ALLOWED_ORIGINS=*", "PROXY_RATE_LIMIT_MAX=4", "PROXY_RATE_LIMIT_WINDOW_MS=9",
		"PROXY_DEFAULT_STREAM=true", "PROXY_SSE_MAX_CONCURRENCY=1", "PROXY_MAX_BODY_BYTES=2", "PROXY_MAX_BODY_TOTAL_BYTES=5", "PROXY_MAX_CHAT_CHOICES=3", "POOL_SIZE=4", "POOL_MAX_WAITING=5",
		"PROXY_SSE_KEEPALIVE_MS=3", "PROXY_SSE_COMMIT_MS=4", "PROXY_TIMEOUT_MS=5", "PROXY_IDLE_TIMEOUT_MS=6",
		"PROXY_STREAM_IDLE_TIMEOUT_MS=7", "PROXY_WRITE_TIMEOUT_MS=8", "PROXY_CODEX_WORKDIR=/w", "CODEX_PROMPT_CACHE_KEY=on",
		"PROXY_TRUSTED_PROXIES=10.0.0.1", "PROXY_FORWARDAUTH_BYPASS_UNTIL=2026-01-31T15:04:05Z",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := cfg.Keys()
	if err != nil {
		t.Fatal(err)
	}
	shared := new(limits.Redis)
	got := apiConfig(cfg, keys, shared, func() cli { return cli{models: []codex.Model{{ID: "m", Default: true}}} }, &provider{choice: "c", credential: "k"}, func(context.Context, api.Turn) {})
	models := api.Models{Prefix: "codev-5", Default: "m", Catalog: []codex.Model{{ID: "m", Default: true}}}
	if diff := cmp.Diff(models, got.Models()); diff != "" {
		t.Errorf("models (-want +got)\n%s", diff)
	}
	want := api.Config{
		Keys: []api.Key{{Name: "1", Digest: sha256.Sum256([]byte("codexpool-dev"))}}, Requests: limits.Rate{Most: 4, Per: 9 * time.Millisecond}, Shared: shared, LoopbackOnly: true, AdminPublic: true, ProtectModels: true, CORS: true, Origins: []string{"*"},
		Models: got.Models, Turned: got.Turned, Upstream: api.Upstream{Choice: "c", Credential: "k"}, Sandbox: "read-only", CacheKey: true, DefaultStream: true, MaxStreams: 1, MaxBody: 2, MaxBodies: 5, MaxChoices: 3, MaxPlaces: 9,
		Keepalive: 3 * time.Millisecond, Commit: 4 * time.Millisecond, Timeout: 5 * time.Millisecond, IdleTimeout: 6 * time.Millisecond,
		StreamIdleTimeout: 7 * time.Millisecond, WriteTimeout: 8 * time.Millisecond,
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, BypassUntil: time.Date(2026, 1, 31, 15, 4, 5, 0, time.UTC),
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(api.Config{}, "Models", "Shared", "Turned"), cmpopts.EquateComparable(netip.Prefix{})); diff != "" || got.Shared != shared {
		t.Errorf("(-want +got)\n%s", diff)
	}
	cfg.RateLimit = false
	if off := requestRate(cfg); off != (limits.Rate{}) {
		t.Errorf("PROXY_RATE_LIMIT_ENABLED=false leaves %v", off)
	}
	for i, v := 0, reflect.ValueOf(want); i < v.NumField(); i++ {
		if v.Field(i).IsZero() && v.Type().Field(i).Name != "Keyless" { // there is a key
			t.Errorf("this test does not check %s", v.Type().Field(i).Name)
		}
	}
}

func TestChatGPTRefusesSomeEfforts(t *testing.T) {
	for upstream, want := range map[string]int{"chatgpt": 2, "openai": 0} {
		cfg, err := configs.Load([]string{"PROXY_ENV=dev", "CODEX_UPSTREAM=" + upstream, "OPENAI_API_KEY=sk", "CODEX_HOME=" + t.TempDir(), "PROXY_CODEX_WORKDIR=/w"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := apiConfig(cfg, nil, nil, func() cli { return cli{} }, &provider{}, nil).Models().Refused
		if len(got) != want {
			t.Errorf("%s refuses %v", upstream, got)
		}
	}
}

// TestProviderConfigHasEverySetting gives each setting a value of its own.
func TestProviderConfigHasEverySetting(t *testing.T) {
	home, environ := t.TempDir(), []string{"PATH=/given"}
	for chosen, key := range map[string]string{"openai": "upstream's", "http://h/v1": "upstream's", "chatgpt": "", "direct": "", "echo": ""} {
		cfg, err := configs.Load([]string{
			"PROXY_ENV=dev", "CODEX_UPSTREAM=" + chosen, "CODEX_UPSTREAM_API_KEY=upstream's", "OPENAI_API_KEY=OpenAI's", "CODEX_HOME=" + home,
			"CODEX_REFRESH_TOKEN_URL_OVERRIDE=http://r", "CODEX_ECHO_DELAY_MS=1", "CODEX_STOP_GRACE_MS=2", "POOL_SIZE=3", "PROXY_CODEX_WORKDIR=/w",
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := providerConfig{
			upstream: chosen, key: key, home: home, refreshURL: "http://r", environ: environ,
			echoDelay: time.Millisecond, stopGrace: 2 * time.Millisecond, children: 3,
		}
		if got := newProviderConfig(cfg, environ); !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if cfg.UpstreamKey = ""; chosen == "openai" && newProviderConfig(cfg, environ).key != "OpenAI's" {
			t.Error("OPENAI_API_KEY is not used")
		}
		if chosen != "openai" && newProviderConfig(cfg, environ).key != "" {
			t.Errorf("%s gets OPENAI_API_KEY", chosen)
		}
	}
}

func TestDirectRejectsAConfigThatRunsProgramsOrCannotBeRead(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(path string) error
		want    string // in the log; "" = it serves
	}{
		"there is none": {func(string) error { return nil }, ""},
		"a plain one":   {func(path string) error { return os.WriteFile(path, []byte("model = \"m\"\n"), 0o600) }, ""},
		"with programs": {func(path string) error {
			return os.WriteFile(path, []byte("notify = [\"x\"]\n[mcp_servers.x]\n"), 0o600)
		}, "notify, mcp_servers"},
		"with an escape": {func(path string) error {
			return os.WriteFile(path, []byte(`"mcp\u005fservers" = { x = { command = "x" } }`), 0o600)
		}, "does not allow: mcp_servers"},
		"no TOML": {func(path string) error {
			return os.WriteFile(path, []byte("model = \"m\"\nmodel ="), 0o600)
		}, "CODEX_HOME: config.toml: line 2 is not valid TOML"},
		"not to be read": {func(path string) error { return os.Mkdir(path, 0o700) }, "is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			if err := tt.prepare(filepath.Join(home, "config.toml")); err != nil {
				t.Fatal(err)
			}
			code, _, log := runOnce(t, nil, "CODEX_BIN="+codextest.Binary(t), "CODEX_UPSTREAM=direct", "CODEX_HOME="+home)
			if tt.want == "" && code != exitOK || tt.want != "" && (code != exitBadUsage || !strings.Contains(log, tt.want)) {
				t.Errorf("exit code %d\n%s", code, log)
			}
		})
	}
}
