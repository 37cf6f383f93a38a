package metrics

import (
	"fmt"
	"slices"
	"strings"
)

// Reference is REFERENCE.md: every metric of ours, in Markdown.
func (m *Metrics) Reference() string {
	var b strings.Builder
	b.WriteString(`# Metrics

The series of ` + "`GET /metrics`" + ` on the admin listener, beside those of the Go runtime (` + "`go_`" + `) and of the process (` + "`process_`" + `).
Written by ` + "`go test ./metrics -update`" + `. A series whose labels have closed lists of values exists from the start, with 0.

| name | type | labels | unit | meaning |
|---|---|---|---|---|
`)
	families := slices.SortedFunc(slices.Values(m.families), func(a, b family) int { return strings.Compare(a.name, b.name) })
	for _, f := range families {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.name, f.kind, f.labels.describe(), unit(f.name), f.help)
	}
	return b.String()
}

// describe lists labels with their values.
func (l labels) describe() string {
	var all []string
	for i, name := range l.names {
		values := l.what[i]
		if values == "" {
			values = list(l.values[i])
		}
		all = append(all, fmt.Sprintf("`%s`: %s", name, values))
	}
	return strings.Join(all, "<br>")
}

// unit is what a metric's name says that it counts.
func unit(name string) string {
	name = strings.TrimSuffix(name, "_total")
	switch {
	case strings.HasSuffix(name, "_timestamp_seconds"):
		return "Unix time"
	case strings.HasSuffix(name, "_seconds"):
		return "seconds"
	case strings.HasSuffix(name, "_bytes"):
		return "bytes"
	case strings.HasSuffix(name, "_ratio"):
		return "0 to 1"
	case strings.HasSuffix(name, "_tokens"):
		return "tokens"
	}
	return ""
}
