package api_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex/codextest"
	"codexpool/pool"
)

const streamedHello = `{"stream":true,"messages":[{"role":"user","content":"hi"}]}`

// TestResultTellsTheQueueTheProviderAndUsApart has a caller that waits 3 s for a child,
// and a provider that thinks for 4 s.
func TestResultTellsTheQueueTheProviderAndUsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider := pausing{[]string{
			`{"type":"response.in_progress"}`, `{"type":"response.output_text.delta","delta":"ok"}`, `{"type":"response.completed","response":{}}`,
		}, 2 * time.Second}
		relay := relayTo(provider)
		h := openWith(t, config(), pool.Config{Size: 1}, relay)
		lease, err := h.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(3*time.Second, lease.Release)
		h.do(t, chat(streamedHello))
		got := h.last()
		if got.Wait != 3*time.Second || got.Upstream != 4*time.Second || got.FirstToken != 7*time.Second {
			t.Errorf("wait %v, provider %v, first token %v", got.Wait, got.Upstream, got.FirstToken)
		}
		if !got.Completion || !got.Stream || got.Model != "gpt-a" || got.Retried || got.Fault != "" {
			t.Errorf("%+v", got)
		}
	})
}

func TestResultSaysWhatCommittedAStream(t *testing.T) {
	for name, tt := range map[string]struct {
		body       string
		after      time.Duration // until the first word
		commit     api.Commit
		keepalives int
	}{
		"the model":      {streamedHello, time.Second, api.CommitToken, 0},
		"the timer":      {streamedHello, 40 * time.Second, api.CommitTimer, 2},
		"not a stream":   {hello, 40 * time.Second, "", 0},
		"refused before": {`{"stream":true,"messages":[]}`, 0, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := open(t, config(), 1, codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: tt.after})})
				h.do(t, chat(tt.body))
				if got := h.last(); got.Commit != tt.commit || got.Keepalives != tt.keepalives {
					t.Errorf("commit %q, %d keepalives", got.Commit, got.Keepalives)
				}
			})
		})
	}
}

// TestStatFollowsAStream has one caller that streams, and one that waits for its child.
func TestStatFollowsAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1, codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: 30 * time.Second})})
		for range 2 {
			go h.do(t, chat(streamedHello))
			synctest.Wait()
		}
		time.Sleep(7 * time.Second)
		s := h.Stat()
		if s.Streams != 2 || s.Queued != 1 || s.Running["chat"] != 2 || s.Running["models"] != 0 || s.State != api.Ready {
			t.Errorf("%+v", s)
		}
		if s.Silence < 6*time.Second || s.Silence > 7*time.Second {
			t.Errorf("silent for %v", s.Silence)
		}
		time.Sleep(time.Hour)
		if s := h.Stat(); s.Streams != 0 || s.Queued != 0 || s.Running["chat"] != 0 || s.Silence != 0 {
			t.Errorf("at rest: %+v", s)
		}
	})
}

// TestModelOfAResultIsOfAClosedList: whatever callers ask for, the metrics have one name.
func TestModelOfAResultIsOfAClosedList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		models := cfg.Models()
		models.Open = true
		cfg.Models = func() api.Models { return models }
		h := open(t, cfg, 1)
		for name, want := range map[string]string{"codex-5": "gpt-a", "GPT-A": "gpt-a", "their-own/model": api.OtherModel} {
			h.do(t, chat(strings.Replace(hello, "{", `{"model":"`+name+`",`, 1)))
			if got := h.last(); got.Model != want {
				t.Errorf("%s is %q", name, got.Model)
			}
		}
	})
}
