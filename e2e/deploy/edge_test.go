package deploy

import (
	"maps"
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
	"github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v3/pkg/config/dynamic"
	"github.com/traefik/traefik/v3/pkg/config/label"
)

// decode reads a file as Traefik does, which rejects what it does not know.
func decode(t *testing.T, name string) *dynamic.HTTPConfiguration {
	t.Helper()
	var c dynamic.Configuration
	if err := file.DecodeContent(string(read(t, name)), ".yml", &c); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c.HTTP
}

func TestTraefikAsksVerifyForEverythingButHealth(t *testing.T) {
	c := decode(t, "configs/traefik/dynamic.yml")
	asks(t, c, "http://127.0.0.1:11435/verify")
	for name, router := range c.Routers {
		if health := name == "codexpool-health"; health == slices.Contains(router.Middlewares, "codexpool-auth") {
			t.Errorf("%s has the middlewares %q", name, router.Middlewares)
		}
	}
}

func TestTraefikStreamsAndIsMorePatientThanTheDaemon(t *testing.T) {
	for _, name := range []string{"configs/traefik/dynamic.yml", "configs/traefik/without-forwardauth.yml"} {
		c := decode(t, name)
		balancer := c.Services["codexpool"].LoadBalancer
		if time.Duration(balancer.ResponseForwarding.FlushInterval) >= 0 || balancer.HealthCheck.Path != "/readyz" {
			t.Errorf("%s: %+v, %+v", name, balancer.ResponseForwarding, balancer.HealthCheck)
		}
		waits := c.ServersTransports[balancer.ServersTransport].ForwardingTimeouts.ResponseHeaderTimeout
		if time.Duration(waits) <= 30*time.Minute {
			t.Errorf("%s: it waits %v", name, time.Duration(waits))
		}
	}
}

// The emergency changes nothing but the authentication.
func TestTraefikWithoutForwardAuthIsTheSameOtherwise(t *testing.T) {
	c := decode(t, "configs/traefik/without-forwardauth.yml")
	if len(c.Middlewares) > 0 || len(c.Routers["codexpool"].Middlewares) > 0 {
		t.Errorf("it authenticates: %v", c.Middlewares)
	}
	usual := decode(t, "configs/traefik/dynamic.yml")
	if c.Routers["codexpool"].Rule != usual.Routers["codexpool"].Rule || c.Services["codexpool"].LoadBalancer.Servers[0].URL != usual.Services["codexpool"].LoadBalancer.Servers[0].URL {
		t.Errorf("%+v, usually %+v", c.Routers["codexpool"], usual.Routers["codexpool"])
	}
}

// asks expects that one middleware asks /verify, and believes no header of a client.
func asks(t *testing.T, c *dynamic.HTTPConfiguration, address string) {
	t.Helper()
	auth := c.Middlewares["codexpool-auth"]
	if auth == nil || auth.ForwardAuth == nil || auth.ForwardAuth.Address != address || auth.ForwardAuth.TrustForwardHeader || !slices.Equal(auth.ForwardAuth.AuthResponseHeaders, []string{"X-Auth-Key-Name"}) {
		t.Errorf("ForwardAuth is %+v", auth)
	}
}

var composeEnv = []string{"CODEXPOOL_IMAGE=registry.example/codexpool@sha256:1", "CODEXPOOL_HOST=api.example", "PROXY_API_KEY=k", "OPENAI_API_KEY=sk"}

func compose(t *testing.T, environ []string) (*types.Project, error) {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{root + "/configs/compose/compose.yml"}, cli.WithEnv(environ), cli.WithName("codexpool"))
	if err != nil {
		t.Fatal(err)
	}
	return options.LoadProject(t.Context())
}

func TestComposeFileRollsBackByOneLine(t *testing.T) {
	project, err := compose(t, composeEnv)
	if err != nil {
		t.Fatal(err)
	}
	daemon := project.Services["codexpool"]
	if daemon.Image != "registry.example/codexpool@sha256:1" || strings.Count(string(read(t, "configs/compose/compose.yml")), "${CODEXPOOL_IMAGE") != 1 {
		t.Errorf("the image is %s", daemon.Image)
	}
	for i := range composeEnv { // each is needed, and its absence is said at once
		name, _, _ := strings.Cut(composeEnv[i], "=")
		if _, err := compose(t, slices.Delete(slices.Clone(composeEnv), i, i+1)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
		if !strings.Contains(string(read(t, "configs/compose/.env.example")), "\n"+name+"=") {
			t.Errorf(".env.example has no %s", name)
		}
	}
}

func TestComposeFilePublishesNoPortOfTheDaemonAndStopsItGently(t *testing.T) {
	project, err := compose(t, composeEnv)
	if err != nil {
		t.Fatal(err)
	}
	daemon := project.Services["codexpool"]
	if len(daemon.Ports) > 0 || daemon.StopGracePeriod == nil || time.Duration(*daemon.StopGracePeriod) < 45*time.Second || !daemon.ReadOnly {
		t.Errorf("ports %v, stop_grace_period %v, read_only %v", daemon.Ports, daemon.StopGracePeriod, daemon.ReadOnly)
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
	project, err := compose(t, composeEnv)
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
	project, err := compose(t, composeEnv)
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
