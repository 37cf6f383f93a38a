package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"codexpool/codex/codextest"
)

// lines are those of the log that are about requests.
func (d *daemon) lines() (all []map[string]any) {
	d.t.Helper()
	for text := range strings.Lines(d.logged()) {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			d.t.Fatalf("%v in %s", err, text)
		}
		if line["msg"] == "request" || line["msg"] == "requests refused" {
			all = append(all, line)
		}
	}
	return all
}

// booked are the figures of the log, and of the counters: errors by route, error and
// fault, and completions by outcome.
func (d *daemon) booked() (log, counters map[string]float64) {
	d.t.Helper()
	log, counters = map[string]float64{}, map[string]float64{}
	for _, line := range d.lines() {
		n, many := line["count"].(float64)
		if !many {
			n = 1
		}
		if line["fault"] != nil {
			code := line["code"]
			if line["counted"] != nil {
				code = line["counted"]
			}
			log[fmt.Sprintf("%v %v by %v", line["route"], code, line["fault"])] += n
		}
		if line["method"] == "POST" && slices.Contains(completionRoutes, fmt.Sprint(line["route"])) {
			log[outcomeOf(line)] += n
		}
	}
	label := regexp.MustCompile(`(\w+)="([^"]*)"`)
	for series, n := range d.metrics() {
		name, rest, _ := strings.Cut(series, "{")
		labels := map[string]string{}
		for _, l := range label.FindAllStringSubmatch(rest, -1) {
			labels[l[1]] = l[2]
		}
		switch {
		case n == 0:
		case name == "codexpool_http_errors_total":
			counters[fmt.Sprintf("%s %s by %s", labels["route"], labels["error"], labels["fault"])] += n
		case name == "codexpool_completions_total":
			counters[labels["outcome"]] += n
		}
	}
	return log, counters
}

var completionRoutes = []string{"chat", "completions", "responses"}

// outcomeOf is how a completion ended, by its line.
func outcomeOf(line map[string]any) string {
	switch line["fault"] {
	case nil:
		return map[any]string{"client_gone": "left", "client_too_slow": "slow_reader", nil: "ok"}[line["code"]]
	case "client":
		return "refused"
	case "limit":
		return "limited"
	}
	return "failed"
}

// agrees waits until the log and the counters have the same figures, and returns them: the
// lines of a second's refusals come at its end.
func (d *daemon) agrees() map[string]float64 {
	d.t.Helper()
	var log, counters map[string]float64
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if log, counters = d.booked(); maps.Equal(log, counters) {
			return log
		}
		if time.Since(began) > 5*time.Second {
			d.t.Fatalf("the log has     %v\nthe counters are %v", log, counters)
		}
	}
}

// leave sends a completion, and disconnects soon.
func (d *daemon) leave(body string) error {
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*time.Millisecond)
	defer cancel()
	res, err := http.DefaultClient.Do(d.newRequest(body).WithContext(ctx))
	if err != nil {
		return nil
	}
	_, _ = io.Copy(io.Discard, res.Body)
	return res.Body.Close()
}

// capricious is a provider that mostly answers, soon or late, and sometimes fails.
func capricious(w http.ResponseWriter, r *http.Request) {
	switch rand.IntN(10) {
	case 0:
		codextest.Status(500, "")(w, r)
	case 1:
		codextest.Status(429, `{"error":{"message":"m","code":"insufficient_quota"}}`)(w, r)
	case 2:
		codextest.Status(422, `{"error":{"message":"m","code":"c"}}`)(w, r)
	case 3:
		s := codextest.StartStream(w)
		s.Delta("half")
		s.Fail("server_error", "m")
	case 4:
		time.Sleep(2100 * time.Millisecond) // longer than a first token should take
		codextest.Text("late")(w, r)
	default:
		codextest.Text("ok")(w, r)
	}
}

