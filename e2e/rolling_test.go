package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"text/template"
	"time"
)

// prestop is what README tells operators to set behind a load balancer.
const prestop = "PROXY_PRESTOP_MS=5000"

// balancer is a program that shares the requests to its address out between two
// daemons, of which it asks /readyz every second.
type balancer struct {
	name    string
	program string
	args    []string // before the path of its configuration
	config  string   // a template
}

const haproxyConfig = `
defaults
  mode {{.Mode}}
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend clients
  bind {{.Addr}}
  default_backend daemons
backend daemons
  balance roundrobin
  option httpchk GET /readyz
  default-server check inter 1s fall 2 rise 1
{{range $i, $d := .Daemons}}  server d{{$i}} {{$d}}
{{end}}`

const caddyConfig = `{
  admin off
  auto_https off
}
http://{{.Addr}} {
  reverse_proxy{{range .Daemons}} {{.}}{{end}} {
    lb_policy round_robin
    health_uri /readyz
    health_interval 1s
    flush_interval -1
  }
}
`

var balancers = []balancer{
	{"HAProxy, tcp", "haproxy", []string{"-q", "-f"}, strings.ReplaceAll(haproxyConfig, "{{.Mode}}", "tcp")},
	{"HAProxy, http", "haproxy", []string{"-q", "-f"}, strings.ReplaceAll(haproxyConfig, "{{.Mode}}", "http")},
	{"Caddy", "caddy", []string{"run", "--adapter", "caddyfile", "--config"}, caddyConfig},
}

// TestRollingRestartLosesNoRequest restarts two daemons behind a balancer, one after the
// other, while clients stream. ROLLING=500 is that many requests with each balancer;
// without it there are 100 with the one that only passes connections on, as a Service of
// Kubernetes does.
func TestRollingRestartLosesNoRequest(t *testing.T) {
	t.Parallel()
	chosen, requests := balancers[:1], 100
	if all := os.Getenv("ROLLING"); all != "" {
		var err error
		if requests, err = strconv.Atoi(all); err != nil {
			t.Fatal("ROLLING: ", err)
		}
		chosen = balancers
	}
	if readme, err := os.ReadFile("../README.md"); err != nil || !bytes.Contains(readme, []byte(prestop)) {
		t.Errorf("README does not name %s: %v", prestop, err)
	}
	for _, b := range chosen {
		t.Run(b.name, func(t *testing.T) { rolls(t, b, requests) })
	}
}

func rolls(t *testing.T, b balancer, least int) {
	b.program = installed(t, b.program)
	ports := freePorts(t, 3)
	settings := func(port string) []string {
		return []string{"PORT=" + port, "POOL_SIZE=4", "CODEX_ECHO_DELAY_MS=30", prestop}
	}
	daemons := []*daemon{start(t, settings(ports[0])...), start(t, settings(ports[1])...)}
	addr := "127.0.0.1:" + ports[2]
	b.start(t, addr, daemons)
	eventually(t, 10*time.Second, "balancer that serves", func() bool {
		res, err := http.Get("http://" + addr + "/readyz")
		if err == nil {
			res.Body.Close()
		}
		return err == nil && res.StatusCode == http.StatusOK
	})

	var sent atomic.Int64
	over := make(chan struct{})
	var clients sync.WaitGroup
	for range 3 {
		clients.Go(func() { keepStreaming(t, addr, &sent, over) })
	}
	defer func() { // before the daemons are stopped
		close(over)
		clients.Wait()
	}()
	for i, port := range ports[:2] {
		eventually(t, time.Minute, "many requests before the restart", func() bool { return sent.Load() >= int64(least*(i+1)/3) })
		daemons[i].cmd.Process.Signal(syscall.SIGTERM)
		<-daemons[i].ended
		daemons[i] = launch(t, program, settings(port)...)
		eventually(t, time.Minute, "balancer that knows that the daemon is back", func() bool {
			return daemons[i].metrics()[`codexpool_http_requests_total{code="200",route="readyz"}`] >= 2
		})
	}
	eventually(t, 2*time.Minute, "many requests", func() bool { return sent.Load() >= int64(least) })
}

// keepStreaming is a client that keeps its connection and sends one request after another.
func keepStreaming(t *testing.T, addr string, sent *atomic.Int64, over <-chan struct{}) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	d := &daemon{t: t, url: "http://" + addr, client: client}
	for {
		select {
		case <-over:
			return
		default:
		}
		began := time.Now()
		chunks, err := d.stream("a stream of some nine words, to take a while")
		if err == nil {
			_, err = wholeText(chunks)
		}
		if err != nil {
			t.Errorf("request %d, after %v: %v", sent.Load(), time.Since(began), err)
			return
		}
		sent.Add(1)
	}
}

// start runs the balancer until the end of the test.
func (b balancer) start(t *testing.T, addr string, daemons []*daemon) {
	t.Helper()
	var hosts []string
	for _, d := range daemons {
		where, err := url.Parse(d.url)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, where.Host)
	}
	var text bytes.Buffer
	if err := template.Must(template.New(b.name).Parse(b.config)).Execute(&text, map[string]any{"Addr": addr, "Daemons": hosts}); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	beside(t, exec.Command(b.program, append(slices.Clone(b.args), config)...))
}

// beside runs a program until the end of the test, with what cmd.Env has and a home of
// its own. The log of a test that failed has what it printed.
func beside(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Env = append(cmd.Env, "HOME="+t.TempDir(), markVar+"="+runMark)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a browser has processes of its own
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		defer time.AfterFunc(5*time.Second, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }).Stop() // Caddy waits for its clients
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", cmd.Path, &out)
		}
	})
}

// freePorts are ports that nobody listens on. Each daemon keeps its own over a restart.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	}
	return ports
}

// A stream that began before the signal could not say that its connection ends with it.
func TestConnectionOfAnOldStreamClosesWithItDuringTheDrain(t *testing.T) {
	t.Parallel()
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=100")
	long, err := d.post(chatBody(strings.Repeat("word ", 60), true))
	if err != nil {
		t.Fatal(err)
	}
	defer long.Body.Close()
	where, err := url.Parse(d.url)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", where.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := d.newRequest(chatBody(strings.Repeat("word ", 10), true))
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1)
	if _, err := conn.Read(first); err != nil {
		t.Fatal(err)
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	conn.SetReadDeadline(time.Now().Add(4 * time.Second)) // the long stream goes on for longer
	rest, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("the connection does not end with its stream: %v", err)
	}
	if !bytes.Contains(rest, []byte("[DONE]")) {
		t.Errorf("not a whole stream: %s", rest)
	}
}
