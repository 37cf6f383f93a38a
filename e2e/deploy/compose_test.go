package deploy

import (
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/traefik/traefik/v3/pkg/config/label"
)

var composeEnv = []string{"CODEXPOOL_IMAGE=registry.example/codexpool@sha256:1", "CODEXPOOL_HOST=api.example"}

func compose(t *testing.T, environ []string, files ...string) (*types.Project, error) {
	t.Helper()
	var paths []string
	for _, name := range files {
		paths = append(paths, root+"/configs/compose/"+name)
	}
	options, err := cli.NewProjectOptions(paths, cli.WithEnv(environ), cli.WithName("codexpool"))
	if err != nil {
		t.Fatal(err)
	}
	return options.LoadProject(t.Context())
}

// projects are the ways to start Compose, each with its services.
func projects(t *testing.T) map[string]types.Services {
	t.Helper()
	all := map[string]types.Services{}
	for _, files := range [][]string{{"compose.yml"}, {"compose.yml", "laptop.yml"}} {
		project, err := compose(t, composeEnv, files...)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.Join(files, " and ")] = project.Services
	}
	return all
}

func TestComposeFileRollsBackByOneLine(t *testing.T) {
	project, err := compose(t, composeEnv, "compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	daemon := project.Services["codexpool"]
	if daemon.Image != "registry.example/codexpool@sha256:1" || strings.Count(string(read(t, "configs/compose/compose.yml")), "${CODEXPOOL_IMAGE") != 1 {
		t.Errorf("the image is %s", daemon.Image)
	}
	for i := range composeEnv { // each is needed, and its absence is said at once
		name, _, _ := strings.Cut(composeEnv[i], "=")
		if _, err := compose(t, slices.Delete(slices.Clone(composeEnv), i, i+1), "compose.yml"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
		if !strings.Contains(string(read(t, "configs/compose/.env.example")), "\n"+name+"=") {
			t.Errorf(".env.example has no %s", name)
		}
	}
}

// The limits are computed from what the daemon is set to, and what a child takes.
func TestComposeGivesTheDaemonWhatItNeedsAndNoMore(t *testing.T) {
	for name, services := range projects(t) {
		daemon := services["codexpool"]
		number := func(setting string) int {
			t.Helper()
			value, set := "", daemon.Environment[setting]
			if set != nil {
				value = *set
			} else if found := regexp.MustCompile("`" + setting + "` \\| `(\\d+)`").FindSubmatch(read(t, "configs/REFERENCE.md")); found != nil {
				value = string(found[1])
			}
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Errorf("%s: %s: %v", name, setting, err)
			}
			return n
		}
		size := number("POOL_SIZE")
		stop := time.Duration(number("PROXY_PRESTOP_MS")+number("PROXY_DRAIN_MS"))*time.Millisecond + 15*time.Second // as README says
		if daemon.StopGracePeriod == nil || time.Duration(*daemon.StopGracePeriod) < stop {
			t.Errorf("%s: it is killed after %v, and takes %v", name, daemon.StopGracePeriod, stop)
		}
		if daemon.PidsLimit < int64(38*size+30) {
			t.Errorf("%s: %d processes are too few for %d children", name, daemon.PidsLimit, size)
		}
		homes := append(regexp.MustCompile(`^/var/lib/codexpool:size=(\d+)m,uid=10001,`).FindStringSubmatch(strings.Join(daemon.Tmpfs, "\n")), "", "")[1]
		if mb, _ := strconv.Atoi(homes); mb < 22*size {
			t.Errorf("%s: %s MB are too few for the homes of %d children", name, homes, size)
		}
		if need := int64(size*number("POOL_MAX_CHILD_BYTES") + 140<<20 + 256<<20); int64(daemon.MemLimit) < need {
			t.Errorf("%s: %d bytes of memory are less than %d children may take with their homes: %d", name, daemon.MemLimit, size, need)
		}
		if !daemon.ReadOnly || !slices.Equal(daemon.CapDrop, []string{"ALL"}) || !slices.Contains(daemon.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: read_only %v, cap_drop %q, security_opt %q", name, daemon.ReadOnly, daemon.CapDrop, daemon.SecurityOpt)
		}
	}
}

func TestComposeServicesAreBoundedHealthyAndHoldNoSecret(t *testing.T) {
	exact := regexp.MustCompile(`:[^:]*\d+\.\d+\.\d+|@sha256:`)
	secret := regexp.MustCompile(`(?i)key|password|secret|token`)
	for name, services := range projects(t) {
		for _, s := range services {
			if s.HealthCheck == nil || s.MemLimit == 0 || s.PidsLimit == 0 || !s.ReadOnly || s.Restart != "unless-stopped" {
				t.Errorf("%s: %s has the health check %v, memory %d, pids %d, read_only %v, restart %q", name, s.Name, s.HealthCheck, s.MemLimit, s.PidsLimit, s.ReadOnly, s.Restart)
			}
			if !exact.MatchString(s.Image) {
				t.Errorf("%s: %s is another image next month", name, s.Image)
			}
			for variable, value := range s.Environment {
				if secret.MatchString(variable) && !strings.HasSuffix(variable, "_FILE") {
					t.Errorf("%s: %s has %s=%s in its environment", name, s.Name, variable, *value)
				}
			}
			for _, port := range s.Ports {
				if ip, err := netip.ParseAddr(port.HostIP); s.Name != "traefik" && (err != nil || !ip.IsLoopback()) || port.Target == 11436 {
					t.Errorf("%s: %s publishes %d on %q", name, s.Name, port.Target, port.HostIP)
				}
			}
			for _, v := range s.Volumes { // the files are there; secrets are the operator's
				if _, err := os.Stat(v.Source); v.Type == "bind" && !strings.Contains(v.Source, "/secrets/") && filepath.IsAbs(v.Source) && !strings.HasPrefix(v.Source, "/var/run/") && err != nil {
					t.Errorf("%s: %s: %v", name, s.Name, err)
				}
			}
		}
	}
}

func TestComposeNetworksKeepTheDaemonBehindTraefik(t *testing.T) {
	project, err := compose(t, composeEnv, "compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	daemon := project.Services["codexpool"]
	if len(daemon.Ports) > 0 || !project.Networks["inside"].Internal {
		t.Errorf("ports %v, the inner network %+v", daemon.Ports, project.Networks["inside"])
	}
	proxy := project.Services["traefik"]
	if addr := proxy.Networks["edge"].Ipv4Address; *daemon.Environment["PROXY_TRUSTED_PROXIES"] != addr {
		t.Errorf("the daemon trusts %s, and Traefik is %s", *daemon.Environment["PROXY_TRUSTED_PROXIES"], addr)
	}
	labels, err := label.DecodeConfiguration(maps.Clone(daemon.Labels))
	if err != nil {
		t.Fatal(err)
	}
	asks(t, labels.HTTP, "http://codexpool:11435/verify")
	router := labels.HTTP.Routers["codexpool"]
	if router.Rule != "Host(`api.example`)" || !slices.Equal(router.Middlewares, []string{"codexpool-auth"}) {
		t.Errorf("the router is %+v", router)
	}
	laptop := projects(t)["compose.yml and laptop.yml"]
	if _, there := laptop["traefik"]; there || len(laptop["codexpool"].Ports) != 1 || len(laptop["codexpool"].Labels) > 0 {
		t.Errorf("on a laptop there is %v", laptop)
	}
}

// traefik is the release of Traefik whose types these tests use, and the folder with its
// source.
func traefik(t *testing.T) (version, dir string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", "github.com/traefik/traefik/v3").Output()
	if err != nil {
		t.Fatal(err)
	}
	version, dir, _ = strings.Cut(strings.TrimSpace(string(out)), " ")
	return version, dir
}

// flag is a flag of Traefik.
type flag struct{ name, value string }

// flagsOf are those that the Compose file gives to Traefik.
func flagsOf(project *types.Project) (flags []flag) {
	for _, word := range project.Services["traefik"].Command {
		name, value, _ := strings.Cut(strings.TrimPrefix(word, "--"), "=")
		flags = append(flags, flag{name, value})
	}
	return flags
}

// The release has a reference of its flags, which is generated of its types. The types
// themselves cannot be used here: that of certificates brings the clients of a hundred DNS
// services.
func TestComposeFileGivesTraefikFlagsThatItHas(t *testing.T) {
	project, err := compose(t, composeEnv, "compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	version, dir := traefik(t)
	if image := project.Services["traefik"].Image; image != "traefik:"+version {
		t.Errorf("the image is %s, and this test knows Traefik %s", image, version)
	}
	reference, err := os.ReadFile(filepath.Join(dir, "docs/content/reference/static-configuration/cli-ref.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]string{} // defaults, by a pattern of the flag
	for _, m := range regexp.MustCompile("(?m)^`--(.+)`: *\n(?:.*\\(Default: ```(.*)```\\))?").FindAllStringSubmatch(string(reference), -1) {
		known["(?i)^"+strings.ReplaceAll(regexp.QuoteMeta(m[1]), "<name>", "[^.]+")+"$"] = m[2]
	}
	if len(known) < 400 {
		t.Fatalf("the reference has %d flags: it is written otherwise", len(known))
	}
	for _, f := range flagsOf(project) {
		found := false
		for pattern, otherwise := range known {
			if !regexp.MustCompile(pattern).MatchString(f.name) {
				continue
			}
			found = true
			if _, err := strconv.ParseBool(f.value); err != nil && (otherwise == "true" || otherwise == "false") {
				t.Errorf("--%s=%s: it must be true or false", f.name, f.value)
			}
		}
		if !found {
			t.Errorf("Traefik has no flag --%s", f.name)
		}
	}
}

// A label that names an entry point, a resolver or a network that is not there makes no
// route, and no error either.
func TestComposeFileMakesWhatItsLabelsName(t *testing.T) {
	project, err := compose(t, composeEnv, "compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	made, used := map[string]bool{}, map[string]bool{}
	for _, f := range flagsOf(project) {
		path := strings.Split(f.name, ".")
		switch {
		case path[0] == "entryPoints" || path[0] == "certificatesResolvers":
			made[path[0]+" "+path[1]] = true
		case f.name == "providers.docker.network":
			used["network "+f.value] = true
		}
		if last := path[len(path)-1]; last == "entryPoint" || last == "to" {
			used["entryPoints "+f.value] = true
		}
	}
	for _, network := range project.Networks {
		made["network "+network.Name] = true
	}
	labels, err := label.DecodeConfiguration(maps.Clone(project.Services["codexpool"].Labels))
	if err != nil {
		t.Fatal(err)
	}
	router := labels.HTTP.Routers["codexpool"]
	used["certificatesResolvers "+router.TLS.CertResolver] = true
	for _, name := range router.EntryPoints {
		used["entryPoints "+name] = true
	}
	for name := range used {
		if !made[name] {
			t.Errorf("there is no %s", name)
		}
	}
	if len(used) < 4 {
		t.Errorf("only %v are used", used)
	}
}
