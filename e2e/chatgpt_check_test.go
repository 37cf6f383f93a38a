package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"codexpool/codex"
	"codexpool/codex/codextest"
)

// TestCheckOfAChatGPTLoginSaysWhatItProvedOrWhatIsWrong asks a backend for the models of
// the plan, and has each fault with what check says of it.
func TestCheckOfAChatGPTLoginSaysWhatItProvedOrWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, models, err := codex.Catalog(t.Context(), codextest.Binary(t), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	first, last := models[0].ID, models[len(models)-1].ID
	plan := func(ids ...string) http.HandlerFunc {
		return codextest.Status(200, `{"models":[{"slug":"`+strings.Join(ids, `"},{"slug":"`)+`"}]}`)
	}
	detail := func(status int, said string) http.HandlerFunc {
		return codextest.Status(status, `{"detail":"`+said+`"}`)
	}
	for name, tt := range map[string]struct {
		models http.HandlerFunc
		env    string
		life   time.Duration
		code   int
		want   []string
	}{
		"a plan with another default": {plan(last, "gpt-of-tomorrow"), "", time.Hour, 0, []string{
			"plan:       has " + last + "\n", "plan:       lacks of the CLI's models " + first, "plan:       has models that the CLI does not list: gpt-of-tomorrow\n",
			"model:      " + last + ", because the plan does not have " + first + "\n",
			"proved:     a child starts and answers; the provider accepts the login and this version of the CLI; the plan has " + last + "\n", "\nok\n",
		}},
		"a plan without the model":     {plan(last), "CODEX_MODEL=" + first, time.Hour, 1, []string{"failed:     the plan does not have " + first + ": set CODEX_MODEL to a model that it has\n"}},
		"a login that is not valid":    {detail(401, "Your token was revoked."), "", time.Hour, 1, []string{"failed:     the provider rejects the login (status 401: Your token was revoked.): log in again, with codexpool login\n"}},
		"a workspace of a region":      {detail(401, "Workspace is not authorized in this region."), "", time.Hour, 1, []string{"failed:     the login is valid, but its workspace may not be used in this region"}},
		"a firewall":                   {page(403, "<html>"), "", time.Hour, 1, []string{"failed:     a firewall before the provider rejects this machine (status 403): try another network, or CODEX_UPSTREAM=direct\n"}},
		"a CLI that is too old":        {detail(400, "A newer version of Codex is required."), "", time.Hour, 1, []string{"failed:     the provider rejects the request, perhaps because this Codex CLI is too old for it (status 400: A newer"}},
		"an unpaid workspace":          {codextest.Status(402, `{"detail":{"code":"deactivated_workspace"}}`), "", time.Hour, 1, []string{"failed:     the login's workspace is not paid for (status 402)\n"}},
		"a backend that fails":         {codextest.Status(500, ""), "", time.Hour, 1, []string{"failed:     the provider fails (status 500)\n"}},
		"a page instead of a list":     {page(200, "<html>"), "", time.Hour, 1, []string{"failed:     the provider fails (status 200: its answer is no list of models)\n"}},
		"a backend that is not there":  {nil, "HTTPS_PROXY=http://127.0.0.1:1", time.Hour, 1, []string{"failed:     the provider cannot be reached: "}},
		"a certificate of strangers":   {nil, "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", time.Hour, 1, []string{"failed:     the provider cannot be reached: ", "certificate"}},
		"an access token that expired": {nil, "", -time.Minute, 0, []string{"not proved: the login: its access token has expired, and the daemon refreshes it when it starts\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newChatGPT(t, tt.life)
			g.models = tt.models
			environ := append(g.env, "CODEX_UPSTREAM=chatgpt")
			if tt.env != "" {
				environ = append(environ, tt.env)
			}
			out, code := runCheck(t, environ...)
			if code != tt.code {
				t.Errorf("exit code %d\n%s", code, out)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("without %q:\n%s", want, out)
				}
			}
			if strings.HasSuffix(out, "\nok\n") != (code == 0) {
				t.Errorf("exit code %d, and it ends otherwise:\n%s", code, out)
			}
			if spent := g.tokens.Spent(); len(spent) > 0 {
				t.Errorf("check has spent %q", spent)
			}
		})
	}
}

