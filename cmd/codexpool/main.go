// Command codexpool serves the OpenAI API from a pool of warm Codex children.
//
// The subcommands are serve (the default), check, config, health, pool, metrics, runbook,
// capacity, login, key and version.
//
// Read this file first: run picks the subcommand, serve wires the packages together,
// and drain stops them.
package main

import (
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
	"strconv"
	"strings"
	"syscall"
	"time"

	"codexpool/api"
	"codexpool/api/limits"
	"codexpool/codex"
	"codexpool/configs"
	"codexpool/metrics"
	"codexpool/metrics/traces"
	"codexpool/pool"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Exit codes.
const (
	exitOK       = 0 // stopped by a signal, or the command succeeded
	exitFailed   = 1 // a failure that may pass: a port in use, a check that failed
	exitBadUsage = 2 // the configuration or the command line is wrong
)

func main() {
	// net/http's transport has no logger of its own. Its messages quote what a provider
	// sends out of turn, which may be the model's words. The errors that it returns are enough.
	stdlog.SetOutput(io.Discard)
	raiseFiles()
	// Ignore SIGPIPE: keep serving when the reader of our log goes away.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, hangups := untilSignal()
	os.Exit(run(ctx, hangups.claim, os.Args[1:], os.Environ(), os.Stdout, os.Stderr, func(string) {}))
}

// run is the whole program, with the world as parameters. It calls hangups where SIGHUP
// does not ask to stop, and ready with the address of the public listener. It returns
// the exit code.
//
// environ is the environment. Only the standard library also reads the process's own:
// HTTP_PROXY and its like for connections to the provider, SSL_CERT_FILE and
// SSL_CERT_DIR for its certificate, PATH to find CODEX_BIN, and XDG_CACHE_HOME or HOME
// for the default of PROXY_CODEX_WORKDIR; go-systemd, NOTIFY_SOCKET and WATCHDOG_USEC; and
// OpenTelemetry, OTEL_*. Nothing is written outside of that folder and CODEX_HOME.
func run(ctx context.Context, hangups func() <-chan struct{}, args, environ []string, stdout, stderr io.Writer, ready func(addr string)) int {
	line, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		return exitBadUsage
	}
	switch line.command {
	case "version":
		fmt.Fprint(stdout, about())
		return exitOK
	case "key":
		return newKey(line.operands, stdout, stderr)
	case "runbook":
		return printPage(line.operand(), terminal(stdout) && !plain(environ), stdout, stderr)
	case "capacity":
		return capacity(ctx, line, stdout, stderr)
	}
	cfg, err := configs.Load(environ, line.envFiles)
	if line.command == "config" {
		printConfig(stdout, cfg.Settings(), line.json)
		for _, w := range cfg.Warnings {
			fmt.Fprintln(stderr, "codexpool: warning:", w)
		}
	}
	if line.command == "login" && len(cfg.Settings()) > 0 {
		err = nil // it needs only CODEX_HOME
	}
	ask, asks := questions[line.command]
	if asks && len(cfg.Settings()) > 0 {
		return ask(ctx, cfg, line, stdout, stderr) // whatever else is wrong: it needs only the daemon's address
	}
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: configuration:\n  %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		return exitBadUsage
	}
	log, waiting := logger(cfg.LogLevel, cfg.LogFormat, !plain(environ), stderr)
	defer waiting.close()
	switch line.command {
	case "serve":
		m := metrics.New(version())
		m.WatchLog(waiting.dropped.Load)
		return serve(ctx, hangups, cfg, environ, stdout, log, m, ready)
	case "check":
		return check(ctx, cfg, environ, stdout, log)
	case "login":
		return logIn(ctx, cfg, loginArgs(line.operands, environ), environ, stdout, stderr)
	}
	return exitOK
}

