package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// access is what only the log says of a request.
type access struct {
	client   string // address
	effort   string
	choices  int
	finish   string // of a single choice
	status   int    // of the provider, 0 where it did not answer
	request  string // the provider's own id of its request, which its support asks for
	sent     int64  // bytes of the answer
	admitted bool   // to the pool
}

// report logs the one line of a request and passes its figures to observe.
func (s *Server) report(rt route, res *response, r *http.Request, e *Error) {
	result := res.result
	result.Route, result.Key, result.Status, result.Took = rt.name, res.caller.Key, res.status, time.Since(res.began)
	result.CrossOrigin, result.Bypassed = crossOrigin(r, res.Header()), res.bypassed
	result.Completion, result.Retried = rt.completion && r.Method == http.MethodPost, res.retried.Load()
	switch {
	case e == nil:
	case e.Status == StatusClientGone:
		result.SlowReader = e.Code == "client_too_slow"
		result.Status = StatusClientGone // also where the client disconnected in the middle of a stream
	default:
		result.Code, result.Fault, result.AuthFailure = e.countAs(), e.whose(), e.auth
	}
	level := slog.LevelInfo
	switch {
	case e != nil:
		level = e.level()
	case rt.quiet && result.CrossOrigin != CrossOriginRefused:
		level = slog.LevelDebug
	}
	if result.Admitted {
		res.caller.account.usage.add(result.Tokens)
	}
	if !refused(rt, res, result, e) || s.refusals.single(newRefusal(result, r.Method, level)) {
		s.log.LogAttrs(r.Context(), level, "request", res.line(r, result, e)...)
	}
	s.history.add(result)
	s.observe(r.Context(), result)
}

// line are the fields of a request's line, in their order. Those that do not apply are
// left out. README.md explains them.
func (res *response) line(r *http.Request, result Result, e *Error) []slog.Attr {
	var f fields
	f.text("req", res.Header().Get("X-Request-Id"))
	f.text("route", result.Route)
	f.text("method", r.Method)
	f.always(slog.Int("status", result.Status))
	if e != nil {
		f = append(f, e.attrs()...)
	}
	f.text("fault", string(result.Fault))
	f.text("key", result.Key)
	f.text("client", res.access.client)
	f.text("model", result.Model)
	if result.Model != "" {
		f.always(slog.Bool("stream", result.Stream))
	}
	f.text("effort", res.access.effort)
	f.number("choices", int64(res.access.choices))
	f.time("wait", result.Wait)
	f.time("first_token", result.FirstToken)
	f.always(slog.Duration("took", result.Took))
	f.number("tokens_in", result.Tokens.Input)
	f.number("tokens_cached", result.Tokens.Cached)
	f.number("tokens_out", result.Tokens.Output)
	f.number("tokens_reasoning", result.Tokens.Reasoning)
	f.text("finish", res.access.finish)
	f.text("commit", string(result.Commit))
	f.number("sent_bytes", res.access.sent)
	f.number("child", int64(res.child))
	if result.Retried {
		f.always(slog.Bool("retried", true))
	}
	if result.CrossOrigin == CrossOriginRefused {
		f.text("origin", fmt.Sprintf("%.200s", r.Header.Get("Origin")))
	}
	if e == nil { // else they are among those of the error
		f.number("upstream_status", int64(res.access.status))
		f.text("upstream_request", res.access.request)
	}
	return f
}

// fields are those of a line.
type fields []slog.Attr

func (f *fields) always(a slog.Attr) { *f = append(*f, a) }

func (f *fields) text(name, value string) {
	if value != "" {
		f.always(slog.String(name, value))
	}
}

func (f *fields) number(name string, value int64) {
	if value != 0 {
		f.always(slog.Int64(name, value))
	}
}

func (f *fields) time(name string, value time.Duration) {
	if value != 0 {
		f.always(slog.Duration(name, value))
	}
}

// refused reports whether a request was turned away before the pool had to do with it:
// such requests cost their senders nothing, and come in thousands. That of an origin that is
// refused is one where it would not be logged else, as a preflight is.
func refused(rt route, res *response, result Result, e *Error) bool {
	if e == nil {
		return rt.quiet && result.CrossOrigin == CrossOriginRefused
	}
	return !res.access.admitted && e.Status != StatusClientGone && e.whose() != FaultDaemon
}

// How many refusals of a second have a line of their own: of one code, and in all. Those of
// six codes at once fill a log by less than a megabyte a minute.
const (
	maxRefusals    = 20
	maxAllRefusals = 30
)

// refusals bounds the lines of requests that are turned away. Those that have no line of
// their own share one, at the end of their second.
type refusals struct {
	log *slog.Logger

	mu    sync.Mutex
	alone map[string]int    // lines of this second, by code; guarded by mu, as is all
	all   int               // of them
	more  map[refusal]int64 // requests of this second without a line; guarded by mu
}

// refusal is what those that share a line have in common. All of it is of closed lists:
// no caller can make many lines.
type refusal struct {
	route, method string
	code          string
	fault         Fault
	key           string
	level         slog.Level
}

func newRefusal(r Result, method string, level slog.Level) refusal {
	if r.Route == "unmatched" {
		method = "" // it may be any
	}
	return refusal{r.Route, method, r.Code, r.Fault, r.Key, level}
}

// single reports whether a refusal gets a line of its own, and counts it otherwise.
func (l *refusals) single(r refusal) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alone == nil {
		l.alone, l.all, l.more = map[string]int{}, 0, map[refusal]int64{}
		time.AfterFunc(time.Second, l.flush) // runs once, and ends
	}
	if l.all < maxAllRefusals && l.alone[r.code] < maxRefusals {
		l.all++
		l.alone[r.code]++
		return true
	}
	l.more[r]++
	return false
}

// flush ends the second.
func (l *refusals) flush() {
	l.mu.Lock()
	more := l.more
	l.alone, l.more = nil, nil
	l.mu.Unlock()
	for r, n := range more {
		var f fields
		f.text("route", r.route)
		f.text("method", r.method)
		f.text("code", r.code)
		f.text("fault", string(r.fault))
		f.text("key", r.key)
		f.number("count", n)
		l.log.LogAttrs(context.Background(), r.level, "requests refused", f...)
	}
}
