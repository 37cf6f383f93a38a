// Command codexpool serves the OpenAI API from a pool of warm Codex children.
//
// The subcommands are serve (the default), check, config, health and version.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"codexpool/api"
	"codexpool/codex"
	"codexpool/configs"
	"codexpool/metrics"
	"codexpool/pool"

	"github.com/lmittmann/tint"
)

// Exit codes.
const (
	exitOK       = 0 // asked to stop
	exitFailed   = 1 // could not serve: a port in use, a check that failed
	exitBadUsage = 2 // the configuration or the command line
)

const usage = `usage: codexpool [serve|check|config|health|version] [--env-file FILE]...

  serve    serve the API (the default)
  check    start one child, talk to it, and say what was found
  config   print every setting with its value, source and meaning
  health   ask the running daemon whether it is ready
  version  print the version

Settings are environment variables; see codexpool config. An env file is read
before the environment, which wins.
`

func main() {
	// net/http's transport has no logger of its own, and quotes there what a
	// provider sends out of turn: the model's words. We are told by errors.
	stdlog.SetOutput(io.Discard)
	// Who reads our log may go: that is no reason to go too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(asked(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr, func(string) {}))
}

// asked ends with the first signal that asks us to stop; a terminal that is closed
// asks too, unless nohup has it ignored. The second ends the program at once, also where whoever started it had
// it ignore such signals, as shells do with what they start in the background.
func asked() context.Context {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() { // lives as long as the program
		<-signals
		stop()
		<-signals
		fmt.Fprintln(os.Stderr, "codexpool: asked twice, stopping at once")
		os.Exit(exitFailed)
	}()
	return ctx
}

// run is the whole program, with the world as parameters. ready is told the
// address of the public listener. It returns the exit code.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer, ready func(addr string)) int {
	command, envFiles, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		return exitBadUsage
	}
	if command == "version" {
		fmt.Fprintln(stdout, "codexpool", version())
		return exitOK
	}
	cfg, err := configs.Load(environ, envFiles)
	if command == "config" {
		printConfig(stdout, cfg)
		for _, w := range cfg.Warnings {
			fmt.Fprintln(stderr, "codexpool: warning:", w)
		}
	}
	if command == "health" && len(cfg.Settings()) > 0 {
		err = nil // where the daemon listens is all that it need know
	}
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: configuration:\n  %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		return exitBadUsage
	}
	log := logger(cfg, stderr)
	switch command {
	case "serve":
		return serve(ctx, cfg, stdout, log, ready)
	case "check":
		return check(ctx, cfg, stdout, log)
	case "health":
		return health(ctx, cfg, stdout)
	}
	return exitOK
}

// parse reads the command line and has said what is wrong with it.
func parse(args []string, stderr io.Writer) (command string, envFiles []string, err error) {
	flags := flag.NewFlagSet("codexpool", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	flags.Func("env-file", "", func(path string) error {
		envFiles = append(envFiles, path)
		return nil
	})
	showVersion := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		return "", nil, err
	}
	command = "serve"
	if flags.NArg() > 0 { // flags may stand on either side of it
		command = flags.Arg(0)
		if err := flags.Parse(flags.Args()[1:]); err != nil {
			return "", nil, err
		}
	}
	if *showVersion {
		command = "version"
	}
	switch command {
	case "serve", "check", "config", "health", "version":
	case "help":
		flags.Usage()
		return "", nil, flag.ErrHelp
	default:
		err = fmt.Errorf("no such command: %s", command)
	}
	if flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument: %s", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: %v\n\n%s", err, usage)
	}
	return command, envFiles, err
}

// release is set by the linker where there is no checkout to tell it: in the image.
var release string

// version is the release, or the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if release != "" || !ok {
		return cmp.Or(release, "unknown")
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (info.Main.Version == "" || info.Main.Version == "(devel)") {
			return s.Value
		}
	}
	return info.Main.Version
}

// logger writes to stderr: for people on a terminal, else as JSON.
func logger(cfg configs.Config, stderr io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		panic("BUG: a log level that was not checked: " + cfg.LogLevel)
	}
	format := cfg.LogFormat
	if format == "" && terminal(stderr) {
		format = "tint"
	}
	if format == "tint" {
		return slog.New(tint.NewTextHandler(stderr, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: !terminal(stderr) || os.Getenv("NO_COLOR") != ""}))
	}
	return slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: seconds}))
}

