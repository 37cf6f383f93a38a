package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"codexpool/codex"
	"codexpool/codex/lean"
	"codexpool/codex/login"
	"codexpool/configs"
)

// spawnConfig is what the start of a child needs of the configuration.
type spawnConfig struct {
	workdir      string        // for the folders of the children's homes; see claim
	startTimeout time.Duration // for a start with its handshake
	stopGrace    time.Duration // for each step of stopping
}

// spawner makes the function that starts one child, with the CLI that is then on
// disk.
func spawner(cfg spawnConfig, found *installation, p *provider, log *slog.Logger) func(context.Context) (*codex.Client, error) {
	return func(ctx context.Context) (*codex.Client, error) {
		ctx, cancel := codex.Patience(ctx, cfg.startTimeout)
		defer cancel()
		c, err := found.current(ctx)
		if err != nil {
			return nil, err
		}
		dir, release, err := claim(cfg.workdir, log)
		if err != nil {
			return nil, err
		}
		cmd := codex.Command{
			Path:      c.path,
			Home:      filepath.Join(dir, "child-home"),
			Exited:    release,
			StopGrace: cfg.stopGrace,
			Log:       log,
		}
		child, err := p.child(&cmd, c)
		if err != nil {
			release()
			return nil, err
		}
		cmd.Direct = p.relay == nil
		cmd.Args, cmd.Files, cmd.Env = append([]string{"app-server"}, child.Args...), child.Files, child.Env
		return startFrom(ctx, c.template, cmd)
	}
}

// startFrom starts a child from the template; without one, the child may make it. The
// first thread is a part of the start, so that the template is not at fault for what
// comes later.
func startFrom(ctx context.Context, t *template, cmd codex.Command) (*codex.Client, error) {
	files := t.next()
	cmd.Files = maps.Clone(cmd.Files)
	maps.Copy(cmd.Files, files)
	child, err := codex.Start(ctx, cmd)
	if err != nil {
		t.judge(files != nil, nil, err)
		return nil, err
	}
	if err := child.Warm(ctx); err != nil {
		child.Close()
		t.judge(files != nil, nil, err)
		return nil, err
	}
	t.judge(files != nil, child.Warnings(), nil)
	if files == nil {
		t.made(cmd.CodexHome())
	}
	return child, nil
}

// child configures a child, which cmd is to start.
func (p *provider) child(cmd *codex.Command, c cli) (lean.Child, error) {
	if p.relay == nil {
		return p.directChild(cmd.CodexHome(), c.catalog)
	}
	child, revoke := p.relayedChild(cmd.CodexHome(), c.standIn)
	release := cmd.Exited
	cmd.Exited = func() {
		revoke()
		release()
	}
	return child, nil
}

// relayedChild configures a child that calls the relay. revoke ends the validity of its
// base URL; call it when the child is gone.
func (p *provider) relayedChild(home string, catalog []byte) (child lean.Child, revoke func()) {
	baseURL, revoke := p.admit()
	child = lean.Relayed(home, baseURL, catalog)
	child.Env = append(child.Env, only(p.environ, "PATH")...) // for the CLI's own helpers
	p.identify(child)
	return child, revoke
}

// directChild configures a child that calls the provider itself: with the
// operator's config.toml and credentials, and with our environment, because
// config.toml may name variables that hold keys.
func (p *provider) directChild(home string, catalog []byte) (lean.Child, error) {
	config, err := p.directConfig()
	if err != nil {
		return lean.Child{}, err
	}
	child := lean.Direct(home, config, catalog)
	p.identify(child)
	if p.login != nil {
		child.Files["auth.json"] = p.login.WithoutRefresh()
	} else if auth, err := os.ReadFile(filepath.Join(p.home, "auth.json")); err == nil {
		child.Files["auth.json"] = auth // an API key
	}
	for _, entry := range p.environ {
		// Those of OpenTelemetry are for our own spans, and may hold the collector's key.
		if name := variable(entry); !slices.Contains(configs.Secrets(), name) && !strings.HasPrefix(name, "OTEL_") {
			child.Env = append(child.Env, entry)
		}
	}
	return child, nil
}

// identify makes a child one of the installation that a ChatGPT login is of.
func (p *provider) identify(child lean.Child) {
	if p.login != nil && p.login.Installation() != nil {
		child.Files[login.InstallationFile] = p.login.Installation()
	}
}

// directConfig reads the operator's config.toml; it is nil where there is none. It
// rejects one that runs programs: every caller's model could then run them.
func (p *provider) directConfig() ([]byte, error) {
	config, err := os.ReadFile(filepath.Join(p.home, "config.toml"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("CODEX_HOME: %w", err)
	}
	keys, err := configs.Programs(config)
	if err != nil {
		return nil, fmt.Errorf("CODEX_HOME: config.toml: %w", err)
	}
	if len(keys) > 0 {
		return nil, fmt.Errorf("CODEX_HOME: config.toml runs programs, which CODEX_UPSTREAM=direct does not allow: %s", strings.Join(keys, ", "))
	}
	return config, nil
}

// only returns the entries of environ for these variables.
func only(environ []string, names ...string) []string {
	var entries []string
	for _, entry := range environ {
		if slices.Contains(names, variable(entry)) {
			entries = append(entries, entry)
		}
	}
	return entries
}

// variable is the name in an entry such as "PATH=/bin".
func variable(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}
