package e2e

import (
	"slices"
	"testing"

	"codexpool/configs/grafana"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// TestDashboardsAskForWhatExists lints each query against a live page. Beyond that, a
// counter must be shown as a rate, and the reader's choice of job and instance must have
// an effect.
func TestDashboardsAskForWhatExists(t *testing.T) {
	t.Parallel()
	l := newLinter(t, livePage(t), nil)
	selectors := 0
	for _, d := range grafana.All {
		for _, row := range d.Rows {
			for _, p := range row.Panels {
				for _, q := range p.Queries {
					query := grafanaVariables.Replace(q.PromQL())
					if _, problems := l.lint(query); len(problems) > 0 {
						t.Errorf("%s, %s: %s: %q", d.Title, p.Title, query, problems)
						continue
					}
					expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
					if err != nil {
						t.Fatal(err)
					}
					parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
						if s, ok := node.(*parser.VectorSelector); ok {
							selectors++
							l.look(t, d.Title+", "+p.Title, s, path)
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

// look judges a selector of a panel, whose place in its query is path.
func (l *linter) look(t *testing.T, panel string, s *parser.VectorSelector, path []parser.Node) {
	f := l.family(s.Name)
	if f == nil { // Prometheus' own
		return
	}
	rated := slices.ContainsFunc(path, func(n parser.Node) bool {
		c, ok := n.(*parser.Call)
		return ok && (c.Func.Name == "rate" || c.Func.Name == "increase")
	})
	if !rated && f.GetType() != dto.MetricType_GAUGE {
		t.Errorf("%s: %s is no rate of a counter", panel, s)
	}
	for _, name := range []string{"job", "instance"} {
		if !slices.ContainsFunc(s.LabelMatchers, func(m *labels.Matcher) bool { return m.Name == name }) {
			t.Errorf("%s: %s does not regard the reader's choice of %s", panel, s, name)
		}
	}
}