// TestLogsPageHasTheNumbersOfTheCounters runs each program of the page over the log of
// traffic of all kinds: two independent ways to the same numbers.
func TestLogsPageHasTheNumbersOfTheCounters(t *testing.T) {
	t.Parallel()
	jq := installed(t, "jq")
	d := start(t, "POOL_SIZE=4", "CODEX_UPSTREAM="+newUpstream(t, capricious).URL+"/v1")
	d.spread(600, 12, func(i int) error { d.mixed(i); return nil })
	d.spread(20, 4, func(int) error { return d.leave(chatBody("hi", true)) })
	d.spread(40, 4, func(int) error { d.stream("hi"); return nil })
	d.spread(40, 4, func(int) error {
		res, err := d.post(chatBody("hi", false))
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		return err
	})
	d.agrees()
	file := filepath.Join(t.TempDir(), "log")
	write(t, file, d.logged())
	m := d.metrics()
	text := readBook(t, "Logs.md")
	for heading, check := range map[string]func(t *testing.T, rows []map[string]any){
		"Availability by route": func(t *testing.T, rows []map[string]any) {
			for _, row := range rows {
				for _, outcome := range []string{"ok", "failed"} {
					if want := d.total("codexpool_completions_total", route(row), `outcome="`+outcome+`"`); row[outcome] != want || want == 0 && row["route"] == "chat" {
						t.Errorf("%v: %s is %v, counted are %v", row["route"], outcome, row[outcome], want)
					}
				}
			}
		},
		"First token within 2 seconds by route": func(t *testing.T, rows []map[string]any) {
			for _, row := range rows {
				all := d.total("codexpool_time_to_first_token_seconds_count", route(row), `stream="true"`)
				fast := d.total("codexpool_time_to_first_token_seconds_bucket", route(row), `stream="true"`, `le="2"`)
				if row["streams"] != all || row["fast"] != fast {
					t.Errorf("%v, counted are %v of %v", row, fast, all)
				}
			}
		},
		"Short answers in one piece within 5 seconds": func(t *testing.T, rows []map[string]any) {
			all, fast := m["codexpool_short_answer_seconds_count"], m[`codexpool_short_answer_seconds_bucket{le="5"}`]
			if row := rows[0]; row["answers"] != all || row["fast"] != fast || all == 0 {
				t.Errorf("%v, counted are %v of %v", row, fast, all)
			}
		},
		"Who uses most": func(t *testing.T, rows []map[string]any) {
			if want := d.total("codexpool_key_requests_total", `key="1"`); rows[0]["key"] != "1" || rows[0]["requests"] != want || rows[0]["seconds"].(float64) <= 0 {
				t.Errorf("%v, counted are %v", rows, want)
			}
		},
		"Which errors, by whose fault": func(t *testing.T, rows []map[string]any) {
			sum := 0.0
			for _, row := range rows {
				want := d.total("codexpool_http_errors_total", route(row), fmt.Sprintf("error=%q", row["error"]), fmt.Sprintf("fault=%q", row["fault"]))
				if row["count"] != want {
					t.Errorf("%v, counted are %v", row, want)
				}
				sum += want
			}
			if all := d.total("codexpool_http_errors_total"); sum != all || len(rows) < 8 {
				t.Errorf("%v errors in %d rows, counted are %v", sum, len(rows), all)
			}
		},
		"After how many seconds clients leave": func(t *testing.T, rows []map[string]any) {
			sum := 0.0
			for _, row := range rows {
				sum += row["clients"].(float64)
			}
			if all := d.total("codexpool_http_requests_total", `code="499"`); sum != all || sum == 0 {
				t.Errorf("%v clients left, counted are %v", sum, all)
			}
		},
	} {
		t.Run(heading, func(t *testing.T) {
			_, section, found := strings.Cut(text, "\n## "+heading+"\n")
			_, program, begun := strings.Cut(section, "\n```jq\n")
			program, _, ended := strings.Cut(program, "\n```\n")
			if !found || !begun || !ended {
				t.Fatal("the page has no program for it")
			}
			cmd := exec.Command(jq, "-s", program, file)
			var complaints bytes.Buffer
			cmd.Stderr = &complaints
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err, complaints.String())
			}
			var rows []map[string]any
			for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
				var row map[string]any
				err := decoder.Decode(&row)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatalf("%v in %s", err, out)
				}
				rows = append(rows, row)
			}
			if len(rows) == 0 {
				t.Fatal("it gives nothing")
			}
			check(t, rows)
		})
	}
	if n := strings.Count(text, "```jq\n"); n != 6 {
		t.Errorf("the page has %d programs, and 6 are run", n)
	}
}

// route is the label of a row's route.
func route(row map[string]any) string { return fmt.Sprintf("route=%q", row["route"]) }

// TestFloodOfRefusalsFillsNoLogAndTellsNoSecret sends what is marked at the places where
// secrets are, as fast as it can: the marks are nowhere, and the log stays small.
func TestFloodOfRefusalsFillsNoLogAndTellsNoSecret(t *testing.T) {
	t.Parallel()
	const mark = "MARKED-7f3a"
	d := start(t, "POOL_SIZE=2", "CODEX_ECHO_DELAY_MS=0")
	send := func(path, bearer, body string) {
		req, err := http.NewRequest("POST", d.url+path, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+bearer)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Secret", mark+"-header")
		req.Header.Set("User-Agent", mark+"-agent")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	for _, stream := range []bool{true, false} { // the echo model repeats the prompt
		send("/v1/chat/completions", key, chatBody(mark+"-prompt", stream))
	}
	began, before, length := time.Now(), len(d.logged()), 4*time.Second
	sent := 0
	for ; time.Since(began) < length; sent += 100 {
		d.spread(100, 4, func(i int) error {
			if i%2 == 0 {
				send("/v1/chat/completions", mark+"-key", chatBody(mark+"-prompt", true))
			} else {
				send("/v1/chat/completions?"+mark+"-query", key, `{"model":"`+mark+`-model","messages":[{"role":"user","content":"`+mark+`-prompt"}],"`+mark+`-field":`)
			}
			return nil
		})
	}
	d.agrees()
	bytes, took := len(d.logged())-before, time.Since(began)
	t.Logf("%.0f refusals a second, %.2f MB a minute", float64(sent)/took.Seconds(), float64(bytes)/1e6*float64(time.Minute)/float64(took))
	if perMinute := float64(bytes) * float64(time.Minute) / float64(took); perMinute > 1e6 {
		t.Errorf("the log grows by %.0f bytes a minute", perMinute)
	}
	for where, text := range map[string]string{"log": d.logged(), "metrics": string(d.page())} {
		if i := strings.Index(text, mark); i >= 0 {
			t.Errorf("the %s has a secret: …%.200s", where, text[max(0, i-100):])
		}
	}
}