// serve wires the program in one straight line and undoes it in reverse. It is longer
// than other functions because every step needs those before it.
func serve(ctx context.Context, hangups func() <-chan struct{}, cfg configs.Config, environ []string, stdout io.Writer, log *slog.Logger, m *metrics.Metrics, ready func(addr string)) int {
	for _, w := range cfg.Warnings {
		log.Warn("configuration", "warning", w)
	}
	for _, problem := range tooSmall(os.DirFS("/"), os.Getuid(), cfg.PoolSize) {
		log.Warn("a limit is too small", "err", problem)
	}
	limit, most, err := descriptors(cfg.PoolSize, cfg.MaxWaiting)
	if err != nil {
		log.Error("descriptors (ulimit -n, POOL_SIZE)", "err", err)
		return exitBadUsage
	}
	if err := prepare(cfg.Workdir, log); err != nil {
		log.Error("PROXY_CODEX_WORKDIR", "err", err)
		return exitFailed
	}
	found, err := findCLI(ctx, cfg.Bin, cfg.Workdir, environ, log)
	if ctx.Err() != nil {
		return exitOK // a signal came before anything was served
	}
	if err != nil {
		log.Error("no usable Codex CLI", "err", err)
		return exitCode(err)
	}

	public, err := listen("PORT", net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port)), most, log)
	if err != nil {
		log.Error("public listener (PROXY_HOST, PORT)", "err", err)
		return exitFailed
	}
	defer public.Close()
	all := doors{"public": public}
	var admin *door
	adminAddr := "off"
	if cfg.AdminAddr != "" {
		if admin, err = listen("PROXY_ADMIN_ADDR", cfg.AdminAddr, filesAdmin, log); err != nil {
			log.Error("admin listener (PROXY_ADMIN_ADDR)", "err", err)
			return exitFailed
		}
		defer admin.Close()
		all["admin"] = admin
		adminAddr = admin.Addr().String()
	}

	tracer, err := traces.Open(ctx, version(), log)
	if err != nil {
		log.Error("traces", "err", err)
		return exitBadUsage
	}
	defer tracer.Close()
	setCLI := func(now cli) { m.SetCLI(now.version, api.Models{Catalog: now.models}.Labels()) }
	setCLI(found.known())
	found.changed = setCLI
	up, err := newProvider(newProviderConfig(cfg, environ), found, tracer.RelayHooks(m.RelayHooks()), log)
	if err != nil {
		log.Error("upstream", "err", err)
		return exitCode(err)
	}
	defer up.Close()
	spawn := spawner(newSpawnConfig(cfg), found, up, log)
	children, err := pool.New(poolConfig(cfg, spawn, tracer.PoolHooks(m.PoolHooks()), log))
	if err != nil {
		log.Error("pool", "err", err)
		return exitFailed
	}
	defer children.Close()

	keeping, stopKeeping := context.WithCancel(context.Background())
	kept := make(chan struct{})
	go func() { // ends with stopKeeping and a refresh of a login that is running
		defer close(kept)
		up.keep(keeping, children.Recycle, m.LoginRefreshed)
	}()
	defer func() {
		stopKeeping()
		<-kept
	}()

	keys, err := cfg.Keys()
	if err != nil {
		log.Error("configuration", "err", err)
		return exitBadUsage
	}
	var shared *limits.Redis
	if cfg.RedisURL != "" {
		if shared, err = limits.OpenRedis(cfg.RedisURL, log); err != nil {
			log.Error("PROXY_RATE_LIMIT_REDIS_URL", "err", err)
			return exitBadUsage
		}
		defer shared.Close()
		m.WatchRedis(shared.Stat)
	}
	server := api.New(apiConfig(cfg, keys, shared, found.known, up, tracer.Turned()), children, up.relay, log, tracer.Observe(m.ObserveRequest))
	m.Watch(metrics.Sources{
		Pool: children.Stat, ChildrenCPU: children.CPU, API: server.Stat, LoginExpiry: up.loginExpiry, Workdir: cfg.Workdir,
		MaxWaiting: cfg.MaxWaiting, ChildMemory: cfg.MaxChildBytes, MaxConnections: most,
		Connections: all.opened, NotAccepted: all.notAccepted,
	})
	m.SetKeys(server.Keys())
	m.WatchKeyUse(server.KeyStreams, children.Waiting)
	if cfg.APIKeysFile != "" {
		watching, stop := context.WithCancel(context.Background())
		ended := watchKeys(watching, hangups(), cfg, server, m, log)
		defer func() {
			stop()
			<-ended
		}()
	} else if supervised() {
		hangups() // a reload has nothing to read, and must not stop the daemon
	}

	// A request ends with its turn, with its connection, or with cut. A signal alone
	// does not end it.
	turns, cut := context.WithCancelCause(context.Background())
	defer cut(nil)
	failed := make(chan error, 2)
	publicServer := serveHTTP(turns, public, tracer.Handler(server), failed, log)
	defer publicServer.Close()
	if admin != nil {
		defer serveHTTP(turns, admin, server.Admin(api.Sources{Version: version(), Metrics: m.Handler(), Limits: m.Limits}), failed, log).Close()
	}
	log.Info("serving", "addr", public.Addr().String(), "admin", adminAddr, "upstream", up.choice, "credential", up.credential, "codex", found.known().version, "size", cfg.PoolSize, "descriptors", limit, "connections", most)
	greet(stdout, cfg, public.Addr())
	ready(public.Addr().String())
	boss := supervisor{addr: public.Addr().String(), stat: children.Stat, log: log}
	watching, unwatched := context.WithCancel(context.Background())
	defer unwatched()
	go boss.watch(watching) // ends with watching, but not while the pool is wedged, so nobody waits for it

	select {
	case err := <-failed:
		log.Error("serve", "err", err)
		return exitFailed
	case <-ctx.Done():
	}
	boss.tell(daemon.SdNotifyStopping)
	log.Info("stopping", "drain", cfg.Drain)
	stopKeeping() // a refresh of a login that is running goes on during the drain
	drain{prestop: cfg.Prestop, limit: cfg.Drain, api: server, children: children, cut: cut, public: publicServer, log: log}.run()
	<-kept
	log.Info("stopped")
	return exitOK
}

