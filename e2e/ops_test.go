package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const rules = "../configs/prometheus"

// alert is a rule of alerts.yml.
type alert struct{ name, text string }

// alerts are the rules of alerts.yml that alert. A name may have several.
func alerts(t *testing.T) (list []alert) {
	t.Helper()
	for _, text := range strings.Split(readRules(t, "alerts.yml"), "      - alert: ")[1:] {
		name, _, _ := strings.Cut(text, "\n")
		list = append(list, alert{name, text})
	}
	if len(list) < 20 {
		t.Fatalf("only %d rules were found", len(list))
	}
	return list
}

func readRules(t *testing.T, name string) string {
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
	tested := map[string]bool{}
	for _, a := range alerts(t) {
		if tested[a.name] {
			continue
		}
		tested[a.name] = true
		t.Run(a.name, func(t *testing.T) {
			cases := readRules(t, "tests/"+a.name+".yml")
			if !strings.Contains(cases, "exp_labels:") || (a.name != "CodexpoolWatchdog" && !strings.Contains(cases, "exp_alerts: []")) {
				t.Error("no case in which it fires, or none in which it is silent")
			}
			dir := t.TempDir()
			write(t, filepath.Join(dir, "alerts.yml"), rulesOf(t, a.name))
			write(t, filepath.Join(dir, a.name+".yml"), cases)
			tool(t, dir, promtool, "test", "rules", a.name+".yml")
			if other := bound.ReplaceAllString(cases, `le="$1.0"`); other != cases {
				write(t, filepath.Join(dir, a.name+"-le.yml"), other)
				tool(t, dir, promtool, "test", "rules", a.name+"-le.yml")
			}
		})
	}
	files, err := os.ReadDir(filepath.Join(rules, "tests"))
	if err != nil || len(files) != len(tested) {
		t.Errorf("%d files of cases for %d alerts, %v", len(files), len(tested), err)
	}
}

// rulesOf are the rules of one alert, with what they are computed from, in a file of
// their own: all together take many times as long. The annotations are left out, because a
// case would have to repeat them.
func rulesOf(t *testing.T, name string) string {
	t.Helper()
	recorded, _, ok := strings.Cut(readRules(t, "alerts.yml"), "  - name: codexpool-slo\n")
	if !ok {
		t.Fatal("the group of recorded series is not the first")
	}
	text := "  - name: codexpool\n    rules:\n"
	for _, a := range alerts(t) {
		if a.name == name {
			rule, _, _ := strings.Cut(a.text, "        annotations:\n")
			text += "      - alert: " + rule
		}
	}
	if strings.Contains(text, ":codexpool_") {
		return recorded + text
	}
	return "groups:\n" + text
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOpsAlertsSayWhatToDo holds what a person on call is shown.
func TestOpsAlertsSayWhatToDo(t *testing.T) {
	for _, a := range alerts(t) {
		if !regexp.MustCompile(`(?m)^          severity: (critical|warning|info|none)$`).MatchString(a.text) {
			t.Errorf("%s: no severity", a.name)
		}
		for _, what := range []string{`summary: "[A-Z]`, `description: >-\n +\S`} {
			if !regexp.MustCompile(`(?m)^          ` + what).MatchString(a.text) {
				t.Errorf("%s: no %s", a.name, what)
			}
		}
		page := regexp.MustCompile(`runbook_url: https://example\.invalid/codexpool/runbooks/(\w+\.md)\n`).FindStringSubmatch(a.text)
		if page == nil {
			t.Errorf("%s: no page", a.name)
			continue
		}
		text := readBook(t, page[1])
		for _, heading := range []string{"Symptoms", "Causes", "Checks", "Fixes"} {
			if strings.Count(text, "\n## "+heading+"\n") != 1 {
				t.Errorf("%s: no heading %s", page[1], heading)
			}
		}
		if !strings.Contains(text, a.name) {
			t.Errorf("%s does not say that %s leads there", page[1], a.name)
		}
	}
}

// TestOpsRulesNameWhatExists: a rule over a series that nobody writes never fires.
func TestOpsRulesNameWhatExists(t *testing.T) {
	page, err := os.ReadFile("../metrics/testdata/page.prom")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{readRules(t, "alerts.yml")}
	recorded := regexp.MustCompile(`record: (\S+)`).FindAllStringSubmatch(names[0], -1)
	checked := 0
	for _, m := range regexp.MustCompile(`([a-z_]+:)?(codexpool_\w+)(:\w+)?(?:\{([^}]*)\})?`).FindAllStringSubmatch(names[0], -1) {
		if m[1] != "" {
			if !slices.ContainsFunc(recorded, func(r []string) bool { return r[1] == m[1]+m[2]+m[3] }) {
				t.Errorf("%s is not recorded", m[1]+m[2]+m[3])
			}
			continue
		}
		series := regexp.MustCompile(`(?m)^`+m[2]+`[ {].*$`).FindAllString(string(page), -1)
		if len(series) == 0 {
			t.Errorf("there is no %s", m[2])
		}
		for _, l := range regexp.MustCompile(`(\w+)(=~?|!=|!~)"([^"]*)"`).FindAllStringSubmatch(m[4], -1) {
			for _, value := range strings.Split(l[3], "|") {
				if l[1] == "le" {
					value = strings.TrimSuffix(value, `(\\.0)?`)
				}
				checked++
				if !slices.ContainsFunc(series, func(s string) bool { return strings.Contains(s, fmt.Sprintf(`%s=%q`, l[1], value)) }) {
					t.Errorf("%s has no %s=%q", m[2], l[1], value)
				}
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d values were checked", checked)
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
