package api

import (
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// maxBypass is the longest time that one call may open /verify for.
const maxBypass = 24 * time.Hour

// bypass is the emergency exit of an edge whose clients cannot authenticate: until it
// ends, /verify lets everyone pass. The API still asks for its own key.
type bypass struct{ nanos atomic.Int64 } // when it ends, in Unix time; 0 = there is none

// set opens the bypass until a moment, or with the zero time closes it.
func (b *bypass) set(until time.Time) {
	if until.IsZero() {
		b.nanos.Store(0)
		return
	}
	b.nanos.Store(until.UnixNano())
}

// until returns when the bypass ends, or the zero time where none is open.
func (b *bypass) until() time.Time {
	end := time.Unix(0, b.nanos.Load())
	if !time.Now().Before(end) {
		return time.Time{}
	}
	return end
}

// bypassBody is the answer of the bypass routes.
type bypassBody struct {
	Until *time.Time `json:"until"` // null = closed
}

func (s *Server) openBypass(res *response, r *http.Request) error {
	minutes, err := strconv.Atoi(r.URL.Query().Get("minutes"))
	if most := int(maxBypass / time.Minute); err != nil || minutes < 1 || minutes > most {
		return badRequest("minutes", "'minutes' must be a number from 1 to %d, such as /auth/bypass?minutes=30.", most)
	}
	until := time.Now().Add(time.Duration(minutes) * time.Minute).UTC().Truncate(time.Second)
	s.bypass.set(until)
	s.log.Warn("the ForwardAuth bypass is open: /verify lets everyone pass", slog.Time("until", until))
	return res.json(http.StatusOK, bypassBody{&until})
}

func (s *Server) closeBypass(res *response, _ *http.Request) error {
	s.bypass.set(time.Time{})
	s.log.Warn("the ForwardAuth bypass is closed")
	return res.json(http.StatusOK, bypassBody{})
}