// listen opens a door at addr. Where another program listens, the error names the variable.
func listen(variable, addr string, most int, log *slog.Logger) (*door, error) {
	d, err := openDoor(addr, most, log)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("another program listens on %s: set %s to another port: %w", addr, variable, err)
	}
	return d, err
}

// idleTimeout must be longer than that of any balancer before us, such as Caddy's 2
// minutes. Where we close a connection first, a request may just be on its way.
const idleTimeout = 5 * time.Minute

// serveHTTP serves h on l until the server is shut down or closed. Requests end with
// ctx. An error of the listener is sent to failed.
func serveHTTP(ctx context.Context, l *door, h http.Handler, failed chan<- error, log *slog.Logger) *http.Server {
	s := newServer(ctx, h, log)
	s.ConnState = l.watch
	go func() { // ends with Shutdown or Close
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}()
	return s
}

// newServer is a server whose requests end with ctx.
func newServer(ctx context.Context, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		DisableGeneralOptionsHandler: true, // OPTIONS * is answered like any other request
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		MaxHeaderBytes:               32 << 10, // net/http reads up to 4 KB more
		ReadHeaderTimeout:            10 * time.Second,
		IdleTimeout:                  idleTimeout,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// drain stops a server that has running turns.
type drain struct {
	prestop  time.Duration // from not ready until new completions fail
	limit    time.Duration // from then on, for the turns that run
	api      *api.Server
	children *pool.Pool
	cut      context.CancelCauseFunc // ends every request
	public   *http.Server
	log      *slog.Logger
}

// run returns when no turn runs and no connection is open.
func (d drain) run() {
	// 1. Load balancers notice that we are not ready. Each connection is closed with its
	// next answer. A second signal ends this.
	d.api.Unready()
	time.Sleep(d.prestop)
	// From here on a connection that is idle closes, and so does that of a stream which
	// began before the signal, and could not say that it is the last on it.
	d.public.SetKeepAlivesEnabled(false)
	// 2. New completions, and those in the queue, fail. Turns that run may finish until
	// the limit; then they end with an error. A client that does not read blocks even
	// that, so its connection is closed 2 s later.
	last := time.AfterFunc(d.limit, func() { d.cut(pool.ErrDraining) })
	defer last.Stop()
	hung := time.AfterFunc(d.limit+2*time.Second, func() { d.public.Close() })
	defer hung.Stop()
	d.children.Close()
	// 3. The last answers are sent. Idle connections are closed.
	closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := d.public.Shutdown(closing); err != nil {
		d.log.Warn("shutdown", "err", err)
	}
}

// exitCode is exitFailed for a failure of the machine, which may pass, and exitBadUsage
// for a wrong configuration, which does not.
func exitCode(err error) int {
	if listen := (*net.OpError)(nil); errors.As(err, &listen) || errors.Is(err, codex.ErrUnresponsive) {
		return exitFailed
	}
	return exitBadUsage
}
