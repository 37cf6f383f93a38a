package kubernetes

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	keda "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

func is(b *bool, want bool) bool { return b != nil && *b == want }

// restricted are the rules of the Pod Security Standard of that name, with those of baseline,
// for a pod without init containers.
var restricted = map[string]func(p core.PodSpec, c core.Container) bool{
	"no namespace of the host": func(p core.PodSpec, _ core.Container) bool { return !p.HostNetwork && !p.HostPID && !p.HostIPC },
	"no privileged container":  func(_ core.PodSpec, c core.Container) bool { return c.SecurityContext.Privileged == nil },
	"no escalation": func(_ core.PodSpec, c core.Container) bool {
		return is(c.SecurityContext.AllowPrivilegeEscalation, false)
	},
	"no capability": func(_ core.PodSpec, c core.Container) bool {
		caps := c.SecurityContext.Capabilities
		return caps != nil && len(caps.Add) == 0 && slices.Equal(caps.Drop, []core.Capability{"ALL"})
	},
	"not root": func(p core.PodSpec, c core.Container) bool {
		return is(p.SecurityContext.RunAsNonRoot, true) && p.SecurityContext.RunAsUser != nil && *p.SecurityContext.RunAsUser != 0 && c.SecurityContext.RunAsUser == nil
	},
	"seccomp": func(p core.PodSpec, c core.Container) bool {
		return p.SecurityContext.SeccompProfile != nil && p.SecurityContext.SeccompProfile.Type == core.SeccompProfileTypeRuntimeDefault && c.SecurityContext.SeccompProfile == nil
	},
	"no port of the host": func(_ core.PodSpec, c core.Container) bool {
		return !slices.ContainsFunc(c.Ports, func(p core.ContainerPort) bool { return p.HostPort != 0 })
	},
	"only volumes without a host": func(p core.PodSpec, _ core.Container) bool {
		return !slices.ContainsFunc(p.Volumes, func(v core.Volume) bool { return v.EmptyDir == nil && v.Secret == nil && v.ConfigMap == nil })
	},
	"no sysctl": func(p core.PodSpec, _ core.Container) bool { return len(p.SecurityContext.Sysctls) == 0 },
	"default /proc, SELinux and AppArmor": func(_ core.PodSpec, c core.Container) bool {
		return c.SecurityContext.ProcMount == nil && c.SecurityContext.SELinuxOptions == nil && c.SecurityContext.AppArmorProfile == nil
	},
	"read-only root": func(_ core.PodSpec, c core.Container) bool { // more than the standard wants
		return is(c.SecurityContext.ReadOnlyRootFilesystem, true)
	},
	"no token of the cluster": func(p core.PodSpec, _ core.Container) bool { return is(p.AutomountServiceAccountToken, false) },
}

func TestPodsKeepTheRestrictedStandard(t *testing.T) {
	for name, set := range sets {
		pod := one[*apps.Deployment](t, rendered(t, set)).Spec.Template.Spec
		if len(pod.Containers) != 1 || len(pod.InitContainers) > 0 {
			t.Fatalf("%s: %d containers", name, len(pod.Containers))
		}
		for rule, holds := range restricted {
			if !holds(pod, pod.Containers[0]) {
				t.Errorf("%s: not %s", name, rule)
			}
		}
	}
}

// What the pod gets is computed from the settings, as README and runbooks say.
func TestPodsHaveWhatTheSettingsNeed(t *testing.T) {
	for name, set := range sets {
		all := rendered(t, set)
		settings := one[*core.ConfigMap](t, all).Data
		number := func(setting string) int64 {
			n, err := strconv.ParseInt(settings[setting], 10, 64)
			if err != nil {
				t.Fatalf("%s: %s: %v", name, setting, err)
			}
			return n
		}
		pod := one[*apps.Deployment](t, all).Spec.Template.Spec
		daemon := pod.Containers[0]
		if stop := number("PROXY_PRESTOP_MS") + number("PROXY_DRAIN_MS") + 15000; *pod.TerminationGracePeriodSeconds*1000 < stop || *pod.TerminationGracePeriodSeconds*1000 >= stop+1000 {
			t.Errorf("%s: killed after %d s, and stopping takes %d ms", name, *pod.TerminationGracePeriodSeconds, stop)
		}
		size := number("POOL_SIZE")
		if got := daemon.Resources.Requests.Memory().Value(); got != (35*size+140)<<20 {
			t.Errorf("%s: it requests %d bytes for %d children", name, got, size)
		}
		if got := daemon.Resources.Limits.Memory().Value(); got < size*number("POOL_MAX_CHILD_BYTES")+140<<20+number("PROXY_MAX_BODY_TOTAL_BYTES") {
			t.Errorf("%s: at most %d bytes for %d children", name, got, size)
		}
		if got := pod.Volumes[0].EmptyDir.SizeLimit.Value(); got < 22*size<<20 {
			t.Errorf("%s: %d bytes for the homes of %d children", name, got, size)
		}
		if ready, live := daemon.ReadinessProbe, daemon.LivenessProbe; ready.HTTPGet.Path != "/readyz" || live.HTTPGet.Path != "/livez" ||
			int64(ready.PeriodSeconds*ready.FailureThreshold)*1000+500 > number("PROXY_PRESTOP_MS") {
			t.Errorf("%s: it is not ready %d ms before completions fail, which the probe does not notice in time", name, number("PROXY_PRESTOP_MS"))
		}
	}
}

