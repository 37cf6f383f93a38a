package api_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex"
	"codexpool/codex/codextest"
	"codexpool/pool"
	"codexpool/upstream"
)

// page gets a page of the admin listener, as a browser or as curl does.
func (h *house) page(t *testing.T, path, accept string, from api.Sources) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	r.Host, r.RemoteAddr = "localhost:11436", "127.0.0.1:5000"
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	from.Metrics = http.NotFoundHandler()
	w := httptest.NewRecorder()
	h.Admin(from).ServeHTTP(w, r)
	return w
}

const browser = "text/html,application/xhtml+xml,*/*;q=0.8"

// both are the status page in HTML, without its tags, and in text.
func (h *house) both(t *testing.T, from api.Sources) map[string]string {
	t.Helper()
	tags := regexp.MustCompile(`(?s)<style>.*?</style>|<a href="([^"]*)">|<[^>]*>`)
	return map[string]string{
		"HTML": tags.ReplaceAllString(h.page(t, "/", browser, from).Body.String(), "$1 "),
		"text": h.page(t, "/", "*/*", from).Body.String(),
	}
}

// shows reports an error where a form of the status page lacks something.
func (h *house) shows(t *testing.T, from api.Sources, when string, wants ...string) {
	t.Helper()
	for form, page := range h.both(t, from) {
		for _, want := range wants {
			if !regexp.MustCompile(want).MatchString(page) {
				t.Errorf("%s, %s: no %s in\n%s", when, form, want, page)
			}
		}
	}
}

func TestStatusPageOfAHealthyDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 2)
		time.Sleep(time.Hour)
		h.shows(t, api.Sources{Version: "v1.2.3"}, "at rest",
			`codexpool is +ready`, `v1\.2\.3, Codex CLI 0\.0\.1; up for 1h0m0s; 2000-01-01 01:00:00Z`, `Troubles\s+None that is known`,
			`First token`, `Completions`, `2 idle, 0 leased, 0 starting, of at most 2`, `waits for a request`,
			`In the queue: 0 of at most 3\. Streams: 0`, `No key waits`, `Errors of the last ten minutes\s+None\.`,
			`No child has died`, `Provider\W+echo; credential: none`, `told no limit`, `POST /pool/drain`)
	})
}

func TestStatusPageSaysWhatIsWrongAndWhereToRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dying := codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Raw("oops")}
		cfg := config()
		cfg.MaxStreams = 3
		h := openWith(t, cfg, pool.Config{Size: 1, MaxWaiting: 4}, nil, dying, codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Hour})})
		limits := map[upstream.Limit]float64{{Kind: "limit", Unit: "tokens"}: 30000000, {Kind: "remaining", Unit: "tokens"}: 900, {Kind: "used", Unit: "primary"}: .95, {Kind: "window", Unit: "primary"}: 18000}
		from := api.Sources{Limits: func() map[upstream.Limit]float64 { return limits }}
		h.do(t, chat(hello))
		time.Sleep(5 * time.Second)
		h.shows(t, from, "a death", `Requests that failed in the last ten minutes: 1\. .*/runbooks/ErrorBudgetBurn\.md`, `A child died 5s ago: protocol\. .*/runbooks/ChildrenCrash\.md`,
			`child_exited\s+child\s+1`, `2000-01-01 00:00:00Z\s+0\s+protocol`, `a line of 4 bytes`,
			`limit is near: tokens\. .*/runbooks/UpstreamLimits\.md`, `limit is near: primary window`, `tokens\s+900\s+30000000`, `95 %\s+5h0m0s`)
		for range 3 {
			go h.do(t, chat(`{"stream":true,"messages":[{"role":"user","content":"one"}]}`))
		}
		time.Sleep(20 * time.Second)
		h.shows(t, from, "a full pool", `requests are in the queue: 2 of at most 4\. .*/runbooks/PoolSaturated\.md`, `Streams: 3 of at most 3\. .*/runbooks/StreamsNearLimit\.md`,
			`Streams: 3, of which 2 wait for a child; at most 3`, `1\s+2\s+3\s`, `runs a turn for 20s, model gpt-a, key 1, request req_\w+, silent for 20s`)
		time.Sleep(time.Minute) // two have waited too long
		h.shows(t, from, "a silent turn", `A turn has been silent for 1m20s\. .*/runbooks/ChildWedged\.md`, `pool_saturated\s+capacity\s+2`)
		h.admin(t, "POST", "/pool/drain")
		time.Sleep(time.Minute)
		h.shows(t, from, "a drain", `codexpool is +draining`, `posted to /pool/drain\. .*/runbooks/Drain\.md`, `rejected for 1m0s`)
		h.admin(t, "POST", "/pool/resume")
		time.Sleep(20 * time.Minute)
		if page := h.both(t, api.Sources{})["text"]; strings.Contains(page, "child_exited") || strings.Contains(page, "ErrorBudgetBurn") || !strings.Contains(page, "protocol") {
			t.Errorf("after more than ten minutes:\n%s", page)
		}
	})
}

func TestStatusPageShowsAChildThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Expect("server/diagnostics"), codextest.Hang()}
		h := openWith(t, config(), pool.Config{Size: 1, ProbeEvery: 10 * time.Second, ProbeTimeout: 2 * time.Second}, nil, hangs)
		h.admin(t, "POST", "/auth/bypass?minutes=5")
		time.Sleep(13 * time.Second)
		h.shows(t, api.Sources{}, "a late child", `A child does not answer its probe\. .*/runbooks/ChildWedged\.md`, `late[^\n]*has not answered its probe in time`,
			`/verify lets everyone pass for another 4m47s\. .*/runbooks/ForwardAuth\.md`)
		if page := h.both(t, api.Sources{})["HTML"]; !regexp.MustCompile(`late +/runbooks/ChildWedged\.md`).MatchString(page) {
			t.Errorf("the child's state is not explained:\n%s", page)
		}
	})
}

