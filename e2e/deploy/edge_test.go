package deploy

import (
	"maps"
	"slices"
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