func TestNoSecretIsInAManifest(t *testing.T) {
	secret := regexp.MustCompile(`KEY|TOKEN|PASSWORD|REDIS_URL`)
	for name, set := range sets {
		all := rendered(t, set)
		for _, variable := range one[*apps.Deployment](t, all).Spec.Template.Spec.Containers[0].Env {
			if secret.MatchString(variable.Name) && variable.ValueFrom == nil && !strings.HasPrefix(variable.Value, "/run/secrets/") {
				t.Errorf("%s: %s=%s", name, variable.Name, variable.Value)
			}
		}
		for variable := range one[*core.ConfigMap](t, all).Data {
			if secret.MatchString(variable) {
				t.Errorf("%s: the ConfigMap has %s", name, variable)
			}
		}
	}
}

func TestOnlyPrometheusReachesTheAdminPort(t *testing.T) {
	for name, set := range sets {
		all := rendered(t, set)
		for _, rule := range one[*networking.NetworkPolicy](t, all).Spec.Ingress {
			for _, port := range rule.Ports {
				if port.Port.StrVal == "admin" && (len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(p networking.NetworkPolicyPeer) bool {
					return p.PodSelector == nil || len(p.PodSelector.MatchLabels) == 0
				})) {
					t.Errorf("%s: the admin port is open: %+v", name, rule)
				}
			}
		}
		for _, port := range one[*core.Service](t, all).Spec.Ports {
			if port.Port != 11435 {
				t.Errorf("%s: the Service of clients has port %d", name, port.Port)
			}
		}
	}
}

func TestRollingUpdateAndDisruptionKeepReplicas(t *testing.T) {
	all := rendered(t, values{})
	rolling := one[*apps.Deployment](t, all).Spec.Strategy.RollingUpdate
	if budget := one[*policy.PodDisruptionBudget](t, all).Spec.MaxUnavailable; rolling.MaxUnavailable.IntVal != 0 || rolling.MaxSurge.IntVal < 1 || budget.IntVal != 1 {
		t.Errorf("%+v, %v", rolling, budget)
	}
	labels := one[*apps.Deployment](t, all).Spec.Template.Labels
	for _, spread := range one[*apps.Deployment](t, all).Spec.Template.Spec.TopologySpreadConstraints {
		for key, value := range spread.LabelSelector.MatchLabels {
			if labels[key] != value {
				t.Errorf("it spreads other pods: %s=%s", key, value)
			}
		}
	}
}

// Both scale by the children that are needed: CPU does not show the load.
func TestReplicasScaleByDemandInChildren(t *testing.T) {
	hpa := one[*autoscaling.HorizontalPodAutoscaler](t, rendered(t, sets["scaled by an HPA"])).Spec
	if len(hpa.Metrics) != 1 || hpa.Metrics[0].External.Target.AverageValue.MilliValue() != 5600 || *hpa.Behavior.ScaleDown.StabilizationWindowSeconds != 900 {
		t.Errorf("%+v", hpa)
	}
	all := rendered(t, sets["scaled by KEDA"])
	scaled := one[*keda.ScaledObject](t, all).Spec
	trigger := scaled.Triggers[0].Metadata
	if trigger["threshold"] != "4" || trigger["ignoreNullValues"] != "false" || !strings.Contains(trigger["query"], "codexpool_pool_waiting") || *scaled.MinReplicaCount != 2 {
		t.Errorf("%+v", scaled)
	}
	if replicas := one[*apps.Deployment](t, all).Spec.Replicas; replicas != nil {
		t.Errorf("the Deployment sets %d replicas against its scaler", *replicas)
	}
	reference, err := os.ReadFile("../../../metrics/REFERENCE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range regexp.MustCompile(`codexpool_\w+`).FindAllString(trigger["query"], -1) {
		if !strings.Contains(string(reference), "`"+metric+"`") {
			t.Errorf("the daemon has no %s", metric)
		}
	}
}

func TestMonitoringHasEveryAlertAndTheRightJob(t *testing.T) {
	all := rendered(t, sets["monitored"])
	var file monitoring.PrometheusRuleSpec
	alerts, err := os.ReadFile("../../../configs/prometheus/alerts.yml")
	if err == nil {
		err = yaml.UnmarshalStrict(alerts, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	rules := one[*monitoring.PrometheusRule](t, all)
	if got, want := len(rules.Spec.Groups), len(file.Groups); got != want || want == 0 || rules.Labels["release"] != "prometheus" {
		t.Errorf("%d groups of rules, want %d; labels %v", got, want, rules.Labels)
	}
	monitor := one[*monitoring.ServiceMonitor](t, all)
	found := 0
	for _, object := range all {
		if s, ok := object.(*core.Service); ok && matches(s.Labels, monitor.Spec.Selector.MatchLabels) {
			found++
			if !strings.HasSuffix(s.Labels[monitor.Spec.JobLabel], "codexpool") || s.Spec.Ports[0].Name != monitor.Spec.Endpoints[0].Port {
				t.Errorf("the job is %s", s.Labels[monitor.Spec.JobLabel])
			}
		}
	}
	if found != 1 {
		t.Errorf("%d Services are scraped", found)
	}
	dashboards := 0
	for _, object := range all {
		if c, ok := object.(*core.ConfigMap); ok && c.Labels["grafana_dashboard"] == "1" {
			dashboards++
		}
	}
	if files, _ := os.ReadDir("../../../configs/grafana"); dashboards != strings.Count(names(files), ".json") {
		t.Errorf("%d dashboards", dashboards)
	}
}

func names(entries []os.DirEntry) (all string) {
	for _, e := range entries {
		all += e.Name() + "\n"
	}
	return all
}

func matches(labels, selector map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return true
}
