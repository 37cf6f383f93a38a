package api

import "net/http"

// healthz answers while the process serves.
func (s *Server) healthz(res *response, _ *http.Request) error {
	return res.json(http.StatusOK, map[string]any{"ok": true, "sandbox_mode": s.cfg.Sandbox})
}

// livez does not depend on a child: restarting the daemon cures no child.
func (s *Server) livez(res *response, _ *http.Request) error {
	return res.json(http.StatusOK, map[string]any{"ok": true})
}

// readyz reports whether a completion may be sent here: a child runs, though it may be
// busy, the daemon does not drain, and the provider has not rejected our credential.
func (s *Server) readyz(res *response, _ *http.Request) error {
	stat := s.pool.Stat()
	reason := ""
	switch {
	case s.leaving():
		reason = "draining"
	case s.relay != nil && s.relay.Rejected():
		reason = "upstream_auth"
	case stat.Alive > 0:
		return res.json(http.StatusOK, map[string]any{"ready": true})
	case stat.Failure != nil:
		reason = "backend_unavailable"
	default:
		reason = "starting"
	}
	return res.json(http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": reason})
}

// headOnly answers HEAD on a route whose POST would run the model.
func headOnly(res *response, _ *http.Request) error {
	res.Header().Set("Content-Type", "application/json")
	res.WriteHeader(http.StatusOK)
	return nil
}
