package e2e

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"codexpool/codex/codextest"
	"codexpool/configs/grafana"
)

// drill is a daemon with traffic of every kind and faults, and a Prometheus that watches.
type drill struct {
	*daemon
	prometheus *prometheus
	ended      chan struct{} // closed when the traffic is over
	over       chan struct{} // closed to end it
}

// newDrill starts the traffic, which goes on until stop.
func newDrill(t *testing.T) *drill {
	t.Helper()
	var asked atomic.Int64
	up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"X-Ratelimit-Limit-Requests": "500", "X-Ratelimit-Remaining-Requests": "400", "X-Ratelimit-Limit-Tokens": "150000", "X-Ratelimit-Remaining-Tokens": "90000",
			"X-Codex-Primary-Used-Percent": "40", "X-Codex-Primary-Window-Minutes": "300", "X-Codex-Primary-Reset-At": strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10),
		} {
			w.Header().Set(name, value)
		}
		if asked.Add(1)%20 == 0 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		s := codextest.StartStream(w)
		s.Begin()
		for range 5 {
			time.Sleep(40 * time.Millisecond) // a model's pace
			s.Delta("word ")
		}
		s.End()
	})
	d := start(t, "POOL_SIZE=3", "POOL_MAX_WAITING=8", "POOL_PROBE_MS=200", "PROXY_SSE_MAX_CONCURRENCY=50", "CODEX_UPSTREAM="+up.URL+"/v1", "CODEX_UPSTREAM_API_KEY="+upstreamKey)
	r := &drill{d, startPrometheus(t, d), make(chan struct{}), make(chan struct{})}
	go r.traffic()
	t.Cleanup(r.stop)
	return r
}

func (r *drill) stop() {
	select {
	case <-r.over:
	default:
		close(r.over)
	}
	<-r.ended
}

// traffic is a second's requests again and again.
func (r *drill) traffic() {
	defer close(r.ended)
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for i := 0; ; i++ {
		for range 4 + 4*(i/20%2) { // waves
			go r.stream("hi")
		}
		for _, body := range []string{chatBody("hi", false), `{`} {
			go r.send("POST", "/v1/chat/completions", key, body)
		}
		go r.send("POST", "/v1/completions", key, `{"prompt":"hi"}`)
		go r.send("POST", "/v1/chat/completions", "wrong", chatBody("hi", true))
		go r.send("GET", "/verify", key, "")
		if children := r.children(); i%5 == 4 && len(children) > 0 {
			syscall.Kill(children[0], syscall.SIGKILL)
		}
		select {
		case <-ticks.C:
		case <-r.over:
			return
		}
	}
}

// send sends a request of a web page. Its answer does not matter.
func (r *drill) send(method, path, key, body string) {
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		return
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Origin", "https://evil.example")
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
	}
}

// TestDashboardsHaveNoEmptyPanel asks each query of each panel of a real Prometheus, while
// there is traffic: each finds something, and nothing that is no number.
func TestDashboardsHaveNoEmptyPanel(t *testing.T) {
	installed(t, "prometheus")
	r := newDrill(t)
	problems := map[string]string{}
	look := func() bool {
		clear(problems)
		for _, d := range grafana.All {
			for _, row := range d.Rows {
				for _, p := range row.Panels {
					for _, q := range p.Queries {
						if problem := r.problem(q); problem != "" {
							problems[fmt.Sprintf("%s, %s: %s", d.Title, p.Title, q.PromQL())] = problem
						}
					}
				}
			}
		}
		return len(problems) == 0
	}
	for deadline := time.Now().Add(90 * time.Second); !look() && time.Now().Before(deadline); {
		time.Sleep(time.Second) // until the next scrape
	}
	for query, problem := range problems {
		t.Errorf("%s: %s", query, problem)
	}
}

// problem says what is wrong with what a query finds now.
func (r *drill) problem(q grafana.Query) string {
	now := time.Now()
	list, err := r.prometheus.ask(q.PromQL(), now, now)
	switch {
	case err != nil:
		return err.Error()
	case len(list) == 0:
		return "nothing is found"
	}
	for _, f := range list {
		if v := f.last(); math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Sprintf("%v is %v", f.labels, v)
		}
	}
	return ""
}
