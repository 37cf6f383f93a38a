package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"codexpool/configs"
)

const books = "../runbooks"

// illnesses brings about the trouble that each page is for, in a healthy daemon
// with a single child. It lasts for as long as the checks take.
var illnesses = map[string]struct {
	env   []string
	bring func(d *daemon, f *faulty)
}{
	"ChildStartsFail.md": {nil, func(d *daemon, f *faulty) {
		f.set("exits in handshake")
		syscall.Kill(d.children()[0], syscall.SIGKILL)
	}},
	"ChildrenCrash.md": {[]string{"POOL_PROBE_MS=100"}, func(d *daemon, f *faulty) {
		f.set("exits when probed")
		syscall.Kill(d.children()[0], syscall.SIGKILL)
	}},
	"ChildWedged.md": {[]string{"POOL_PROBE_MS=500", "PROXY_STREAM_IDLE_TIMEOUT_MS=500"}, func(d *daemon, f *faulty) {
		f.set("steers") // its turns never begin
		syscall.Kill(d.children()[0], syscall.SIGKILL)
		eventually(d.t, time.Minute, "death", func() bool { return len(d.pool().Deaths) == 1 })
		d.full(1)
		f.set("")
		d.stream("hi")
		eventually(d.t, time.Minute, "second death", func() bool { return len(d.pool().Deaths) == 2 })
		d.full(1)
		syscall.Kill(d.children()[0], syscall.SIGSTOP)
	}},
	"PoolSaturated.md": {[]string{"POOL_MAX_WAITING=1"}, func(d *daemon, _ *faulty) {
		d.keepBusy(strings.Repeat("word ", 1000), 3) // one runs, one waits, one is rejected
	}},
	"ChildMemoryGrows.md": {[]string{"POOL_MAX_CHILD_BYTES=250000000", "POOL_MIN_LIFE_MS=0"}, func(d *daemon, f *faulty) {
		f.set("grows")
		syscall.Kill(d.children()[0], syscall.SIGKILL)
		eventually(d.t, 5*time.Second, "death", func() bool { return len(d.pool().Deaths) == 1 })
		for range 4 { // by 64 MB each: it is retired
			d.stream("hi")
		}
		eventually(d.t, time.Minute, "death by memory", func() bool { return len(d.pool().Deaths) == 2 })
		for range 2 { // the next child is kept
			d.stream("hi")
		}
	}},
}

