package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// prometheus is a running Prometheus of Debian.
type prometheus struct {
	t   *testing.T
	url string
}

// startPrometheus scrapes daemons each second, and judges the alerts.
func startPrometheus(t *testing.T, daemons ...*daemon) *prometheus {
	t.Helper()
	program := installed(t, "prometheus")
	var targets []string
	for _, d := range daemons {
		targets = append(targets, strings.TrimPrefix(d.admin, "http://"))
	}
	alerts, err := filepath.Abs(filepath.Join(rules, "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	dir, addr := t.TempDir(), "127.0.0.1:"+freePorts(t, 1)[0]
	write(t, filepath.Join(dir, "prometheus.yml"), fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 5s}
rule_files: [%s]
scrape_configs: [{job_name: codexpool, static_configs: [{targets: [%s]}]}]
`, alerts, strings.Join(targets, ", ")))
	beside(t, exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr))
	p := &prometheus{t, "http://" + addr}
	eventually(t, time.Minute, "a first scrape", func() bool {
		found, err := p.ask("codexpool_build_info", time.Now(), time.Now())
		return err == nil && len(found) == len(daemons)
	})
	return p
}

// found is a series with its values at each second that was asked for.
type found struct {
	labels map[string]string
	values []float64 // NaN where there is none
}

// last is the newest value.
func (f found) last() float64 { return f.values[len(f.values)-1] }

// grafana are Grafana's variables, as they are when everything is chosen.
var grafanaVariables = strings.NewReplacer("$job", ".+", "$instance", ".+", "$__rate_interval", "15s")

// ask evaluates a query of a dashboard once a second.
func (p *prometheus) ask(query string, from, to time.Time) (list []found, err error) {
	res, err := http.PostForm(p.url+"/api/v1/query_range", url.Values{
		"query": {grafanaVariables.Replace(query)}, "start": {strconv.FormatInt(from.Unix(), 10)}, "end": {strconv.FormatInt(to.Unix(), 10)}, "step": {"1"},
	})
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var body struct {
		Error string
		Data  struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil || body.Error != "" {
		return nil, fmt.Errorf("%s %w", body.Error, err)
	}
	for _, r := range body.Data.Result {
		f := found{r.Metric, make([]float64, to.Unix()-from.Unix()+1)}
		for i := range f.values {
			f.values[i] = math.NaN()
		}
		for _, v := range r.Values {
			if f.values[int64(v[0].(float64))-from.Unix()], err = strconv.ParseFloat(v[1].(string), 64); err != nil {
				return nil, err
			}
		}
		list = append(list, f)
	}
	return list, nil
}
