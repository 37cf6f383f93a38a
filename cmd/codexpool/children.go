package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"codexpool/codex"
	"codexpool/configs"
	"codexpool/upstream"
)

// cli is the Codex CLI that was found.
type cli struct {
	path    string // the native binary
	version string
	catalog []byte // the edited model catalog, for children
	models  []codex.Model
}

// model is what the aliases mean.
func (c cli) model(chosen string) string {
	if chosen != "" {
		return chosen
	}
	for _, m := range c.models {
		if m.Default {
			return m.ID
		}
	}
	return "" // the child's own default
}

// findCLI finds the CLI, asks it what it is, and takes its catalog.
func findCLI(ctx context.Context, cfg configs.Config, log *slog.Logger) (cli, error) {
	path, err := cliPath(cfg.Bin)
	if err != nil {
		return cli{}, fmt.Errorf("CODEX_BIN: %w", err)
	}
	version, err := codex.Version(ctx, path)
	if err != nil {
		return cli{}, fmt.Errorf("CODEX_BIN: %w", err)
	}
	if version != codex.Pinned {
		log.Warn("not the Codex CLI that codexpool was tested with", "version", version, "tested", codex.Pinned)
	}
	catalog, models, err := codex.Catalog(ctx, path)
	if err != nil {
		return cli{}, fmt.Errorf("CODEX_BIN: %w", err)
	}
	return cli{path: path, version: version, catalog: catalog, models: models}, nil
}

// cliPath is where the operator says, or the pinned CLI in the checkout that the
// program was built in, or codex from PATH.
func cliPath(given string) (string, error) {
	if given != "" {
		return codex.Locate(given)
	}
	if self, err := os.Executable(); err == nil {
		pkg := filepath.Join(filepath.Dir(self), "..", "configs", "codex", "node_modules", "@openai", "codex")
		if native, err := codex.Native(pkg); err == nil {
			return native, nil
		}
	}
	path, err := exec.LookPath("codex")
	if err != nil {
		return "", fmt.Errorf("no Codex CLI: set it to one, run make codex, or put codex on PATH")
	}
	return codex.Locate(path)
}

// provider is the loopback port where children find their model: the echo, or
// the relay to the real one.
type provider struct {
	name   string          // for the log
	relay  *upstream.Relay // nil for the echo
	gate   *upstream.Gate
	addr   string
	server *http.Server
}

// newProvider serves on a port of its own.
func newProvider(cfg configs.Config, hooks upstream.Hooks) (*provider, error) {
	p := &provider{name: configs.Echo}
	handler := upstream.Echo(cfg.EchoDelay)
	if cfg.Upstream != configs.Echo {
		target, name, err := relayTarget(cfg)
		if err != nil {
			return nil, err
		}
		p.relay, p.name = upstream.NewRelay(target, transport(cfg), hooks), name
		handler = p.relay
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.gate, p.addr = upstream.NewGate(handler), listener.Addr().String()
	p.server = &http.Server{Handler: p.gate, ReadHeaderTimeout: 10 * time.Second}
	go p.server.Serve(listener) // ends with Close
	return p, nil
}

// relayTarget is the provider, and its name for the log: a URL without what may
// be secret in it, and the kind of credential, never its value.
func relayTarget(cfg configs.Config) (target upstream.Provider, name string, err error) {
	base, key := cfg.Upstream, cfg.UpstreamKey
	if base == configs.OpenAI {
		base, key = "https://api.openai.com/v1", cmp.Or(key, cfg.OpenAIKey)
	}
	u, err := url.Parse(base)
	if err != nil {
		return target, "", err
	}
	credential := "no credential"
	if key != "" {
		credential = "an API key"
	}
	return upstream.Provider{Base: u, APIKey: key}, fmt.Sprintf("%s with %s", u.Redacted(), credential), nil
}

// transport keeps connections to the provider warm: one for every child that
// may run a turn, and one for every answer that is still ending. It has no
// deadline for the first byte: the turn has one, and ends the request with it.
func transport(cfg configs.Config) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 2 * cfg.PoolSize,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10, // Codex scans an event anew with each piece of it that comes
	}
}

// admit gives one child its base URL; revoke takes it back.
func (p *provider) admit() (baseURL string, revoke func()) {
	path, revoke := p.gate.Admit()
	return "http://" + p.addr + path + "/v1", revoke
}

func (p *provider) Close() { p.server.Close() }

// spawner makes the function that starts one child.
func spawner(cfg configs.Config, c cli, p *provider, log *slog.Logger) func(context.Context) (*codex.Client, error) {
	return func(ctx context.Context) (*codex.Client, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, cfg.StartTimeout, codex.ErrUnresponsive)
		defer cancel()
		baseURL, revoke := p.admit()
		cmd := codex.Command{
			Path:      c.path,
			Args:      []string{"app-server"},
			Home:      filepath.Join(cfg.Workdir, fmt.Sprintf("child-%d-%s", os.Getpid(), rand.Text()[:8])),
			StopGrace: cfg.StopGrace,
			Exited:    revoke,
			Log:       log,
		}
		lean := configs.LeanChild(cmd.CodexHome(), baseURL, c.catalog)
		cmd.Files, cmd.Env = lean.Files, append(lean.Env, "PATH="+os.Getenv("PATH")) // for the CLI's own helpers
		return codex.Start(ctx, cmd)
	}
}
