package api

import (
	"net/http"
	"sync"
	"time"

	"codexpool/codex"
)

// usageCount counts what a key uses, today and since the daemon's start. A day is one of UTC.
type usageCount struct {
	mu    sync.Mutex
	day   string // guarded by mu, like all that follows
	today amount
	all   amount
}

// amount is what was used.
type amount struct {
	Requests  int64 `json:"requests"`
	Input     int64 `json:"input_tokens"`
	Cached    int64 `json:"cached_tokens"` // a part of input
	Output    int64 `json:"output_tokens"`
	Reasoning int64 `json:"reasoning_tokens"` // a part of output
}

func (a *amount) add(tokens codex.Usage) {
	a.Requests++
	a.Input, a.Cached = a.Input+tokens.Input, a.Cached+tokens.Cached
	a.Output, a.Reasoning = a.Output+tokens.Output, a.Reasoning+tokens.Reasoning
}

// add counts a completion that has ended, on the day of its end.
func (u *usageCount) add(tokens codex.Usage) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.turn()
	u.today.add(tokens)
	u.all.add(tokens)
}

// turn begins another day, if it is another. The caller holds mu.
func (u *usageCount) turn() {
	if day := time.Now().UTC().Format(time.DateOnly); day != u.day {
		u.day, u.today = day, amount{}
	}
}

func (u *usageCount) read() (day string, today, all amount) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.turn()
	return u.day, u.today, u.all
}

type keyUsageBody struct {
	Object  string    `json:"object"`
	Key     *string   `json:"key"` // null where no key is required
	Day     string    `json:"day"` // of today, in UTC
	Today   amount    `json:"today"`
	Started time.Time `json:"started"`
	All     amount    `json:"since_start"`
}

// showUsage serves GET /v1/usage: what the caller's key has used of this process.
func (s *Server) showUsage(res *response, _ *http.Request) error {
	body := keyUsageBody{Object: "usage", Started: s.began.UTC().Truncate(time.Second)}
	if res.caller.Key != "" {
		body.Key = &res.caller.Key
	}
	body.Day, body.Today, body.All = res.caller.account.usage.read()
	res.Header().Set("Cache-Control", "no-store")
	return res.json(http.StatusOK, body)
}
