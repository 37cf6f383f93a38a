// Package api turns OpenAI requests into turns, and their events into OpenAI
// responses.
//
// A handler runs on the goroutine that net/http gives it, holds its lease while it
// ranges over the turn's events, and owns the ResponseWriter alone. Only several
// choices have goroutines of their own, one each, which the handler waits for.
// Handlers return errors; errors.go maps them.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"codexpool/api/limits"
	"codexpool/codex"
	"codexpool/pool"
	"codexpool/upstream"

	"github.com/julienschmidt/httprouter"
	"golang.org/x/sync/semaphore"
)

// Config configures the API. All fields count: there are no defaults here.
type Config struct {
	Keyless       bool          // no key is required
	Keys          []Key         // bearer keys, until SetKeys
	Shared        *limits.Redis // shares the limits of keys with other daemons; nil = they are this one's
	Requests      limits.Rate   // of completions, for keys that have no limit of their own; zero = no limit
	LoopbackOnly  bool          // reject what a web page of another host can have sent: for keys that are public, or none
	AdminPublic   bool          // answer other machines too on the admin routes for monitoring
	ProtectModels bool          // require a key on the model routes
	CORS          bool          // answer cross-origin requests from Origins
	Origins       []string      // exact origins, or "*" for all
	Models        func() Models // the models of now; called for each request
	Sandbox       string        // for /healthz
	Upstream      Upstream      // for /pool

	TrustedProxies []netip.Prefix // proxies that are believed what they say of their clients
	BypassUntil    time.Time      // until then /verify lets everyone pass; zero = it never does

	Turned func(context.Context, Turn) // told of each turn that is over, with its request's context; must not block; nil = nobody is

	CacheKey      bool  // give the provider a prompt_cache_key where the caller gave none
	DefaultStream bool  // for requests without the field stream
	MaxStreams    int   // most open streams; 0 = no limit
	MaxBody       int64 // most bytes of a request body
	MaxBodies     int64 // most bytes of all bodies together, until their requests are with the provider
	MaxChoices    int   // most answers that one request may ask for to each prompt
	MaxPlaces     int   // most answers that one request may ask for: the pool has no more places

	Keepalive         time.Duration // silence after which a stream gets a comment; 0 = none
	Commit            time.Duration // longest wait, from the turn's start, until a stream's 200 is sent
	Timeout           time.Duration // longest duration of a request
	IdleTimeout       time.Duration // longest silence of the model, for answers in one piece
	StreamIdleTimeout time.Duration // longest silence of the model, for streams
	WriteTimeout      time.Duration // longest duration of one write to the client
}

// Upstream is the provider, in words that hold no secret.
type Upstream struct {
	Choice     string `json:"choice"`     // as in CODEX_UPSTREAM
	Credential string `json:"credential"` // its kind
}

// Result describes one finished request, for observe, the function given to New.
type Result struct {
	Route      string        // a name of the route table, "options", or "unmatched"
	Key        string        // name of the caller's key, "" where none was required or none is valid
	Status     int           // as sent; StatusClientGone where the client disconnected first, which is no error
	Code       string        // error code, "" where there was no error; also set when a stream failed after its 200
	Fault      Fault         // of whom the error is, "" where there was none
	SlowReader bool          // the client was connected, but did not read
	Completion bool          // a completion was requested
	Stream     bool          // as a stream
	Model      string        // its id in the catalog, or "other"; "" where the request was rejected before
	Retried    bool          // it ran on a second child, because the first died
	Wait       time.Duration // in the queue; 0 also where there were several choices, as for Upstream
	Upstream   time.Duration // from the request to the provider until the first piece of its answer; 0 where none came
	Commit     Commit        // what made the stream's 200 be sent, "" where none was
	Keepalives int           // comments that were sent in a silence
	Took       time.Duration // duration of the whole request
	FirstToken time.Duration // from the request to the first text, refusal or call; 0 where there was none
	Tokens     codex.Usage   // as the provider counted them; zero where it did not
	Estimated  codex.Usage   // of answers that we cut, which the provider does not count

	Admitted    bool   // its key is valid, and was within its limits
	CrossOrigin string // what became of a request that a page of another origin sent; "" where none did
	AuthFailure string // why it has no valid key, of AuthFailures; "" where it has, or needs none
	Bypassed    bool   // /verify let it pass without a key that may
}

// Turn describes one turn that is over, for Config.Turned. A request that ran on a second
// child has had two for the same choice.
type Turn struct {
	Child  int // pid
	Turns  int // that the child has had, with this one
	Began  time.Time
	Failed bool
}

// Commit is what made the 200 of a stream be sent.
type Commit string

