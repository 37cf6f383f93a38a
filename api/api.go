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
	"runtime"
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
	AdminPublic   bool          // accept any Host on the admin routes, not only loopback
	ProtectModels bool          // require a key on the model routes
	CORS          bool          // answer cross-origin requests from Origins
	Origins       []string      // exact origins, or "*" for all
	Models        func() Models // the models of now; called for each request
	Sandbox       string        // for /healthz
	Upstream      Upstream      // for /pool

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
	Route      string        // a name of the route table, or "unmatched"
	Key        string        // name of the caller's key, "" where none was required or none is valid
	Status     int           // as sent; StatusClientGone where the client disconnected first, which is no error
	Code       string        // error code, "" where there was no error; also set when a stream failed after its 200
	Took       time.Duration // duration of the whole request
	FirstToken time.Duration // from the request to the first text, refusal or call; 0 where there was none
	Tokens     codex.Usage   // as the provider counted them; zero where it did not
	Estimated  codex.Usage   // of answers that we cut, which the provider does not count
}

// Stat is a snapshot of the server's own figures.
type Stat struct {
	Streams int // SSE streams that are open, those in the queue included
}

// Server is the public API. It is an http.Handler.
type Server struct {
	cfg     Config
	pool    *pool.Pool
	relay   *upstream.Relay // nil where children call the provider themselves
	log     *slog.Logger
	observe func(context.Context, Result)
	keys    *keyring
	chain   http.Handler
	began   time.Time
	models  modelCache

	bodies   bodies
	decoding *semaphore.Weighted // as many bodies as there are cores

	streams atomic.Int64
	unready atomic.Bool // /readyz answers 503
}

// New builds the routes. relay is nil where children call the provider themselves;
// then fields that only a relay can pass on are named as ignored. observe is called
// once for each request, with the request's context; it must not block.
func New(cfg Config, p *pool.Pool, relay *upstream.Relay, log *slog.Logger, observe func(context.Context, Result)) *Server {
	s := &Server{cfg: cfg, pool: p, relay: relay, log: log, observe: observe, keys: newKeyring(cfg.Keyless, cfg.Keys, cfg.Requests, cfg.Shared), began: time.Now()}
	s.bodies.most, s.decoding = cfg.MaxBodies, semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0)))

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
		{"GET", "/v1/models", route{name: "models", right: "models", key: cfg.ProtectModels, local: true}, s.listModels},
		{"GET", "/v1/models/*id", route{name: "model", right: "models", key: cfg.ProtectModels, local: true}, s.getModel},
		{"GET", "/v1/usage", route{name: "usage", key: true, local: true}, s.showUsage},
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
		}
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
func (s *Server) Stat() Stat { return Stat{Streams: int(s.streams.Load())} }

// Unready makes /readyz answer that the server is draining, so that load balancers
// choose another, while the server still serves.
func (s *Server) Unready() { s.unready.Store(true) }

// leaving reports whether clients should turn to another daemon.
func (s *Server) leaving() bool { return s.unready.Load() || s.pool.Err() != nil }

// route is what handle needs to know about a route.
type route struct {
	name       string
	right      string // its name in Key.Routes; "" = every key may use it
	key        bool   // requires a bearer key
	local      bool   // is subject to LoopbackOnly
	completion bool   // is turned away while the pool drains
	quiet      bool   // is logged at debug only
}

// handler is one route. An error that it returns has not been written yet.
type handler func(*response, *http.Request) error

// handle adapts a handler to net/http. It is the only place that looks at a
// handler's error, writes it, logs it, and reports the request.
func (s *Server) handle(rt route, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		res := newResponse(w, s.cfg.WriteTimeout)
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
		if res.caller, err = s.keys.authenticate(r); err != nil {
			return err
		}
		if err := res.caller.account.may(rt.right); err != nil {
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

// report logs the one line of a request and passes its figures to observe.
func (s *Server) report(rt route, res *response, r *http.Request, e *Error) {
	result := Result{Route: rt.name, Key: res.caller.Key, Status: res.status, Took: time.Since(res.began), FirstToken: res.firstToken, Tokens: res.tokens, Estimated: res.estimated}
	if e != nil && e.Status == StatusClientGone {
		result.Status = StatusClientGone // also where the client disconnected in the middle of a stream
	}
	level := slog.LevelInfo
	attrs := []slog.Attr{
		slog.String("req", res.Header().Get("X-Request-Id")),
		slog.String("route", rt.name),
		slog.String("method", r.Method),
		slog.Int("status", result.Status),
		slog.Duration("took", result.Took),
	}
	if res.firstToken > 0 {
		attrs = append(attrs, slog.Duration("first_token", res.firstToken))
	}
	if result.Key != "" {
		attrs = append(attrs, slog.String("key", result.Key))
	}
	if res.child != 0 {
		attrs = append(attrs, slog.Int("child", res.child))
	}
	if e != nil && e.Status != StatusClientGone {
		result.Code = e.countAs()
	}
	if e != nil {
		attrs = append(attrs, e.attrs()...)
		level = e.level()
	}
	if e != nil && res.stream {
		attrs = append(attrs, slog.Int64("sent_bytes", res.sent)) // how far it came before it was cut
	}
	if rt.quiet && e == nil {
		level = slog.LevelDebug
	}
	if res.admitted {
		res.caller.account.usage.add(res.tokens)
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
	s.observe(r.Context(), result)
}
