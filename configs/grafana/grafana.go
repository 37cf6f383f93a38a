// Package grafana makes the dashboards for Grafana that lie beside it. dashboards.go is
// the table that they are made of; "go test ./configs/grafana -update" writes them.
package grafana

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Dashboard is a page of panels.
type Dashboard struct {
	UID, Title, About string
	Rows              []Row
}

// Row is a heading with the panels below it.
type Row struct {
	Title  string
	Panels []Panel
}

// Panel shows what its queries find.
type Panel struct {
	Title, Unit string
	Type        Type
	About       string  // what it shows, and what a bad picture means
	Runbook     string  // the page for that
	Line        float64 // where it is bad; 0 = no such line
	Stacked     bool
	Queries     []Query
}

// Type is how a panel shows.
type Type string

// The types of panels, as Grafana names them.
const (
	Series   Type = "timeseries"
	Stat     Type = "stat"
	Table    Type = "table"
	Timeline Type = "state-timeline"
	Heatmap  Type = "heatmap"
)

// Query is one in PromQL. "$M" in it selects the job and the instance.
type Query struct{ Legend, Expr string }

// PromQL is the query as Grafana has it, with Grafana's variables.
func (q Query) PromQL() string {
	return strings.ReplaceAll(q.Expr, "$M", `job=~"$job",instance=~"$instance"`)
}

// Runbooks is where the pages of the folder runbooks are published.
const Runbooks = "https://example.invalid/codexpool/runbooks/"

// object is one of JSON.
type object = map[string]any

var source = object{"type": "prometheus", "uid": "${datasource}"}

// JSON is the dashboard as Grafana imports it.
func (d Dashboard) JSON() []byte {
	var panels []object
	y := 0
	for _, row := range d.Rows {
		panels = append(panels, object{
			"id": len(panels) + 1, "type": "row", "title": row.Title, "collapsed": false, "panels": []any{},
			"gridPos": place(0, y, 24, 1),
		})
		y++
		x, tall := 0, 0
		for _, p := range row.Panels {
			w, h := p.Type.size()
			if x+w > 24 {
				x, y, tall = 0, y+tall, 0
			}
			panels = append(panels, p.json(len(panels)+1, place(x, y, w, h)))
			x, tall = x+w, max(tall, h)
		}
		y += tall
	}
	out, err := json.MarshalIndent(object{
		"uid": d.UID, "title": d.Title, "description": d.About, "tags": []string{"codexpool"},
		"schemaVersion": 39, "version": 1, "editable": true, "graphTooltip": 1, "refresh": "30s", "timezone": "",
		"time": object{"from": "now-3h", "to": "now"}, "timepicker": object{}, "annotations": object{"list": []any{}},
		"links": []object{{
			"type": "dashboards", "title": "codexpool", "tags": []string{"codexpool"}, "asDropdown": false, "includeVars": true,
			"keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
		}},
		"templating": object{"list": variables()},
		"panels":     panels,
	}, "", "  ")
	if err != nil {
		panic("BUG: a dashboard that JSON cannot hold: " + err.Error())
	}
	return append(out, '\n')
}

// size is that of a panel, of a page that is 24 wide.
func (t Type) size() (w, h int) {
	if t == Stat {
		return 6, 4
	}
	return 8, 8
}

func place(x, y, w, h int) object { return object{"x": x, "y": y, "w": w, "h": h} }

// variables are what a reader chooses at the top of the page.
func variables() []object {
	query := func(name, label, text string) object {
		return object{
			"name": name, "label": label, "type": "query", "datasource": source, "definition": text,
			"query": object{"query": text, "refId": name}, "refresh": 2, "sort": 1, "regex": "", "hide": 0,
			"multi": true, "includeAll": true, "allValue": ".+", "current": object{"selected": true, "text": []string{"All"}, "value": []string{"$__all"}},
		}
	}
	return []object{
		{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1, "regex": "", "hide": 0, "multi": false, "includeAll": false, "current": object{}},
		query("job", "Job", "label_values(codexpool_build_info, job)"),
		query("instance", "Instance", `label_values(codexpool_build_info{job=~"$job"}, instance)`),
	}
}