// The reasons to send a stream's 200.
const (
	CommitToken Commit = "token" // the model began
	CommitTimer Commit = "timer" // Config.Commit was over: a failure can be no status any more
)

// Stat is a snapshot of the server's own figures.
type Stat struct {
	State       State          // whether a completion may be sent here
	Running     map[string]int // requests that run, by route
	Streams     int            // SSE streams that are open, those in the queue included
	Queued      int            // of them, those that have had no child yet
	MaxStreams  int            // 0 = no limit
	Silence     time.Duration  // the longest of all running turns since the child or the provider last sent anything
	BypassUntil time.Time      // when the ForwardAuth bypass ends; zero = it is closed
	Provider    *ProviderStat  // nil where children call the provider themselves
}

// ProviderStat is what is known of the provider.
type ProviderStat struct {
	Running  int  // requests that are with it
	Rejected bool // it has rejected our credential, or there is none
}

// Server is the public API. It is an http.Handler.
type Server struct {
	cfg     Config
	pool    *pool.Pool
	relay   *upstream.Relay // nil where children call the provider themselves
	log     *slog.Logger
	observe func(context.Context, Result)
	keys    *keyring
	guesses *guesses
	bypass  bypass
	routes  []routePath // that a key can be limited to
	chain   http.Handler
	began   time.Time
	models  modelCache

	bodies   bodies
	decoding *semaphore.Weighted // as many bodies as there are cores

	running  map[string]*atomic.Int64 // requests, by route; the map never changes
	turns    turns
	refusals refusals
	history  history
	streams  atomic.Int64
	queued   atomic.Int64 // streams that have had no child yet
	unready  atomic.Bool  // /readyz answers 503
}

// New builds the routes. relay is nil where children call the provider themselves;
// then fields that only a relay can pass on are named as ignored. observe is called
// once for each request, with the request's context; it must not block.
func New(cfg Config, p *pool.Pool, relay *upstream.Relay, log *slog.Logger, observe func(context.Context, Result)) *Server {
	s := &Server{
		cfg: cfg, pool: p, relay: relay, log: log, observe: observe, began: time.Now(), running: map[string]*atomic.Int64{},
		keys: newKeyring(cfg.Keyless, cfg.Keys, cfg.Requests, cfg.Shared), guesses: newGuesses(),
	}
	s.bodies.most, s.decoding = cfg.MaxBodies, semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0)))
	for _, name := range slices.Concat(CompletionRoutes, OtherRoutes) {
		s.running[name] = new(atomic.Int64)
	}

	s.refusals.log = log
	s.bypass.set(cfg.BypassUntil)

	router := httprouter.New()
	router.RedirectTrailingSlash, router.RedirectFixedPath = false, false
	router.HandleOPTIONS = false // answered by the chain, on every path
	router.NotFound = s.handle(route{name: "unmatched"}, notFound)
	router.MethodNotAllowed = s.handle(route{name: "unmatched"}, methodNotAllowed)
	for _, r := range []struct {
		method, path string
		route
		handler
	}{
		{"POST", "/v1/chat/completions", route{name: "chat", right: "chat", key: true, local: true, completion: true}, s.chatCompletions},
		{"POST", "/v1/completions", route{name: "completions", right: "completions", key: true, local: true, completion: true}, s.completions},
		{"POST", "/v1/responses", route{name: "responses", right: "responses", key: true, local: true, completion: true}, s.responses},
		{"GET", "/v1/models", route{name: "models", right: "models", key: cfg.ProtectModels, local: true}, s.listModels},
		{"GET", "/v1/models/*id", route{name: "model", right: "models", key: cfg.ProtectModels, local: true}, s.getModel},
		{"GET", "/v1/usage", route{name: "usage", key: true, local: true}, s.showUsage},
		{"GET", "/verify", route{name: "verify", quiet: true}, s.verify},
		{"GET", "/", route{name: "index", quiet: true}, index(publicIndex)},
		{"GET", "/healthz", route{name: "healthz", quiet: true}, s.healthz},
		{"GET", "/livez", route{name: "livez", quiet: true}, s.livez},
		{"GET", "/readyz", route{name: "readyz", quiet: true}, s.readyz},
	} {
		head := r.handler
		if r.completion {
			head = headOnly
		}
		paths := []string{r.path}
		if short, ok := strings.CutPrefix(r.path, "/v1"); ok {
			paths = append(paths, short) // many clients have a base URL without it
		}
		for _, path := range paths {
			router.Handler(r.method, path, s.handle(r.route, r.handler))
			router.Handler("HEAD", path, s.handle(r.route, head))
			if r.right != "" {
				s.routes = append(s.routes, routePath{path, r.right})
			}
		}
	}
	for _, path := range []string{"/v1/responses", "/responses"} {
		router.Handler("GET", path, s.handle(route{name: "responses", right: "responses", key: true, local: true}, noWebSocket))
	}
	s.chain = requestID(s.farewell(plainPath(s.cors(router))))
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.chain.ServeHTTP(w, r) }

