package deploy

import (
	"slices"
	"testing"
	"time"

	"github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v3/pkg/config/dynamic"
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
