package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// edge is a proxy in front of the daemon, with the file that operators copy.
type edge struct {
	name string
	auth bool // it asks /verify
	file string
	// run starts the proxy with that text, in front of the daemon at target, or of several
	// with spaces between them. It returns what a client of the proxy is.
	run func(t *testing.T, program, text, target string) *daemon
}

var edges = []edge{
	{"caddy", true, "../configs/caddy/Caddyfile", runCaddy},
	{"nginx", true, "../configs/nginx/codexpool.conf", runNginx},
	{"haproxy", false, "../configs/haproxy/haproxy.cfg", runHAProxy},
}

// start runs the proxy until the end of the test. changed edits its file, nil = as it is.
func (e edge) start(t *testing.T, target string, changed *strings.Replacer) *daemon {
	t.Helper()
	text, err := os.ReadFile(e.file)
	if err != nil {
		t.Fatal(err)
	}
	config := string(text)
	if changed != nil {
		if config = changed.Replace(config); config == string(text) {
			t.Fatalf("%s has nothing of what is to be changed", e.file)
		}
	}
	client := e.run(t, installed(t, e.name), config, target)
	eventually(t, 20*time.Second, e.name+" that serves", func() bool {
		res, err := client.client.Get(client.url + "/readyz")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
	return client
}

// before is start, before daemons that are ready. HAProxy finds that out by its checks, one
// a second for each daemon.
func (e edge) before(t *testing.T, target string, changed *strings.Replacer) *daemon {
	t.Helper()
	client := e.start(t, target, changed)
	var since time.Time // when the answers became good
	eventually(t, 20*time.Second, e.name+" that knows its daemons", func() bool {
		res, err := client.client.Get(client.url + "/readyz")
		if err != nil || statusOf(res) != http.StatusOK {
			since = time.Time{}
		} else if since.IsZero() {
			since = time.Now()
		}
		return !since.IsZero() && time.Since(since) > time.Second
	})
	return client
}

func runCaddy(t *testing.T, program, text, target string) *daemon {
	ports := freePorts(t, 2)
	site := "http://127.0.0.1:" + ports[0]
	cmd := exec.Command(program, "run", "--adapter", "caddyfile", "--config", written(t, "Caddyfile", text))
	cmd.Env = []string{"CODEXPOOL_SITE=" + site, "CODEXPOOL=" + target, "CADDY_ADMIN=127.0.0.1:" + ports[1]}
	beside(t, cmd)
	return &daemon{t: t, url: site, client: &http.Client{Transport: &http.Transport{}}}
}

func runHAProxy(t *testing.T, program, text, target string) *daemon {
	ports := freePorts(t, 3)
	cmd := exec.Command(program, "-q", "-f", written(t, "haproxy.cfg", text))
	cmd.Env = []string{"CODEXPOOL_BIND=127.0.0.1:" + ports[0], "CODEXPOOL_2=127.0.0.1:" + ports[1], "CODEXPOOL_3=127.0.0.1:" + ports[2]}
	addrs := strings.Fields(target)
	if len(addrs) == 1 { // until its first checks HAProxy tries servers that do not listen, and may run out of tries
		addrs = []string{target, target, target}
	}
	for i, addr := range addrs { // the last of a name holds
		cmd.Env = append(cmd.Env, fmt.Sprintf("CODEXPOOL_%d=%s", i+1, addr))
	}
	beside(t, cmd)
	return &daemon{t: t, url: "http://127.0.0.1:" + ports[0], client: &http.Client{Transport: &http.Transport{}}}
}

// runNginx gives nginx, which knows no variables of the environment, the file with the
// addresses and the certificate of the test in it.
func runNginx(t *testing.T, program, text, target string) *daemon {
	tls := httptest.NewTLSServer(nil) // for its certificate, and a client that trusts it
	t.Cleanup(tls.Close)
	certificate := tls.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return written(t, strings.ReplaceAll(kind, " ", "-"), string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	}
	addr := "127.0.0.1:" + freePorts(t, 1)[0]
	for from, to := range map[string]string{
		"listen 443 ssl": "listen " + addr + " ssl", "127.0.0.1:11435": target,
		"/etc/nginx/tls/fullchain.pem": encode("CERTIFICATE", certificate.Certificate[0]), "/etc/nginx/tls/privkey.pem": encode("PRIVATE KEY", key),
	} {
		if strings.Count(text, from) != 1 {
			t.Fatalf("the file has %q %d times", from, strings.Count(text, from))
		}
		text = strings.Replace(text, from, to, 1)
	}
	dir := t.TempDir()
	around := "daemon off; pid " + dir + "/pid; error_log stderr; user root; events {} http { access_log off;"
	for _, use := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		around += " " + use + "_temp_path " + dir + "/" + use + ";"
	}
	cmd := exec.Command(program, "-p", dir, "-c", written(t, "nginx.conf", around+" include "+written(t, "codexpool.conf", text)+"; }"))
	beside(t, cmd)
	return &daemon{t: t, url: "https://" + addr, client: tls.Client()}
}

func written(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// behind are the settings of a daemon behind an edge, on a port that stays its own.
func behind(port string, more ...string) []string {
	return append([]string{
		"PORT=" + port, "POOL_SIZE=1", "PROXY_TRUSTED_PROXIES=127.0.0.1", "CODEX_ECHO_DELAY_MS=100",
		"PROXY_CORS_ALLOWED_ORIGINS=https://app.example", // and models need no key of the API, in dev
	}, more...)
}

func (d *daemon) stop() {
	d.t.Helper()
	d.cmd.Process.Signal(syscall.SIGTERM)
	<-d.ended
}

const (
	chatPath     = "/v1/chat/completions"
	unauthorized = "401 authentication_error invalid_api_key -"
	edgeFails    = "502 server_error edge_unavailable -"
	edgeTimesOut = "504 server_error edge_unavailable -"
)

func TestEdgeAsksForTheKey(t *testing.T) {
	t.Parallel()
	for _, e := range edges {
		if !e.auth {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			port := freePorts(t, 1)[0]
			d := start(t, behind(port)...)
			client := e.before(t, "127.0.0.1:"+port, nil)

			for _, path := range []string{chatPath, "/chat/completions"} {
				res := client.request("POST", path, "Bearer "+key, "application/json", chatBody("one two", false))
				if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || !strings.Contains(string(body), "one two") {
					t.Errorf("%s with a key: %d %s", path, res.StatusCode, body)
				}
				res.Body.Close()
				for _, bearer := range []string{"", "Bearer nope"} {
					res := client.request("POST", path, bearer, "application/json", chatBody("one two", false))
					if res.Header.Get("WWW-Authenticate") != `Bearer realm="api"` {
						t.Errorf("%s: WWW-Authenticate is %q", path, res.Header.Get("WWW-Authenticate"))
					}
					if got := failure(t, res); got != unauthorized {
						t.Errorf("%s with %q: %s", path, bearer, got)
					}
				}
			}
			if got := statusOf(client.request("GET", "/readyz", "", "", "")); got != 200 {
				t.Errorf("health: %d", got)
			}

			models := func() int { return statusOf(client.request("GET", "/v1/models", "", "", "")) }
			if got := models(); got != 401 {
				t.Errorf("the edge lets everyone pass: %d", got)
			}
			d.bypass("POST", "?minutes=5")
			if got := models(); got != 200 {
				t.Errorf("with the bypass: %d", got)
			}
			if got := failure(t, client.request("POST", chatPath, "", "application/json", chatBody("hi", false))); got != unauthorized {
				t.Errorf("the API with the bypass: %s", got)
			}
			if got := d.metrics()[`codexpool_forwardauth_requests_total{result="bypassed"}`]; got != 2 {
				t.Errorf("%v uses are counted", got)
			}
			d.bypass("DELETE", "")
			if got := models(); got != 401 {
				t.Errorf("after the bypass: %d", got)
			}
			d.bypass("POST", "?minutes=5") // and a restart ends it
			d.stop()
			if got := failure(t, client.request("POST", chatPath, "Bearer "+key, "application/json", chatBody("hi", false))); got != edgeFails {
				t.Errorf("without the daemon: %s", got)
			}

			start(t, behind(port, "PROXY_API_KEY=codexpool-dev")...) // it serves this machine alone
			if got := models(); got != 401 {
				t.Errorf("after the restart: %d", got)
			}
			req, err := http.NewRequest("GET", client.url+"/v1/models", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer codexpool-dev")
			req.Header.Set("Origin", "https://app.example")
			client.forbidden(req)
		})
	}
}

// forbidden expects that a key is no right to do this.
func (d *daemon) forbidden(req *http.Request) {
	d.t.Helper()
	res, err := d.client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	if res.Header.Get("Access-Control-Allow-Origin") != "https://app.example" {
		d.t.Errorf("a page cannot read it: %v", res.Header)
	}
	if got := failure(d.t, res); got != "403 permission_error permission_denied -" {
		d.t.Errorf("got %s", got)
	}
}

func statusOf(res *http.Response) int {
	res.Body.Close()
	return res.StatusCode
}

func (d *daemon) bypass(method, query string) {
	d.t.Helper()
	req, err := http.NewRequest(method, d.admin+"/auth/bypass"+query, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	if got := statusOf(res); got != 200 {
		d.t.Fatalf("%s: %d", method, got)
	}
}

func TestEdgeStreamsTokenByTokenAndPassesPreflights(t *testing.T) {
	t.Parallel()
	for _, e := range edges {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			port := freePorts(t, 1)[0]
			start(t, behind(port)...)
			client := e.before(t, "127.0.0.1:"+port, nil)
			chunks, err := client.stream("ten words of which each one takes a tenth second")
			if err != nil {
				t.Fatal(err)
			}
			if text, err := wholeText(chunks); err != nil || text != "ten words of which each one takes a tenth second" {
				t.Errorf("%q, %v", text, err)
			}
			gaps := 0
			for i := 1; i < len(chunks); i++ {
				if chunks[i].after-chunks[i-1].after > 50*time.Millisecond {
					gaps++
				}
			}
			if gaps < 3 { // a buffer would have made one piece of them, and a busy machine makes fewer
				t.Errorf("%d pauses between the words: %+v", gaps, chunks)
			}

			req, err := http.NewRequest("OPTIONS", client.url+chatPath, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Origin", "https://app.example")
			req.Header.Set("Access-Control-Request-Method", "POST")
			req.Header.Set("Access-Control-Request-Headers", "authorization,content-type")
			res, err := client.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if allowed := res.Header.Values("Access-Control-Allow-Origin"); statusOf(res) != 204 || len(allowed) != 1 || allowed[0] != "https://app.example" {
				t.Errorf("a preflight: %d %v", res.StatusCode, res.Header)
			}
		})
	}
}

// TestEdgeErrorsAreToldApartFromOurs shortens the longest time-out of each file, which
// is half an hour.
func TestEdgeErrorsAreToldApartFromOurs(t *testing.T) {
	t.Parallel()
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for _, e := range edges {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			up := codextest.NewUpstream(t)
			port := freePorts(t, 1)[0]
			d := start(t, behind(port, "CODEX_UPSTREAM="+up.URL+"/v1", "PROXY_IDLE_TIMEOUT_MS=1500")...)
			ask := func(client *daemon, reply http.HandlerFunc) string {
				t.Helper()
				up.Script(reply)
				return failure(t, client.request("POST", chatPath, "Bearer "+key, "application/json", chatBody("hi", false)))
			}
			whole := e.before(t, "127.0.0.1:"+port, nil)
			if got, want := ask(whole, codextest.Status(500, "")), "502 server_error upstream_error -"; got != want {
				t.Errorf("our 502: %s, want %s", got, want)
			}
			if got, want := ask(whole, silent), "504 timeout_error idle_timeout -"; got != want {
				t.Errorf("our 504: %s, want %s", got, want)
			}
			hasty := e.before(t, "127.0.0.1:"+port, strings.NewReplacer("1860s", "1s"))
			if got, want := ask(hasty, silent), edgeTimesOut; got != want {
				t.Errorf("the edge's 504: %s, want %s", got, want)
			}
			d.stop()
			if got := failure(t, whole.request("POST", chatPath, "Bearer "+key, "application/json", chatBody("hi", false))); got != edgeFails && got != "503 server_error edge_unavailable -" {
				t.Errorf("the edge's 502: %s", got)
			}
		})
	}
}
