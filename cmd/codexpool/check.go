package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"codexpool/codex"
	"codexpool/codex/login"
	"codexpool/configs"
	"codexpool/upstream"
)

// check starts one child, calls it, asks the provider for its models, and prints what was
// found. It costs no tokens.
func check(ctx context.Context, cfg configs.Config, environ []string, stdout io.Writer, log *slog.Logger) int {
	for _, w := range append(cfg.Warnings, tooSmall(os.DirFS("/"), os.Getuid(), cfg.PoolSize)...) {
		fmt.Fprintln(stdout, "warning:   ", w)
	}
	if _, _, err := descriptors(cfg.PoolSize, cfg.MaxWaiting); err != nil {
		fmt.Fprintln(stdout, "failed:     descriptors (ulimit -n, POOL_SIZE):", err)
		return exitFailed
	}
	fmt.Fprintln(stdout, "workdir:   ", cfg.Workdir)
	if err := prepare(cfg.Workdir, log); err != nil {
		fmt.Fprintln(stdout, "failed:     PROXY_CODEX_WORKDIR:", err)
		return exitFailed
	}
	found, err := findCLI(ctx, cfg.Bin, cfg.Workdir, environ, log)
	if err != nil {
		fmt.Fprintln(stdout, "failed:    ", err)
		return exitFailed
	}
	c := found.known()
	fmt.Fprintln(stdout, "binary:    ", c.path)
	fmt.Fprintln(stdout, "version:   ", c.version)
	model := c.model(cfg.Model)
	if !slices.ContainsFunc(c.models, func(m codex.Model) bool { return m.ID == model }) {
		model += " (the CLI does not list it)"
	}
	fmt.Fprintln(stdout, "model:     ", model)
	p, err := newProvider(newProviderConfig(cfg, environ), found, upstream.Hooks{}, log)
	if err != nil {
		fmt.Fprintln(stdout, "failed:    ", err)
		return exitFailed
	}
	defer p.Close()
	fmt.Fprintln(stdout, "upstream:  ", p.choice)
	fmt.Fprintln(stdout, "credential:", p.credential)
	if p.login != nil && p.login.WasCutShort() {
		fmt.Fprintln(stdout, "warning:   ", login.CutShort)
	}
	if err := probe(ctx, spawner(newSpawnConfig(cfg), found, p, log), stdout); err != nil {
		fmt.Fprintln(stdout, "failed:    ", err)
		if said := codex.Said(err); said != "" {
			fmt.Fprintln(stdout, "child says:", said)
		}
		return exitFailed
	}
	if !p.verify(ctx, c, cfg.Model, environ, stdout) {
		return exitFailed
	}
	fmt.Fprintln(stdout, "ok")
	return exitOK
}

// probe starts a child, warms a thread, and pings the child.
func probe(ctx context.Context, spawn func(context.Context) (*codex.Client, error), stdout io.Writer) error {
	began := time.Now()
	child, err := spawn(ctx)
	if err != nil {
		return err
	}
	defer child.Close()
	if err := child.Warm(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	began = time.Now()
	if _, err := child.Ping(ctx); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "child:      warm after %v, answers a probe in %v\n", took.Round(time.Millisecond), time.Since(began).Round(10*time.Microsecond))
	for _, w := range child.Warnings() {
		fmt.Fprintln(stdout, "child warns:", w)
	}
	return nil
}