func (p Panel) json(id int, at object) object {
	var targets []object
	for i, q := range p.Queries {
		target := object{
			"refId": string(rune('A' + i)), "datasource": source, "expr": q.PromQL(), "legendFormat": q.Legend,
			"editorMode": "code", "instant": p.Type.instant(), "range": !p.Type.instant(), "format": "time_series",
		}
		switch p.Type {
		case Table:
			target["format"] = "table"
		case Heatmap:
			target["format"] = "heatmap"
		}
		targets = append(targets, target)
	}
	panel := object{
		"id": id, "type": string(p.Type), "title": p.Title, "description": p.About, "datasource": source, "gridPos": at,
		"targets": targets, "options": p.options(), "transparent": false, "links": []any{},
		"fieldConfig": object{"defaults": p.defaults(), "overrides": []any{}},
	}
	if p.Runbook != "" {
		panel["links"] = []object{{"title": "What to do", "url": Runbooks + p.Runbook, "targetBlank": true}}
	}
	return panel
}

// instant reports whether a panel shows only what is now.
func (t Type) instant() bool { return t == Stat || t == Table }

// defaults are how values are drawn.
func (p Panel) defaults() object {
	steps := []object{{"color": "green", "value": nil}}
	custom := object{}
	if p.Line != 0 {
		steps = append(steps, object{"color": "red", "value": p.Line})
	}
	if p.Type == Series {
		stacking, fill := "none", 5
		if p.Stacked {
			stacking, fill = "normal", 40
		}
		custom = object{
			"drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "showPoints": "never", "spanNulls": false,
			"stacking": object{"mode": stacking, "group": "A"}, "thresholdsStyle": object{"mode": "off"},
		}
		if p.Line != 0 {
			custom["thresholdsStyle"] = object{"mode": "line"}
		}
	}
	defaults := object{"unit": p.Unit, "custom": custom, "thresholds": object{"mode": "absolute", "steps": steps}, "mappings": []any{}}
	if p.Type == Series {
		defaults["min"] = 0
	}
	return defaults
}

// options are those of each type of panel.
func (p Panel) options() object {
	switch p.Type {
	case Stat:
		return object{
			"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}, "colorMode": "value",
			"graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
		}
	case Table:
		return object{"showHeader": true, "cellHeight": "sm", "footer": object{"show": false, "reducer": []string{"sum"}, "fields": ""}}
	case Timeline:
		return object{"mergeValues": true, "showValue": "never", "rowHeight": 0.9, "alignValue": "left", "legend": legend(), "tooltip": tooltip()}
	case Heatmap:
		return object{
			"calculate": false, "cellGap": 1, "color": object{"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange", "reverse": false},
			"yAxis": object{"axisPlacement": "left", "unit": p.Unit}, "rowsFrame": object{"layout": "auto"}, "legend": object{"show": true},
			"tooltip": object{"mode": "single", "yHistogram": false, "showColorScale": false}, "showValue": "never", "exemplars": object{"color": "rgba(255,0,255,0.7)"},
		}
	}
	return object{"legend": legend(), "tooltip": tooltip()}
}

func legend() object {
	return object{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []any{}}
}

func tooltip() object { return object{"mode": "multi", "sort": "desc"} }

// rate and its like are the forms of queries that recur.

func rate(series string) string {
	return fmt.Sprintf("rate(%s[$__rate_interval])", series)
}

func quantile(q float64, histogram, labels string) string {
	return fmt.Sprintf("histogram_quantile(%g, sum by (le) (rate(%s_bucket{%s$M}[$__rate_interval])))", q, histogram, labels)
}

// quantiles are the usual three of a histogram.
func quantiles(histogram, labels string) (list []Query) {
	for _, q := range []float64{.5, .95, .99} {
		list = append(list, Query{fmt.Sprintf("p%g", q*100), quantile(q, histogram, labels)})
	}
	return list
}

func one(legend, expr string) []Query { return []Query{{legend, expr}} }
