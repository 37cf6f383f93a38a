package e2e

import (
	"context"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// statusSections are those of the status page.
var statusSections = []string{"troubles", "charts", "children", "queue", "errors", "deaths", "provider", "routes"}

// look opens a page in a browser, and returns it as it stands there. What the browser
// complains about on its console is an error.
func look(t *testing.T, url string, args ...string) (page string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args = append([]string{"--no-sandbox", "--disable-gpu", "--user-data-dir=" + t.TempDir(), "--enable-logging=stderr", "--dump-dom"}, append(args, url)...)
	cmd := exec.CommandContext(ctx, installed(t, "chromium-headless-shell"), args...)
	cmd.Env = []string{"HOME=" + t.TempDir(), markVar + "=" + runMark}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &complaints)
	}
	if strings.Contains(complaints.String(), "CONSOLE") {
		t.Errorf("%s: the browser complains:\n%s", url, &complaints)
	}
	return string(out)
}

// lookAt opens the status page, and holds each section to have something.
func (d *daemon) lookAt(t *testing.T, when string, wants ...string) {
	t.Helper()
	page := look(t, d.admin+"/")
	var ids []string
	for _, m := range regexp.MustCompile(`(?s)<section id="(\w+)"><h2>[^<]+</h2>(.*?)</section>`).FindAllStringSubmatch(page, -1) {
		ids = append(ids, m[1])
		if text := regexp.MustCompile(`<[^>]*>|\s`).ReplaceAllString(m[2], ""); len(text) < 5 {
			t.Errorf("%s: the section %s is empty", when, m[1])
		}
	}
	if !slices.Equal(ids, statusSections) {
		t.Errorf("%s: statusSections %q", when, ids)
	}
	for _, want := range wants {
		if !regexp.MustCompile(want).MatchString(page) {
			t.Errorf("%s: no %s in\n%s", when, want, page)
		}
	}
}

// TestStatusPageInABrowser opens the page of a daemon that is well, that is under load, and
// that is in trouble. What its children write is hostile.
func TestStatusPageInABrowser(t *testing.T) {
	t.Parallel()
	installed(t, "chromium-headless-shell")
	f := newFaulty(t)
	up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Ratelimit-Limit-Tokens", "150000")
		w.Header().Set("X-Ratelimit-Remaining-Tokens", "149000")
		endless(t.Context().Done())(w, r)
	})
	d := start(t, "CODEX_BIN="+f.path, "POOL_SIZE=2", "POOL_MAX_WAITING=8", "CODEX_UPSTREAM="+up.URL+"/v1", "CODEX_UPSTREAM_API_KEY="+upstreamKey)
	d.lookAt(t, "well", `<title>ready - codexpool`, `class="good">ready`, `None that is known`, `No child has died`, `told no limit`)

	d.keepBusy("the prompt", 5)
	eventually(t, time.Minute, "full pool and a queue", func() bool {
		m := d.metrics()
		return m["codexpool_pool_waiting"] == 3 && m[`codexpool_sse_streams{state="open"}`] == 2 && m[`codexpool_upstream_ratelimit_limit{unit="tokens"}`] > 0
	})
	d.lookAt(t, "under load", `class="warn">ready`, `requests are in the queue: 3 of at most 8\. <a href="/runbooks/PoolSaturated\.md">`,
		`key 1, request req_`, `<td>1</td><td>3</td><td>5</td>`, `<td>tokens</td><td>149000</td><td>150000</td>`)

	f.set("says markup in handshake")
	for _, pid := range d.children() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	eventually(t, time.Minute, "trouble", func() bool {
		return d.pool().Failure != nil && d.metrics()[`codexpool_state{state="backend_unavailable"}`] == 1
	})
	d.lookAt(t, "in trouble", `class="bad">backend_unavailable`, `<a href="/runbooks/ChildStartsFail\.md">`, `<td>child_exited</td><td>child</td><td>2</td>`, `exited <a href="/runbooks/ChildrenCrash\.md">`,
		`&lt;script&gt;console\.error`, `<path d="M\d+`)
	look(t, d.admin+"/runbooks/ChildStartsFail.md")
	if page := d.paste("curl -s 127.0.0.1:11436/"); strings.Contains(page, "the prompt") || !strings.Contains(page, "codexpool is backend_unavailable") {
		t.Errorf("for curl, or with a prompt:\n%s", page)
	}
}
