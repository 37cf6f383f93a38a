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
	Default bool     // what a turn without a model uses
}

// Version asks the binary at path what it is. The error says so where it is
// not the Codex CLI.
func Version(ctx context.Context, path string) (string, error) {
	out, err := run(ctx, path, "--version")
	if err != nil {
		return "", err
	}
	version, ok := strings.CutPrefix(strings.TrimSpace(string(out)), "codex-cli ")
	if !ok {
		return "", fmt.Errorf("%s is not the Codex CLI: --version does not print codex-cli", path)
	}
	return version, nil
}

// Catalog asks the binary at path for its model catalog and returns an edited
// copy for model_catalog_json, with the models that it lists. Without the edit
// newer models bring Codex's own instructions and a 10 KB JavaScript tool into
// every request, whatever the configuration says. It works offline (0.3 s).
func Catalog(ctx context.Context, path string) (file []byte, models []Model, err error) {
	out, err := run(ctx, path, "debug", "models")
	if err != nil {
		return nil, nil, err
	}
	var catalog map[string]json.RawMessage
	var entries []map[string]any
	if err = json.Unmarshal(out, &catalog); err == nil {
		err = json.Unmarshal(catalog["models"], &entries)
	}
	if err != nil || len(entries) == 0 {
		return nil, nil, fmt.Errorf("%s debug models: no catalog in its output", path)
	}
	for _, e := range entries {
		for key, value := range plainModel {
			e[key] = value
		}
	}
	if catalog["models"], err = json.Marshal(entries); err != nil {
		return nil, nil, err
	}
	file, err = json.Marshal(catalog)
	if err != nil {
		return nil, nil, err
	}
	return file, listed(file), nil
}

// plainModel turns an agent's model into a plain one. How much it takes is for
// the provider to say: Codex counts a token for every four bytes, believes in a
// third of what the model can take, and compacts what it thinks too long.
var plainModel = map[string]any{
	"context_window":               1_000_000_000,
	"max_context_window":           1_000_000_000,
	"apply_patch_tool_type":        nil,
	"base_instructions":            "",
	"experimental_supported_tools": []string{},
	"model_messages":               nil,
	"multi_agent_version":          nil,
	"supports_search_tool":         false,
	"tool_mode":                    nil,
	"use_responses_lite":           false,
}

// listed reads the models that the catalog shows, by priority; the first is
// the default, as in the child's own model/list.
func listed(file []byte) []Model {
	var catalog struct {
		Models []struct {
			Slug       string
			Visibility string
			Priority   int
			Levels     []struct{ Effort string } `json:"supported_reasoning_levels"`
		}
	}
	json.Unmarshal(file, &catalog) // we have just written it
	var models []Model
	priority := map[string]int{}
	for _, m := range catalog.Models {
		if m.Visibility != "list" {
			continue
		}
		model := Model{ID: m.Slug}
		for _, l := range m.Levels {
			model.Efforts = append(model.Efforts, l.Effort)
		}
		priority[model.ID] = m.Priority
		models = append(models, model)
	}
	slices.SortStableFunc(models, func(a, b Model) int { return cmp.Compare(priority[a.ID], priority[b.ID]) })
	if len(models) > 0 {
		models[0].Default = true
	}
	return models
}

// run runs the CLI once, in a home of its own that is removed afterwards, with
// nothing inherited.
func run(ctx context.Context, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, defaultCallTimeout, ErrUnresponsive)
	defer cancel()
	home, err := os.MkdirTemp("", "codexpool-")
	if err != nil {
		return nil, fmt.Errorf("a temporary folder (TMPDIR): %w", err)
	}
	defer os.RemoveAll(home)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = home
	cmd.Env = []string{"HOME=" + home, "CODEX_HOME=" + home, "PATH=" + os.Getenv("PATH")}
	// In a group of its own, so that what a wrapper starts ends with it.
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
// orphan the child behind it. A bare name is looked for on PATH, as in a shell.
// Anything else is returned as it is, made absolute.
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
