package api_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/pool"
	"codexpool/upstream"
)

// lists is a provider with a list of models. An empty one is a failure.
type lists struct {
	list  string
	asked int
}

func (l *lists) RoundTrip(r *http.Request) (*http.Response, error) {
	l.asked++
	if r.URL.Path != "/v1/models" || r.Header.Get("Authorization") != "Bearer sk" {
		return nil, fmt.Errorf("a request for %s", r.URL)
	}
	if l.list == "" {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(l.list))}, nil
}

// others are the models of a provider that may have more than the catalog.
func others(prefix string) func() api.Models {
	m := models
	m.Open, m.Prefix = true, prefix
	return func() api.Models { return m }
}

// behindURL is a house whose provider is a base URL.
func behindURL(t *testing.T, provider http.RoundTripper, prefix string) *house {
	t.Helper()
	cfg := config()
	cfg.Models = others(prefix)
	relay := upstream.NewRelay(upstream.Provider{Base: &url.URL{Scheme: "http", Host: "provider.invalid", Path: "/v1"}, Credential: upstream.Bearer("sk")}, provider, upstream.Hooks{})
	return openWith(t, cfg, pool.Config{Size: 1}, relay)
}

var listedID = regexp.MustCompile(`"id":"([^"]*)"`)

// ids are those of a list of models.
func ids(a answer) string {
	var list []string
	for _, m := range listedID.FindAllStringSubmatch(a.Body.String(), -1) {
		list = append(list, m[1])
	}
	return strings.Join(list, " ")
}

const qwen = `{"id":"org/qwen-3","object":"model","created":7,"owned_by":"vllm","max_model_len":4096}`

func TestModelsAreTheProvidersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider := &lists{list: `{"object":"list","data":[` + qwen + `,{"id":"codex-5-low"},{"object":"model"},7]}`}
		h := behindURL(t, provider, "codex-5")
		const aliases = "codex-5 codex-5-low codex-5-high codex-5-ultra"
		a := h.do(t, request("GET", "/v1/models", ""))
		if got := ids(a); got != aliases+" org/qwen-3" || !strings.Contains(a.Body.String(), qwen) {
			t.Errorf("got %s (%s)", got, a.Body)
		}
		for name, want := range map[string]string{
			"org/qwen-3":    "200 " + qwen,
			"org%2Fqwen-3":  "200 " + qwen,
			"codex-5":       `200 {"id":"codex-5","object":"model"`,
			"CODEV-5-ultra": `200 {"id":"CODEV-5-ultra","object":"model"`,
			"gpt-a":         `200 {"id":"gpt-a","object":"model"`, // what the aliases mean
			"gpt-b-mini":    `404 {"error":{"message":"The model \"gpt-b-mini\" does not exist.`,
			"NONSENSE":      `404 {"error":{"message":"The model \"NONSENSE\" does not exist.`,
		} {
			a := h.do(t, request("GET", "/v1/models/"+name, ""))
			if got := fmt.Sprint(a.Code, " ", a.Body); !strings.HasPrefix(got, want) {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
		}
		if provider.asked != 1 {
			t.Errorf("the provider was asked %d times in one moment", provider.asked)
		}

		provider.list = `{"data":[]}`
		time.Sleep(59 * time.Second)
		if got := ids(h.do(t, request("GET", "/v1/models", ""))); got != aliases+" org/qwen-3" {
			t.Errorf("after 59 s: %s", got)
		}
		time.Sleep(2 * time.Second)
		if got := ids(h.do(t, request("GET", "/v1/models", ""))); got != aliases {
			t.Errorf("after 61 s: %s", got)
		}
		provider.list = ""
		time.Sleep(time.Minute)
		if a := h.do(t, request("GET", "/v1/models/NONSENSE", "")); a.Code != 404 || provider.asked != 3 {
			t.Errorf("the last list does not stay where the provider fails: %d, asked %d times", a.Code, provider.asked)
		}
	})
}

// Many providers have no list. Then any name passes, as it does in a completion.
func TestModelsWithoutAListOfTheProvider(t *testing.T) {
	for name, list := range map[string]string{"unreachable": "", "no list": `{"detail":"Not Found"}`, "too long": `{"data":["` + strings.Repeat("x", 5<<20) + `"]}`} {
		synctest.Test(t, func(t *testing.T) {
			provider := &lists{list: list}
			h := behindURL(t, provider, "codev-5")
			for range 3 {
				if got := ids(h.do(t, request("GET", "/v1/models", ""))); got != "codev-5 codev-5-low codev-5-high codev-5-ultra codex-5 gpt-a" {
					t.Errorf("%s: got %s", name, got)
				}
				if a := h.do(t, request("GET", "/v1/models/any", "")); a.Code != 200 {
					t.Errorf("%s: %d %s", name, a.Code, a.Body)
				}
			}
			if provider.asked != 1 {
				t.Errorf("%s: asked %d times", name, provider.asked)
			}
			provider.list = `{"data":[` + qwen + `]}`
			time.Sleep(6 * time.Second)
			if got := ids(h.do(t, request("GET", "/v1/models", ""))); !strings.HasSuffix(got, "codex-5 org/qwen-3") {
				t.Errorf("%s: when it is back: %s", name, got)
			}
		})
	}
}

// Children that call the provider themselves may use any of its models, but nobody can
// ask it which there are.
func TestModelsWithoutARelayAreThoseOfTheCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Models = others("codex-5")
		h := open(t, cfg, 1)
		list := h.do(t, request("GET", "/v1/models", ""))
		for name, want := range map[string]int{"codex-5": 200, "gpt-a": 200, "gpt-b-mini": 200, "NONSENSE": 404, "org/qwen-3": 404} {
			if a := h.do(t, request("GET", "/v1/models/"+name, "")); a.Code != want || strings.Contains(list.Body.String(), `"id":"`+name+`"`) != (want == 200) {
				t.Errorf("%s: %d %s; listed are %s", name, a.Code, a.Body, ids(list))
			}
		}
		if a := h.do(t, chat(`{"model":"org/qwen-3","messages":[{"role":"user","content":"hi"}]}`)); a.Code != 200 {
			t.Errorf("a completion: %d %s", a.Code, a.Body)
		}
	})
}

// TestModelsForACodexCLI has a CLI that asks as it does: it wants what its catalog says,
// of the models that its key may use.
func TestModelsForACodexCLI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Keys = append(cfg.Keys, named("mini"))
		cfg.Keys[2].Models = []string{"gpt-b-mini"}
		cfg.Models = func() api.Models {
			m := models
			m.Catalog = slices.Clone(m.Catalog)
			for i := range m.Catalog {
				m.Catalog[i].Entry = json.RawMessage(`{"slug":"` + m.Catalog[i].ID + `","x":1.50}`)
			}
			return m
		}
		h := open(t, cfg, 1)
		for _, tt := range []struct{ key, query, want string }{
			{key, "", `null`},
			{key, "?client_version=0.169.0", `[{"slug":"gpt-a","x":1.50},{"slug":"gpt-b-mini","x":1.50}]`},
			{"mini", "?client_version=0.169.0", `[{"slug":"gpt-b-mini","x":1.50}]`},
		} {
			a := h.do(t, by(tt.key, request("GET", "/v1/models"+tt.query, "")))
			var list struct{ Data, Models json.RawMessage }
			if err := json.Unmarshal(a.Body.Bytes(), &list); err != nil || cmp.Or(string(list.Models), "null") != tt.want || len(list.Data) == 0 {
				t.Errorf("%s%s: %s, %v", tt.key, tt.query, a.Body, err)
			}
		}
	})
}