// keepBusy sends requests whose answers are read until the test ends.
func (d *daemon) keepBusy(text string, times int) {
	for range times {
		req, err := http.NewRequestWithContext(d.t.Context(), "POST", d.url+"/v1/chat/completions", strings.NewReader(chatBody(text, true)))
		if err != nil {
			d.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		go func() { // ends with the test
			if res, err := http.DefaultClient.Do(req); err == nil {
				readStream(res.Body, func(chunk) {})
				res.Body.Close()
			}
		}()
	}
}

// TestRunbookChecksPrintWhatThePagesPromise pastes each command of each page
// into a shell, while all is well and while it is not.
func TestRunbookChecksPrintWhatThePagesPromise(t *testing.T) {
	t.Parallel()
	for _, page := range drilled(t) {
		t.Run(page, func(t *testing.T) {
			t.Parallel() // they mostly wait
			illness, known := illnesses[page]
			if !known {
				t.Fatal("the test does not know how to bring it about")
			}
			checks := checksOf(t, page)
			f := newFaulty(t)
			d := start(t, append(illness.env, "POOL_SIZE=1", "CODEX_BIN="+f.path, "CODEX_ECHO_DELAY_MS=100", "CODEX_STOP_GRACE_MS=100", "POOL_BACKOFF_MAX_MS=500")...)
			for _, c := range checks {
				if got := d.paste(c.command); !c.healthy.MatchString(got) || c.ill.MatchString(got) {
					t.Errorf("while all is well, %s\nprints\n%s", c.command, got)
				}
			}
			illness.bring(d, f)
			for _, c := range checks {
				var got string
				for began := time.Now(); time.Since(began) < 8*time.Second; time.Sleep(50 * time.Millisecond) { // it comes from other processes
					if got = d.paste(c.command); c.ill.MatchString(got) {
						break
					}
				}
				if !c.ill.MatchString(got) || c.healthy.MatchString(got) {
					t.Errorf("while it is ill, %s\nprints\n%s", c.command, got)
				}
			}
		})
	}
}

// paste runs a command of a page as its reader would, beside this daemon.
func (d *daemon) paste(command string) string {
	d.t.Helper()
	log := filepath.Join(d.workdir, "log")
	if err := os.WriteFile(log, []byte(d.logged()), 0o600); err != nil {
		d.t.Fatal(err)
	}
	command = strings.NewReplacer(
		"127.0.0.1:11435", strings.TrimPrefix(d.url, "http://"),
		"127.0.0.1:11436", strings.TrimPrefix(d.admin, "http://"),
	).Replace(command)
	cmd := exec.Command("bash", "-c", command)
	cmd.Env = append(d.cmd.Env, "LOG="+log, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	out, _ := cmd.CombinedOutput() // grep fails where it finds nothing
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	return string(out)
}

// check is one command of a page, and its output.
type check struct {
	command      string
	healthy, ill *regexp.Regexp
}

var (
	fenced   = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	sections = []string{"Symptoms", "Causes", "Checks", "Fixes"}
)

// checksOf reads the section Checks: blocks of sh, healthy and ill, in turns.
func checksOf(t *testing.T, page string) (checks []check) {
	t.Helper()
	text := readBook(t, page)
	var titles []string
	for _, title := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(text, -1) {
		titles = append(titles, title[1])
	}
	if !slices.Equal(titles, sections) {
		t.Fatalf("its sections are %q, want %q", titles, sections)
	}
	_, text, _ = strings.Cut(text, "\n## Checks\n")
	text, _, _ = strings.Cut(text, "\n## Fixes\n")
	blocks := fenced.FindAllStringSubmatch(text, -1)
	if len(blocks) == 0 || len(blocks)%3 != 0 || strings.Count(text, "```") != 2*len(blocks) {
		t.Fatalf("%d blocks: each check is one of sh, one of healthy and one of ill", len(blocks))
	}
	for three := range slices.Chunk(blocks, 3) {
		if three[0][1] != "sh" || three[1][1] != "healthy" || three[2][1] != "ill" {
			t.Fatalf("a check has %s, %s and %s, want sh, healthy and ill", three[0][1], three[1][1], three[2][1])
		}
		checks = append(checks, check{three[0][2], pattern(three[1][2]), pattern(three[2][2])})
	}
	return checks
}

// pattern compiles a block: "…" stands for anything in a line, alone for any
// number of lines; "(nothing)" for no output.
func pattern(block string) *regexp.Regexp {
	var expr strings.Builder
	for line := range strings.Lines(block) {
		switch line = strings.TrimSpace(line); line {
		case "(nothing)":
		case "…":
			expr.WriteString(`(.*\n)*`)
		default:
			words := strings.Join(strings.Fields(regexp.QuoteMeta(line)), " +") // columns are as wide as their widest
			expr.WriteString(" *" + strings.ReplaceAll(words, "…", ".*") + `\n`)
		}
	}
	return regexp.MustCompile(`^` + expr.String() + `$`)
}

func TestRunbookIndexNamesEveryPage(t *testing.T) {
	index := readBook(t, "README.md")
	linked := map[string]bool{}
	for _, link := range regexp.MustCompile(`\]\((\w+\.md)\)`).FindAllStringSubmatch(index, -1) {
		linked[link[1]] = true
	}
	if got, want := slices.Sorted(maps.Keys(linked)), pages(t); !slices.Equal(got, want) {
		t.Errorf("it names %q, there are %q", got, want)
	}
	if got, want := slices.Sorted(maps.Keys(illnesses)), drilled(t); !slices.Equal(got, want) {
		t.Errorf("the test brings about %q, there are %q", got, want)
	}
}

// TestRunbookNamesExist fails when a page has a name that no longer exists.
func TestRunbookNamesExist(t *testing.T) {
	exist := map[string]bool{}
	metrics, err := os.ReadFile("../metrics/testdata/page.prom")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`(?m)^(?:# TYPE )?(codexpool_\w+)`).FindAllStringSubmatch(string(metrics), -1) {
		exist[name[1]] = true
	}
	cfg, err := configs.Load([]string{"PROXY_ENV=dev"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range cfg.Settings() {
		exist[s.Name] = true
	}
	for _, why := range regexp.MustCompile(`(?m)^codexpool_\w+{.*\breason="(\w+)"`).FindAllStringSubmatch(string(metrics), -1) {
		exist["reason "+why[1]] = true
	}
	name := regexp.MustCompile(`\b(codexpool_\w+|(?:PROXY|POOL|CODEX|OPENAI)_[A-Z_]+)|(?:reason="|"why":"|reasons? ` + "`" + `)(\w+)`)
	for _, page := range append(pages(t), "README.md") {
		named := name.FindAllStringSubmatch(readBook(t, page), -1)
		if len(named) == 0 {
			t.Errorf("%s names nothing", page)
		}
		for _, n := range named {
			what := n[1]
			if what == "" {
				what = fmt.Sprint("reason ", n[2])
			}
			if !exist[what] {
				t.Errorf("%s: there is no %s", page, what)
			}
		}
	}
}

// pages are the runbooks, without their index.
func pages(t *testing.T) (names []string) {
	t.Helper()
	paths, err := filepath.Glob(books + "/*.md")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		if name := filepath.Base(path); name != "README.md" {
			names = append(names, name)
		}
	}
	return names
}

// drilled are the pages whose checks are pasted: those that have commands with their
// output.
func drilled(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(pages(t), func(page string) bool { return !strings.Contains(readBook(t, page), "```sh\n") })
}

func readBook(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(books, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
