package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/pool"

	"github.com/google/go-cmp/cmp"
)

// told parses the lines of a log, without what it says of children.
func told(t *testing.T, log *bytes.Buffer) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fields)
	}
	log.Reset()
	return lines
}

// naming is a provider that names its requests.
type naming struct{ next pausing }

func (n naming) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := n.next.RoundTrip(r)
	res.Header.Set("X-Request-Id", "req_of_the_provider")
	return res, err
}

// TestLineOfARequestAnswersTheQuestionsOfAnIncident has a caller that waits 3 s for a
// child, and a provider that thinks for 4 s.
func TestLineOfARequestAnswersTheQuestionsOfAnIncident(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider := naming{pausing{[]string{
			`{"type":"response.in_progress"}`, `{"type":"response.output_text.delta","delta":"ok"}`,
			`{"type":"response.completed","response":{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":4},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":12}}}`,
		}, 2 * time.Second}}
		relay := relayTo(provider)
		h := openWith(t, config(), pool.Config{Size: 1}, relay)
		var log bytes.Buffer
		h.Server = api.New(config(), h.pool, relay, slog.New(slog.NewJSONHandler(&log, nil)), func(context.Context, api.Result) {})
		lease, err := h.pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(3*time.Second, lease.Release)
		body := `{"stream":true,"reasoning_effort":"low","messages":[{"role":"user","content":"hi"}]}`
		a := h.do(t, withHeader(chat(body), "X-Request-Id", "mine"))
		second := float64(time.Second)
		want := map[string]any{
			"time": "2000-01-01T00:00:09Z", "level": "INFO", "msg": "request",
			"req": "mine", "route": "chat", "method": "POST", "status": 200., "key": "1", "client": "192.0.2.1",
			"model": "gpt-a", "stream": true, "effort": "low", "choices": 1., "wait": 3 * second, "first_token": 7 * second, "took": 9 * second,
			"tokens_in": 9., "tokens_cached": 4., "tokens_out": 3., "tokens_reasoning": 1., "finish": "stop", "commit": "timer", "sent_bytes": float64(a.Body.Len()),
			"upstream_status": 200., "upstream_request": "req_of_the_provider",
		}
		if diff := cmp.Diff([]map[string]any{want}, told(t, &log)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		readme, err := os.ReadFile("../README.md")
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range append(slices.Sorted(maps.Keys(want)), "code", "fault", "child", "retried", "err", "count") {
			if !strings.Contains(string(readme), "\n| `"+field+"` |") && !slices.Contains([]string{"time", "level", "msg"}, field) {
				t.Errorf("README.md does not explain %s", field)
			}
		}
	})
}

// TestRefusalsAreLoggedSinglyUpToTwentyASecondAndCode: what costs its sender nothing must
// not fill the disk, and must add up all the same.
func TestRefusalsAreLoggedSinglyUpToTwentyASecondAndCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, log := logged(t)
		lines := func() string {
			synctest.Wait() // the second's last line is another goroutine's
			var got []string
			for _, l := range told(t, log) {
				got = append(got, fmt.Sprint(l["msg"], " ", l["code"], " ", l["key"], " ", l["count"]))
			}
			slices.Sort(got)
			counted := map[string]int{}
			for _, line := range got {
				counted[line]++
			}
			return fmt.Sprint(counted)
		}
		for range 1000 {
			h.do(t, by("wrong", chat(hello)))
		}
		for range 30 {
			h.do(t, chat("{"))
		}
		time.Sleep(2 * time.Second)
		if got, want := lines(), "map[request invalid_api_key <nil> <nil>:20 request invalid_json 1 <nil>:10 requests refused invalid_api_key <nil> 980:1 requests refused invalid_json 1 20:1]"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		for i := range 1000 { // whatever they are like
			h.do(t, request(fmt.Sprint("METHOD", i), fmt.Sprint("/path/", i), ""))
		}
		time.Sleep(2 * time.Second)
		if got, want := lines(), "map[request not_found <nil> <nil>:20 requests refused not_found <nil> 980:1]"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		for range 1000 {
			h.do(t, preflight("https://b.example"))
		}
		time.Sleep(2 * time.Second)
		if got, want := lines(), "map[request <nil> <nil> <nil>:20 requests refused <nil> <nil> 980:1]"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		for range 2 { // the next second has lines of its own
			h.do(t, by("wrong", chat(hello)))
		}
		time.Sleep(2 * time.Second)
		if got, want := lines(), "map[request invalid_api_key <nil> <nil>:2]"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

