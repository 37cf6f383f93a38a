package api

import (
	"errors"
	"net/http"
	"net/http/pprof"
	"slices"
	"time"

	"codexpool/codex"
	"codexpool/pool"
)

// monitored are the admin routes that another machine may read where AdminPublic is
// set: they change nothing, and show no prompt.
var monitored = []string{"/metrics", "/healthz", "/livez", "/readyz"}

// Admin is the handler of the admin listener, which has no key. Everything but the
// monitored routes answers only who is on this machine: docker exec, kubectl exec and
// SSH are.
func (s *Server) Admin(from Sources) http.Handler {
	mux := http.NewServeMux()
	handle := func(method, path string, h http.Handler) {
		mux.Handle(method+" "+path, h)
		mux.Handle(path, s.handle(route{name: "admin", quiet: true}, allowOnly(method))) // all other methods
	}
	for path, h := range map[string]handler{"/{$}": s.showStatus(from), "/runbooks/{$}": s.showRunbook, "/runbooks/{page}": s.showRunbook, "/healthz": s.healthz, "/livez": s.livez, "/readyz": s.readyz, "/pool": s.showPool} {
		handle("GET", path, s.handle(route{name: "admin", quiet: true}, h))
	}
	for name, h := range map[string]handler{"recycle": s.recycle, "drain": s.drain, "resume": s.resume} {
		handle("POST", "/pool/"+name, s.handle(route{name: name}, h))
	}
	bypass := map[string]handler{"POST /auth/bypass": s.openBypass, "DELETE /auth/bypass": s.closeBypass, "/auth/bypass": allowOnly("POST, DELETE")}
	for pattern, h := range bypass {
		mux.Handle(pattern, s.handle(route{name: "bypass"}, h))
	}
	handle("GET", "/metrics", from.Metrics)
	handle("GET", "/debug/pprof/", http.HandlerFunc(pprof.Index))
	for name, h := range map[string]http.HandlerFunc{"cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace} {
		mux.Handle("GET /debug/pprof/"+name, h)
	}
	mux.Handle("/", s.handle(route{name: "admin", quiet: true}, notFound))

	// A web page can make a browser post here, from wherever it is.
	foreign := http.NewCrossOriginProtection()
	forbidden := s.handle(route{name: "admin"}, func(*response, *http.Request) error { return errNotLocalAdmin })
	return requestID(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local := loopback(r.RemoteAddr) && fromHere(r)
		open := s.cfg.AdminPublic && slices.Contains(monitored, r.URL.Path)
		if !(local || open) || foreign.Check(r) != nil {
			forbidden.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

// allowOnly rejects a request of a wrong method, and names what is right.
func allowOnly(method string) handler {
	if method == http.MethodGet {
		method = "GET, HEAD"
	}
	return func(res *response, _ *http.Request) error {
		res.Header().Set("Allow", method)
		return errMethod
	}
}

func (s *Server) showPool(res *response, _ *http.Request) error {
	return res.json(http.StatusOK, s.poolBody())
}

// recycle answers at once: a running turn may last minutes, and its child is
// replaced after it. "worn" counts the children that are still to be replaced.
func (s *Server) recycle(res *response, _ *http.Request) error {
	s.pool.Recycle()
	return res.json(http.StatusAccepted, s.poolBody())
}

func (s *Server) drain(res *response, _ *http.Request) error {
	s.pool.Drain()
	return res.json(http.StatusOK, s.poolBody())
}

func (s *Server) resume(res *response, _ *http.Request) error {
	s.pool.Resume()
	return res.json(http.StatusOK, s.poolBody())
}

// Pool is the answer of the pool routes.
type Pool struct {
	Size        int          `json:"size"`
	Starting    int          `json:"starting"`
	Idle        int          `json:"idle"`
	Leased      int          `json:"leased"`
	Waiting     int          `json:"waiting"`
	Worn        int          `json:"worn"` // children that are to be replaced
	MemoryBytes int64        `json:"memory_bytes"`
	Draining    bool         `json:"draining"`
	DrainSince  *time.Time   `json:"draining_since,omitempty"`
	Failure     *failureBody `json:"failure"` // of the last start, or of a child that died young since; null after a start that succeeded
	Upstream    Upstream     `json:"upstream"`
	Children    []childBody  `json:"children"`
	Deaths      []deathBody  `json:"deaths"` // newest first
}

type failureBody struct {
	Error  string   `json:"error"`
	Stderr []string `json:"stderr,omitempty"`
}

type childBody struct {
	PID         int        `json:"pid"`
	State       string     `json:"state"`
	Version     string     `json:"version"`
	Born        time.Time  `json:"born"`
	AgeSeconds  float64    `json:"age_seconds"`
	Turns       int        `json:"turns"`
	MemoryBytes int64      `json:"memory_bytes"`
	Worn        string     `json:"worn,omitempty"` // why it is to be replaced
	Turn        *turnBody  `json:"turn,omitempty"` // that it runs
	Probe       *probeBody `json:"probe"`          // the last one
}

// turnBody is the turn that a child runs. Its request is in the log under the same id.
type turnBody struct {
	Since         time.Time `json:"since"`
	Request       string    `json:"request"`        // its X-Request-Id
	Key           string    `json:"key,omitempty"`  // the name of its key
	Model         string    `json:"model"`          // its id in the catalog, or "other"
	SilentSeconds float64   `json:"silent_seconds"` // since the child or the provider last sent anything
}

type probeBody struct {
	At            time.Time `json:"at"`
	TookSeconds   float64   `json:"took_seconds"`
	Error         string    `json:"error,omitempty"`
	ResidentBytes int64     `json:"resident_bytes"` // as the child reports it, including what it shares with others
	Threads       int64     `json:"threads"`
	Turns         int64     `json:"turns"`
}

type deathBody struct {
	PID        int       `json:"pid"`
	Why        string    `json:"why"`
	At         time.Time `json:"at"`
	AgeSeconds float64   `json:"age_seconds"`
	Turns      int       `json:"turns"`
	Error      string    `json:"error,omitempty"`
}

func (s *Server) poolBody() Pool {
	stat := s.pool.Stat()
	b := Pool{
		Size: stat.Size, Starting: stat.Starting, Idle: stat.Idle, Leased: stat.Leased, Waiting: stat.Waiting,
		Worn: stat.Worn, MemoryBytes: stat.Memory, Draining: !stat.Closed.IsZero(), Failure: startFailure(stat.Failure), Upstream: s.cfg.Upstream,
		Children: []childBody{}, Deaths: []deathBody{},
	}
	if b.Draining {
		b.DrainSince = &stat.Closed
	}
	for _, c := range s.pool.Children() {
		b.Children = append(b.Children, childBody{
			PID: c.Pid, State: string(c.State), Version: c.Version, Born: c.Born, AgeSeconds: time.Since(c.Born).Seconds(),
			Turns: c.Turns, MemoryBytes: c.Memory, Worn: string(c.Worn), Turn: s.turns.on(c.Pid).body(), Probe: lastProbe(c.Probe),
		})
	}
	for _, d := range s.pool.Deaths() {
		b.Deaths = append(b.Deaths, deathBody{
			PID: d.Pid, Why: string(d.Why), At: d.At, AgeSeconds: d.Age.Seconds(), Turns: d.Turns, Error: sentence(d.Err),
		})
	}
	return b
}

// startFailure shows what a child that could not be started said, and its last lines
// on stderr. No prompt has reached such a child.
func startFailure(err error) *failureBody {
	if err == nil {
		return nil
	}
	b := &failureBody{Error: err.Error()}
	if said := codex.Said(err); said != "" {
		b.Error += ": " + said
	}
	if exit := (*codex.ExitError)(nil); errors.As(err, &exit) {
		b.Stderr = exit.Stderr
	}
	return b
}

func (run *running) body() *turnBody {
	if run == nil {
		return nil
	}
	return &turnBody{Since: run.began, Request: run.request, Key: run.key, Model: run.model, SilentSeconds: run.silent().Seconds()}
}

func lastProbe(p *pool.Probe) *probeBody {
	if p == nil {
		return nil
	}
	return &probeBody{
		At: p.At, TookSeconds: p.Took.Seconds(), Error: sentence(p.Err),
		ResidentBytes: p.Health.ResidentBytes, Threads: p.Health.LiveThreads, Turns: p.Health.ActiveTurns,
	}
}

func sentence(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
