package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// faster is how many times faster than in life the drill's alerts are: an hour is two
// minutes. Were they faster, what a busy machine delays would be an outage.
const faster = 30

// TestDrill brings about each trouble that has an alert, in a daemon of its own, and waits
// for that alert in a real Prometheus and Alertmanager with our rules. No other may be told
// of than the trouble says. The alert's page must tell the cause, and its fix must end the
// trouble and the alert. make drill runs them all, make test those of every run.
func TestDrill(t *testing.T) {
	t.Parallel()
	c := newControlRoom(t)
	for _, tr := range drills() {
		if !tr.every && os.Getenv("DRILL") == "" {
			continue
		}
		t.Run(fmt.Sprintf("%s cause %d", tr.page, tr.cause), func(t *testing.T) {
			t.Parallel()
			c.drill(t, tr)
		})
	}
}

// drills are the troubles that have an alert.
func drills() []trouble {
	return slices.DeleteFunc(slices.Clone(troubles), func(tr trouble) bool { return tr.alert == "" })
}

func (c *controlRoom) drill(t *testing.T, tr trouble) {
	job, p := t.Name(), newPatient(t, tr)
	stop := c.fall(p, job)
	eventually(t, 3*time.Minute, "alert", func() bool { return slices.Contains(c.firing(job), tr.alert) })
	eventually(t, time.Minute, "message", func() bool {
		told := c.told(job)
		_, ok := told[tr.alert]
		return ok || slices.ContainsFunc(tr.also, func(other string) bool { // which may keep it back
			return told[other].severity == "critical"
		})
	})
	p.tellsTheCause(checksOf(t, tr.page))
	time.Sleep(5 * time.Minute / faster) // others have the time to fire: Prometheus has the real clock
	for name, m := range c.told(job) {
		if name != tr.alert && !slices.Contains(tr.also, name) {
			t.Errorf("%s is told of too (%s)", name, m.severity)
		}
		if want := cmp.Or(tr.leads, tr.page); name == tr.alert && m.page() != want {
			t.Errorf("%s leads to %s, want %s", name, m.page(), want)
		}
		if !slices.Contains(pages(t), m.page()) {
			t.Errorf("%s leads to %s, which does not exist", name, m.link)
		}
	}
	stop()
	p.recover()
	c.watch(p, job)
	eventually(t, time.Minute, "recovery", p.cured)
	eventually(t, 4*time.Minute, "end of the alert", func() bool { return !slices.Contains(c.firing(job), tr.alert) })
}

// fall watches a daemon that is well, then brings the trouble about, and sends requests that
// meet it until stop.
func (c *controlRoom) fall(p *patient, job string) (stop func()) {
	p.t.Helper()
	c.watch(p, job)
	for began := time.Now(); time.Since(began) < p.trouble.usual; time.Sleep(100 * time.Millisecond) { // Prometheus counts them
		if !p.cured() {
			p.t.Error("while all is well, a request fails")
		}
	}
	if got := c.firing(job); len(got) > 0 {
		p.t.Errorf("while all is well, these fire: %q", got)
	}
	well := p.daemon
	p.trouble.begin(p)
	if p.daemon != well { // the trouble is a setting
		c.watch(p, job)
	}
	over, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(ended)
		for p.trouble.goOn != nil {
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond): // other processes count what it does
				p.trouble.goOn(p)
			}
		}
	}()
	return func() {
		close(over)
		<-ended
	}
}

// recover does what the page says: where that is a restart, the provider is well again too.
func (p *patient) recover() {
	p.t.Helper()
	if p.trouble.cure != nil {
		p.trouble.cure(p)
		return
	}
	healthy(p)
	if p.cmd.ProcessState == nil {
		p.stop()
	}
	p.daemon = startProgram(p.t, program, p.env...)
}

// controlRoom is a Prometheus and an Alertmanager, with their files made faster, and what
// the Alertmanager has told.
type controlRoom struct {
	*prometheus
	targets string // the file of what is scraped

	mu   sync.Mutex
	jobs map[string]string             // job to address; guarded by mu
	said map[string]map[string]message // by job and alert; guarded by mu
}

// message is what Alertmanager told of an alert.
type message struct{ severity, summary, link string }

func (m message) page() string { return path.Base(m.link) }

