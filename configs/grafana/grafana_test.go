package grafana_test

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"codexpool/configs/grafana"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the dashboards")

// read is the file of a dashboard, which is rewritten with -update.
func read(t *testing.T, d grafana.Dashboard) string {
	t.Helper()
	name := d.UID + ".json"
	if *update {
		if err := os.WriteFile(name, d.JSON(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDashboardsAreCurrent(t *testing.T) {
	for _, d := range grafana.All {
		if diff := cmp.Diff(read(t, d), string(d.JSON())); diff != "" {
			t.Errorf("%s: run go test ./configs/grafana -update (-file +made)\n%s", d.UID, diff)
		}
	}
}

// panel is what Grafana reads of one.
type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Links                    []struct{ URL string }
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []struct {
		RefID, Expr string
		Datasource  struct{ UID string }
	}
}

// TestDashboardsCanBeImported holds what Grafana needs, and what makes a panel readable.
func TestDashboardsCanBeImported(t *testing.T) {
	for _, d := range grafana.All {
		text := read(t, d)
		var page struct {
			UID, Title    string
			SchemaVersion int
			Panels        []panel
			Templating    struct{ List []struct{ Name, Type string } }
		}
		if err := json.Unmarshal([]byte(text), &page); err != nil {
			t.Fatal(err)
		}
		if list := page.Templating.List; page.UID != d.UID || page.SchemaVersion != 39 || strings.Contains(text, "__inputs") || len(list) != 3 || list[0].Name != "datasource" || list[0].Type != "datasource" {
			t.Errorf("%s: version %d, variables %+v", page.UID, page.SchemaVersion, list)
		}
		ids, titles := map[int]bool{}, map[string]bool{}
		for i, p := range page.Panels {
			if ids[p.ID] || titles[p.Title] {
				t.Errorf("%s: another panel is %d, or %q", d.UID, p.ID, p.Title)
			}
			ids[p.ID], titles[p.Title] = true, true
			for _, other := range page.Panels[:i] {
				if overlap(p, other) {
					t.Errorf("%s: %q lies on %q", d.UID, p.Title, other.Title)
				}
			}
			if p.Type != "row" {
				p.check(t)
			}
		}
	}
}

func overlap(a, b panel) bool {
	p, q := a.GridPos, b.GridPos
	return p.X < q.X+q.W && q.X < p.X+p.W && p.Y < q.Y+q.H && q.Y < p.Y+p.H
}

func (p panel) check(t *testing.T) {
	t.Helper()
	if p.GridPos.X+p.GridPos.W > 24 || p.FieldConfig.Defaults.Unit == "" || !strings.HasSuffix(p.Description, ".") || len(p.Targets) == 0 {
		t.Errorf("%q is %+v", p.Title, p)
	}
	if len(p.Links) != 1 {
		t.Errorf("%q has %d links", p.Title, len(p.Links))
		return
	}
	if _, err := os.Stat("../../runbooks/" + strings.TrimPrefix(p.Links[0].URL, grafana.Runbooks)); err != nil {
		t.Errorf("%q: %v", p.Title, err)
	}
	for _, q := range p.Targets {
		if q.Datasource.UID != "${datasource}" || strings.Contains(q.Expr, "$M") {
			t.Errorf("%q: %+v", p.Title, q)
		}
	}
}
