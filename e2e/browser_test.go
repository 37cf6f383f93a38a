package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"testing"
	"time"
)

// webPage streams a completion in a browser, and reports each piece of it with its time,
// the headers that it may read, or that it may not read anything.
const webPage = `<!doctype html><script>
(async () => {
  const report = (text) => fetch("/report", { method: "POST", body: text });
  try {
    const res = await fetch("%s/v1/chat/completions", {
      method: "POST",
      headers: { "Authorization": "Bearer %s", "Content-Type": "application/json", "X-Stainless-Lang": "js" },
      body: JSON.stringify({ model: "codex-5", stream: true, seed: 1, messages: [{ role: "user", content: "one two three four five" }] }),
    });
    const header = (name) => " " + name + ":" + (res.headers.get(name) !== null);
    const reader = res.body.getReader(), decoder = new TextDecoder();
    let text = "", pieces = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      text += decoder.decode(value);
      pieces++;
    }
    const words = [...text.matchAll(/"content":"([^"]*)"/g)].map((m) => m[1]).join("");
    await report(res.status + " " + words + header("x-request-id") + header("x-ratelimit-remaining-requests") + header("x-codexpool-ignored") + " pieces:" + (pieces > 3));
  } catch (e) {
    await report("refused");
  }
})();
</script>`

func TestBrowserStreamsFromAListedOriginOnly(t *testing.T) {
	t.Parallel()
	browser := installed(t, "chromium-headless-shell")
	reports := make(chan string, 2)
	var daemonURL string
	site := func() *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/report":
				body, _ := io.ReadAll(r.Body)
				reports <- string(body)
			case "/":
				w.Header().Set("Content-Type", "text/html")
				fmt.Fprintf(w, webPage, daemonURL, key)
			}
		}))
		t.Cleanup(s.Close)
		return s
	}
	listed, other := site(), site()
	d := start(t, "POOL_SIZE=1", "CODEX_ECHO_DELAY_MS=100", "PROXY_RATE_LIMIT_MAX=100", "PROXY_CORS_ALLOWED_ORIGINS="+listed.URL)
	daemonURL = d.url
	for _, tt := range []struct{ name, url, want string }{
		{"listed", listed.URL, "200 one two three four five x-request-id:true x-ratelimit-remaining-requests:true x-codexpool-ignored:true pieces:true"},
		{"not listed", other.URL, "refused"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, browser, "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(), "--remote-debugging-port=0", tt.url)
		beside(t, cmd)
		select {
		case got := <-reports:
			if got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
		case <-ctx.Done():
			t.Errorf("%s: the page reports nothing", tt.name)
		}
	}
	m := d.metrics()
	if m[`codexpool_cors_requests_total{kind="preflight",result="allowed"}`] != 1 || m[`codexpool_cors_requests_total{kind="preflight",result="refused"}`] != 1 {
		t.Errorf("preflights are counted otherwise")
	}
}