func TestStatusPageShowsWhyNoChildCanBeStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := openBroken(t, &codex.ExitError{Status: "exit status 1", Stderr: []string{"no such key: x"}})
		h.shows(t, api.Sources{}, "no child", `codexpool is +backend_unavailable`, `none can be started\. .*/runbooks/ChildStartsFail\.md`, `failed: child is gone: exit status 1`, `no such key: x`, `0 idle`)
	})
}

// TestStatusPageShowsWhatAChildSaysInOneLine: what it says cannot look like the page's own.
func TestStatusPageShowsWhatAChildSaysInOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := openBroken(t, &codex.RPCError{Code: -32000, Message: "no home\n\ncodexpool is ready\x1b[2J"})
		if page := h.both(t, api.Sources{})["text"]; !strings.Contains(page, ": no home  codexpool is ready\uFFFD[2J See /runbooks/") {
			t.Errorf("%s", page)
		}
	})
}

// The names are of whoever configures the daemon, and of the CLI's catalog.
func TestStatusPageEscapesNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const name, model = "<script>alert(1)</script>\x1b[2J", `"><img src=x onerror=alert(2)>`
		cfg := config()
		cfg.Keys = []api.Key{{Name: name, Digest: sha256.Sum256([]byte(key))}}
		cfg.Models = func() api.Models {
			return api.Models{Prefix: "codex-5", Default: model, Catalog: []codex.Model{{ID: model, Default: true}}}
		}
		h := open(t, cfg, 1, codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Minute})})
		for range 2 {
			go h.do(t, chat(`{"stream":true,"messages":[{"role":"user","content":"the prompt"}]}`))
		}
		time.Sleep(time.Second)
		for accept, wants := range map[string][]string{
			browser: {"&lt;script&gt;alert(1)", "model &#34;&gt;&lt;img src=x"},
			"":      {"<script>alert(1)</script>\uFFFD[2J", model},
		} {
			got := h.page(t, "/", accept, api.Sources{}).Body.String()
			for _, want := range wants {
				if !strings.Contains(got, want) {
					t.Errorf("for %q: no %q", accept, want)
				}
			}
			if strings.Contains(got, "the prompt") || accept != "" && (strings.Contains(got, "<script") || strings.Contains(got, "<img")) {
				t.Errorf("for %q:\n%s", accept, got)
			}
		}
	})
}

func TestStatusPageRunsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		for _, path := range []string{"/", "/runbooks/"} {
			w := h.page(t, path, browser, api.Sources{})
			style := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindStringSubmatch(w.Body.String())
			if style == nil {
				t.Fatalf("%s has no style", path)
			}
			sum := sha256.Sum256([]byte(style[1]))
			want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
			if got := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s, want %s", path, got, want)
			}
			if regexp.MustCompile(`style=|<script|(src|href)="(http|//)`).MatchString(w.Body.String()) {
				t.Errorf("%s needs more than its policy allows", path)
			}
		}
	})
}

func TestStatusPageDrawsTheLastTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 2)
		for range 3 { // a word takes a second
			h.do(t, chat(`{"stream":true,"messages":[{"role":"user","content":"one"}]}`))
		}
		time.Sleep(17 * time.Second)
		h.shows(t, api.Sources{}, "three answers", `median 0\.98 s`, `0\.30/s`)
		html := h.page(t, "/", browser, api.Sources{}).Body.String()
		if drawn := regexp.MustCompile(`<path d="(M[^"]+)">`).FindAllString(html, -1); len(drawn) != 4 {
			t.Errorf("%d lines are drawn: %q", len(drawn), drawn)
		}
		time.Sleep(11 * time.Minute)
		h.shows(t, api.Sources{}, "long after", `median none`, `ended 0\.00/s`)
	})
}

func TestRunbooksAreServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, config(), 1)
		written, err := os.ReadFile("../runbooks/EdgeErrors.md")
		if err != nil {
			t.Fatal(err)
		}
		if got := h.page(t, "/runbooks/EdgeErrors.md", "", api.Sources{}); got.Body.String() != string(written) {
			t.Errorf("as text: %d %s", got.Code, got.Body)
		}
		got := h.page(t, "/runbooks/EdgeErrors.md", browser, api.Sources{})
		for _, want := range []string{"<h2>Fixes</h2>", "<table>", `<a href="Down.md">`, `<code class="language-sh">`} {
			if !strings.Contains(got.Body.String(), want) {
				t.Errorf("no %s", want)
			}
		}
		for _, path := range []string{"/runbooks/Nothing.md", "/runbooks/runbooks.go", "/runbooks/..%2fgo.mod"} {
			if got := h.page(t, path, browser, api.Sources{}); got.Code != 404 {
				t.Errorf("%s: %d", path, got.Code)
			}
		}
	})
}

// TestEachTroubleHasItsRunbook: a word on the status page that nobody explains helps nobody.
func TestEachTroubleHasItsRunbook(t *testing.T) {
	for of, page := range api.PageOf {
		if _, err := os.Stat("../runbooks/" + page); err != nil {
			t.Errorf("%s: %v", of, err)
		}
	}
	for _, state := range api.States {
		if api.PageOf[string(state)] == "" && state != api.Ready {
			t.Errorf("the state %s has no page", state)
		}
	}
	upkeep := map[pool.Reason]bool{pool.Turns: true, pool.Age: true, pool.Recycled: true, pool.Shutdown: true}
	for _, why := range pool.Reasons {
		if api.PageOf[string(why)] == "" && !upkeep[why] {
			t.Errorf("deaths by %s have no page", why)
		}
	}
}
