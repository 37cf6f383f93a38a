package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/http"
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

// provider is where children find their model.
type provider struct {
	name   string
	base   string         // of the Responses API, where it is not ours
	gate   *upstream.Gate // nil where it is not ours
	addr   string
	server *http.Server
}

// newProvider serves the echo model on a loopback port of its own, or points
// elsewhere.
func newProvider(cfg configs.Config) (*provider, error) {
	if cfg.Upstream != configs.Echo {
		return &provider{name: "url", base: cfg.Upstream}, nil // the URL is not logged: it may hold a secret
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	gate := upstream.NewGate(upstream.Echo(cfg.EchoDelay))
	p := &provider{name: configs.Echo, gate: gate, addr: listener.Addr().String(), server: &http.Server{Handler: gate, ReadHeaderTimeout: 10 * time.Second}}
	go p.server.Serve(listener) // ends with Close
	return p, nil
}

// admit gives one child its base URL; revoke takes it back.
func (p *provider) admit() (baseURL string, revoke func()) {
	if p.gate == nil {
		return p.base, func() {}
	}
	path, revoke := p.gate.Admit()
	return "http://" + p.addr + path + "/v1", revoke
}

func (p *provider) Close() {
	if p.server != nil {
		p.server.Close()
	}
}

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
