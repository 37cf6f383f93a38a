package e2e

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"codexpool/configs/grafana"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// TestDashboardsAskForWhatExists parses each query as Prometheus does, and looks for each
// metric, label and value on the page of metrics.
func TestDashboardsAskForWhatExists(t *testing.T) {
	page := readPage(t)
	selectors := 0
	for _, d := range grafana.All {
		for _, row := range d.Rows {
			for _, p := range row.Panels {
				for _, q := range p.Queries {
					expr, err := parser.NewParser(parser.Options{}).ParseExpr(grafanaVariables.Replace(q.PromQL()))
					if err != nil {
						t.Errorf("%s, %s: %v", d.Title, p.Title, err)
						continue
					}
					parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
						if s, ok := node.(*parser.VectorSelector); ok {
							selectors++
							for _, problem := range page.problems(s, path) {
								t.Errorf("%s, %s: %s: %s", d.Title, p.Title, s, problem)
							}
						}
						return nil
					})
				}
			}
		}
	}
	if selectors < 60 {
		t.Errorf("only %d selectors were found", selectors)
	}
}

// allSeries are those of the page that the tests of metrics hold.
type allSeries struct {
	kinds  map[string]string   // of each metric
	labels map[string][]string // of each name: its labels, as they are written
}

func readPage(t *testing.T) allSeries {
	t.Helper()
	m := allSeries{map[string]string{}, map[string][]string{}}
	page, err := os.ReadFile("../metrics/testdata/page.prom")
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for _, kind := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(text, -1) {
		m.kinds[kind[1]] = kind[2]
	}
	for _, line := range regexp.MustCompile(`(?m)^(\w+)(\{.*\})? `).FindAllStringSubmatch(text, -1) {
		m.labels[line[1]] = append(m.labels[line[1]], line[2])
	}
	return m
}

var piece = regexp.MustCompile(`_(bucket|sum|count)$`)

// problems are those of a selector, whose place in its query is path.
func (m allSeries) problems(s *parser.VectorSelector, path []parser.Node) (list []string) {
	if !strings.HasPrefix(s.Name, "codexpool_") { // of the Go runtime, the process, or Prometheus
		return nil
	}
	series := m.labels[s.Name]
	if series == nil {
		return []string{"there is no such metric"}
	}
	kind := m.kinds[s.Name]
	if kind == "" {
		kind = m.kinds[piece.ReplaceAllString(s.Name, "")]
	}
	rated := slices.ContainsFunc(path, func(n parser.Node) bool {
		c, ok := n.(*parser.Call)
		return ok && (c.Func.Name == "rate" || c.Func.Name == "increase")
	})
	if rated != (kind != "gauge") {
		list = append(list, "a rate of a gauge, or none of a counter")
	}
	selects := map[string]bool{}
	for _, l := range s.LabelMatchers {
		selects[l.Name] = true
		if l.Name == labels.MetricName || l.Name == "job" || l.Name == "instance" {
			continue
		}
		for value := range strings.SplitSeq(strings.TrimSuffix(l.Value, `(\.0)?`), "|") {
			if !slices.ContainsFunc(series, func(s string) bool { return strings.Contains(s, l.Name+`="`+value+`"`) }) {
				list = append(list, "no "+l.Name+" is "+value)
			}
		}
	}
	if !selects["job"] || !selects["instance"] {
		list = append(list, "the reader's choice of job and instance has no effect")
	}
	for _, n := range path {
		if sum, ok := n.(*parser.AggregateExpr); ok {
			for _, name := range sum.Grouping {
				if name != "instance" && name != "job" && !strings.Contains(series[0], name+`="`) {
					list = append(list, "no label "+name)
				}
			}
		}
	}
	return list
}
