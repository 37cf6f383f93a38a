package api_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
)

func TestBypassOpensVerifyOnlyAndEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, edged(), 1)
		var log bytes.Buffer
		h.Server = api.New(edged(), h.pool, nil, slog.New(slog.NewJSONHandler(&log, nil)), func(_ context.Context, r api.Result) { h.results = append(h.results, r) })
		verify := func(bearer, want string) {
			t.Helper()
			log.Reset()
			a := h.do(t, asks(bearer, "X-Forwarded-Uri", "/v1/chat/completions"))
			if got := fmt.Sprint(a.Code, " ", a.Header().Get("X-Auth-Key-Name"), " ", h.last().Bypassed); got != want {
				t.Errorf("the key %q: got %s, want %s", bearer, got, want)
			}
			if used := strings.Contains(log.String(), `"passed by the ForwardAuth bypass"`); used != h.last().Bypassed || used && !strings.Contains(log.String(), `"client":"203.0.113.7"`) {
				t.Errorf("the key %q: logged %s", bearer, &log)
			}
		}
		closed := func() {
			t.Helper()
			verify("", "401  false")
			verify("nope", "401  false")
			verify(key, "200 1 false")
			if until := h.Stat().BypassUntil; !until.IsZero() {
				t.Errorf("shown as open until %v", until)
			}
		}
		closed()

		ends := time.Now().Add(30 * time.Minute)
		if w := h.admin(t, "POST", "/auth/bypass?minutes=30"); w.Code != 200 || shown(t, w)["until"] != ends.UTC().Format(time.RFC3339) || !strings.Contains(log.String(), `"level":"WARN"`) {
			t.Errorf("%d %s, logged %s", w.Code, w.Body, &log)
		}
		verify("", "200  true")
		verify("nope", "200  true")
		verify(key, "200 1 false")
		if !h.Stat().BypassUntil.Equal(ends) {
			t.Errorf("open until %v, want %v", h.Stat().BypassUntil, ends)
		}
		if a := h.do(t, by("nope", chat(hello))); a.Code != 401 {
			t.Errorf("the API without its key: %d", a.Code)
		}
		time.Sleep(30 * time.Minute)
		closed()

		h.admin(t, "POST", "/auth/bypass?minutes=1440")
		verify("", "200  true")
		log.Reset()
		if w := h.admin(t, "DELETE", "/auth/bypass"); w.Code != 200 || shown(t, w)["until"] != nil || !strings.Contains(log.String(), `"level":"WARN"`) {
			t.Errorf("%d %s, logged %s", w.Code, w.Body, &log)
		}
		closed()
	})
}

func TestBypassIsForADayAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, edged(), 1)
		for _, query := range []string{"", "?minutes=", "?minutes=0", "?minutes=-5", "?minutes=1441", "?minutes=1.5", "?minutes=99999999999999999999", "?hours=1"} {
			w := h.admin(t, "POST", "/auth/bypass"+query)
			if w.Code != 400 || !strings.Contains(w.Body.String(), "must be a number from 1 to 1440") || !h.Stat().BypassUntil.IsZero() {
				t.Errorf("%q: %d %s", query, w.Code, w.Body)
			}
		}
	})
}

func TestBypassMayBeOpenFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := edged()
		cfg.BypassUntil = time.Now().Add(time.Hour)
		h := open(t, cfg, 1)
		if a := h.do(t, asks("")); a.Code != 200 {
			t.Errorf("%d %s", a.Code, a.Body)
		}
		time.Sleep(time.Hour)
		if a := h.do(t, asks("")); a.Code != 401 {
			t.Errorf("an hour later: %d %s", a.Code, a.Body)
		}
	})
}
