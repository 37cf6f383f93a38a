package upstream_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"codexpool/upstream"
)

func TestGatePassesOnlyAChildsOwnPath(t *testing.T) {
	gate := upstream.NewGate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) }))
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		gate.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	one, revoke := gate.Admit()
	two, _ := gate.Admit()
	if one == two || len(one) < 23 {
		t.Errorf("paths %q and %q can be guessed", one, two)
	}
	if code, body := get(one + "/v1/responses"); code != 200 || body != "/v1/responses" {
		t.Errorf("%d %q", code, body)
	}
	revoke()
	for _, path := range []string{one + "/v1/responses", "/v1/responses", "/", "//v1/responses", two[:len(two)-1] + "/v1/responses"} {
		if code, _ := get(path); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, _ := get(two + "/v1/responses"); code != 200 {
		t.Errorf("another child lost its path: %d", code)
	}
}