// Keys lists the names of the keys that callers may have.
func (s *Server) Keys() []string { return s.keys.names() }

// SetKeys replaces the keys. Requests that run go on. What a key has used stays, if its
// name does.
func (s *Server) SetKeys(keys []Key) { s.keys.set(keys) }

// KeyStreams is how many streams each key has open, those in the queue included, if any.
func (s *Server) KeyStreams() map[string]int { return s.keys.streams() }

// Stat reads the server's figures.
func (s *Server) Stat() Stat {
	stat := Stat{
		State: s.state(), Running: map[string]int{}, Silence: s.turns.silence(),
		Streams: int(s.streams.Load()), Queued: int(s.queued.Load()), MaxStreams: s.cfg.MaxStreams, BypassUntil: s.bypass.until(),
	}
	for name, n := range s.running {
		stat.Running[name] = int(n.Load())
	}
	if s.relay != nil {
		stat.Provider = &ProviderStat{Running: s.relay.Running(), Rejected: s.relay.Rejected()}
	}
	return stat
}

// Unready makes /readyz answer that the server is draining, so that load balancers
// choose another, while the server still serves.
func (s *Server) Unready() { s.unready.Store(true) }

// leaving reports whether clients should turn to another daemon.
func (s *Server) leaving() bool { return s.unready.Load() || s.pool.Err() != nil }

// The names of all routes, for whoever counts.
var (
	CompletionRoutes = []string{"chat", "completions", "responses"}
	OtherRoutes      = []string{"models", "model", "index", "healthz", "livez", "readyz", "unmatched", "admin", "recycle", "drain", "resume", "bypass", "usage", "verify", "options"}
)

// route is what handle needs to know about a route.
type route struct {
	name       string
	right      string // its name in Key.Routes; "" = every key may use it
	key        bool   // requires a bearer key
	local      bool   // is subject to LoopbackOnly
	completion bool   // is turned away while the pool drains
	quiet      bool   // is logged at debug only
}

// routePath is a path of a route, as the router has it, and the right that it needs.
type routePath struct{ path, right string }

func (r routePath) matches(path string) bool {
	prefix, wild := strings.CutSuffix(r.path, "*id")
	return path == r.path || wild && strings.HasPrefix(path, prefix)
}

// handler is one route. An error that it returns has not been written yet.
type handler func(*response, *http.Request) error

// handle adapts a handler to net/http. It is the only place that looks at a
// handler's error, writes it, logs it, and reports the request.
func (s *Server) handle(rt route, h handler) http.Handler {
	running := s.running[rt.name]
	if running == nil {
		panic("BUG: a route that is not in the lists of routes: " + rt.name)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Add(-1)
		res := newResponse(w, s.cfg.WriteTimeout)
		res.access.client = s.client(r).String()
		if r.ContentLength != 0 {
			// net/http reads a body that we do not read before it answers, however
			// slowly it comes. Without a body this deadline would end the request.
			_ = res.control.SetReadDeadline(time.Now().Add(unreadTimeout)) // a recorder in a test has none
		}
		err := guarded(func() error { return s.serve(rt, h, res, r) })
		var e *Error
		if err != nil {
			e = describe(r.Context(), err)
		}
		abort := res.finish(e)
		if err := guarded(func() error { s.report(rt, res, r, e); return nil }); err != nil {
			s.log.Error("report of a request", "err", err)
		}
		if abort {
			res.linger(r.Context(), e)
			panic(http.ErrAbortHandler) // a cut answer must not look finished
		}
	})
}

// guarded runs a part of a request; a panic is an error.
func guarded(part func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(p)
		}
	}()
	return part()
}

// serve runs the checks of a route and its handler.
func (s *Server) serve(rt route, h handler, res *response, r *http.Request) (err error) {
	if err := s.pool.Err(); rt.completion && err != nil {
		return err // before any other check
	}
	if rt.local && s.cfg.LoopbackOnly && !fromHere(r) {
		return errNotLocal
	}
	if rt.key {
		if res.caller, err = s.identify(r, rt.right); err != nil {
			return err
		}
		if rt.completion && r.Method == http.MethodPost {
			if err := s.admit(res, r); err != nil {
				return err
			}
		}
	}
	return h(res, r)
}

// identify returns the caller of a request. It rejects one without a valid key, and names
// the caller where the key has not the right.
func (s *Server) identify(r *http.Request, right string) (Caller, error) {
	caller, err := s.keys.authenticate(r)
	if err == nil {
		err = caller.account.may(right)
	}
	return caller, err
}
