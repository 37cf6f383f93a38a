package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestUnmodifiedClientsWork runs clients/NAME.mjs: it plays every scenario of
// the provider with one client, and asserts what the client makes of it. What
// arrives upstream is asserted by the provider.
func TestUnmodifiedClientsWork(t *testing.T) {
	for _, name := range []string{"openai", "langchain", "ai-sdk", "agents"} {
		t.Run(name, func(t *testing.T) {
			p, d, open := stage(t)
			play(t, name, "PROVIDER_URL="+p.URL, "BASE_URL="+d.url+"/v1", "API_KEY="+key, "OPEN_URL="+open.url+"/v1")
		})
	}
}

// stage is where a client plays: the provider, a daemon before it with one
// child, which must outlive the play, and one without keys, which refuses the
// pages of other hosts.
func stage(t *testing.T) (p *provider, d, open *daemon) {
	t.Helper()
	p = newProvider(t)
	d = start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+p.URL+"/v1", "CODEX_UPSTREAM_API_KEY="+upstreamKey)
	open = start(t, "POOL_SIZE=1", "PROXY_API_KEY=")
	t.Cleanup(func() {
		p.complete()
		if got := d.metrics()[`codexpool_child_starts_total{outcome="ok"}`]; got != 1 {
			t.Errorf("%v children were started", got)
		}
	})
	return p, d, open
}

// play runs one client's file in Node.
func play(t *testing.T, name string, environ ...string) {
	t.Helper()
	if _, err := os.Stat("clients/node_modules"); err != nil {
		t.Fatal("the clients are missing: run make clients")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "--test-reporter=spec", filepath.Join("clients", name+".mjs"))
	cmd.Env = append(environ, "PATH="+os.Getenv("PATH"), "HOME="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
