package api

import (
	"sync"
	"sync/atomic"
	"time"

	"codexpool/codex"
)

// turns are those that run now.
type turns struct {
	mu  sync.Mutex
	all map[*running]struct{} // guarded by mu
}

// running is one turn that runs.
type running struct {
	child int // pid
	began time.Time

	request, key, model string

	failed bool // the completion's goroutine only

	heard atomic.Int64 // nanoseconds from began until the child or the provider last sent anything
}

// begin notes that a turn of a request begins on a child. The caller calls end.
func (t *turns) begin(child int, res *response) *running {
	run := &running{child: child, request: res.Header().Get("X-Request-Id"), key: res.caller.Key, model: res.result.Model, began: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[*running]struct{}{}
	}
	t.all[run] = struct{}{}
	return run
}

func (t *turns) end(run *running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, run)
}

// note takes an event of the turn, and returns how long the turn has been silent.
func (run *running) note(e codex.Event) (silent time.Duration) {
	if tick, ok := e.(codex.Tick); ok {
		silent = tick.Silent
	}
	run.heard.Store(int64(time.Since(run.began) - silent))
	return silent
}

// silent is for how long the turn has been silent.
func (run *running) silent() time.Duration {
	return time.Since(run.began) - time.Duration(run.heard.Load())
}

// silence is the longest of all turns.
func (t *turns) silence() (longest time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for run := range t.all {
		longest = max(longest, run.silent())
	}
	return longest
}

// on returns the turn that runs on a child, nil where there is none.
func (t *turns) on(child int) *running {
	t.mu.Lock()
	defer t.mu.Unlock()
	for run := range t.all {
		if run.child == child {
			return run
		}
	}
	return nil
}
