package api

import (
	"cmp"
	"log/slog"
	"net/http"
	"net/url"
)

// otherRoute is the right to use what is no route of ours. A key that is limited to
// routes never has it.
const otherRoute = "other"

// verify tells an edge (ForwardAuth of Traefik, forward_auth of Caddy, auth_request of
// nginx) whether the request that it asks about has a key, and one that may use the
// route. It never charges the key: the request itself comes after it.
func (s *Server) verify(res *response, r *http.Request) error {
	res.Header().Set("Cache-Control", "no-store")
	asked, right := s.asked(r)
	if asked.Method == http.MethodOptions {
		return res.json(http.StatusOK, map[string]any{"ok": true}) // a preflight carries no key
	}
	if s.cfg.LoopbackOnly && !fromHere(asked) {
		return errNotLocal
	}
	caller, err := s.identify(asked, right)
	from := s.client(r)
	err = s.guesses.judge(from, caller, err)
	if until := s.bypass.until(); err != nil && !until.IsZero() {
		s.log.LogAttrs(r.Context(), slog.LevelWarn, "passed by the ForwardAuth bypass",
			slog.String("req", res.Header().Get("X-Request-Id")), slog.String("client", from.String()), slog.Any("err", err), slog.Time("until", until))
		res.bypassed, caller, err = true, Caller{}, nil
	}
	if err != nil {
		return err
	}
	if caller.Key != "" {
		res.Header().Set("X-Auth-Key-Name", caller.Key)
	}
	return res.json(http.StatusOK, map[string]any{"ok": true})
}

// asked is the request that an edge asks about, and the right that its route needs.
// Only a trusted proxy is believed; what others ask about is their own request.
func (s *Server) asked(r *http.Request) (asked *http.Request, right string) {
	uri := r.Header.Get("X-Forwarded-Uri")
	if !s.trusts(peer(r)) {
		return r, ""
	}
	copied := *r
	copied.Method = cmp.Or(r.Header.Get("X-Forwarded-Method"), r.Method)
	copied.Host = cmp.Or(r.Header.Get("X-Forwarded-Host"), r.Host)
	if uri == "" {
		return &copied, ""
	}
	if u, err := url.ParseRequestURI(uri); err == nil {
		return &copied, s.rightFor(u.Path)
	}
	return &copied, otherRoute
}

// rightFor is the right that a path needs, in each of its spellings.
func (s *Server) rightFor(path string) string {
	path = plain(path)
	for _, r := range s.routes {
		if r.matches(path) {
			return r.right
		}
	}
	return otherRoute
}
