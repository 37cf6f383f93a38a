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
)

// cli is the Codex CLI that was found.
type cli struct {
	path    string // the native binary
	version string
	catalog []byte        // the lean model catalog, for direct children
	standIn []byte        // the catalog of one stand-in model, for children behind the relay
	models  []codex.Model // of the CLI's own catalog

	template *template // for children
}

// model is the model behind the aliases: the chosen one, or else the catalog's
// default. "" is the child's own default.
func (c cli) model(chosen string) string {
	if chosen != "" {
		return chosen
	}
	for _, m := range c.models {
		if m.Default {
			return m.ID
		}
	}
	return ""
}

// installation is the CLI on disk, which may be replaced while we run.
type installation struct {
	bin     string   // CODEX_BIN
	workdir string   // PROXY_CODEX_WORKDIR, for the home of the CLI when it prints its version and catalog
	env     []string // for the CLI when it prints its version and catalog
	log     *slog.Logger
	changed func(cli) // called with the new CLI after it was replaced; may be nil

	inspecting sync.Mutex  // held while the CLI is inspected, so that two starts inspect a new one once
	file       os.FileInfo // of the binary that was inspected last; guarded by inspecting

	mu    sync.Mutex
	found cli // guarded by mu
}

// findCLI finds and inspects the CLI that bin, CODEX_BIN, names. It may be "". workdir is
// PROXY_CODEX_WORKDIR; environ is our environment.
func findCLI(ctx context.Context, bin, workdir string, environ []string, log *slog.Logger) (*installation, error) {
	i := &installation{bin: bin, workdir: workdir, env: only(environ, "PATH"), log: log}
	if _, err := i.current(ctx); err != nil {
		return nil, fmt.Errorf("CODEX_BIN: %w", err)
	}
	return i, nil
}

// known is the CLI as it was inspected last.
func (i *installation) known() cli {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.found
}

// current is the CLI as it is now. A new one is inspected before the first child is
// started from it.
func (i *installation) current(ctx context.Context) (cli, error) {
	i.inspecting.Lock()
	defer i.inspecting.Unlock()
	was := i.known()
	path, err := cliPath(i.bin) // a link may lead elsewhere by now
	if err != nil {
		return cli{}, err
	}
	file, err := os.Stat(path)
	if err != nil {
		return cli{}, err
	}
	if i.file != nil && os.SameFile(i.file, file) && i.file.ModTime().Equal(file.ModTime()) && i.file.Size() == file.Size() {
		return was, nil
	}
	found, err := i.inspect(ctx, path)
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

// inspect reads the version and the catalog of the CLI at path.
func (i *installation) inspect(ctx context.Context, path string) (cli, error) {
	home, release, err := claim(i.workdir, i.log)
	if err != nil {
		return cli{}, err
	}
	defer release()
	found, err := codex.Version(ctx, path, home, i.env)
	if err != nil {
		return cli{}, err
	}
	if found != codex.Pinned {
		i.log.Warn("not the Codex CLI that codexpool was tested with", "version", found, "tested", codex.Pinned)
	}
	original, models, err := codex.Catalog(ctx, path, home, i.env)
	if err != nil {
		return cli{}, err
	}
	catalog, err := lean.Catalog(original)
	if err != nil {
		return cli{}, err
	}
	standIn, err := lean.StandIn(original)
	if err != nil {
		return cli{}, err
	}
	return cli{path: path, version: found, catalog: catalog, standIn: standIn, models: models, template: &template{log: i.log}}, nil
}

// cliPath is the path in CODEX_BIN, or the pinned CLI beside the program, in the checkout
// that it was built in or as the release installs it, or codex from PATH.
func cliPath(given string) (string, error) {
	if given != "" {
		return codex.Locate(given)
	}
	if self, err := os.Executable(); err == nil {
		pkg := filepath.Join(filepath.Dir(self), "..", "configs", "codex", "node_modules", "@openai", "codex")
		if native, err := codex.Native(pkg); err == nil {
			return native, nil
		}
		if native, err := codex.Locate(filepath.Join(filepath.Dir(self), "..", "lib", "codexpool-codex", "bin", "codex")); err == nil {
			return native, nil
		}
	}
	path, err := codex.Locate("codex")
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("no Codex CLI: set it to one, run make codex, or put codex on PATH")
	}
	return path, err
}
