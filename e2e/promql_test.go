package e2e

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// linter holds queries against a metrics page. It finds what Prometheus takes and what
// still never works, or misleads: names that do not exist, a rate of a gauge, a division
// of what has different labels, a threshold beyond the last bucket.
type linter struct {
	families map[string]*dto.MetricFamily
	recorded map[string]string // the expressions of series that rules record, by their names
	problems []string
}

// newLinter reads a page in the text format.
func newLinter(t testing.TB, page string, recorded map[string]string) *linter {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	return &linter{families: families, recorded: recorded}
}

// lint returns the labels that the answer to a query has, and what is wrong with the query.
func (l *linter) lint(query string) (labelSet, []string) {
	l.problems = nil
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		return nil, []string{err.Error()}
	}
	set := l.labels(expr)
	return set, l.problems
}

func (l *linter) say(format string, args ...any) {
	l.problems = append(l.problems, fmt.Sprintf(format, args...))
}

// labelSet are the labels of an instant vector: each with the one value that it has, or
// with "" where it may have several. It is nil where there is no vector but a number.
type labelSet map[string]string

func (s labelSet) names() []string { return slices.Sorted(maps.Keys(s)) }

func (s labelSet) without(names ...string) labelSet {
	rest := maps.Clone(s)
	for _, name := range names {
		delete(rest, name)
	}
	return rest
}

func (s labelSet) only(names []string) labelSet {
	rest := labelSet{}
	for _, name := range names {
		if value, ok := s[name]; ok {
			rest[name] = value
		}
	}
	return rest
}

// targets are the labels that Prometheus gives to what it scrapes.
var targets = labelSet{"cluster": "", "namespace": "", "job": "", "instance": ""}

// labels looks at an expression and all that it is made of.
func (l *linter) labels(e parser.Expr) labelSet {
	switch e := e.(type) {
	case *parser.ParenExpr:
		return l.labels(e.Expr)
	case *parser.UnaryExpr:
		return l.labels(e.Expr)
	case *parser.SubqueryExpr:
		return l.labels(e.Expr)
	case *parser.MatrixSelector:
		return l.labels(e.VectorSelector)
	case *parser.VectorSelector:
		return l.selector(e)
	case *parser.AggregateExpr:
		return l.aggregate(e)
	case *parser.Call:
		return l.call(e)
	case *parser.BinaryExpr:
		return l.binary(e)
	}
	return nil
}

func (l *linter) selector(e *parser.VectorSelector) labelSet {
	switch e.Name { // Prometheus' own
	case "up":
		return maps.Clone(targets)
	case "ALERTS":
		return labelSet{"alertname": "", "alertstate": "", "severity": ""}
	}
	if rule, ok := l.recorded[e.Name]; ok {
		set, problems := (&linter{families: l.families, recorded: l.recorded}).lint(rule)
		if len(problems) > 0 {
			l.say("%s: %v", e.Name, problems)
		}
		return set
	}
	values := l.values(e.Name)
	if values == nil {
		l.say("there is no %s", e.Name)
		return labelSet{}
	}
	set := maps.Clone(targets)
	for name := range values {
		set[name] = ""
	}
	for _, m := range e.LabelMatchers {
		if _, target := targets[m.Name]; target || m.Name == model.MetricNameLabel {
			continue
		}
		if m.Type == labels.MatchEqual {
			set[m.Name] = m.Value
		}
		for _, alternative := range alternatives(m) {
			if !slices.ContainsFunc(values[m.Name], alternative.MatchString) {
				l.say("%s has no %s that matches %s", e.Name, m.Name, alternative)
			}
		}
	}
	return set
}

// alternatives are the values that a matcher names, each as a pattern.
func alternatives(m *labels.Matcher) (each []*regexp.Regexp) {
	values := []string{regexp.QuoteMeta(m.Value)}
	if m.Type == labels.MatchRegexp || m.Type == labels.MatchNotRegexp {
		values = strings.Split(m.Value, "|")
	}
	for _, value := range values {
		each = append(each, regexp.MustCompile("^(?:"+value+")$"))
	}
	return each
}

// family is that of a series, which may be a part of a histogram.
func (l *linter) family(series string) *dto.MetricFamily {
	if f := l.families[series]; f != nil && f.GetType() != dto.MetricType_HISTOGRAM {
		return f
	}
	for _, suffix := range []string{"_bucket", "_count", "_sum"} {
		name, is := strings.CutSuffix(series, suffix)
		if f := l.families[name]; is && f.GetType() == dto.MetricType_HISTOGRAM {
			return f
		}
	}
	return nil
}

