package e2e

import (
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"codexpool/configs/grafana"
)

// TestPictures makes the pictures of README.md, with "make pictures": the status page as a
// browser shows it, and the Overview, drawn from its queries. There is no Grafana for it.
func TestPictures(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("PICTURES"))
	if err != nil {
		t.Skip("make pictures runs it")
	}
	r := newDrill(t)
	began := time.Now()
	time.Sleep(length) // what there will be to see
	look(t, r.admin+"/", "--screenshot="+picture("status.png"), "--window-size=840,820", "--hide-scrollbars")
	d := drawing{r: r, from: began.Add(10 * time.Second), to: time.Now()}
	if err := os.WriteFile(picture("overview.svg"), d.draw(t, grafana.All[0]), 0o666); err != nil {
		t.Fatal(err)
	}
}

func picture(name string) string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return dir + "/../pictures/" + name
}

// drawing draws a dashboard as SVG.
type drawing struct {
	r        *drill
	from, to time.Time
	b        strings.Builder
}

// A unit of a dashboard's grid, in pixels.
const gridX, gridY = 50, 26

// colors are readable on white and on black.
var colors = []string{"#3274d9", "#e0752d", "#3a9b5c", "#c4162a", "#8f3bb8", "#b5870b", "#0a8a96", "#7c8087"}

// meant are the colors, by their places, of names that a reader has seen in others.
var meant = map[string]int{"ok": 2, "failed": 3, "limited": 0}

// colorOf is the color of the i-th line of a graph.
func colorOf(name string, i int) string {
	if at, ok := meant[name]; ok {
		i = at
	}
	return colors[i%len(colors)]
}

// drawn is what the picture needs of a panel.
type drawn struct {
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit       string
			Custom     struct{ Stacking struct{ Mode string } }
			Thresholds struct{ Steps []struct{ Value *float64 } }
		}
	}
	Targets []struct{ Expr, LegendFormat string }
}

