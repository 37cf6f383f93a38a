package lean_test

import (
	"slices"
	"strings"
	"testing"

	"codexpool/codex/lean"
)

func TestRelayedQuotesHomeAndURL(t *testing.T) {
	got := string(lean.Relayed(`/a "b"\c`, "http://h/v1", nil).Files["config.toml"])
	if !strings.HasPrefix(got, `model_catalog_json = "/a \"b\"\\c/models.json"`+"\n") || !strings.Contains(got, `base_url = "http://h/v1"`) {
		t.Error(got)
	}
}

func TestRelayedUsesTheSystemsRootsForTLSOnly(t *testing.T) {
	for baseURL, want := range map[string]bool{"http://127.0.0.1:1/v1": true, "https://h/v1": false} {
		c := lean.Relayed("/home", baseURL, nil)
		if _, ok := c.Files["nobody.pem"]; ok != want || slices.Contains(c.Env, "SSL_CERT_FILE=/home/nobody.pem") != want {
			t.Errorf("%s: %v", baseURL, c.Env)
		}
	}
}

func TestCatalogFailsWithoutModels(t *testing.T) {
	for _, original := range []string{"", "[]", "{}", `{"models":{}}`, `{"models":[]}`} {
		if _, err := lean.Catalog([]byte(original)); err == nil {
			t.Errorf("%q: no error", original)
		}
		if _, err := lean.StandIn([]byte(original)); err == nil {
			t.Errorf("%q: no error of StandIn", original)
		}
	}
}
