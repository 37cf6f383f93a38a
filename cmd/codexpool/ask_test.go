package main

import (
	"encoding/json"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codexpool/api"

	"github.com/google/go-cmp/cmp"
)

// ask runs a command against a server in the place of the admin listener.
func ask(t *testing.T, h http.HandlerFunc, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	return runOnce(t, args, "PROXY_ADMIN_ADDR="+strings.TrimPrefix(server.URL, "http://"))
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		w.Write([]byte(body))
	}
}

func TestMetricsPrintsTheLinesThatMatchAsPeopleReadThem(t *testing.T) {
	page := answer(200, `# HELP codexpool_pool_memory_bytes Memory.
# TYPE codexpool_pool_memory_bytes gauge
codexpool_pool_memory_bytes 1.3631488e+07
codexpool_login_expiry_timestamp_seconds 1.764e+09
codexpool_forwardauth_bypass_until_timestamp_seconds 0
codexpool_key_requests_total{key="a key",outcome="ok"} 12
codexpool_overhead_seconds_bucket{le="+Inf"} 3
`)
	for regex, want := range map[string]string{
		"":                            "codexpool_pool_memory_bytes 13631488\ncodexpool_login_expiry_timestamp_seconds 1764000000 (2025-11-24T16:00:00Z)\ncodexpool_forwardauth_bypass_until_timestamp_seconds 0\ncodexpool_key_requests_total{key=\"a key\",outcome=\"ok\"} 12\ncodexpool_overhead_seconds_bucket{le=\"+Inf\"} 3\n",
		"^codexpool_pool":             "codexpool_pool_memory_bytes 13631488\n",
		"key_requests_total.* [1-9]":  "codexpool_key_requests_total{key=\"a key\",outcome=\"ok\"} 12\n",
		"bypass_until.* [1-9]":        "",
		"HELP":                        "",
		"codexpool_pool_size [1-9]":   "",
		`le="\+Inf"`:                  "codexpool_overhead_seconds_bucket{le=\"+Inf\"} 3\n",
		"(?i)PROCESS_START|Memory":    "codexpool_pool_memory_bytes 13631488\n",
		"pool_memory_bytes 13631488$": "codexpool_pool_memory_bytes 13631488\n",
	} {
		code, got, stderr := ask(t, page, "metrics", regex)
		if code != 0 || got != want || stderr != "" {
			t.Errorf("%q: exit code %d, %s\n%s", regex, code, stderr, cmp.Diff(want, got))
		}
	}
	if code, _, stderr := ask(t, answer(403, `{"error":"not from here"}`), "metrics"); code != 1 || !strings.Contains(stderr, `answers 403: {"error":"not from here"}`) {
		t.Errorf("a daemon that does not tell: exit code %d, %s", code, stderr)
	}
}