func (d *drawing) draw(t *testing.T, page grafana.Dashboard) []byte {
	t.Helper()
	var body struct{ Panels []drawn }
	if err := json.Unmarshal(page.JSON(), &body); err != nil {
		t.Fatal(err)
	}
	last := body.Panels[len(body.Panels)-1].GridPos
	fmt.Fprintf(&d.b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" font-size="11">
<title>%s, drawn from the dashboard's queries by make pictures</title>
<style>.paper{fill:#fff}.panel{fill:none;stroke:#d0d7de}.ink{fill:#1c2126}.soft{fill:#57606a}@media(prefers-color-scheme:dark){.paper{fill:#0d1117}.panel{stroke:#30363d}.ink{fill:#e6edf3}.soft{fill:#9198a1}}path{fill:none;stroke-width:1.4;stroke-linejoin:round}</style>
<rect class="paper" width="100%%" height="100%%"/>
`, 24*gridX, (last.Y+last.H)*gridY, page.Title)
	for _, p := range body.Panels {
		x, y, w, h := p.GridPos.X*gridX, p.GridPos.Y*gridY, p.GridPos.W*gridX, p.GridPos.H*gridY
		if p.Type == "row" {
			fmt.Fprintf(&d.b, `<text class="ink" x="6" y="%d" font-size="14" font-weight="600">%s</text>`+"\n", y+18, p.Title)
			continue
		}
		fmt.Fprintf(&d.b, `<g transform="translate(%d %d)"><rect class="panel" x="3" y="3" width="%d" height="%d" rx="3"/><text class="ink" x="10" y="19" font-weight="600">%s</text>`+"\n", x, y, w-6, h-6, html.EscapeString(p.Title))
		d.panel(t, p, w, h)
		d.b.WriteString("</g>\n")
	}
	d.b.WriteString("</svg>\n")
	return []byte(d.b.String())
}

// line is a series with its name.
type line struct {
	name   string
	values []float64
}

func (d *drawing) panel(t *testing.T, p drawn, w, h int) {
	t.Helper()
	var lines []line
	for _, q := range p.Targets {
		list, err := d.r.prometheus.ask(q.Expr, d.from, d.to)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			lines = append(lines, line{named(q.LegendFormat, f.labels), f.values})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return strings.Compare(a.name, b.name) })
	unit := p.FieldConfig.Defaults.Unit
	switch p.Type {
	case "stat":
		for i, l := range lines {
			fmt.Fprintf(&d.b, `<text class="ink" x="%d" y="72" font-size="26">%s<tspan class="soft" font-size="11"> %s</tspan></text>`+"\n", 12+i*w/len(lines), value(l.values[len(l.values)-1], unit), html.EscapeString(l.name))
		}
	case "table":
		for i, l := range lines {
			fmt.Fprintf(&d.b, `<text class="ink" x="12" y="%d">%s</text><text class="ink" x="%d" y="%d" text-anchor="end">%s</text>`+"\n", 42+i*18, html.EscapeString(l.name), w-12, 42+i*18, value(l.values[len(l.values)-1], unit))
		}
	case "state-timeline":
		for i, l := range lines {
			d.bar(l, i, w)
		}
	default:
		d.graph(p, lines, w, h)
	}
}

// named is a legend with the values of its labels.
func named(legend string, labels map[string]string) string {
	if legend == "" {
		return strings.Join(slices.Sorted(maps.Values(labels)), ", ")
	}
	for name, value := range labels {
		legend = strings.ReplaceAll(legend, "{{"+name+"}}", value)
	}
	return legend
}

// bar shows when a series had a value.
func (d *drawing) bar(l line, i, w int) {
	y, step := 34+i*34, float64(w-24)/float64(len(l.values))
	fmt.Fprintf(&d.b, `<text class="soft" x="12" y="%d">%s</text>`, y+10, html.EscapeString(l.name))
	for at, v := range l.values {
		if !math.IsNaN(v) {
			fmt.Fprintf(&d.b, `<rect x="%.1f" y="%d" width="%.1f" height="12" fill="%s"/>`, 12+float64(at)*step, y+14, step+.3, colors[i%len(colors)])
		}
	}
	d.b.WriteByte('\n')
}

// graph draws lines over time, with their largest value and the line that is bad.
func (d *drawing) graph(p drawn, lines []line, w, h int) {
	stacked := p.FieldConfig.Defaults.Custom.Stacking.Mode == "normal"
	if stacked {
		stack(lines)
	}
	top := 0.0
	for _, l := range lines {
		for _, v := range l.values {
			top = max(top, zero(v))
		}
	}
	if steps := p.FieldConfig.Defaults.Thresholds.Steps; len(steps) > 1 {
		top = max(top, *steps[1].Value*1.1)
	}
	top = round(top)
	left, right, upper, lower := 46.0, float64(w-12), 30.0, float64(h-38)
	y := func(v float64) float64 { return lower - v/top*(lower-upper) }
	for _, v := range []float64{0, top / 2, top} {
		fmt.Fprintf(&d.b, `<text class="soft" x="%.0f" y="%.1f" text-anchor="end">%s</text><path class="panel" d="M%.0f %.1fH%.0f"/>`, left-4, y(v)+4, value(v, p.FieldConfig.Defaults.Unit), left, y(v), right)
	}
	if steps := p.FieldConfig.Defaults.Thresholds.Steps; len(steps) > 1 {
		fmt.Fprintf(&d.b, `<path d="M%.0f %.1fH%.0f" stroke="#c4162a" stroke-dasharray="4 3"/>`, left, y(*steps[1].Value), right)
	}
	d.b.WriteByte('\n')
	point := func(at int, v float64) string {
		return fmt.Sprintf("%.1f %.1f", left+float64(at)/float64(max(1, len(lines[0].values)-1))*(right-left), y(v))
	}
	x := 12
	under := fmt.Sprintf("%.1f %.1f %.1f %.1f", right, lower, left, lower) // what lies under a line of a stack, from right to left
	for i, l := range lines {
		color := colorOf(l.name, i)
		var path strings.Builder
		var points []string
		pen := "M"
		for at, v := range l.values {
			if math.IsNaN(v) {
				pen = "M"
				continue
			}
			points = append(points, point(at, v))
			path.WriteString(pen + point(at, v))
			pen = "L"
		}
		if stacked {
			fmt.Fprintf(&d.b, `<polygon fill="%s" fill-opacity=".4" points="%s %s"/>`, color, strings.Join(points, " "), under)
			slices.Reverse(points)
			under = strings.Join(points, " ")
		}
		fmt.Fprintf(&d.b, `<path stroke="%s" d="%s"/><text x="%d" y="%d" fill="%s">%s</text>`+"\n", color, path.String(), x, h-14, color, html.EscapeString(l.name))
		x += 14 + 6*len(l.name)
	}
}

// round is the next number that reads well, and whose half does.
func round(v float64) float64 {
	if v == 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, n := range []float64{1, 1.2, 1.6, 2, 3, 4, 5, 6, 8} {
		if v <= n*unit {
			return n * unit
		}
	}
	return 10 * unit
}

// stack puts each line on those before it.
func stack(lines []line) {
	for i := range lines {
		for at := range lines[i].values {
			lines[i].values[at] = zero(lines[i].values[at])
			if i > 0 {
				lines[i].values[at] += lines[i-1].values[at]
			}
		}
	}
}

func zero(v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return v
}

// value is written with its unit.
func value(v float64, unit string) string {
	switch unit {
	case "s":
		return fmt.Sprintf("%.3g s", v)
	case "percentunit":
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v*100), ".0") + " %"
	case "reqps":
		return fmt.Sprintf("%.3g/s", v)
	}
	return fmt.Sprintf("%.3g", v)
}
