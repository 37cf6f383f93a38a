package codex

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Model is one model of the CLI's catalog.
type Model struct {
	ID      string
	Efforts []string // reasoning efforts that it supports, lowest first
	Default bool     // used by a turn without a model

	Entry json.RawMessage // the model in the catalog; nil where it is not from one
}

// Version reads the version of the CLI at path, with "codex --version". It fails where
// path is another program. env is the CLI's environment, complete but
// for HOME and CODEX_HOME; a wrapper needs its PATH. The CLI runs in a home of its own
// in dir ("" = TMPDIR), which is removed afterwards.
func Version(ctx context.Context, path, dir string, env []string) (string, error) {
	out, err := run(ctx, path, dir, env, "--version")
	if err != nil {
		return "", err
	}
	version, ok := strings.CutPrefix(strings.TrimSpace(string(out)), "codex-cli ")
	if !ok {
		return "", fmt.Errorf("%s is not the Codex CLI: --version does not print codex-cli", path)
	}
	return version, nil
}

// Catalog reads the model catalog of the CLI at path, with "codex debug models": the
// file as it is, and the models that it lists, the default first. It works offline
// (0.3 s). dir and env are as for [Version].
func Catalog(ctx context.Context, path, dir string, env []string) (file []byte, models []Model, err error) {
	file, err = run(ctx, path, dir, env, "debug", "models")
	if err != nil {
		return nil, nil, err
	}
	var catalog struct{ Models []catalogModel }
	var entries struct{ Models []json.RawMessage }
	if err := errors.Join(json.Unmarshal(file, &catalog), json.Unmarshal(file, &entries)); err != nil || len(catalog.Models) == 0 {
		return nil, nil, fmt.Errorf("%s debug models: no catalog in its output", path)
	}
	for i, entry := range entries.Models {
		catalog.Models[i].entry = entry
	}
	return file, listed(catalog.Models), nil
}

// catalogModel is what we read of a model in the catalog.
type catalogModel struct {
	Slug       string
	Visibility string
	Priority   int
	Levels     []struct{ Effort string } `json:"supported_reasoning_levels"`

	entry json.RawMessage // all of it
}

// listed are the models that the catalog shows, by priority; the first is the
// default, as in the child's own model/list.
func listed(all []catalogModel) []Model {
	shown := slices.DeleteFunc(slices.Clone(all), func(m catalogModel) bool { return m.Visibility != "list" })
	slices.SortStableFunc(shown, func(a, b catalogModel) int { return cmp.Compare(a.Priority, b.Priority) })
	var models []Model
	for i, m := range shown {
		model := Model{ID: m.Slug, Default: i == 0, Entry: m.entry}
		for _, l := range m.Levels {
			model.Efforts = append(model.Efforts, l.Effort)
		}
		models = append(models, model)
	}
	return models
}

// run runs the CLI once, in a home of its own. Nothing is inherited.
func run(ctx context.Context, path, dir string, env []string, args ...string) ([]byte, error) {
	ctx, cancel := Patience(ctx, defaultCallTimeout)
	defer cancel()
	home, err := os.MkdirTemp(dir, "cli-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(home)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = home
	cmd.Env = append(env[:len(env):len(env)], "HOME="+home, "CODEX_HOME="+home)
	// In a process group of its own, so that what a wrapper starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var stderr tail
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		return out, nil
	}
	what := fmt.Sprintf("%s %s", path, strings.Join(args, " "))
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		if last := stderr.lines(); len(last) > 0 {
			return nil, fmt.Errorf("%s: %w: %s", what, err, last[len(last)-1])
		}
	}
	return nil, fmt.Errorf("%s: %w", what, err)
}

// Locate finds the native binary for path, which may be the binary itself or
// the npm package's Node wrapper (or a link to it): killing the wrapper can
// orphan the child behind it. A bare name is looked for on PATH of our own
// environment, as in a shell. Any other path is returned as it is, made absolute.
func Locate(path string) (string, error) {
	if filepath.Base(path) == path {
		found, err := exec.LookPath(path)
		if err != nil {
			return "", err
		}
		path = found
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if real, err = filepath.Abs(real); err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return "", &fs.PathError{Op: "run", Path: path, Err: syscall.EISDIR}
	}
	if filepath.Base(real) != "codex.js" {
		return real, nil
	}
	return Native(filepath.Dir(filepath.Dir(real)))
}

// Native finds the native binary of an installed npm package @openai/codex,
// whose folder is pkg. The platform package lies beside it or in its own
// node_modules.
func Native(pkg string) (string, error) {
	for _, pattern := range []string{
		filepath.Join(pkg, "..", "codex-*", "vendor", "*", "bin", "codex"),
		filepath.Join(pkg, "node_modules", "@openai", "codex-*", "vendor", "*", "bin", "codex"),
	} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("%s: the platform package with the native binary is missing: %w", pkg, fs.ErrNotExist)
}