// values are those of each label that a series has on the page, nil without the series.
func (l *linter) values(series string) map[string][]string {
	f := l.family(series)
	if f == nil {
		return nil
	}
	values := map[string][]string{}
	for _, m := range f.GetMetric() {
		for _, pair := range m.GetLabel() {
			values[pair.GetName()] = append(values[pair.GetName()], pair.GetValue())
		}
		if strings.HasSuffix(series, "_bucket") {
			for _, b := range m.GetHistogram().GetBucket() {
				values["le"] = append(values["le"], strconv.FormatFloat(b.GetUpperBound(), 'g', -1, 64))
			}
		}
	}
	return values
}

func (l *linter) aggregate(e *parser.AggregateExpr) labelSet {
	set := l.labels(e.Expr)
	if e.Param != nil {
		l.labels(e.Param)
	}
	for _, name := range e.Grouping {
		if _, has := set[name]; !has {
			l.say("%s has no label %s", e.Expr, name)
		}
	}
	switch {
	case e.Op == parser.TOPK, e.Op == parser.BOTTOMK:
		return set
	case e.Without:
		return set.without(e.Grouping...)
	}
	return set.only(e.Grouping)
}

func (l *linter) call(e *parser.Call) (set labelSet) {
	for _, arg := range e.Args {
		if of := l.labels(arg); set == nil {
			set = of
		}
	}
	switch e.Func.Name {
	case "rate", "irate", "increase", "resets":
		l.each(e, func(name string, kind dto.MetricType) {
			if kind == dto.MetricType_GAUGE {
				l.say("%s of %s, a gauge", e.Func.Name, name)
			}
		})
	case "delta", "idelta", "deriv", "predict_linear":
		l.each(e, func(name string, kind dto.MetricType) {
			if kind != dto.MetricType_GAUGE {
				l.say("%s of %s, which is no gauge", e.Func.Name, name)
			}
		})
	case "histogram_quantile":
		if _, has := set["le"]; !has {
			l.say("%s: no label le", e)
		}
		return set.without("le")
	case "absent", "absent_over_time", "vector":
		return labelSet{}
	case "scalar", "time":
		return nil
	case "label_replace", "label_join":
		set = maps.Clone(set)
		set[e.Args[1].(*parser.StringLiteral).Val] = ""
	}
	return set
}

// each calls see with each series of the page that a part of a query reads, and its type.
func (l *linter) each(part parser.Expr, see func(name string, kind dto.MetricType)) {
	parser.Inspect(part, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok {
			if f := l.family(s.Name); f != nil {
				see(s.Name, f.GetType())
			}
		}
		return nil
	})
}

func (l *linter) binary(e *parser.BinaryExpr) labelSet {
	left, right := l.labels(e.LHS), l.labels(e.RHS)
	l.threshold(e)
	switch {
	case left == nil:
		return right
	case right == nil:
		return left
	}
	match := e.VectorMatching
	matched := func(s labelSet) labelSet {
		if match.On {
			return s.only(match.MatchingLabels)
		}
		return s.without(match.MatchingLabels...)
	}
	a, b := matched(left), matched(right)
	if match.On && len(a) != len(match.MatchingLabels) {
		l.say("%s has not all labels of on%v", e.LHS, match.MatchingLabels)
	}
	if !slices.Equal(a.names(), b.names()) {
		l.say("%s of different labels: %v and %v", e.Op, a.names(), b.names())
	}
	for name, value := range a {
		if other := b[name]; value != "" && other != "" && value != other {
			l.say("%s: %s is %s on one side and %s on the other", e.Op, name, value, other)
		}
	}
	if e.Op.IsSetOperator() || match.Card != parser.CardOneToOne {
		return left
	}
	if match.On && (len(left) != len(a) || len(right) != len(b)) {
		l.say("%s: on%v leaves several on one side", e.Op, match.MatchingLabels)
	}
	return a
}