func newControlRoom(t *testing.T) *controlRoom {
	t.Helper()
	dir := t.TempDir()
	c := &controlRoom{targets: filepath.Join(dir, "targets.json"), jobs: map[string]string{}, said: map[string]map[string]message{}}
	hook := httptest.NewServer(c)
	t.Cleanup(hook.Close)
	write(t, filepath.Join(dir, "alertmanager.yml"), fasterRoutes(t, hook.URL))
	write(t, filepath.Join(dir, "alerts.yml"), fasterRules(t))
	ports := freePorts(t, 2)
	manager, addr := "127.0.0.1:"+ports[0], "127.0.0.1:"+ports[1]
	write(t, filepath.Join(dir, "prometheus.yml"), fmt.Sprintf(`
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s}
rule_files: [alerts.yml]
alerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}
scrape_configs: [{job_name: codexpool, file_sd_configs: [{files: [%q]}]}]
`, manager, c.targets))
	beside(t, exec.Command(needsOf(t, "prometheus-alertmanager", "prometheus-alertmanager"), "--config.file="+filepath.Join(dir, "alertmanager.yml"),
		"--web.listen-address="+manager, "--cluster.listen-address=", "--storage.path="+t.TempDir()))
	beside(t, exec.Command(installed(t, "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr, "--rules.alert.resend-delay=1s"))
	c.prometheus = &prometheus{t, "http://" + addr}
	eventually(t, time.Minute, "Prometheus", func() bool {
		_, err := c.ask("vector(1)", time.Now(), time.Now())
		return err == nil
	})
	return c
}

// watch has a daemon scraped, as a job of its own, and waits until it was.
func (c *controlRoom) watch(p *patient, job string) {
	p.t.Helper()
	c.mu.Lock()
	c.jobs[job+"/codexpool"] = strings.TrimPrefix(p.admin, "http://")
	var list []map[string]any
	for name, addr := range c.jobs {
		list = append(list, map[string]any{"targets": []string{addr}, "labels": map[string]string{"job": name}})
	}
	text, err := json.Marshal(list)
	if err == nil {
		err = os.WriteFile(c.targets+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(c.targets+".new", c.targets)
	}
	c.mu.Unlock()
	if err != nil {
		p.t.Fatal(err)
	}
	eventually(p.t, time.Minute, "scrape", func() bool {
		found, err := c.ask(fmt.Sprintf(`up{job="%s/codexpool"} == 1`, job), time.Now(), time.Now())
		return err == nil && len(found) > 0
	})
}

// firing are the alerts of a job that fire now.
func (c *controlRoom) firing(job string) (names []string) {
	found, err := c.ask(fmt.Sprintf(`ALERTS{alertstate="firing",job="%s/codexpool"}`, job), time.Now(), time.Now())
	if err != nil {
		return []string{err.Error()}
	}
	for _, f := range found {
		names = append(names, f.labels["alertname"])
	}
	return names
}

// told are the messages about a job, by alert.
func (c *controlRoom) told(job string) map[string]message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.said[job+"/codexpool"])
}

// ServeHTTP is where Alertmanager sends its messages.
func (c *controlRoom) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	var body struct {
		Alerts []struct{ Labels, Annotations map[string]string }
	}
	json.NewDecoder(r.Body).Decode(&body)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range body.Alerts {
		job := a.Labels["job"]
		if c.said[job] == nil {
			c.said[job] = map[string]message{}
		}
		c.said[job][a.Labels["alertname"]] = message{a.Labels["severity"], a.Annotations["summary"], a.Annotations["runbook_url"]}
	}
}

// fasterRules is alerts.yml with each duration divided.
func fasterRules(t *testing.T) string {
	t.Helper()
	var file ruleFile
	if err := yaml.Unmarshal([]byte(readOps(t, "alerts.yml")), &file); err != nil {
		t.Fatal(err)
	}
	for g := range file.Groups {
		group := &file.Groups[g]
		group.Interval = shorter(t, group.Interval)
		for i := range group.Rules {
			r := &group.Rules[i]
			r.For, r.KeepFiringFor = shorter(t, r.For), shorter(t, r.KeepFiringFor)
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(r.Expr)
			if err != nil {
				t.Fatal(err)
			}
			parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
				switch n := n.(type) {
				case *parser.MatrixSelector:
					n.Range /= faster
				case *parser.VectorSelector:
					n.OriginalOffset /= faster
				}
				return nil
			})
			r.Expr = expr.String()
		}
	}
	text, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// shorter divides a duration; "" stays so.
func shorter(t *testing.T, duration string) string {
	t.Helper()
	if duration == "" {
		return ""
	}
	d, err := model.ParseDuration(duration)
	if err != nil {
		t.Fatal(err)
	}
	return (d / faster).String()
}

// fasterRoutes is alertmanager.yml with its durations divided, and one receiver for all.
func fasterRoutes(t *testing.T, hook string) string {
	t.Helper()
	var file map[string]any
	if err := yaml.Unmarshal([]byte(readOps(t, "alertmanager.yml")), &file); err != nil {
		t.Fatal(err)
	}
	var walk func(route map[string]any)
	walk = func(route map[string]any) {
		for key, value := range route {
			if text, ok := value.(string); ok && (strings.HasPrefix(key, "group_") || key == "repeat_interval") && text != "0s" {
				route[key] = shorter(t, text)
			}
		}
		children, _ := route["routes"].([]any)
		for _, child := range children {
			walk(child.(map[string]any))
		}
	}
	walk(file["route"].(map[string]any))
	for _, r := range file["receivers"].([]any) {
		r.(map[string]any)["webhook_configs"] = []any{map[string]any{"url": hook, "send_resolved": false}}
	}
	text, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
