package api

import (
	"net/http"
	"net/url"
	"slices"

	"github.com/rs/cors"
)

// The values of Result.CrossOrigin.
const (
	CrossOriginAllowed = "allowed"
	CrossOriginRefused = "refused" // the browser does not show the answer to the page
)

// exposed are the headers that a page of another origin may read.
var exposed = []string{
	"X-Request-Id", "Retry-After", "X-Should-Retry", "X-Codexpool-Ignored",
	"X-Upstream-Request-Id", "X-Codex-Turn-State", "OpenAI-Model", "OpenAI-Processing-Ms",
	"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
	"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
}

// cors answers cross-origin requests, and every OPTIONS: a preflight carries no key.
func (s *Server) cors(next http.Handler) http.Handler {
	options := s.handle(route{name: "options", quiet: true}, func(res *response, _ *http.Request) error {
		res.WriteHeader(http.StatusNoContent)
		return nil
	})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			options.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
	if !s.cfg.CORS || len(s.cfg.Origins) == 0 {
		return h
	}
	return cors.New(cors.Options{
		AllowedOrigins: s.cfg.Origins,
		AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost},
		AllowedHeaders: []string{"*"}, // SDKs have many of their own
		ExposedHeaders: exposed,
		// A key is sent by hand, not by the browser: credentials are only for exact origins.
		AllowCredentials:    !slices.Contains(s.cfg.Origins, "*"),
		AllowPrivateNetwork: true, // a page of the internet may call a daemon on this machine, if its origin is allowed
		MaxAge:              600,
		OptionsPassthrough:  true, // the preflight is answered, counted and logged above
	}).Handler(h)
}

// crossOrigin is what became of a request that a page of another origin sent, "" where
// none did. answered is the header of the answer.
func crossOrigin(r *http.Request, answered http.Header) string {
	origin := r.Header.Get("Origin")
	u, err := url.Parse(origin)
	switch {
	case origin == "", err == nil && u.Host == r.Host:
		return ""
	case answered.Get("Access-Control-Allow-Origin") != "":
		return CrossOriginAllowed
	}
	return CrossOriginRefused
}
