package e2e

import (
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"codexpool/codex/codextest"

	"go.yaml.in/yaml/v3"
)

const rules = "../configs/prometheus"

// ruleFile is a file of rules, as Prometheus reads it.
type ruleFile struct {
	Groups []ruleGroup `yaml:"groups"`
}

type ruleGroup struct {
	Name     string `yaml:"name"`
	Interval string `yaml:"interval,omitempty"`
	Rules    []rule `yaml:"rules"`
}

// rule records a series or is an alert. An alert may have several rules.
type rule struct {
	Record        string            `yaml:"record,omitempty"`
	Alert         string            `yaml:"alert,omitempty"`
	Expr          string            `yaml:"expr"`
	For           string            `yaml:"for,omitempty"`
	KeepFiringFor string            `yaml:"keep_firing_for,omitempty"`
	Labels        map[string]string `yaml:"labels,omitempty"`
	Annotations   map[string]string `yaml:"annotations,omitempty"`
}

// readRules reads alerts.yml: the expressions of the recorded series by their names, and
// the rules of each alert by its name.
func readRules(t testing.TB) (recorded map[string]string, alerts map[string][]rule) {
	t.Helper()
	var file ruleFile
	decoder := yaml.NewDecoder(strings.NewReader(readOps(t, "alerts.yml")))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	recorded, alerts = map[string]string{}, map[string][]rule{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Record != "" {
				recorded[r.Record] = r.Expr
				continue
			}
			alerts[r.Alert] = append(alerts[r.Alert], r)
		}
	}
	if len(alerts) < 20 {
		t.Fatalf("only %d alerts were found", len(alerts))
	}
	return recorded, alerts
}

