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

// State says whether a completion may be sent here.
type State string

// The states of a server. All but the first are reasons of /readyz.
const (
	Ready              State = "ready"
	Starting           State = "starting"
	BackendUnavailable State = "backend_unavailable" // no child runs, and the last start failed
	Draining           State = "draining"
	UpstreamAuth       State = "upstream_auth" // the provider rejected our credential, or there is none
)

// States lists all of them, for whoever counts.
var States = []State{Ready, Starting, BackendUnavailable, Draining, UpstreamAuth}

// state is Ready where a child runs, though it may be busy, the daemon does not drain,
// and the provider has not rejected our credential.
func (s *Server) state() State {
	stat := s.pool.Stat()
	switch {
	case s.leaving():
		return Draining
	case s.relay != nil && s.relay.Rejected():
		return UpstreamAuth
	case stat.Alive > 0:
		return Ready
	case stat.Failure != nil:
		return BackendUnavailable
	}
	return Starting
}

func (s *Server) readyz(res *response, _ *http.Request) error {
	if reason := s.state(); reason != Ready {
		return res.json(http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": reason})
	}
	return res.json(http.StatusOK, map[string]any{"ready": true})
}

// headOnly answers HEAD on a route whose POST would run the model.
func headOnly(res *response, _ *http.Request) error {
	res.Header().Set("Content-Type", "application/json")
	res.WriteHeader(http.StatusOK)
	return nil
}
