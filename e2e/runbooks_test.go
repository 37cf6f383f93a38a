package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"codexpool/configs"
)

const books = "../runbooks"

// TestRunbookChecksPrintWhatThePagesPromise pastes each command of each page
// into a shell, while all is well and while it is not. What is printed in trouble must
// tell the cause from the others of its page. Then it does what the page says against it.
func TestRunbookChecksPrintWhatThePagesPromise(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		checks := checksOf(t, page)
		shown := make([]bool, len(checks)) // an output in trouble of this check was seen
		t.Run(page, func(t *testing.T) {
			t.Parallel() // they mostly wait
			if len(checks) > 0 && len(troublesOf(page)) == 0 {
				newPatient(t, trouble{page: page}).well(checks)
			}
			skipped := false
			for _, tr := range troublesOf(page) {
				t.Run(strconv.Itoa(tr.cause), func(t *testing.T) {
					defer func() { skipped = skipped || t.Skipped() }()
					p := newPatient(t, tr)
					p.well(checks)
					p.fall()
					for i, c := range checks {
						shown[i] = p.ill(c) || shown[i]
					}
					p.tellsTheCause(checks)
					if tr.cure != nil {
						tr.cure(p)
						eventually(t, time.Minute, "recovery", func() bool { return p.cured() })
					}
				})
			}
			for i, c := range checks {
				if len(c.ill) > 0 && !shown[i] && len(troublesOf(page)) > 0 && !skipped {
					t.Errorf("no trouble makes %s print what the page has for it", c.command)
				}
			}
		})
	}
}

// well pastes each command while all is well.
func (p *patient) well(checks []check) {
	p.t.Helper()
	for _, c := range checks {
		got := p.paste(c.command)
		if c.well != nil && !c.well.MatchString(got) {
			p.t.Errorf("while all is well, %s\nprints\n%s", c.command, got)
		}
		for _, ill := range c.ill {
			if ill.output.MatchString(got) {
				p.t.Errorf("while all is well, %s\nprints what is for trouble:\n%s", c.command, got)
			}
		}
	}
}

// ill reports whether the check shows trouble, after a while: it may come from other
// processes.
func (p *patient) ill(c check) bool {
	p.t.Helper()
	if len(c.ill) == 0 {
		return false
	}
	for began := time.Now(); time.Since(began) < 8*time.Second; time.Sleep(50 * time.Millisecond) {
		got := p.paste(c.command)
		for _, ill := range c.ill {
			if ill.output.MatchString(got) {
				if c.well != nil && c.well.MatchString(got) {
					p.t.Errorf("%s\nprints what is both well and ill:\n%s", c.command, got)
				}
				return true
			}
		}
		if c.well != nil && c.well.MatchString(got) && p.trouble.spares(c) {
			return false
		}
	}
	if !p.trouble.spares(c) {
		p.t.Errorf("while it is ill, %s\nprints\n%s", c.command, p.paste(c.command))
	}
	return false
}

// tellsTheCause asserts that the outputs for a cause are those of this trouble's. They may
// come a while after it, but not with those of another.
func (p *patient) tellsTheCause(checks []check) {
	p.t.Helper()
	want := map[int]bool{}
	for _, c := range checks {
		if slices.ContainsFunc(c.ill, func(ill symptom) bool { return ill.cause == p.trouble.cause }) {
			want[p.trouble.cause] = true
		}
	}
	var told map[int]bool
	for began := time.Now(); time.Since(began) < 8*time.Second; time.Sleep(50 * time.Millisecond) {
		if told = p.told(checks); len(told) >= len(want) {
			break
		}
	}
	if !maps.Equal(told, want) {
		p.t.Errorf("the checks tell of the causes %v, want %v", slices.Sorted(maps.Keys(told)), slices.Sorted(maps.Keys(want)))
	}
}

// told are the causes that the checks tell of now.
func (p *patient) told(checks []check) map[int]bool {
	p.t.Helper()
	causes := map[int]bool{}
	for _, c := range checks {
		got := p.paste(c.command)
		for _, ill := range c.ill {
			if ill.cause != 0 && ill.output.MatchString(got) {
				causes[ill.cause] = true
			}
		}
	}
	return causes
}