// TestDefaultModelIsOneThatThePlanHas: the CLI's own list knows nothing of plans.
func TestDefaultModelIsOneThatThePlanHas(t *testing.T) {
	t.Parallel()
	_, models, err := codex.Catalog(t.Context(), codextest.Binary(t), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	last := models[len(models)-1].ID
	g := newChatGPT(t, 60*time.Hour)
	g.models = codextest.Status(200, `{"models":[{"slug":"`+last+`"}]}`)
	d := start(t, append(g.env, "POOL_SIZE=1")...)
	eventually(t, time.Minute, "answer of the plan's model", func() bool {
		if _, err := d.stream("hi"); err != nil {
			t.Fatal(err)
		}
		_, _, body := g.seen()
		return strings.Contains(body, `"model":"`+last+`"`)
	})
	if log := d.logged(); strings.Contains(log, "not proved") {
		t.Errorf("it warns:\n%s", log)
	}
}

// TestStartWarnsOfALoginThatIsNotProved, and serves all the same.
func TestStartWarnsOfALoginThatIsNotProved(t *testing.T) {
	t.Parallel()
	g := newChatGPT(t, 60*time.Hour)
	g.models = page(403, "<html>")
	d := start(t, append(g.env, "POOL_SIZE=1")...)
	eventually(t, time.Minute, "warning", func() bool {
		return strings.Contains(d.logged(), `"msg":"ChatGPT login not proved","err":"a firewall before the provider rejects this machine`)
	})
	if _, err := d.stream("hi"); err != nil {
		t.Error(err)
	}
}

// TestCheckOfDirectSaysWhatOfALoginsServicesFails: children ask for them before their first
// turn, and say little where they get no answer.
func TestCheckOfDirectSaysWhatOfALoginsServicesFails(t *testing.T) {
	t.Parallel()
	const (
		accounts = "/backend-api/wham/accounts/check"
		listed   = `{"account_ordering":["account"],"default_account_id":"account","accounts":[{"id":"account","workspace_backend_origin":"https://chatgpt.com","account_routing_override":"NO_CONSTRAINT"}]}`
	)
	for name, tt := range map[string]struct {
		accounts, bundle http.HandlerFunc
		code             int
		want             string
	}{
		"both answer":                 {codextest.Status(200, listed), codextest.Status(200, "{}"), 0, "wham/config/bundle: ok\n"},
		"a personal plan":             {codextest.Status(200, listed), codextest.Status(404, ""), 0, "wham/config/bundle: status 404, which matters to business and enterprise plans only\n"},
		"an egress rule lets none by": {page(403, "<html>"), codextest.Status(200, "{}"), 1, "failed:     children ask for wham/accounts/check before their first turn: rules for outgoing connections must let https://chatgpt.com/backend-api/wham/ through\n"},
		"another account":             {codextest.Status(200, strings.ReplaceAll(listed, `"account"`, `"other"`)), codextest.Status(200, "{}"), 1, "wham/accounts/check: the login's account is not among its accounts\n"},
		"the second fails":            {codextest.Status(200, listed), codextest.Status(500, ""), 1, "failed:     children ask for wham/config/bundle before"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newChatGPT(t, time.Hour)
			g.wham = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == accounts {
					tt.accounts(w, r)
					return
				}
				tt.bundle(w, r)
			}
			out, code := runCheck(t, append(g.env, "CODEX_UPSTREAM=direct")...)
			if code != tt.code || !strings.Contains(out, tt.want) {
				t.Errorf("exit code %d, without %q:\n%s", code, tt.want, out)
			}
		})
	}
}
