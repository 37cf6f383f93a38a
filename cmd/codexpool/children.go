package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"codexpool/codex"
	"codexpool/codex/lean"
	"codexpool/codex/login"
	"codexpool/configs"
	"codexpool/upstream"
)

// provider is where children find their model: a loopback port of ours with the
// relay, or with direct what the operator's own configuration says.
type provider struct {
	choice     string          // as in CODEX_UPSTREAM; a base URL without what may be secret in it
	credential string          // its kind, never its value
	relay      *upstream.Relay // nil for direct
	login      *login.Login    // nil where there is none to be kept
	gate       *upstream.Gate
	addr       string
	servers    []*http.Server
	log        *slog.Logger
}

// newProvider serves the relay on a port of its own.
func newProvider(cfg configs.Config, c *installation, hooks upstream.Hooks, log *slog.Logger) (_ *provider, err error) {
	p := &provider{choice: cfg.Upstream, credential: "none", log: log}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if cfg.Upstream == configs.Direct {
		if err = p.openLogin(cfg, c); err == nil {
			_, err = directConfig(cfg)
		}
		return p, err
	}
	target, err := p.target(cfg, c)
	if err != nil {
		return p, err
	}
	p.relay = upstream.NewRelay(target, transport(cfg), hooks)
	p.gate, p.addr, err = p.serve(p.relay)
	return p, err
}

// target is the provider behind the relay.
func (p *provider) target(cfg configs.Config, c *installation) (target upstream.Provider, err error) {
	base, key := cfg.Upstream, cfg.UpstreamKey
	switch cfg.Upstream {
	case configs.Echo:
		gate, addr, err := p.serve(upstream.Echo(cfg.EchoDelay))
		if err != nil {
			return target, err
		}
		path, _ := gate.Admit() // for as long as we live
		base, key, target.Kind = "http://"+addr+path+"/v1", "", upstream.EchoModel
	case configs.OpenAI:
		base, key, target.Kind = "https://api.openai.com/v1", cmp.Or(key, cfg.OpenAIKey), upstream.OpenAI
	case configs.ChatGPT:
		if err := p.openLogin(cfg, c); err != nil {
			return target, err
		}
		base, key, target.Kind = "https://chatgpt.com/backend-api/codex", "", upstream.ChatGPT
		target.Credential, target.Rejected = p.bearer, p.rejected
	}
	if target.Base, err = url.Parse(base); err != nil {
		return target, err
	}
	if cfg.OpenUpstream() {
		p.choice = target.Base.Redacted()
	}
	if key != "" {
		p.credential, target.Credential = "API key", upstream.Bearer(key)
	}
	return target, nil
}

// openLogin opens the ChatGPT login in CODEX_HOME. With direct there need not
// be one.
func (p *provider) openLogin(cfg configs.Config, c *installation) (err error) {
	p.login, err = login.Open(cfg.Home, func(home string) codex.Command {
		cmd := codex.Command{Path: c.known().path, Args: []string{"app-server"}, Home: home, StopGrace: cfg.StopGrace, Log: p.log}
		keeper := lean.Keeper()
		cmd.Files, cmd.Env = keeper.Files, append(keeper.Env, networkEnv()...)
		if cfg.RefreshURL != "" {
			cmd.Env = append(cmd.Env, "CODEX_REFRESH_TOKEN_URL_OVERRIDE="+cfg.RefreshURL)
		}
		return cmd
	}, p.log)
	switch {
	case err == nil:
		p.credential = "ChatGPT login"
	case cfg.Upstream == configs.Direct && errors.Is(err, login.ErrNone):
		p.login, p.credential, err = nil, "as CODEX_HOME says", nil
	default:
		err = fmt.Errorf("CODEX_HOME: %w", err)
	}
	return err
}

// bearer adds the ChatGPT login's credential.
func (p *provider) bearer(h http.Header) error {
	token, account, err := p.login.Bearer()
	if err != nil {
		return err
	}
	h.Set("Authorization", "Bearer "+token)
	h.Set("Chatgpt-Account-Id", account)
	return nil
}

// rejected reports to the login which of its tokens the provider rejected.
func (p *provider) rejected(h http.Header) {
	p.login.Rejected(strings.TrimPrefix(h.Get("Authorization"), "Bearer "))
}