func readOps(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(rules, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tool runs a program of Debian, and fails the test with what it said if it fails.
func tool(t *testing.T, dir, path string, args ...string) string {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %q: %v\n%s", filepath.Base(path), args, err, out)
	}
	return string(out)
}

func TestOpsFilesAreValid(t *testing.T) {
	t.Parallel()
	promtool := needsOf(t, "promtool", "prometheus")
	amtool := needsOf(t, "amtool", "prometheus-alertmanager")
	tool(t, rules, promtool, "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
	tool(t, rules, promtool, "check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")
	tool(t, rules, amtool, "check-config", "alertmanager.yml")
	for labels, receiver := range map[string]string{
		"alertname=CodexpoolWatchdog severity=none":           "deadman",
		"alertname=CodexpoolDown severity=critical":           "page",
		"alertname=CodexpoolPoolSaturated severity=warning":   "tickets",
		"alertname=CodexpoolVersionsDiffer severity=info":     "chat",
		"alertname=CodexpoolErrorBudgetBurn severity=warning": "tickets",
	} {
		args := append([]string{"config", "routes", "test", "--config.file=alertmanager.yml", "--verify.receivers=" + receiver}, strings.Fields(labels)...)
		tool(t, rules, amtool, args...)
	}
}

// TestOpsAlertsFireAndStaySilent runs the cases of each alert, with both spellings of the
// bounds of histograms: Prometheus 3 makes 2 into 2.0.
func TestOpsAlertsFireAndStaySilent(t *testing.T) {
	t.Parallel()
	promtool := needsOf(t, "promtool", "prometheus")
	bound := regexp.MustCompile(`le="(\d+)"`)
	recorded, alerts := readRules(t)
	for name, rules := range alerts {
		t.Run(name, func(t *testing.T) {
			dir, cases := t.TempDir(), readOps(t, "tests/"+name+".yml")
			write(t, filepath.Join(dir, "alerts.yml"), rulesOf(t, recorded, rules))
			write(t, filepath.Join(dir, name+".yml"), cases)
			tool(t, dir, promtool, "test", "rules", name+".yml")
			if other := bound.ReplaceAllString(cases, `le="$1.0"`); other != cases {
				write(t, filepath.Join(dir, name+"-le.yml"), other)
				tool(t, dir, promtool, "test", "rules", name+"-le.yml")
			}
		})
	}
	files, err := os.ReadDir(filepath.Join(rules, "tests"))
	if err != nil || len(files) != len(alerts) {
		t.Errorf("%d files of cases for %d alerts, %v", len(files), len(alerts), err)
	}
}

// TestOpsAlertsHaveAllKindsOfCases: the name of each case begins with its kind.
func TestOpsAlertsHaveAllKindsOfCases(t *testing.T) {
	counts := regexp.MustCompile(`\b(rate|increase)\(|:(ratio_rate|increase)\w+`)
	kind := regexp.MustCompile(`(?m)^  - name: ['"]?(firing|silent|resolved|no traffic|absent|reset): `)
	_, alerts := readRules(t)
	for name, rules := range alerts {
		wanted := []string{"absent", "firing", "resolved", "silent"}
		switch {
		case name == "CodexpoolWatchdog": // it always fires
			wanted = []string{"firing"}
		case slices.ContainsFunc(rules, func(r rule) bool { return counts.MatchString(r.Expr) }):
			wanted = []string{"absent", "firing", "no traffic", "reset", "resolved", "silent"}
		}
		cases := readOps(t, "tests/"+name+".yml")
		has := map[string]bool{}
		for _, k := range kind.FindAllStringSubmatch(cases, -1) {
			has[k[1]] = true
		}
		if got := slices.Sorted(maps.Keys(has)); !slices.Equal(got, wanted) {
			t.Errorf("%s has cases of the kinds %q, want %q", name, got, wanted)
		}
		if all, known := strings.Count(cases, "\n  - name: "), len(kind.FindAllString(cases, -1)); all != known {
			t.Errorf("%s: %d of its %d cases are of no kind", name, all-known, all)
		}
	}
}

// rulesOf are the rules of one alert, with what they are computed from, in a file of
// their own: all together take many times as long. The annotations are left out, because a
// case would have to repeat them.
func rulesOf(t testing.TB, recorded map[string]string, alert []rule) string {
	t.Helper()
	groups := []ruleGroup{{Name: "codexpool"}}
	var sources []rule
	for _, r := range alert {
		r.Annotations = nil
		groups[0].Rules = append(groups[0].Rules, r)
		for _, name := range recordedName.FindAllString(r.Expr, -1) {
			if expr, ok := recorded[name]; ok && !slices.ContainsFunc(sources, func(s rule) bool { return s.Record == name }) {
				sources = append(sources, rule{Record: name, Expr: expr})
			}
		}
	}
	if len(sources) > 0 {
		groups = append([]ruleGroup{{Name: "recorded", Interval: "30s", Rules: sources}}, groups...)
	}
	text, err := yaml.Marshal(ruleFile{groups})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var recordedName = regexp.MustCompile(`\w+:\w+:\w+`)

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOpsAlertsSayWhatToDo holds what a person on call is shown.
func TestOpsAlertsSayWhatToDo(t *testing.T) {
	_, alerts := readRules(t)
	for name, rules := range alerts {
		for _, r := range rules {
			if !slices.Contains([]string{"critical", "warning", "info", "none"}, r.Labels["severity"]) {
				t.Errorf("%s: no severity", name)
			}
			for _, what := range []string{"summary", "description"} {
				if r.Annotations[what] == "" {
					t.Errorf("%s: no %s", name, what)
				}
			}
			page, ours := strings.CutPrefix(r.Annotations["runbook_url"], "https://example.invalid/codexpool/runbooks/")
			if !ours {
				t.Errorf("%s: no page", name)
				continue
			}
			text := readBook(t, page)
			for _, heading := range []string{"Symptoms", "Causes", "Checks", "Fixes"} {
				if strings.Count(text, "\n## "+heading+"\n") != 1 {
					t.Errorf("%s: no heading %s", page, heading)
				}
			}
			if !strings.Contains(text, name) {
				t.Errorf("%s does not say that %s leads there", page, name)
			}
		}
	}
}

// TestOpsRulesWork lints each rule against a live page: a rule over a series that nobody
// writes, or a text with a label that its alert has not, fails nowhere else.
func TestOpsRulesWork(t *testing.T) {
	t.Parallel()
	recorded, alerts := readRules(t)
	l := newLinter(t, livePage(t), recorded)
	for name, expr := range recorded {
		if _, problems := l.lint(expr); len(problems) > 0 {
			t.Errorf("%s: %s", name, strings.Join(problems, "\n"))
		}
	}
	label := regexp.MustCompile(`\$labels\.(\w+)`)
	for name, rules := range alerts {
		for _, r := range rules {
			set, problems := l.lint(r.Expr)
			if len(problems) > 0 {
				t.Errorf("%s: %s", name, strings.Join(problems, "\n"))
			}
			for _, used := range label.FindAllStringSubmatch(r.Annotations["summary"]+r.Annotations["description"], -1) {
				if _, has := set[used[1]]; !has && r.Labels[used[1]] == "" {
					t.Errorf("%s speaks of its label %s, and has only %v", name, used[1], set.names())
				}
			}
		}
	}
}

// livePage is the metrics page of a daemon that has everything: limits, a keys file, Redis,
// and a provider that tells its own limits.
func livePage(t *testing.T) string {
	t.Helper()
	_, redis := redisServer(t)
	up := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-limit-tokens": "9000", "x-ratelimit-remaining-tokens": "8000",
			"x-codex-primary-used-percent": "12.5", "x-codex-primary-reset-at": "1790000000", "x-codex-primary-window-minutes": "300",
			"x-codex-secondary-used-percent": "2.5", "x-codex-secondary-reset-at": "1790000000", "x-codex-secondary-window-minutes": "10080",
		} {
			w.Header().Set(name, value)
		}
		codextest.Text("ok")(w, r)
	})
	d := start(t, "POOL_SIZE=1", "CODEX_UPSTREAM="+up.URL+"/v1", "PROXY_SSE_MAX_CONCURRENCY=10", "POOL_MAX_CHILD_BYTES=500000000",
		"PROXY_API_KEYS_FILE="+keysFile(t, keyBlock("one")), "PROXY_RATE_LIMIT_MAX=1000", "PROXY_RATE_LIMIT_REDIS_URL=redis://"+redis)
	if status := d.as("one", chatBody("hi", false)); status != http.StatusOK {
		t.Fatal(status)
	}
	return string(d.page())
}