// TestPoolShowsTheSameAsItsPage has a child at rest, one with a turn, and all that fails.
func TestPoolShowsWhatIsOnItsPage(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	page := api.Pool{Size: 3, Starting: 1, Idle: 1, Leased: 1, Waiting: 7, Worn: 1, MemoryBytes: 31_400_000, Upstream: api.Upstream{Choice: "openai"}}
	var out strings.Builder
	printPool(&out, page, now)
	want := `SIZE  STARTING  IDLE  LEASED  WAITING  WORN  MEMORY  DRAINING  UPSTREAM
3     1         1     1       7        1     31 MB   no        openai

PID  STATE  AGE  TURNS  MEMORY  PROBE  VERSION  WORN  TURN  SILENT  KEY  REQUEST

failure: none
deaths: none
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("without children (-want +got)\n%s", diff)
	}

	full := `{"size":3,"starting":1,"idle":1,"leased":1,"waiting":7,"worn":1,"memory_bytes":31400000,"draining":true,"draining_since":"2026-01-31T11:58:30Z",
"failure":{"error":"child is gone: exit status 3","stderr":["cannot read my configuration","bye"]},"upstream":{"choice":"openai"},
"children":[{"pid":101,"state":"leased","version":"1.2.3","age_seconds":3725,"turns":12,"memory_bytes":17400000,"worn":"age",
"turn":{"since":"2026-01-31T11:59:55.5Z","request":"req-1","key":"alice","silent_seconds":0.25},"probe":{"took_seconds":0.0004}},
{"pid":7,"state":"late","version":"1.2.3","age_seconds":2,"turns":0,"memory_bytes":14000000,"probe":{"took_seconds":2,"error":"child does not answer"}}],
"deaths":[{"pid":99,"why":"exited","at":"2026-01-31T11:59:00Z","age_seconds":0.3,"turns":0,"error":"child is gone: exit status 3"},
{"pid":98,"why":"age","at":"2026-01-31T11:00:00Z","age_seconds":3600,"turns":40}]}`
	code, text, _ := ask(t, answer(200, full), "pool", "--json")
	if code != 0 || !strings.Contains(text, "\n  \"waiting\": 7,\n") || !strings.Contains(text, `"took_seconds": 0.0004`) {
		t.Errorf("exit code %d\n%s", code, text)
	}
	out.Reset()
	printPool(&out, decoded(t, full), now)
	want = `SIZE  STARTING  IDLE  LEASED  WAITING  WORN  MEMORY  DRAINING  UPSTREAM
3     1         1     1       7        1     31 MB   1m30s     openai

PID  STATE   AGE     TURNS  MEMORY  PROBE                  VERSION  WORN  TURN  SILENT  KEY    REQUEST
101  leased  1h2m5s  12     17 MB   400µs                  1.2.3    age   4.5s  250ms   alice  req-1
7    late    2s      0      14 MB   child does not answer  1.2.3    -     -     -       -      -

failure: child is gone: exit status 3
  stderr: cannot read my configuration
  stderr: bye
deaths, the last one first:
AGO     WHY     AGE     TURNS  PID  ERROR
1m0s    exited  300ms   0      99   child is gone: exit status 3
1h0m0s  age     1h0m0s  40     98   -
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestRunbookFindsPagesByTheirAlertsAndCodes(t *testing.T) {
	for name, want := range map[string]string{
		"":                         "# Runbooks\n",
		"PoolSaturated":            "# The pool is saturated\n",
		"poolsaturated":            "# The pool is saturated\n",
		"PoolSaturated.md":         "# The pool is saturated\n",
		"CodexpoolAcquireWaitHigh": "# The pool is saturated\n",
		"CodexpoolErrorBudgetBurn": "# Completions fail\n",
		"idle_timeout":             "| code | status |",
		"CodexpoolAcquireWait":     "",
		"codexpool_pool_waiting":   "",
		"../../README":             "",
		".*":                       "",
		"Errors":                   "# Error codes\n",
	} {
		code, stdout, stderr := runOnce(t, []string{"runbook", name})
		if want == "" {
			if code != 2 || stdout != "" || !strings.Contains(stderr, "The pages are:\n\n  AuthFailures") {
				t.Errorf("%s: exit code %d\n%s%s", name, code, stdout, stderr)
			}
			continue
		}
		if code != 0 || !strings.HasPrefix(stdout, want) || stderr != "" {
			t.Errorf("%s: exit code %d\n%s\n%s", name, code, stdout, stderr)
		}
	}
	if _, row, _ := runOnce(t, []string{"runbook", "idle_timeout"}); strings.Count(row, "\n") != 3 || !strings.Contains(row, "[Timeouts](Timeouts.md)") {
		t.Errorf("the row of a code:\n%s", row)
	}
}

// TestRunbookIsPrintedAsItIsWhereNoTerminalIs, so that it can be searched and copied.
func TestRunbookIsPrintedAsItIsWhereNoTerminalIs(t *testing.T) {
	want, err := os.ReadFile(filepath.Join("..", "..", "runbooks", "Down.md"))
	if err != nil {
		t.Fatal(err)
	}
	if _, got, _ := runOnce(t, []string{"runbook", "Down"}); got != string(want) {
		t.Error("it is changed")
	}
}

func TestRenderFitsATerminal(t *testing.T) {
	page := "# A title\n\nA paragraph with `code`, **two\nbold words** and [a link](Page.md#here), which is longer than a line of a terminal has columns.\n\n" +
		"| a | b \\| c | d |\n|---|---|---|\n| `x` | y \\| z | |\n\n1. **First.** An item that is longer than a line of a terminal has columns, so it is wrapped.\n   It goes on.\n\n   ```sh\n   run | it\n   ```\n\n" +
		"<!-- a mark -->\n- Second.\n\n```text\n| no table |  as it is\n```\n\n    indented\n"
	want := "\x1b[1;4mA title\x1b[0m\n\nA paragraph with \x1b[36mcode\x1b[39m, \x1b[1mtwo bold words\x1b[22m and a link, which is longer than a\nline of a terminal has columns.\n\n" +
		"- \x1b[36mx\x1b[39m\n  b | c: y | z\n\n1. \x1b[1mFirst.\x1b[22m An item that is longer than a line of a terminal has columns, so\n   it is wrapped. It goes on.\n\n       run | it\n\n" +
		"- Second.\n\n    | no table |  as it is\n\n    indented\n"
	if diff := cmp.Diff(want, render(page)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, name := range pageNames() {
		for line := range strings.Lines(render(readPage(name))) {
			if strings.Contains(line, "](") || strings.Contains(line, "|---") || strings.Contains(line, "**") || strings.Contains(line, "<!--") {
				t.Errorf("%s: Markdown that render does not know: %q", name, line)
			}
		}
	}
}

func TestErlangCHasTheValuesOfItsTables(t *testing.T) {
	for _, tt := range []struct {
		children   int
		busy, want float64
	}{{1, 0.5, 0.5}, {2, 1, 1. / 3}, {3, 2, 4. / 9}, {10, 8, 0.40918}, {5, 4, 0.55411}, {100, 90, 0.21693}, {1000, 500, 0}} {
		if got := erlangC(tt.children, tt.busy); math.Abs(got-tt.want) > 1e-4 {
			t.Errorf("%d children of which %v are busy: %v, want %v", tt.children, tt.busy, got, tt.want)
		}
	}
}

func TestCapacityIsTheSmallestPoolInWhichOneInTwentyWaitsTooLong(t *testing.T) {
	for _, tt := range []struct {
		demand        demand
		size, waiting int
	}{
		{demand{rate: 4, hold: 8, wait: 1}, 40, 150},
		{demand{rate: 4, hold: 8, wait: 0}, 43, 162},
		{demand{rate: 0.01, hold: 5, wait: 1}, 1, 6},
		{demand{rate: 200, hold: 0.02, wait: 0.1}, 5, 80},
		{demand{rate: 10, hold: 60, wait: 5}, 622, 311},
	} {
		a := tt.demand.size()
		if a.size != tt.size || a.waiting != tt.waiting || a.streams != tt.size+tt.waiting {
			t.Errorf("%+v: %+v", tt.demand, a)
		}
		if tt.demand.waitsLonger(a.size, tt.demand.wait) > 0.05 || tt.demand.waitsLonger(a.size-1, tt.demand.wait) <= 0.05 {
			t.Errorf("%+v: %d is not the smallest size", tt.demand, a.size)
		}
	}
	for args, want := range map[string]string{
		"":                              "--rps and --hold must be more than 0",
		"--rps 1":                       "--rps and --hold must be more than 0",
		"--rps 1 --hold NaN":            "--rps and --hold must be more than 0",
		"--rps 1 --hold 1 --wait -1":    "--wait must be 0 or more",
		"--rps 100 --hold 60":           "need more than 1024 children",
		"--from http://127.0.0.1:1":     "connection refused",
		"--rps many":                    "invalid value",
		"--from http://127.0.0.1:1/abc": "connection refused",
	} {
		if code, _, stderr := runOnce(t, append([]string{"capacity"}, strings.Fields(args)...)); code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("capacity %s: exit code %d, %s", args, code, stderr)
		}
	}
}

func TestCapacityNamesTheBottleneck(t *testing.T) {
	const size = "codexpool_pool_size"
	for want, after := range map[string]series{
		"":         {size: 4, "codexpool_pool_lease_seconds_sum": 240, "codexpool_pool_lease_seconds_count": 30}, // all are busy, nobody waits
		"children": {size: 4, "codexpool_pool_lease_seconds_sum": 239, "codexpool_pool_waiting": 3},
		"the provider's limit (answers with 429)": {size: 4, `codexpool_upstream_requests_total{code="429",connection="warm"}`: 6, `codexpool_upstream_requests_total{code="200",connection="warm"}`: 94, "codexpool_pool_lease_seconds_sum": 240, "codexpool_pool_waiting": 3},
		"connections":                      {size: 4, `codexpool_http_connections{listener="public"}`: 95, `codexpool_http_connections{listener="admin"}`: 9, "codexpool_http_connections_limit": 100},
		"descriptors":                      {size: 4, "process_open_fds": 95, "process_max_fds": 100},
		"streams":                          {size: 4, `codexpool_sse_streams{state="open"}`: 5, `codexpool_sse_streams{state="waiting"}`: 4, "codexpool_sse_streams_limit": 10},
		"CPU (its own and its children's)": {size: 4, "go_sched_gomaxprocs_threads": 2, "process_cpu_seconds_total": 60, "codexpool_children_cpu_seconds_total": 50, "codexpool_pool_lease_seconds_sum": 240, "codexpool_pool_waiting": 3},
	} {
		l := loadBetween(series{size: 4}, after, 60)
		got := ""
		if b := l.bottleneck(); b != nil {
			got = b.what
			if !strings.Contains(strings.Join(pageNames(), " "), b.page) {
				t.Errorf("%s: there is no page %s", b.what, b.page)
			}
		}
		if got != want {
			t.Errorf("%+v: %q, want %q", after, got, want)
		}
	}
	l := loadBetween(series{size: 4, `codexpool_pool_acquires_total{outcome="leased"}`: 100, "codexpool_pool_lease_seconds_count": 100, "codexpool_pool_lease_seconds_sum": 50},
		series{size: 4, `codexpool_pool_acquires_total{outcome="leased"}`: 130, `codexpool_pool_acquires_total{outcome="full"}`: 30, "codexpool_pool_lease_seconds_count": 130, "codexpool_pool_lease_seconds_sum": 110}, 60)
	if l.rate != 1 || l.hold != 2 {
		t.Errorf("%v completions a second that hold a child for %v s, want 1 and 2", l.rate, l.hold)
	}
}

func decoded(t *testing.T, page string) (p api.Pool) {
	t.Helper()
	if err := json.Unmarshal([]byte(page), &p); err != nil {
		t.Fatal(err)
	}
	return p
}
