// Package metrics counts what pool, api and upstream report, for Prometheus.
//
// It owns its registry: nothing is global, so two daemons can live in one test.
// What is now is read at each scrape; events are counted as they happen.
//
// A metric is declared in one call, which also says what labels it has with which
// values. From that come the series that exist from the start, and REFERENCE.md.
package metrics

import (
	"net/http"
	"syscall"
	"time"

	"codexpool/api"
	"codexpool/pool"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is every series of the daemon.
type Metrics struct {
	registry *prometheus.Registry
	families []family
	version  string
	info     *prometheus.GaugeVec
	refresh  *prometheus.CounterVec
	requests
	children
	provider
}

// The bounds of histograms, in seconds. Those of the service level objectives are among
// them: 2 s for the first token, 5 s for a short answer in one piece.
var (
	firstTokenBounds = []float64{.005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120}
	requestBounds    = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600}
	shortBounds      = []float64{.25, .5, 1, 2, 3, 4, 5, 7.5, 10, 20, 60}
	perTokenBounds   = []float64{.005, .01, .02, .03, .05, .075, .1, .15, .2, .3, .5, 1}
	overheadBounds   = []float64{.001, .002, .005, .01, .02, .05, .1, .25, .5, 1}
	waitBounds       = []float64{.0001, .001, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	leaseBounds      = []float64{.01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}
	startBounds      = []float64{.05, .1, .15, .2, .3, .5, 1, 2, 5, 10, 15, 30, 60}
	probeBounds      = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .2, .5, 1, 2, 5}
)

// New makes a registry with the series of the process and of ours. version is
// the daemon's.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), version: version}
	m.requests.declare(m)
	m.children.declare(m)
	m.provider.declare(m)
	m.refresh = m.counter("codexpool_login_refreshes_total", "Refreshes of the ChatGPT login, by how they ended: refused means that the login is no longer valid.", by("outcome", "ok", "failed", "refused"))
	m.info = m.gauge("codexpool_build_info", "Always 1; the versions are in the labels.", none().open("version", "of codexpool").open("codex_version", "of the Codex CLI"))
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// SetCLI sets the version of the Codex CLI that children are started from, and the
// models that it lists.
func (m *Metrics) SetCLI(version string, models []string) {
	m.info.Reset()
	m.info.WithLabelValues(m.version, version).Set(1)
	m.setModels(models)
}

// Sources are what is read at each scrape.
type Sources struct {
	Pool           func() pool.Stat
	API            func() api.Stat
	LoginExpiry    func() time.Time      // of the ChatGPT login; zero where there is none
	Workdir        string                // where the children's homes are
	MaxWaiting     int                   // callers in the queue at most
	ChildMemory    int64                 // bytes after which a child is replaced; 0 = no limit
	ChildrenCPU    func() time.Duration  // of all children so far
	Connections    func() map[string]int // that are open, by listener: public, admin
	MaxConnections int                   // of the public listener at most
	NotAccepted    func() int64          // connections that no listener could accept
}

// Watch reads these at each scrape.
func (m *Metrics) Watch(s Sources) {
	m.watchPool(s)
	m.watchAPI(s.API)
	m.read("codexpool_login_expiry_timestamp_seconds", "When the access token of the ChatGPT login expires; 0 without a login.", none(), func(set set) {
		if at := s.LoginExpiry(); !at.IsZero() {
			set(float64(at.Unix()))
			return
		}
		set(0)
	})
	m.read("codexpool_http_connections", "Connections that are open.", by("listener", "public", "admin"), func(set set) {
		for listener, n := range s.Connections() {
			set(float64(n), listener)
		}
	})
	m.read("codexpool_http_connections_limit", "Connections of the public listener at most; others wait in the kernel.", none(), func(set set) { set(float64(s.MaxConnections)) })
	m.readCounter("codexpool_http_accept_errors_total", "Connections that could not be accepted, because descriptors or memory ran out.", func() float64 { return float64(s.NotAccepted()) })
	m.read("codexpool_workdir_free_bytes", "What is free on the file system of PROXY_CODEX_WORKDIR.", none(), func(set set) {
		if fs, ok := fileSystem(s.Workdir); ok {
			set(float64(fs.Bavail) * float64(fs.Bsize))
		}
	})
	m.read("codexpool_workdir_size_bytes", "Size of the file system of PROXY_CODEX_WORKDIR.", none(), func(set set) {
		if fs, ok := fileSystem(s.Workdir); ok {
			set(float64(fs.Blocks) * float64(fs.Bsize))
		}
	})
}

func fileSystem(dir string) (fs syscall.Statfs_t, ok bool) {
	err := syscall.Statfs(dir, &fs)
	return fs, err == nil
}

// WatchLog reads at each scrape how many lines of the log were dropped.
func (m *Metrics) WatchLog(dropped func() int64) {
	m.readCounter("codexpool_log_dropped_total", "Lines of the log that were dropped, because stderr did not take them.", func() float64 { return float64(dropped()) })
}

// LoginRefreshed counts a refresh of the ChatGPT login. refused means that the login is
// no longer valid.
func (m *Metrics) LoginRefreshed(outcome string) { m.refresh.WithLabelValues(outcome).Inc() }

// Handler serves the metrics page.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// Registry is for tests that read it.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }
