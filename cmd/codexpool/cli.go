package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"codexpool/codex"
	"codexpool/codex/lean"
	"codexpool/configs"
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

// installation is the CLI on disk, which may be replaced while we run.
type installation struct {
	bin     string // as configured
	log     *slog.Logger
	changed func(cli) // told what was found after it was replaced; may be nil

	looking sync.Mutex  // held while the CLI is looked at, so that two starts ask a new one once
	file    os.FileInfo // what was found; guarded by looking

	mu    sync.Mutex
	found cli // guarded by mu
}

// findCLI finds the CLI that is configured.
func findCLI(ctx context.Context, cfg configs.Config, log *slog.Logger) (*installation, error) {
	i := &installation{bin: cfg.Bin, log: log}
	if _, err := i.current(ctx); err != nil {
		return nil, fmt.Errorf("CODEX_BIN: %w", err)
	}
	return i, nil
}

// known is the CLI as it was found last.
func (i *installation) known() cli {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.found
}

// current is the CLI as it is now: a new one is asked for its version and its
// catalog before the first child is started from it.
func (i *installation) current(ctx context.Context) (cli, error) {
	i.looking.Lock()
	defer i.looking.Unlock()
	was := i.known()
	path, err := cliPath(i.bin) // a link may lead elsewhere by now
	if err != nil {
		return cli{}, err
	}
	file, err := os.Stat(path)
	if err != nil {
		return cli{}, err
	}
	if i.file != nil && os.SameFile(i.file, file) && i.file.ModTime().Equal(file.ModTime()) {
		return was, nil
	}
	found, err := inspect(ctx, path, i.log)
	if err != nil {
		return cli{}, err
	}
	i.file = file
	i.mu.Lock()
	i.found = found
	i.mu.Unlock()
	if was.version != "" {
		i.log.Warn("the Codex CLI was replaced", "was", was.version, "version", found.version)
		if i.changed != nil {
			i.changed(found)
		}
	}
	return found, nil
}

// inspect asks the CLI at path what it is, and takes its catalog.
func inspect(ctx context.Context, path string, log *slog.Logger) (cli, error) {
	env := []string{"PATH=" + os.Getenv("PATH")}
	version, err := codex.Version(ctx, path, env)
	if err != nil {
		return cli{}, err
	}
	if version != codex.Pinned {
		log.Warn("not the Codex CLI that codexpool was tested with", "version", version, "tested", codex.Pinned)
	}
	original, models, err := codex.Catalog(ctx, path, env)
	if err != nil {
		return cli{}, err
	}
	catalog, err := lean.Catalog(original)
	if err != nil {
		return cli{}, err
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
	path, err := codex.Locate("codex")
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("no Codex CLI: set it to one, run make codex, or put codex on PATH")
	}
	return path, err
}
