package login_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"codexpool/codex/codextest"

	"github.com/google/go-cmp/cmp"
)

// TestAuthorizeSaysWhoseLoginItIs has the claims of an access token, and the headers that
// follow from them.
func TestAuthorizeSaysWhoseLoginItIs(t *testing.T) {
	const auth, residency = "https://api.openai.com/auth", "X-Openai-Internal-Codex-Residency"
	for name, tt := range map[string]struct {
		account string // in the file
		claims  map[string]any
		want    http.Header // beside Authorization
	}{
		"the file names the account":    {"a", map[string]any{auth: map[string]any{"chatgpt_account_id": "b"}}, http.Header{"Chatgpt-Account-Id": {"a"}}},
		"only the token does":           {"", map[string]any{auth: map[string]any{"chatgpt_account_id": "b"}}, http.Header{"Chatgpt-Account-Id": {"b"}}},
		"nobody does":                   {"", nil, http.Header{}},
		"a workspace bound to a region": {"a", map[string]any{auth: map[string]any{"chatgpt_compute_residency": "eu"}}, http.Header{"Chatgpt-Account-Id": {"a"}, residency: {"eu"}}},
		"the claim at its other place":  {"a", map[string]any{"chatgpt_compute_residency": "us"}, http.Header{"Chatgpt-Account-Id": {"a"}, residency: {"us"}}},
		"one that is not bound":         {"a", map[string]any{auth: map[string]any{"chatgpt_compute_residency": "no_constraint"}}, http.Header{"Chatgpt-Account-Id": {"a"}}},
	} {
		dir := t.TempDir()
		claims, err := json.Marshal(tt.claims)
		if err != nil {
			t.Fatal(err)
		}
		token := "e30." + base64.RawURLEncoding.EncodeToString(claims) + ".x"
		file, err := json.Marshal(map[string]any{
			"tokens": map[string]string{"access_token": token, "refresh_token": "r", "account_id": tt.account}, "last_refresh": time.Now(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "auth.json"), file, 0o600); err != nil {
			t.Fatal(err)
		}
		got := http.Header{}
		if err := opened(t, dir, nil).Authorize(got); err != nil {
			t.Fatal(err)
		}
		tt.want.Set("Authorization", "Bearer "+token)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

func TestAuthorizeFailsOnceTheTokenHasExpired(t *testing.T) {
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "rt", -time.Minute)
	h := http.Header{}
	if err := opened(t, dir, nil).Authorize(h); err == nil || len(h) > 0 {
		t.Errorf("%v, %v", h, err)
	}
}

func TestInstallationIsThatOfCODEX_HOME(t *testing.T) {
	dir := t.TempDir()
	codextest.AuthFile(t, dir, "rt", time.Hour)
	path := filepath.Join(dir, "installation_id")
	made := opened(t, dir, nil).Installation()
	if len(made) != 36 || string(opened(t, dir, nil).Installation()) != string(made) {
		t.Errorf("%q is not kept", made)
	}
	if err := os.WriteFile(path, []byte("of the CLI\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := opened(t, dir, nil).Installation(); string(got) != "of the CLI\n" {
		t.Errorf("got %q", got)
	}
	os.Remove(path)
	if err := os.Mkdir(path, 0o700); err != nil { // nothing can be written there
		t.Fatal(err)
	}
	if got := opened(t, dir, nil).Installation(); got != nil {
		t.Errorf("got %q", got)
	}
}