// paste runs a command of a page as its reader would, beside this daemon.
func (d *daemon) paste(command string) string {
	d.t.Helper()
	log := filepath.Join(d.t.TempDir(), "log")
	if err := os.WriteFile(log, []byte(d.logged()), 0o600); err != nil {
		d.t.Fatal(err)
	}
	public, admin := strings.TrimPrefix(d.url, "http://"), strings.TrimPrefix(d.admin, "http://")
	command = strings.NewReplacer("127.0.0.1:11435", public, "127.0.0.1:11436", admin).Replace(command)
	cmd := exec.Command("bash", "-c", command)
	cmd.Env = append(slices.Clone(d.cmd.Env), "PORT="+portOf(d.url), "PROXY_ADMIN_ADDR="+admin, "KEY="+key, "LOG="+log, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"))
	out, _ := cmd.CombinedOutput() // grep fails where it finds nothing
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	return string(out)
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// check is one command of a page, and its outputs.
type check struct {
	command string
	well    *regexp.Regexp // nil = the page has none
	ill     []symptom
}

// symptom is an output in trouble. cause is the one that it tells from others, or 0.
type symptom struct {
	cause  int
	output *regexp.Regexp
}

var (
	checkForm = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$((?:\n\n(?:All is well|In trouble(?:, cause \\d+)?):\n\n^```text\n(?:.*?)^```$)*)")
	outputs   = regexp.MustCompile("(?ms)(All is well|In trouble(?:, cause (\\d+))?):\n\n^```text\n(.*?)^```$")
	sections  = []string{"Symptoms", "Causes", "Checks", "Fixes"}
)

// section is the text of a page under a heading.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, text, ok := strings.Cut(readBook(t, page), "\n## "+heading+"\n")
	if !ok {
		t.Errorf("%s: no heading %s", page, heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text + "\n"
}

// checksOf reads the commands of the section Checks with their outputs.
func checksOf(t *testing.T, page string) (checks []check) {
	t.Helper()
	text := section(t, page, "Checks")
	fences := 0
	for _, m := range checkForm.FindAllStringSubmatch(text, -1) {
		c := check{command: m[1]}
		fences += 2
		for _, o := range outputs.FindAllStringSubmatch(m[2], -1) {
			fences += 2
			if o[1] == "All is well" {
				c.well = pattern(o[3])
				continue
			}
			cause, _ := strconv.Atoi(o[2])
			c.ill = append(c.ill, symptom{cause, pattern(o[3])})
		}
		checks = append(checks, c)
	}
	if got := strings.Count(text, "\n```"); got != fences {
		t.Errorf("%s: %d fences, of which %d belong to a check with captions over its outputs", page, got, fences)
	}
	return checks
}

// pattern compiles an output: "…" stands for anything in a line, alone for any
// number of lines; "n" for a number, "N" for one above 0; "(nothing)" for no output.
func pattern(block string) *regexp.Regexp {
	words := regexp.MustCompile(`\bN\b`)
	word := regexp.MustCompile(`\bn\b`)
	var expr strings.Builder
	for line := range strings.Lines(block) {
		switch line = strings.TrimSpace(line); line {
		case "(nothing)":
		case "…":
			expr.WriteString(`(.*\n)*`)
		default:
			line = strings.Join(strings.Fields(regexp.QuoteMeta(line)), `[ \t]+`) // columns are as wide as their widest
			line = words.ReplaceAllString(line, `(?:[1-9][0-9.]*|0\.[0-9]*[1-9][0-9]*)`)
			line = word.ReplaceAllString(line, `[0-9][0-9.]*`)
			expr.WriteString(` *` + strings.ReplaceAll(line, "…", ".*") + `[ \r]*\n`) // headers end with both
		}
	}
	return regexp.MustCompile(`^` + expr.String() + `$`)
}

// TestRunbookPagesHaveTheForm: whoever is on call finds the same things in the same places.
func TestRunbookPagesHaveTheForm(t *testing.T) {
	led := alertsByPage(t)
	for _, page := range pages(t) {
		text := readBook(t, page)
		var titles []string
		for _, title := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch(text, -1) {
			titles = append(titles, title[1])
		}
		if !slices.Equal(titles, sections) {
			t.Errorf("%s: its sections are %q, want %q", page, titles, sections)
		}
		head, _, _ := strings.Cut(text, "\n## ")
		wants := []string{"- Users feel: ", "- Urgency: ", "- In a hurry: "}
		alerts := ""
		if names := led[page]; len(names) > 0 {
			wants = append(wants, "- Threshold: ")
			alerts = "Alerts: " + strings.Join(names, ", ")
		}
		if got := regexp.MustCompile(`(?m)^Alerts: .*$`).FindString(head); got != alerts {
			t.Errorf("%s has %q, want %q", page, got, alerts)
		}
		for _, want := range wants {
			if strings.Count(head, "\n"+want) != 1 {
				t.Errorf("%s: not one line %q in its head", page, want)
			}
		}
		fixes := section(t, page, "Fixes")
		if !strings.Contains(fixes, "\nIt worked when ") || !strings.HasSuffix(fixes, "\nIf none of this helped: save the files that the [index](README.md#if-none-of-this-helped) lists, [drain](Drain.md) this replica, and call those who maintain the service.\n\n") {
			t.Errorf("%s: its fixes do not end with how to know that they worked, and what to do otherwise", page)
		}
		causes := strings.Count(section(t, page, "Causes"), ". **")
		for _, c := range checksOf(t, page) {
			for _, ill := range c.ill {
				if ill.cause > causes {
					t.Errorf("%s has an output for cause %d of %d", page, ill.cause, causes)
				}
			}
		}
	}
}

func TestRunbookIndexNamesEveryPageAndAlert(t *testing.T) {
	index := readBook(t, "README.md")
	linked := map[string]bool{}
	for _, link := range regexp.MustCompile(`\]\((\w+\.md)\)`).FindAllStringSubmatch(index, -1) {
		linked[link[1]] = true
	}
	if got, want := slices.Sorted(maps.Keys(linked)), append(pages(t), references[1:]...); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("it names %q, there are %q", got, want)
	}
	_, table, _ := strings.Cut(index, "\n## By alert\n\n")
	table, _, _ = strings.Cut(table, "\n\n")
	want := "| alert | severity | page |\n|---|---|---|"
	severities := map[string][]string{}
	for _, a := range alertPages(t) {
		if !slices.Contains(severities[a.name], a.severity) {
			severities[a.name] = append(severities[a.name], a.severity)
		}
	}
	for _, a := range slices.CompactFunc(alertPages(t), func(a, b alertPage) bool { return a.name == b.name }) {
		want += fmt.Sprintf("\n| %s | %s | [%s](%s) |", a.name, strings.Join(severities[a.name], " or "), strings.TrimSuffix(a.page, ".md"), a.page)
	}
	if table != want {
		t.Errorf("its table of alerts is\n%s\nwant\n%s", table, want)
	}
	for _, tr := range troubles {
		if !slices.Contains(pages(t), tr.page) {
			t.Errorf("a trouble is of %s, which is no page", tr.page)
		}
	}
}

// alertPage is an alert with what leads from it to its page.
type alertPage struct{ name, severity, page string }

func alertPages(t *testing.T) (list []alertPage) {
	t.Helper()
	text, err := os.ReadFile("../configs/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`(?s)- alert: (\w+)\n.*?severity: (\w+)\n.*?runbook_url: \S+/(\w+\.md)\n`)
	for _, m := range form.FindAllStringSubmatch(string(text), -1) {
		list = append(list, alertPage{m[1], m[2], m[3]})
	}
	if len(list) < 40 {
		t.Fatalf("only %d alerts were found", len(list))
	}
	return list
}

// alertsByPage are the alerts that lead to each page, each once, in the order of the rules.
func alertsByPage(t *testing.T) map[string][]string {
	t.Helper()
	led := map[string][]string{}
	for _, a := range alertPages(t) {
		if !slices.Contains(led[a.page], a.name) {
			led[a.page] = append(led[a.page], a.name)
		}
	}
	return led
}

// TestRunbookNamesExist fails when a page has a name that does not exist: of a metric, a
// setting, an alert, an error, a field, a command, a header, a file or a heading.
func TestRunbookNamesExist(t *testing.T) {
	exist := known(t)
	kinds := map[string]*regexp.Regexp{
		"metric or alert": regexp.MustCompile(`\b(codexpool_\w+|Codexpool[A-Z]\w+)`),
		"setting":         regexp.MustCompile(`\b((?:PROXY|POOL|CODEX|OPENAI|LOG)_[A-Z_]+)\b`),
		"word":            regexp.MustCompile("`([a-z]+(?:_[a-z]+)+)`"),
		"reason":          regexp.MustCompile("(?:reason=\"|reasons? `)(\\w+)"),
		"command":         regexp.MustCompile("(?m)(?:^ *|`)codexpool ([a-z]+)"),
		"header":          regexp.MustCompile(`\b((?:[XA][a-z]*|Retry)-[A-Z][A-Za-z-]+)\b`),
		"path":            regexp.MustCompile(`127\.0\.0\.1:1143[56](/[a-z]+(?:/[a-z]+)?)`),
	}
	for _, page := range append(pages(t), references...) {
		text := readBook(t, page)
		found := 0
		for kind, form := range kinds {
			for _, m := range form.FindAllStringSubmatch(text, -1) {
				if found++; !exist[m[1]] {
					t.Errorf("%s: there is no %s %s", page, kind, m[1])
				}
			}
		}
		if found == 0 {
			t.Errorf("%s names nothing", page)
		}
		for _, link := range regexp.MustCompile(`\]\((\w+\.md)?(?:#([a-z-]+))?\)`).FindAllStringSubmatch(text, -1) {
			target := link[1]
			if target == "" {
				target = page
			}
			if link[2] != "" && !slices.Contains(anchors(t, target), link[2]) {
				t.Errorf("%s: %s has no heading %s", page, target, link[2])
			} else if _, err := os.Stat(filepath.Join(books, target)); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}

// anchors are the headings of a page, as GitHub links to them.
func anchors(t *testing.T, page string) (all []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(readBook(t, page), -1) {
		all = append(all, strings.ReplaceAll(regexp.MustCompile(`[^a-z -]`).ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return all
}

// known are the names that the program and its files have, each from where it is defined.
func known(t *testing.T) map[string]bool {
	t.Helper()
	exist := map[string]bool{}
	add := func(path, form string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("..", path))
		if err != nil {
			t.Fatal(err)
		}
		all := regexp.MustCompile(form).FindAllStringSubmatch(string(text), -1)
		if len(all) == 0 {
			t.Errorf("%s has nothing like %s", path, form)
		}
		for _, m := range all {
			exist[m[1]] = true
		}
	}
	add("metrics/testdata/page.prom", `(?m)^(?:# TYPE )?(\w+)`)
	add("metrics/testdata/page.prom", `="(\w+)"`) // values of labels
	add("configs/prometheus/alerts.yml", `alert: (\w+)`)
	add("README.md", "(?m)^\\| `(\\w+)` \\|")     // fields of the log, states, reasons, codes
	add("README.md", `(?m)^    (\w+) = `)         // fields of the keys file
	add("README.md", "(?:POST|GET) `?(/[a-z/]+)") // routes
	add("api/errors.go", `"(client_\w+)"`)
	add("api/index.go", `(?m)^(?:GET|POST) +(/[a-z/]*)`)          // and more of them
	add("api/admin.go", `"(?:POST|DELETE|GET) (/[a-z/]+)`)        // and more
	add("api/admin.go", `handle\("GET", "(/[a-z]+)`)              // and more
	add("configs/nginx/codexpool.conf", `\b([a-z]+(?:_[a-z]+)+)`) // of nginx, and edge_unavailable
	add("configs/caddy/Caddyfile", `\b([a-z]+(?:_[a-z]+)+)`)
	add("configs/compose/.env.example", `(?m)^(\w+)=`)
	add("cmd/codexpool/flags.go", `(?m)^  ([a-z]+) {2,}\S`)
	add("cmd/codexpool/flags.go", `(?m)^  ([a-z]+) (?:new|\[)`)
	add("runbooks/Errors.md", "(?m)^\\| `(\\w+)` \\|") // which has a test in package api
	cfg, err := configs.Load([]string{"PROXY_ENV=dev"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range cfg.Settings() {
		exist[s.Name] = true
	}
	// Of others: the kernel, Loki, the CLI, clients, browsers.
	for _, name := range []string{"nr_throttled", "stream_extracted", "service_tier", "process_resident_memory_bytes", "X-Request-Id", "Retry-After", "Access-Control-Allow-Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers", "/verify", "/v1/chat", "/debug/pprof"} {
		exist[name] = true
	}
	return exist
}

// references are no pages of the form: the index, the table of errors, programs for the log.
var references = []string{"README.md", "Errors.md", "Logs.md"}

// pages are the runbooks, without the references.
func pages(t *testing.T) (names []string) {
	t.Helper()
	paths, err := filepath.Glob(books + "/*.md")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		if name := filepath.Base(path); !slices.Contains(references, name) {
			names = append(names, name)
		}
	}
	return names
}

func readBook(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(books, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
