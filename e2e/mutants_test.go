package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// mutant is a mistake in the rules of one alert.
type mutant struct {
	what     string
	recorded map[string]string
	rules    []rule
}

// equivalent are the mutants that no series can tell from the rules, and why.
var equivalent = func() map[string]string {
	const why = "what is counted above is a part of what is counted below: without traffic it is 0/0, which is above no threshold"
	return map[string]string{
		"CodexpoolForwardAuthDenies: without > 0":  why,
		"CodexpoolRequestsTurnedAway: without > 0": why,
		"CodexpoolUnmatchedRequests: without > 0":  why,
		"CodexpoolUpstreamLimits: without > 0":     why,
	}
}()

// TestMutantsAreCaught makes one mistake after the other in the alerts, and runs the
// cases of that alert, which must fail. It is run by make mutants.
func TestMutantsAreCaught(t *testing.T) {
	if os.Getenv("MUTANTS") == "" {
		t.Skip("make mutants runs it")
	}
	promtool := needsOf(t, "promtool", "prometheus")
	recorded, alerts := readRules(t)
	made, spared := 0, 0
	for _, name := range slices.Sorted(maps.Keys(alerts)) {
		cases := casesOf(t, name)
		for _, m := range mutants(t, recorded, alerts[name]) {
			made++
			if equivalent[name+": "+m.what] != "" {
				spared++
			}
			t.Run(name+"/"+m.what, func(t *testing.T) {
				t.Parallel()
				why, noticed := equivalent[name+": "+m.what], m.noticed(t, promtool, cases)
				if noticed == "" && why == "" {
					t.Error("no case notices it")
				}
				if noticed != "" && why != "" {
					t.Errorf("the case %q notices it, so it is not true that %s", noticed, why)
				}
			})
		}
	}
	t.Logf("%d mutants of %d alerts; %d of them are equivalent", made, len(alerts), spared)
}

// ruleCase is a case of an alert, as a file of its own.
type ruleCase struct{ name, text string }

// casesOf splits the cases of an alert: promtool runs all of a file, and the first that
// fails is enough.
func casesOf(t *testing.T, alert string) (cases []ruleCase) {
	t.Helper()
	var file struct {
		RuleFiles          []string    `yaml:"rule_files"`
		EvaluationInterval string      `yaml:"evaluation_interval"`
		Tests              []yaml.Node `yaml:"tests"`
	}
	if err := yaml.Unmarshal([]byte(readOps(t, "tests/"+alert+".yml")), &file); err != nil {
		t.Fatal(err)
	}
	all := file.Tests
	for _, test := range all {
		var named struct{ Name string }
		if err := test.Decode(&named); err != nil {
			t.Fatal(err)
		}
		file.Tests = []yaml.Node{test}
		text, err := yaml.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, ruleCase{named.Name, string(text)})
	}
	return cases
}

// noticed returns the name of a case that fails with the mutant, "" where none does.
func (m mutant) noticed(t *testing.T, promtool string, cases []ruleCase) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "alerts.yml"), rulesOf(t, m.recorded, m.rules))
	for _, c := range cases { // most are noticed by the first, in which the alert fires
		write(t, filepath.Join(dir, "case.yml"), c.text)
		cmd := exec.Command(promtool, "test", "rules", "case.yml")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err == nil {
			continue
		}
		if !strings.Contains(string(out), "FAILED:") || strings.Contains(string(out), "parse error") {
			t.Fatalf("the rules are no longer valid: %s", out)
		}
		return c.name
	}
	return ""
}

// mutants are the mistakes in the rules of one alert, one in each.
func mutants(t *testing.T, recorded map[string]string, rules []rule) (all []mutant) {
	t.Helper()
	for i, r := range rules {
		which := ""
		if len(rules) > 1 {
			which = fmt.Sprint(" of rule ", i+1)
		}
		change := func(what string, change func(*rule)) {
			changed := slices.Clone(rules)
			change(&changed[i])
			all = append(all, mutant{what + which, recorded, changed})
		}
		change("silenced", func(r *rule) { r.Expr = "(" + r.Expr + ") unless on () vector(1)" })
		change("another severity", func(r *rule) {
			r.Labels = maps.Clone(r.Labels)
			r.Labels["severity"] = map[string]string{"critical": "warning", "warning": "critical", "info": "warning", "none": "info"}[r.Labels["severity"]]
		})
		if r.For != "" {
			change("no for", func(r *rule) { r.For = "" })
			change("twice the for", func(r *rule) { r.For = doubled(t, r.For) })
		} else {
			change("a for", func(r *rule) { r.For = "2h" })
		}
		if r.KeepFiringFor != "" {
			change("no keep_firing_for", func(r *rule) { r.KeepFiringFor = "" })
			change("twice the keep_firing_for", func(r *rule) { r.KeepFiringFor = doubled(t, r.KeepFiringFor) })
		}
		for what, expr := range simpler(t, r.Expr) {
			change(what, func(r *rule) { r.Expr = expr })
		}
	}
	used := map[string]bool{}
	for _, r := range rules {
		for _, name := range recordedName.FindAllString(r.Expr, -1) {
			if !used[name] {
				used[name] = true
				for what, expr := range simpler(t, recorded[name]) {
					changed := maps.Clone(recorded)
					changed[name] = expr
					all = append(all, mutant{what + " of " + name, changed, rules})
				}
			}
		}
	}
	return all
}

func doubled(t *testing.T, duration string) string {
	t.Helper()
	d, err := model.ParseDuration(duration)
	if err != nil {
		t.Fatal(err)
	}
	return model.Duration(2 * time.Duration(d)).String()
}

// simpler are the expressions that lack a part of this one: its last guard, a half of an
// or, or the > 0 of a denominator.
func simpler(t *testing.T, expr string) map[string]string {
	t.Helper()
	all := map[string]string{}
	parse := func() parser.Expr { // for each anew: it is changed
		e, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if top, ok := parse().(*parser.BinaryExpr); ok {
		switch top.Op {
		case parser.LAND:
			all["without its last guard"] = top.LHS.String()
		case parser.LOR:
			all["without its first half"], all["without its second half"] = top.RHS.String(), top.LHS.String()
		}
	}
	for n := range denominators(parse()) {
		e := parse()
		d := denominators(e)[n]
		d.RHS = unwrapped(d.RHS).(*parser.BinaryExpr).LHS
		all[cmp.Or(map[int]string{0: "without > 0"}[n], fmt.Sprint("without > 0, number ", n+1))] = e.String()
	}
	return all
}

// denominators are the divisions whose denominator is kept above 0.
func denominators(e parser.Expr) (all []*parser.BinaryExpr) {
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if d, ok := n.(*parser.BinaryExpr); ok && d.Op == parser.DIV {
			if kept, ok := unwrapped(d.RHS).(*parser.BinaryExpr); ok && kept.Op == parser.GTR {
				if zero, is := constant(kept.RHS); is && zero == 0 {
					all = append(all, d)
				}
			}
		}
		return nil
	})
	return all
}