// TestOpsLivePageHasWhatTheGoldenOneHas: what is held against the golden page holds for a
// live one. What keys and models there are differs.
func TestOpsLivePageHasWhatTheGoldenOneHas(t *testing.T) {
	t.Parallel()
	golden, err := os.ReadFile("../metrics/testdata/page.prom")
	if err != nil {
		t.Fatal(err)
	}
	open := regexp.MustCompile(`\b(key|model|version|codex_version)="[^"]*"`)
	names := func(page string) map[string]bool {
		found := map[string]bool{}
		for line := range strings.Lines(page) {
			if series, _, _ := strings.Cut(line, " "); strings.HasPrefix(series, "codexpool_") {
				found[open.ReplaceAllString(series, "")] = true
			}
		}
		return found
	}
	live := names(livePage(t))
	for _, series := range slices.Sorted(maps.Keys(names(string(golden)))) {
		if !live[series] {
			t.Errorf("there is no %s", series)
		}
	}
}

// TestOpsPageIsValid holds a live page against Prometheus' own rules.
func TestOpsPageIsValid(t *testing.T) {
	t.Parallel()
	promtool := needsOf(t, "promtool", "prometheus")
	d := start(t)
	d.stream("hi")
	cmd := exec.Command("sh", "-c", `curl -fsS "$0/metrics" | "$1" check metrics`, d.admin, promtool)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}
