package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"

	"codexpool/api"
	"codexpool/api/limits"
	"codexpool/codex"
	"codexpool/configs"
	"codexpool/pool"
)

// The functions here pick what each package needs from the configuration.

func newProviderConfig(cfg configs.Config, environ []string) providerConfig {
	p := providerConfig{
		upstream: cfg.Upstream, home: cfg.Home, refreshURL: cfg.RefreshURL, environ: environ,
		echoDelay: cfg.EchoDelay, stopGrace: cfg.StopGrace, children: cfg.PoolSize,
	}
	switch cfg.Upstream {
	case configs.Echo, configs.ChatGPT, configs.Direct: // they use no key
	case configs.OpenAI:
		p.key = cmp.Or(cfg.UpstreamKey, cfg.OpenAIKey)
	default:
		p.key = cfg.UpstreamKey
	}
	return p
}

func newSpawnConfig(cfg configs.Config) spawnConfig {
	return spawnConfig{workdir: cfg.Workdir, startTimeout: cfg.StartTimeout, stopGrace: cfg.StopGrace}
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

func apiConfig(cfg configs.Config, keys []configs.Key, shared *limits.Redis, found func() cli, p *provider, turned func(context.Context, api.Turn)) api.Config {
	prefix := "codex-5"
	if cfg.Dev() {
		prefix = "codev-5"
	}
	var refused []string
	if cfg.Upstream == configs.ChatGPT {
		refused = []string{"minimal", "ultra"}
	}
	return api.Config{
		Keyless: cfg.Keyless(), Keys: apiKeys(keys), Requests: requestRate(cfg), Shared: shared, LoopbackOnly: cfg.LoopbackOnly(), AdminPublic: cfg.AdminPublic, ProtectModels: cfg.ProtectModels,
		TrustedProxies: cfg.TrustedProxies, BypassUntil: cfg.BypassUntil, CORS: cfg.CORS, Origins: cfg.CORSOrigins,
		Models: func() api.Models {
			c := found()
			return api.Models{Prefix: prefix, Default: p.model(c, cfg.Model), Catalog: c.models, Open: cfg.OpenUpstream(), Refused: refused}
		},
		Upstream: api.Upstream{Choice: p.choice, Credential: p.credential}, Turned: turned,
		Sandbox: cfg.Sandbox, CacheKey: cfg.SendsCacheKey(), DefaultStream: cfg.DefaultStream, MaxStreams: cfg.MaxStreams, MaxBody: cfg.MaxBody, MaxBodies: cfg.MaxBodies, MaxChoices: cfg.MaxChoices, MaxPlaces: cfg.PoolSize + cfg.MaxWaiting,
		Keepalive: cfg.Keepalive, Commit: cfg.Commit,
		Timeout: cfg.Timeout, IdleTimeout: cfg.IdleTimeout, StreamIdleTimeout: cfg.StreamIdleTimeout,
		WriteTimeout: cfg.WriteTimeout,
	}
}

// requestRate is the limit of keys that have none of their own.
func requestRate(cfg configs.Config) limits.Rate {
	if !cfg.RateLimit || cfg.RateMax == 0 {
		return limits.Rate{}
	}
	return limits.Rate{Most: cfg.RateMax, Per: cfg.RateWindow}
}

// apiKeys are the keys in the API's words, which are the same.
func apiKeys(keys []configs.Key) (list []api.Key) {
	for _, k := range keys {
		list = append(list, api.Key(k))
	}
	return list
}

// greet prints a command that a developer can paste.
func greet(stdout io.Writer, cfg configs.Config, addr net.Addr) {
	if !cfg.Dev() || cfg.Upstream != configs.Echo {
		return
	}
	auth := ` -H "Authorization: Bearer $PROXY_API_KEY"`
	switch {
	case cfg.Keyless():
		auth = ""
	case len(cfg.APIKeys) == 0:
	case cfg.APIKeys[0] == configs.DevKey:
		auth = " -H 'Authorization: Bearer " + configs.DevKey + "'"
	}
	fmt.Fprintf(stdout, `The offline echo model answers; no network, no credential. Try: curl -N http://%s/v1/chat/completions%s -H 'Content-Type: application/json' -d '{"model":"codex-5","stream":true,"messages":[{"role":"user","content":"one two three"}]}'`+"\n", addr, auth)
}