// seconds writes durations as Prometheus does, not as nanoseconds.
func seconds(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.Float64Value(a.Value.Duration().Seconds())
	}
	return a
}

func terminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// serve wires the program in one straight line and undoes it in reverse. Every
// step depends on those before it, so it is not cut into pieces.
func serve(ctx context.Context, cfg configs.Config, stdout io.Writer, log *slog.Logger, ready func(addr string)) int {
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "warning", w)
	}
	found, err := findCLI(ctx, cfg, log)
	if ctx.Err() != nil {
		return exitOK // asked to stop before it began
	}
	if err != nil {
		log.Error("no usable Codex CLI", "err", err)
		return blame(err)
	}

	homes, leaveHomes, err := claim(cfg.Workdir, log)
	if err != nil {
		log.Error("PROXY_CODEX_WORKDIR", "err", err)
		return exitFailed
	}
	defer leaveHomes()

	public, err := net.Listen("tcp", net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port)))
	if err != nil {
		log.Error("public listener (PROXY_HOST, PORT)", "err", err)
		return exitFailed
	}
	defer public.Close()
	var admin net.Listener
	adminAddr := "off"
	if cfg.AdminAddr != "" {
		if admin, err = net.Listen("tcp", cfg.AdminAddr); err != nil {
			log.Error("admin listener (PROXY_ADMIN_ADDR)", "err", err)
			return exitFailed
		}
		defer admin.Close()
		adminAddr = admin.Addr().String()
	}
	m := metrics.New(version())
	m.SetCLI(found.known().version)
	found.changed = func(now cli) { m.SetCLI(now.version) }
	provider, err := newProvider(cfg, found, m.RelayHooks(), log)
	if err != nil {
		log.Error("upstream", "err", err)
		return blame(err)
	}
	defer provider.Close()
	children, err := pool.New(poolConfig(cfg, spawner(cfg, found, provider, homes, log), m.PoolHooks(), log))
	if err != nil {
		log.Error("pool", "err", err)
		return exitFailed
	}
	defer children.Close()
	m.WatchPool(children.Stat)

	keeping, stopKeeping := context.WithCancel(context.Background())
	kept := make(chan struct{})
	go func() { // ends with stopKeeping and a refresh of a login that is under way
		defer close(kept)
		provider.keep(keeping, children.Recycle)
	}()
	defer func() {
		stopKeeping()
		<-kept
	}()

	server := api.New(apiConfig(cfg, found.known, provider), children, provider.relay, log, m.ObserveRequest)
	m.WatchAPI(server.Stat)
	m.SetKeys(server.Keys())

	// Requests end with turns, the end of the connection, or this. They are not
	// ended by ctx: a signal lets them finish.
	turns, cut := context.WithCancelCause(context.Background())
	defer cut(nil)
	failed := make(chan error, 2)
	start := func(l net.Listener, h http.Handler) *http.Server {
		s := &http.Server{
			Handler:                      h,
			DisableGeneralOptionsHandler: true, // OPTIONS * is answered like any other
			BaseContext:                  func(net.Listener) context.Context { return turns },
			ReadHeaderTimeout:            10 * time.Second,
			IdleTimeout:                  2 * time.Minute,
			ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		}
		go func() { // ends with Shutdown or Close below
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		}()
		return s
	}
	publicServer := start(public, server)
	defer publicServer.Close()
	if admin != nil {
		defer start(admin, server.Admin(m.Handler())).Close()
	}
	log.Info("serving", "addr", public.Addr().String(), "admin", adminAddr, "upstream", provider.choice, "credential", provider.credential, "codex", found.known().version, "size", cfg.PoolSize)
	greet(stdout, cfg, public.Addr())
	ready(public.Addr().String())

	select {
	case err := <-failed:
		log.Error("serve", "err", err)
		return exitFailed
	case <-ctx.Done():
	}

	log.Info("stopping", "drain", cfg.Drain)
	stopKeeping() // a refresh of a login that is under way goes on meanwhile
	server.Unready()
	time.Sleep(cfg.Prestop) // load balancers learn that we are not ready; a second signal ends this
	last := time.AfterFunc(cfg.Drain, func() { cut(pool.ErrDraining) })
	defer last.Stop()
	// Those who do not read have not even seen that.
	hung := time.AfterFunc(cfg.Drain+2*time.Second, func() { publicServer.Close() })
	defer hung.Stop()
	children.Close() // refuses all others, waits for the turns that run
	// The last answers are on their way; connections that idle are closed.
	closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := publicServer.Shutdown(closing); err != nil {
		log.Warn("shutdown", "err", err)
	}
	<-kept
	log.Info("stopped")
	return exitOK
}

