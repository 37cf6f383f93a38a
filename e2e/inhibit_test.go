package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// firing is an alert, and whether Alertmanager is to keep it back because of the others.
type firing struct {
	name   string
	labels string // such as route=chat,long=1h
	kept   bool
}

// TestOpsAlertmanagerKeepsBackWhatFollowsFromAnother has a real Alertmanager with our
// configuration. The alerts have the labels that their rules give them.
func TestOpsAlertmanagerKeepsBackWhatFollowsFromAnother(t *testing.T) {
	t.Parallel()
	_, alerts := readRules(t)
	url := runAlertmanager(t)
	scenes := map[string][]firing{
		"down": {
			{"CodexpoolDown", "job=codexpool", false},
			{"CodexpoolReplicaDown", "job=codexpool,instance=a", true},
			{"CodexpoolReplicaDown", "job=blue/codexpool,instance=b", false},
			{"CodexpoolVersionsDiffer", "job=codexpool", true},
			{"CodexpoolUpstreamAuth", "job=codexpool", false},
			{"CodexpoolWatchdog", "", false},
		},
		"not-ready": {
			{"CodexpoolUnavailable", "job=codexpool", false},
			{"CodexpoolReplicaNotReady", "job=codexpool,instance=a,state=ready", true},
			{"CodexpoolPoolSaturated", "job=codexpool,instance=a", true},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=1h", false},
		},
		"burning": {
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=1h", false},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=6h", true},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=1d", true},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=3d", true},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=completions,long=6h", false},
			{"CodexpoolFirstTokenSlow", "job=codexpool,route=chat,long=3d", false},
			{"CodexpoolUpstreamFails", "job=codexpool", false},
		},
		"smouldering": {
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=6h", false},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=3d", true},
			{"CodexpoolFirstTokenSlow", "job=codexpool,route=chat,long=1d", false},
			{"CodexpoolFirstTokenSlow", "job=codexpool,route=chat,long=3d", true},
			{"CodexpoolShortAnswersSlow", "job=codexpool,long=1d", false},
			{"CodexpoolShortAnswersSlow", "job=codexpool,long=3d", true},
		},
		"rejected": {
			{"CodexpoolUpstreamAuth", "job=codexpool", false},
			{"CodexpoolUnavailable", "job=codexpool", true},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=1h", true},
			{"CodexpoolErrorBudgetBurn", "job=blue/codexpool,route=chat,long=1h", false},
			{"CodexpoolFirstTokenSlow", "job=codexpool,route=chat,long=1h", false},
		},
		"exhausted": {
			{"CodexpoolUsageLimitReached", "job=codexpool", false},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=6h", true},
		},
		"well": {
			{"CodexpoolReplicaDown", "job=codexpool,instance=a", false},
			{"CodexpoolErrorBudgetBurn", "job=codexpool,route=chat,long=1d", false},
		},
	}
	var all []map[string]any
	kept := map[string]bool{}
	for scene, list := range scenes { // each is a cluster of its own, which the others do not touch
		for _, f := range list {
			labels := labelsOf(t, alerts[f.name], f)
			labels["cluster"] = scene
			kept[fmt.Sprint(labels)] = f.kept
			all = append(all, map[string]any{"labels": labels, "startsAt": time.Now().Add(-time.Minute)})
		}
	}
	body, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(url+"/api/v2/alerts", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	type alert struct {
		Labels map[string]string
		Status struct{ InhibitedBy []string }
	}
	list := func() (there []alert) {
		res, err := http.Get(url + "/api/v2/alerts")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if err := json.NewDecoder(res.Body).Decode(&there); err != nil {
			t.Fatal(err)
		}
		return there
	}
	eventually(t, 10*time.Second, "all alerts", func() bool { return len(list()) == len(all) })
	for began := time.Now(); ; time.Sleep(25 * time.Millisecond) {
		wrong := map[string]bool{} // the inhibitor learns of an alert a moment after the list has it
		for _, a := range list() {
			name := fmt.Sprint(a.Labels)
			if is := len(a.Status.InhibitedBy) > 0; is != kept[name] {
				wrong[name] = is
			}
		}
		if len(wrong) == 0 {
			return
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("these are kept back, or are not: %v", wrong)
		}
	}
}

// labelsOf are those that the rules of an alert give it, with those of the test.
func labelsOf(t *testing.T, rules []rule, f firing) map[string]string {
	t.Helper()
	labels := map[string]string{"alertname": f.name}
	for pair := range strings.SplitSeq(f.labels, ",") {
		if name, value, ok := strings.Cut(pair, "="); ok {
			labels[name] = value
		}
	}
	for _, r := range rules {
		if labels["long"] == r.Labels["long"] {
			maps.Copy(labels, r.Labels)
			return labels
		}
	}
	t.Fatalf("no rule of %s has the labels %s", f.name, f.labels)
	return nil
}

// runAlertmanager runs Debian's with our configuration until the end of the test.
func runAlertmanager(t *testing.T) (url string) {
	t.Helper()
	program := needsOf(t, "prometheus-alertmanager", "prometheus-alertmanager")
	config, err := filepath.Abs(filepath.Join(rules, "alertmanager.yml"))
	if err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + freePorts(t, 1)[0]
	beside(t, exec.Command(program, "--config.file="+config, "--web.listen-address="+addr, "--cluster.listen-address=", "--storage.path="+t.TempDir()))
	eventually(t, 20*time.Second, "Alertmanager", func() bool {
		res, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return "http://" + addr
}
