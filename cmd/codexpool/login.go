package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"codexpool/codex/login"
	"codexpool/configs"
)

// logIn runs the CLI's own login to ChatGPT, with these arguments beside, and puts what it
// wrote into CODEX_HOME. A daemon that runs takes it up by itself. What was there before
// stays until the login is whole.
func logIn(ctx context.Context, cfg configs.Config, args, environ []string, stdout, stderr io.Writer) int {
	if cfg.Home == "" {
		fmt.Fprintln(stderr, "codexpool: login: set CODEX_HOME to the folder for the login, such as ~/.codexpool")
		return exitBadUsage
	}
	if err := os.MkdirAll(cfg.Home, 0o700); err != nil {
		fmt.Fprintln(stderr, "codexpool: login: CODEX_HOME:", err)
		return exitBadUsage
	}
	path, err := cliPath(cfg.Bin)
	if err != nil {
		fmt.Fprintln(stderr, "codexpool: login: CODEX_BIN:", err)
		return exitBadUsage
	}
	if err := runLogin(ctx, path, cfg.Home, args, environ, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "codexpool: login:", err)
		return exitFailed
	}
	fmt.Fprintf(stdout, `
The login is in %s. A daemon that runs takes it up within seconds. Otherwise, with CODEX_HOME as it is now:

    codexpool check
    codexpool serve
`, filepath.Join(cfg.Home, "auth.json"))
	return exitOK
}

// runLogin has the CLI log in, in a folder of its own below home.
func runLogin(ctx context.Context, path, home string, args, environ []string, stdout, stderr io.Writer) error {
	if err := login.Installable(home); err != nil { // before a person goes to the browser
		return err
	}
	dir, err := os.MkdirTemp(home, ".codexpool-login-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// Otherwise the CLI may put the login into a keyring, where no daemon finds it.
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte("cli_auth_credentials_store = \"file\"\n"), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"login"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	for _, entry := range environ {
		if !slices.Contains(configs.Secrets(), variable(entry)) {
			cmd.Env = append(cmd.Env, entry)
		}
	}
	cmd.Env = append(cmd.Env, "CODEX_HOME="+dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted; nothing was changed")
		}
		return fmt.Errorf("codex login: %w; nothing was changed", err)
	}
	return login.Install(dir, home)
}

// loginArgs are the arguments of the CLI's login. Over SSH, a browser on this machine helps
// nobody: the CLI then shows a code, which is typed into one elsewhere.
func loginArgs(given, environ []string) []string {
	remote := slices.ContainsFunc(environ, func(entry string) bool { return variable(entry) == "SSH_CONNECTION" })
	chosen := slices.ContainsFunc(given, func(arg string) bool { return arg == "--device-auth" || strings.HasPrefix(arg, "--with-") })
	if remote && !chosen {
		return append([]string{"--device-auth"}, given...)
	}
	return given
}
