package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"codexpool/codex"
	"codexpool/codex/lean"
	"codexpool/codex/login"
	"codexpool/configs"
	"codexpool/upstream"
)

// provider is where children find their model: a loopback port of ours with the
// relay, or with direct the provider that the operator's config.toml names.
type provider struct {
	providerConfig
	choice     string                   // as in CODEX_UPSTREAM; a base URL without what may be secret in it
	credential string                   // its kind, never its value
	relay      *upstream.Relay          // nil for direct
	login      *login.Login             // nil where there is none to keep
	plan       atomic.Pointer[[]string] // models that the login's plan has; nil until the backend has said it
	gate       *upstream.Gate
	addr       string
	servers    []*http.Server
	log        *slog.Logger
}

// providerConfig is what a provider needs of the configuration.
type providerConfig struct {
	upstream   string        // CODEX_UPSTREAM
	key        string        // of that upstream; "" for none
	home       string        // CODEX_HOME; "" for none
	refreshURL string        // where the keeper refreshes the login; "" for Codex's own address
	environ    []string      // our environment, for children
	echoDelay  time.Duration // before each word of the echo model
	stopGrace  time.Duration // for each step of stopping the keeper
	children   int           // at most
}

// newProvider starts the relay on a port of its own. Close the provider after use.
func newProvider(cfg providerConfig, found *installation, hooks upstream.Hooks, log *slog.Logger) (_ *provider, err error) {
	p := &provider{providerConfig: cfg, choice: cfg.upstream, credential: "none", log: log}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if cfg.upstream == configs.Direct {
		if err = p.openLogin(found); err == nil {
			_, err = p.directConfig()
		}
		return p, err
	}
	target, err := p.target(found)
	if err != nil {
		return p, err
	}
	p.relay = upstream.NewRelay(target, transport(2*cfg.children), hooks)
	p.gate, p.addr, err = p.serve(p.relay)
	return p, err
}

// target is the provider behind the relay.
func (p *provider) target(found *installation) (target upstream.Provider, err error) {
	base := p.upstream
	switch p.upstream {
	case configs.Echo:
		gate, addr, err := p.serve(upstream.Echo(p.echoDelay))
		if err != nil {
			return target, err
		}
		path, _ := gate.Admit() // never revoked: the echo model lives as long as the relay
		base, target.Kind = "http://"+addr+path+"/v1", upstream.EchoModel
	case configs.OpenAI:
		base, target.Kind = "https://api.openai.com/v1", upstream.OpenAI
	case configs.ChatGPT:
		if err := p.openLogin(found); err != nil {
			return target, err
		}
		base, target.Kind = "https://chatgpt.com/backend-api/codex", upstream.ChatGPT
		target.Credential, target.Rejected = p.login.Authorize, p.rejected
		target.Version = func() string { return found.known().version }
	}
	if target.Base, err = url.Parse(base); err != nil {
		return target, err
	}
	if base == p.upstream {
		p.choice = withoutSecrets(*target.Base)
	}
	if p.key != "" {
		p.credential, target.Credential = "API key", upstream.Bearer(p.key)
	}
	return target, nil
}

// withoutSecrets is a URL for logs: its query may hold a key.
func withoutSecrets(u url.URL) string {
	u.RawQuery = ""
	return u.Redacted()
}

// openLogin opens the ChatGPT login in CODEX_HOME. With direct there may be none.
func (p *provider) openLogin(found *installation) (err error) {
	p.login, err = login.Open(p.home, func(home string) codex.Command { return p.keeper(found.known().path, home) }, p.log)
	switch {
	case err == nil:
		p.credential = "ChatGPT login"
	case p.upstream == configs.Direct && errors.Is(err, login.ErrNone):
		p.login, p.credential, err = nil, "as CODEX_HOME says", nil
	default:
		err = fmt.Errorf("CODEX_HOME: %w", err)
	}
	return err
}

// keeper is the command of the child that refreshes the login. It calls the login's
// service itself, so it needs the network variables.
func (p *provider) keeper(path, home string) codex.Command {
	child := lean.Keeper()
	p.identify(child)
	cmd := codex.Command{
		Path:      path,
		Args:      []string{"app-server"},
		Home:      home,
		Files:     child.Files,
		Env:       append(child.Env, only(p.environ, append(configs.Network(), "PATH")...)...),
		StopGrace: p.stopGrace,
		Log:       p.log,
	}
	if p.refreshURL != "" {
		cmd.Env = append(cmd.Env, "CODEX_REFRESH_TOKEN_URL_OVERRIDE="+p.refreshURL)
	}
	return cmd
}

// rejected reports to the login that the provider rejected the token of a request.
func (p *provider) rejected(h http.Header) {
	p.login.Rejected(strings.TrimPrefix(h.Get("Authorization"), "Bearer "))
}

// loginExpiry is when the ChatGPT login expires; zero where there is none.
func (p *provider) loginExpiry() time.Time {
	if p.login == nil {
		return time.Time{}
	}
	return p.login.Expires()
}

// keep does the provider's work in the background. It probes a credential that was
// rejected, refreshes a login, and asks what its plan has. With direct, children hold the login's access
// token themselves, so recycle is called when there is another. refreshed is told how each
// refresh ended. keep returns when ctx ends and a refresh that is running has finished.
func (p *provider) keep(ctx context.Context, recycle func(), refreshed func(outcome string)) {
	var tasks sync.WaitGroup
	if p.relay != nil {
		tasks.Go(func() { p.relay.Watch(ctx, 30*time.Second) }) // ends with ctx
	}
	if p.login != nil {
		if p.login.Changed = recycle; p.relay != nil {
			p.login.Changed = func() { p.learnPlan(ctx) }
			tasks.Go(func() { p.learnPlan(ctx) }) // ends with ctx
		}
		p.login.Refreshed = refreshed
		tasks.Go(func() { p.login.Keep(ctx) }) // ends with ctx and a refresh that is running
	}
	tasks.Wait()
}

// headerTimeout is for strangers who connect to the relay. It is much longer than a child
// needs: when this process was stopped for longer, a request that a child has sent is cut off.
const headerTimeout = time.Minute

// serve serves h on a loopback port of its own, behind a gate.
func (p *provider) serve(h http.Handler) (*upstream.Gate, string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	gate := upstream.NewGate(h)
	server := &http.Server{Handler: gate, ReadHeaderTimeout: headerTimeout, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}
	p.servers = append(p.servers, server)
	go server.Serve(listener) // ends with Close
	return gate, listener.Addr().String(), nil
}

// transport connects to the provider. With HTTP/2 one connection carries all requests.
// With HTTP/1.1 each request needs one of its own, and idle is how many are kept: two
// for each child, because one may still carry the end of the child's last answer. It
// has no deadline for the first byte: the turn has one, and ends the request with it.
// Its proxy is net/http's, from the process's own environment.
func transport(idle int) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: idle,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      64 << 10, // Codex scans an event again with each piece of it that arrives
		// When the network silently drops the one connection of HTTP/2, these pings notice
		// long before TCP does.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
}

// admit returns the base URL for one child, which is valid until revoke.
func (p *provider) admit() (baseURL string, revoke func()) {
	path, revoke := p.gate.Admit()
	return "http://" + p.addr + path + "/v1", revoke
}

// Close stops the servers of the relay and of the echo model.
func (p *provider) Close() {
	for _, s := range p.servers {
		s.Close()
	}
}