// keep does what the provider needs in the background: it watches a credential
// that was refused, and refreshes a login. Children that hold a login's token
// themselves are recycled when there is another. It returns some time after ctx
// ends.
func (p *provider) keep(ctx context.Context, recycle func()) {
	var tasks sync.WaitGroup
	if p.relay != nil {
		tasks.Go(func() { p.relay.Watch(ctx, 30*time.Second) }) // ends with ctx
	}
	if p.login != nil {
		if p.relay == nil {
			p.login.Changed = recycle
		}
		tasks.Go(func() { p.login.Keep(ctx) }) // ends with ctx and a refresh under way
	}
	tasks.Wait()
}

// networkEnv is the part of our environment that says how to reach the outside,
// and where programs are.
func networkEnv() []string {
	var environ []string
	for _, name := range append(configs.Network(), "PATH") {
		if value, set := os.LookupEnv(name); set {
			environ = append(environ, name+"="+value)
		}
	}
	return environ
}

// serve serves h on a loopback port of its own, behind a gate.
func (p *provider) serve(h http.Handler) (*upstream.Gate, string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	gate := upstream.NewGate(h)
	server := &http.Server{Handler: gate, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}
	p.servers = append(p.servers, server)
	go server.Serve(listener) // ends with Close
	return gate, listener.Addr().String(), nil
}

// transport keeps connections to the provider warm: one for every child that
// may run a turn, and one for every answer that is still ending. It has no
// deadline for the first byte: the turn has one, and ends the request with it.
func transport(cfg configs.Config) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 2 * cfg.PoolSize,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10, // Codex scans an event anew with each piece of it that comes
		// One connection carries all requests: when the network swallows it, only
		// this tells, long before TCP does.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
}

// admit gives one child its base URL; revoke takes it back.
func (p *provider) admit() (baseURL string, revoke func()) {
	path, revoke := p.gate.Admit()
	return "http://" + p.addr + path + "/v1", revoke
}

func (p *provider) Close() {
	for _, s := range p.servers {
		s.Close()
	}
}

// spawner makes the function that starts one child, whose home is in homes.
func spawner(cfg configs.Config, found *installation, p *provider, homes string, log *slog.Logger) func(context.Context) (*codex.Client, error) {
	return func(ctx context.Context) (*codex.Client, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, cfg.StartTimeout, codex.ErrUnresponsive)
		defer cancel()
		c, err := found.current(ctx)
		if err != nil {
			return nil, err
		}
		cmd := codex.Command{
			Path:      c.path,
			Args:      []string{"app-server"},
			Home:      filepath.Join(homes, "child-"+rand.Text()[:8]),
			StopGrace: cfg.StopGrace,
			Log:       log,
		}
		var child lean.Child
		if cfg.Upstream == configs.Direct {
			if child, err = p.directChild(cfg, cmd.CodexHome(), c.catalog); err != nil {
				return nil, err
			}
		} else {
			var baseURL string
			baseURL, cmd.Exited = p.admit()
			child = lean.Relayed(cmd.CodexHome(), baseURL, c.catalog)
			child.Env = append(child.Env, "PATH="+os.Getenv("PATH")) // for the CLI's own helpers
		}
		cmd.Args, cmd.Files, cmd.Env = append(cmd.Args, child.Args...), child.Files, child.Env
		return codex.Start(ctx, cmd)
	}
}

// directChild configures a child that calls the provider itself: with the
// operator's config.toml and credentials, and with our environment, for that is
// where config.toml may look for keys.
func (p *provider) directChild(cfg configs.Config, home string, catalog []byte) (lean.Child, error) {
	config, err := directConfig(cfg)
	if err != nil {
		return lean.Child{}, err
	}
	child := lean.Direct(home, config, catalog)
	if p.login != nil {
		child.Files["auth.json"] = p.login.WithoutRefresh()
	} else if auth, err := os.ReadFile(filepath.Join(cfg.Home, "auth.json")); err == nil {
		child.Files["auth.json"] = auth // an API key
	}
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); !slices.Contains(configs.Secrets(), name) {
			child.Env = append(child.Env, entry)
		}
	}
	return child, nil
}

// directConfig is the operator's config.toml; there need not be one. One that
// runs programs is rejected: the model of any caller could have them run. So is one
// that cannot be read as TOML, because it may run programs too.
func directConfig(cfg configs.Config) ([]byte, error) {
	config, err := os.ReadFile(filepath.Join(cfg.Home, "config.toml"))
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
