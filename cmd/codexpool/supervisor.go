package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"codexpool/pool"

	"github.com/coreos/go-systemd/v22/daemon"
)

// supervisor is what started the daemon and speaks sd_notify, as systemd does. Where there
// is none, what it is told goes nowhere.
type supervisor struct {
	addr string           // of the public listener, which for a wildcard is loopback
	stat func() pool.Stat // takes the pool's lock
	log  *slog.Logger
}

const (
	warmEvery = 50 * time.Millisecond // how often the pool is looked at until a child runs
	answerIn  = time.Second           // what is slower than that is wedged
)

// watch tells the supervisor that the daemon is ready, once a child is warm. From then on it
// says that the daemon lives, three times within the supervisor's patience, but only
// while it does: a watchdog that a wedged daemon feeds would be worth nothing. It returns
// when ctx ends.
func (s supervisor) watch(ctx context.Context) {
	if !supervised() {
		return
	}
	for s.stat().Alive == 0 {
		if !pause(ctx, warmEvery) {
			return
		}
	}
	s.tell(daemon.SdNotifyReady)
	patience, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("no watchdog", "err", err)
	}
	for patience > 0 && pause(ctx, patience/3) {
		if err := s.alive(ctx); err != nil {
			s.log.Error("the watchdog is not told that the daemon lives", "err", err)
			continue
		}
		s.tell(daemon.SdNotifyWatchdog)
	}
}

// supervised reports whether there is a supervisor that speaks sd_notify.
func supervised() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// alive returns why the daemon does not live: its listener does not accept and answer, or
// somebody holds the lock of its pool.
func (s supervisor) alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+"/livez", nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req) // without a proxy
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("/livez answers %s", res.Status)
	}
	began := time.Now()
	s.stat()
	if took := time.Since(began); took > answerIn {
		return fmt.Errorf("the lock of the pool was held for %v", took)
	}
	return nil
}

func (s supervisor) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("the supervisor was not told", "state", state, "err", err)
	}
}

// pause waits; it reports false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
