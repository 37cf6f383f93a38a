package api_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
)

// used is what a key is told of its own use, with the day left out.
func used(t *testing.T, h *house, key string) (day, told string) {
	t.Helper()
	a := h.do(t, by(key, request("GET", "/v1/usage", "")))
	var body struct {
		Day   string
		Today json.RawMessage
		Since json.RawMessage `json:"since_start"`
		Key   string
	}
	if err := json.Unmarshal(a.Body.Bytes(), &body); a.Code != 200 || err != nil || body.Key != key {
		t.Fatalf("%d %v %s", a.Code, err, a.Body)
	}
	return body.Day, string(body.Today) + "\n" + string(body.Since)
}

func TestUsageIsThatOfTheCallersKeyTodayAndSinceTheStart(t *testing.T) {
	amount := func(requests, input, output string) string {
		return `{"requests":` + requests + `,"input_tokens":` + input + `,"cached_tokens":0,"output_tokens":` + output + `,"reasoning_tokens":0}`
	}
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = []api.Key{named("a"), named("b")}
		cfg.Keys[0].RequestsPerMinute = 2
		h := open(t, cfg, 1)
		for range 3 { // the third is over the limit, and uses nothing
			h.do(t, by("a", chat(strings.Replace(hello, "hi", "one two three", 1))))
		}
		h.do(t, by("b", chat("{")))
		for key, want := range map[string]string{"a": amount("2", "6", "6"), "b": amount("1", "0", "0")} {
			if day, got := used(t, h, key); got != want+"\n"+want || day != time.Now().UTC().Format(time.DateOnly) {
				t.Errorf("%s on %s\n%s", key, day, got)
			}
		}
		h.SetKeys([]api.Key{named("b"), named("a")}) // its figures stay
		time.Sleep(24 * time.Hour)
		h.do(t, by("a", chat(hello)))
		if day, got := used(t, h, "a"); got != amount("1", "1", "1")+"\n"+amount("3", "7", "7") || day != time.Now().UTC().Format(time.DateOnly) {
			t.Errorf("on the next day, %s\n%s", day, got)
		}
		if a := h.do(t, by("wrong", request("GET", "/v1/usage", ""))); a.Code != 401 {
			t.Errorf("a wrong key: %d %s", a.Code, a.Body)
		}
	})
}

func TestUsageWithoutKeysIsThatOfAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keyless, cfg.Keys = true, nil
		h := open(t, cfg, 1)
		h.do(t, chat(hello))
		if a := h.do(t, request("GET", "/v1/usage", "")); a.Code != 200 || !strings.Contains(a.Body.String(), `"key":null`) || !strings.Contains(a.Body.String(), `"requests":1,`) {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}