// blame is the exit code for an error: the machine's fault may pass, the
// configuration's does not.
func blame(err error) int {
	if listen := (*net.OpError)(nil); errors.As(err, &listen) || errors.Is(err, codex.ErrUnresponsive) {
		return exitFailed
	}
	return exitBadUsage
}

func poolConfig(cfg configs.Config, spawn func(context.Context) (*codex.Client, error), hooks pool.Hooks, log *slog.Logger) pool.Config {
	return pool.Config{
		Size: cfg.PoolSize, MinIdle: cfg.MinIdle, MaxWaiting: cfg.MaxWaiting, AcquireTimeout: cfg.AcquireTimeout,
		MaxTurns: cfg.MaxTurns, MaxAge: cfg.MaxAge, MaxMemory: cfg.MaxChildBytes, MinLife: cfg.MinLife, Jitter: cfg.Jitter,
		ProbeEvery: cfg.ProbeEvery, ProbeTimeout: cfg.ProbeTimeout,
		BackoffMin: cfg.BackoffMin, BackoffMax: cfg.BackoffMax,
		Spawn: spawn, Hooks: hooks, Log: log,
	}
}

func apiConfig(cfg configs.Config, found func() cli, p *provider) api.Config {
	prefix := "codex-5"
	if cfg.Dev() {
		prefix = "codev-5"
	}
	return api.Config{
		Keys: cfg.APIKeys, LoopbackOnly: cfg.LoopbackOnly(), AdminPublic: cfg.AdminPublic, ProtectModels: cfg.ProtectModels, CORS: cfg.CORS, Origins: cfg.CORSOrigins,
		Models: func() api.Models {
			c := found()
			return api.Models{Prefix: prefix, Default: c.model(cfg.Model), Catalog: c.models, Open: cfg.OpenUpstream()}
		},
		Upstream: api.Upstream{Choice: p.choice, Credential: p.credential},
		Sandbox:  cfg.Sandbox, DefaultStream: cfg.DefaultStream, MaxStreams: cfg.MaxStreams, MaxBody: cfg.MaxBody, MaxChoices: min(cfg.MaxChoices, cfg.PoolSize+cfg.MaxWaiting),
		Keepalive: cfg.Keepalive, Commit: cfg.Commit,
		Timeout: cfg.Timeout, IdleTimeout: cfg.IdleTimeout, StreamIdleTimeout: cfg.StreamIdleTimeout,
		WriteTimeout: cfg.WriteTimeout,
	}
}

// greet tells a developer, on stdout, what to paste.
func greet(stdout io.Writer, cfg configs.Config, addr net.Addr) {
	if !cfg.Dev() || cfg.Upstream != configs.Echo {
		return
	}
	auth := ` -H "Authorization: Bearer $PROXY_API_KEY"`
	switch {
	case len(cfg.APIKeys) == 0:
		auth = ""
	case cfg.APIKeys[0] == configs.DevKey:
		auth = " -H 'Authorization: Bearer " + configs.DevKey + "'"
	}
	fmt.Fprintf(stdout, `The offline echo model answers; no network, no credential. Try: curl -N http://%s/v1/chat/completions%s -H 'Content-Type: application/json' -d '{"model":"codex-5","stream":true,"messages":[{"role":"user","content":"one two three"}]}'`+"\n", addr, auth)
}

// printConfig prints the reference with the values in effect, if there are any.
func printConfig(w io.Writer, cfg configs.Config) {
	if len(cfg.Settings()) == 0 {
		return
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "VARIABLE\tVALUE\tSOURCE\tMEANING")
	for _, s := range cfg.Settings() {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", s.Name, s.Value, s.Source, s.Meaning)
	}
	table.Flush()
}