// threshold looks at a comparison of a quantile, which is never beyond the last bucket.
func (l *linter) threshold(e *parser.BinaryExpr) {
	quantile, limit := e.LHS, e.RHS
	if _, is := constant(quantile); is {
		quantile, limit = limit, quantile
	}
	call, isCall := unwrapped(quantile).(*parser.Call)
	most, isNumber := constant(limit)
	if !e.Op.IsComparisonOperator() || !isCall || !isNumber || call.Func.Name != "histogram_quantile" {
		return
	}
	last := math.Inf(-1)
	l.each(call, func(name string, _ dto.MetricType) {
		for _, m := range l.family(name).GetMetric() {
			for _, b := range m.GetHistogram().GetBucket() {
				if bound := b.GetUpperBound(); !math.IsInf(bound, 1) {
					last = max(last, bound)
				}
			}
		}
	})
	if most >= last {
		l.say("%s: the last bucket ends at %v", e, last)
	}
}

func unwrapped(e parser.Expr) parser.Expr {
	for {
		p, ok := e.(*parser.ParenExpr)
		if !ok {
			return e
		}
		e = p.Expr
	}
}

// constant is the value of a number, and whether an expression is one.
func constant(e parser.Expr) (float64, bool) {
	n, ok := unwrapped(e).(*parser.NumberLiteral)
	if !ok {
		return 0, false
	}
	return n.Val, true
}

const lintedPage = `# TYPE requests_total counter
requests_total{route="a",code="200"} 1
requests_total{route="b",code="500"} 1
# TYPE errors_total counter
errors_total{route="a",error="x"} 1
# TYPE children gauge
children{state="idle"} 1
children{state="leased"} 1
# TYPE size gauge
size 1
# TYPE wait_seconds histogram
wait_seconds_bucket{route="a",le="1"} 1
wait_seconds_bucket{route="a",le="2.5"} 1
wait_seconds_bucket{route="a",le="+Inf"} 1
wait_seconds_sum{route="a"} 1
wait_seconds_count{route="a"} 1
`

func TestLinterFindsWhatNeverWorks(t *testing.T) {
	l := newLinter(t, lintedPage, map[string]string{"route:ratio": `sum by (route) (rate(requests_total[5m]))`})
	for _, tt := range []struct{ query, want string }{
		{`rate(requests_total[5m]) > 1`, ""},
		{`sum by (job) (rate(errors_total[5m])) / sum by (job) (rate(requests_total[5m]))`, ""},
		{`route:ratio / on (route) sum by (route) (rate(errors_total[5m]))`, ""},
		{`histogram_quantile(0.9, sum by (route, le) (rate(wait_seconds_bucket[5m]))) > 2`, ""},
		{`wait_seconds_bucket{le=~"1(\\.0)?"} / ignoring (le) wait_seconds_count`, ""},
		{`max_over_time(up[5m]) == 0 and on (job, instance) size`, ""},
		{`sum without (state) (children) / size`, ""},
		{`time() - size > 5`, ""},
		{`rate(requests_total[5m]`, "unclosed left parenthesis"},
		{`rate(nothing[5m])`, "there is no nothing"},
		{`wait_seconds > 1`, "there is no wait_seconds"},
		{`requests_total{code="404"}`, "requests_total has no code that matches"},
		{`requests_total{code=~"200|404"}`, "requests_total has no code that matches ^(?:404)$"},
		{`requests_total{kind="x"}`, "requests_total has no kind"},
		{`wait_seconds_bucket{le="5"}`, "has no le"},
		{`rate(children[5m])`, "rate of children, a gauge"},
		{`deriv(requests_total[5m])`, "deriv of requests_total, which is no gauge"},
		{`rate(errors_total[5m]) / rate(requests_total[5m])`, "/ of different labels"},
		{`children{state="idle"} / children{state="leased"}`, "state is idle on one side"},
		{`children{state="idle"} / size`, "/ of different labels"},
		{`children or size`, "or of different labels"},
		{`requests_total / on (route) errors_total`, "leaves several on one side"},
		{`route:ratio and on (instance) size`, "has not all labels of on[instance]"},
		{`sum by (rute) (requests_total)`, "has no label rute"},
		{`histogram_quantile(0.9, sum by (route) (rate(wait_seconds_bucket[5m])))`, "no label le"},
		{`histogram_quantile(0.9, rate(wait_seconds_bucket[5m])) > 2.5`, "the last bucket ends at 2.5"},
		{`10 < (histogram_quantile(0.9, rate(wait_seconds_bucket[5m])))`, "the last bucket ends at 2.5"},
	} {
		_, problems := l.lint(tt.query)
		if got := strings.Join(problems, "; "); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s\ngot  %q\nwant %q", tt.query, got, tt.want)
		}
	}
}
