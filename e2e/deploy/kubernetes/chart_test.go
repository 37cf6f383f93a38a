// Package kubernetes renders the chart as helm does, and reads what it renders with the types
// of Kubernetes, of the Prometheus Operator and of KEDA. No cluster is needed. It is a
// package of its own because those take minutes to compile.
package kubernetes

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	keda "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the plain manifests")

const folder = "../../../configs/kubernetes/"

type values = map[string]any

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // helm says at each look that a file of the chart is a link
	os.Exit(m.Run())
}

// sets are ways to install the chart.
var sets = map[string]values{
	"as it is":          {},
	"one replica":       {"replicas": 1},
	"a large pool":      {"settings": values{"POOL_SIZE": "32", "POOL_MIN_IDLE": "16"}},
	"slow turns":        {"settings": values{"PROXY_DRAIN_MS": "600000", "PROXY_PRESTOP_MS": "7500"}},
	"an exact image":    {"image": values{"repository": "registry.example/codexpool", "digest": "sha256:" + strings.Repeat("0", 64)}, "imagePullSecrets": []any{values{"name": "registry"}}},
	"another provider":  {"secrets": values{"provider": values{"variable": "CODEX_UPSTREAM_API_KEY_FILE"}}, "settings": values{"CODEX_UPSTREAM": "https://llm.example/v1"}},
	"the echo model":    {"secrets": values{"provider": values{"name": ""}}, "settings": values{"CODEX_UPSTREAM": "echo"}},
	"shared limits":     {"secrets": values{"redis": values{"name": "codexpool-redis"}}},
	"monitored":         {"monitoring": values{"enabled": true, "labels": values{"release": "prometheus"}}},
	"scaled by an HPA":  {"autoscaling": values{"kind": "hpa"}},
	"scaled by KEDA":    {"autoscaling": values{"kind": "keda", "utilization": 0.5}},
	"open to its nodes": {"service": values{"type": "NodePort", "annotations": values{"a": "b"}}, "networkPolicy": values{"clients": []any{values{"podSelector": values{}}}}, "nodeSelector": values{"a": "b"}, "tolerations": []any{values{"operator": "Exists"}}, "podAnnotations": values{"c": "d"}},
	"everything": {
		"replicas": 3, "secrets": values{"redis": values{"name": "codexpool-redis"}},
		"monitoring": values{"enabled": true}, "autoscaling": values{"kind": "keda"},
	},
}

// render returns the manifests, as helm template prints them.
func render(t *testing.T, set values) (string, error) {
	t.Helper()
	chart, err := loader.LoadDir(folder + "chart")
	if err != nil {
		t.Fatal(err)
	}
	given, err := chartutil.ToRenderValues(chart, set, chartutil.ReleaseOptions{Name: "codexpool", Namespace: "codexpool", IsInstall: true}, nil)
	if err != nil {
		return "", err
	}
	files, err := engine.Engine{Strict: true}.Render(chart, given)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(name, ".yaml") && strings.TrimSpace(files[name]) != "" {
			fmt.Fprintf(&text, "---\n%s\n", strings.TrimSpace(files[name]))
		}
	}
	return text.String(), nil
}

// objects decodes manifests into the types of their kinds. A field that a type does not have
// is an error, and so is a kind that is not here.
func objects(t *testing.T, manifests string) (all []any) {
	t.Helper()
	for part := range strings.SplitSeq(manifests, "\n---\n") {
		var head struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(strings.TrimPrefix(part, "---\n")), &head); err != nil {
			t.Fatal(err)
		}
		var object any
		switch head.APIVersion + " " + head.Kind {
		case "apps/v1 Deployment":
			object = new(apps.Deployment)
		case "v1 ConfigMap":
			object = new(core.ConfigMap)
		case "v1 Service":
			object = new(core.Service)
		case "policy/v1 PodDisruptionBudget":
			object = new(policy.PodDisruptionBudget)
		case "networking.k8s.io/v1 NetworkPolicy":
			object = new(networking.NetworkPolicy)
		case "autoscaling/v2 HorizontalPodAutoscaler":
			object = new(autoscaling.HorizontalPodAutoscaler)
		case "keda.sh/v1alpha1 ScaledObject":
			object = new(keda.ScaledObject)
		case "monitoring.coreos.com/v1 ServiceMonitor":
			object = new(monitoring.ServiceMonitor)
		case "monitoring.coreos.com/v1 PrometheusRule":
			object = new(monitoring.PrometheusRule)
		default:
			t.Fatalf("an object of an unknown kind: %+v\n%s", head, part)
		}
		if err := yaml.UnmarshalStrict([]byte(strings.TrimPrefix(part, "---\n")), object); err != nil {
			t.Errorf("%s: %v\n%s", head.Kind, err, part)
		}
		all = append(all, object)
	}
	return all
}

// one is the object of its kind.
func one[T any](t *testing.T, all []any) (found T) {
	t.Helper()
	for _, object := range all {
		if o, ok := object.(T); ok {
			return o
		}
	}
	t.Fatalf("there is no %T", found)
	return found
}

// rendered is a set that must render.
func rendered(t *testing.T, set values) []any {
	t.Helper()
	text, err := render(t, set)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, text)
}

func TestChartHasNoLintWarnings(t *testing.T) {
	for name, set := range sets {
		for _, m := range lint.All(folder+"chart", set, "codexpool", true).Messages {
			if m.Severity > 1 || !strings.Contains(m.Err.Error(), "icon is recommended") { // 1 is information
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

func TestEachSetOfValuesDecodesStrictly(t *testing.T) {
	if len(sets) < 12 {
		t.Errorf("only %d sets", len(sets))
	}
	for name, set := range sets {
		t.Run(name, func(t *testing.T) {
			if all := rendered(t, set); len(all) < 5 {
				t.Errorf("%d objects", len(all))
			}
		})
	}
}

func TestValuesWithAMistakeAreRefused(t *testing.T) {
	for want, set := range map[string]values{
		"replicas":       {"replicas": 0},
		"POOL_SIZE":      {"settings": values{"POOL_SIZE": "0"}},
		"PROXY_DRAIN_MS": {"settings": values{"PROXY_DRAIN_MS": "30s"}},
		"PROXY_API_KEY":  {"settings": values{"PROXY_API_KEY": "secret"}},
		"OPENAI_API_KEY": {"settings": values{"OPENAI_API_KEY": "secret"}},
		"tag":            {"image": values{"tag": "latest"}},
		"kind":           {"autoscaling": values{"kind": "cpu"}},
		"name":           {"secrets": values{"keys": values{"name": ""}}},
		"polsize":        {"polsize": 3},
	} {
		if _, err := render(t, set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", set, err)
		}
	}
}

func TestCheckedInManifestsAreWhatTheChartRenders(t *testing.T) {
	text, err := render(t, values{})
	if err != nil {
		t.Fatal(err)
	}
	want := []byte("# Made of the chart: go test ./kubernetes -update, in e2e/deploy, writes it.\n" + text)
	path := folder + "codexpool.yaml"
	if *update {
		if err := os.WriteFile(path, want, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %v; go test ./kubernetes -update makes it current", path, err)
	}
}
