package e2e

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"codexpool/codex/codextest"
)

// runCheck runs codexpool check.
func runCheck(t *testing.T, environ ...string) (output string, exitCode int) {
	t.Helper()
	output, exitCode = subcommand(t, "check", append([]string{
		"CODEX_BIN=" + codextest.Binary(t), markVar + "=" + runMark,
		"PROXY_ENV=dev", "PROXY_CODEX_WORKDIR=" + codextest.Workdir(t), "CODEX_UPSTREAM_API_KEY=k-upstream",
	}, environ...)...)
	return output + "\n", exitCode
}

func TestCheckAsksTheProviderAndSaysWhatItProved(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status int // of the list of models; 0 = nobody listens
		want   string
		code   int
	}{
		{200, "proved:     a child starts and answers; the provider accepts the credential\n", 0},
		{403, "the provider accepts the credential, which may not list models\n", 0},
		{404, "that says nothing about the credential\n", 0},
		{401, "failed:     the provider rejects the credential\n", 1},
		{500, "failed:     the provider is there, and fails\n", 1},
		{0, "failed:     the provider cannot be reached: dial tcp", 1},
	} {
		asked := make(chan string, 2)
		provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Authorization")
			w.WriteHeader(tt.status)
		}))
		if tt.status == 0 {
			provider.Close()
		}
		out, code := runCheck(t, "CODEX_UPSTREAM="+provider.URL+"/v1")
		if code != tt.code || !strings.Contains(out, tt.want) || strings.HasSuffix(out, "\nok\n") != (code == 0) {
			t.Errorf("status %d: exit code %d\n%s", tt.status, code, out)
		}
		if close(asked); tt.status != 0 && <-asked != "GET /v1/models Bearer k-upstream" {
			t.Errorf("status %d: it asked otherwise", tt.status)
		}
		if code == 0 && !strings.Contains(out, "not proved: a completion, which would cost tokens\n") {
			t.Errorf("status %d: it does not say what it did not try\n%s", tt.status, out)
		}
		provider.Close()
	}
}

func TestCheckSaysWhichProxyIsOnTheWay(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ proxy, none, want string }{
		{"", "", "network:    no proxy\n"},
		{"http://u:secret-of-proxy@", "", "network:    through a proxy; in force: HTTP_PROXY\n"},
		{"http://u:secret-of-proxy@", "llm.example", "network:    no proxy; in force: HTTP_PROXY, NO_PROXY\n"},
	} {
		through := false
		proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { through = true }))
		environ := []string{"CODEX_UPSTREAM=http://llm.example/v1", "NO_PROXY=" + tt.none}
		if tt.proxy != "" {
			environ = append(environ, "HTTP_PROXY="+tt.proxy+strings.TrimPrefix(proxy.URL, "http://"))
		}
		if tt.proxy == "" || tt.none != "" { // nothing may leave this machine
			environ[0] = "CODEX_UPSTREAM=" + proxy.URL + "/v1"
			environ[1] = strings.Replace(environ[1], "llm.example", "127.0.0.1", 1)
		}
		out, code := runCheck(t, environ...)
		if !strings.Contains(out, tt.want) || code != 0 || !through || strings.Contains(out, "secret-of-proxy") {
			t.Errorf("%v: exit code %d, through the proxy %v\n%s", environ, code, through, out)
		}
		proxy.Close()
	}
}

func TestCheckSaysWhereNoProviderWasAsked(t *testing.T) {
	t.Parallel()
	for upstream, why := range map[string]string{
		"echo":   "anything about a provider: the echo model is a part of codexpool",
		"direct": "a completion: children call the provider themselves",
	} {
		out, code := runCheck(t, "CODEX_UPSTREAM="+upstream, "CODEX_HOME="+codextest.Workdir(t))
		if code != 0 || !strings.Contains(out, "\nproved:     a child starts and answers\nnot proved: "+why+"\n") || strings.Contains(out, "network:") {
			t.Errorf("%s: exit code %d\n%s", upstream, code, out)
		}
	}
}