// TestLogGrowsByLessThanAMegabyteAMinuteWhateverIsRefused has all that can be refused, a
// thousand of each a second, from clients that choose the longest line.
func TestLogGrowsByLessThanAMegabyteAMinuteWhateverIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.MaxBody = 1 << 10
		cfg.Keys[1].RequestsPerMinute = 1
		cfg.Keys = append(cfg.Keys, api.Key{Name: "3", Digest: sha256.Sum256([]byte("third")), Routes: []string{"models"}}, api.Key{Name: "4", Digest: sha256.Sum256([]byte("fourth"))})
		for i, key := range cfg.Keys {
			cfg.Keys[i].Name = strings.Repeat(key.Name, 64)
		}
		h := open(t, cfg, 1)
		var log bytes.Buffer
		h.Server = api.New(cfg, h.pool, nil, slog.New(slog.NewJSONHandler(&log, nil)), func(context.Context, api.Result) {})
		h.do(t, by("another", chat(hello))) // all that it may in a minute
		for range 3 {                       // the first key has the child, and the places of the queue
			admission, err := h.pool.Admit(t.Context(), cfg.Keys[0].Name, 1)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				if lease, err := admission.Acquire(t.Context()); err == nil {
					defer lease.Release()
					<-t.Context().Done()
				}
			}()
			synctest.Wait()
		}
		told(t, &log)
		refused := map[int]int{}
		const seconds = 2
		for range seconds {
			for range 1000 {
				for _, r := range []*http.Request{
					by("wrong", chat(hello)), by("third", chat(hello)), request("POST", "/nothing", hello),
					by("fourth", chat(hello+strings.Repeat(" ", int(cfg.MaxBody)))), by("another", chat(hello)), chat(hello),
				} {
					r.RemoteAddr = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
					refused[h.do(t, withHeader(r, "X-Request-Id", strings.Repeat("x", 128))).Code]++
				}
			}
			time.Sleep(time.Second)
		}
		for _, status := range []int{401, 403, 404, 413, 429, 503} {
			if refused[status] < seconds*1000 {
				t.Errorf("%d: %d", status, refused[status])
			}
		}
		synctest.Wait()
		total := 0.
		perMinute := log.Len() * 60 / seconds
		for _, l := range told(t, &log) {
			if n, ok := l["count"].(float64); ok {
				total += n - 1
			}
			total++
		}
		if perMinute > 1e6 || total != 6*1000*seconds {
			t.Errorf("%d bytes a minute for %v requests", perMinute, total)
		}
	})
}

// TestCompletionsAreLoggedSinglyHoweverManyFail: those that had a child are never summed up.
func TestCompletionsAreLoggedSinglyHoweverManyFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failing := failingProvider{}
		relay := relayTo(failing)
		h := openWith(t, config(), pool.Config{Size: 1}, relay)
		var log bytes.Buffer
		h.Server = api.New(config(), h.pool, relay, slog.New(slog.NewJSONHandler(&log, nil)), func(context.Context, api.Result) {})
		for range 30 {
			h.do(t, chat(hello))
		}
		if got := len(told(t, &log)); got != 30 {
			t.Errorf("%d lines", got)
		}
	})
}

type failingProvider struct{}

func (failingProvider) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 500, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(""))}, nil
}
