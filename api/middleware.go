package api

import (
	"crypto/rand"
	"net/http"
	"regexp"
	"strings"
)

var clientID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// requestID gives every response an X-Request-Id: the client's own, or ours.
func requestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if !clientID.MatchString(id) {
			id = "req_" + rand.Text()
		}
		w.Header().Set("X-Request-Id", id)
		next.ServeHTTP(w, r)
	})
}

// farewell has a server that is leaving close each connection with its next answer. A
// balancer that only passes connections on sends all requests of one to the same daemon.
func (s *Server) farewell(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(lastAnswer{w, s.leaving}, r)
	})
}

// lastAnswer looks when the header is sent: the request may have come long before.
type lastAnswer struct {
	http.ResponseWriter
	leaving func() bool
}

func (a lastAnswer) WriteHeader(status int) {
	if a.leaving() {
		a.Header().Set("Connection", "close")
	}
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (a lastAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

var slashes = regexp.MustCompile(`/{2,}`)

// plain is the one spelling of a path that the routes have.
func plain(path string) string {
	path = slashes.ReplaceAllString(path, "/")
	if path == "/" {
		return path
	}
	return strings.TrimSuffix(path, "/")
}

// plainPath makes a path with a trailing or a doubled slash the same route: a redirect
// would lose the body of a POST.
func plainPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path := plain(r.URL.Path); path != r.URL.Path {
			u := *r.URL
			u.Path, u.RawPath = path, ""
			r2 := *r
			r2.URL = &u
			r = &r2
		}
		next.ServeHTTP(w, r)
	})
}
