package api_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
)

func TestIndexOfEachListenerNamesRoutesThatAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := behind(t, config(), 1, says("ok"))
		public := h.do(t, request("GET", "/", ""))
		admin := h.admin(t, "GET", "/")
		for _, page := range []struct {
			header    http.Header
			text, has string
			status    func(method, path string) int
		}{
			{public.Header(), public.Body.String(), "/v1/chat/completions", func(method, path string) int { return h.do(t, request(method, path, "{}")).Code }},
			{admin.Header(), admin.Body.String(), "/pool/drain", func(method, path string) int { return h.admin(t, method, path).Code }},
		} {
			if got := page.header.Get("Content-Type"); got != "text/plain; charset=utf-8" || !strings.Contains(page.text, "codexpool") || !strings.Contains(page.text, page.has) {
				t.Errorf("%s: %s", got, page.text)
			}
			for _, match := range regexp.MustCompile(`(?m)^(GET|POST) +(/\S+) `).FindAllStringSubmatch(page.text, -1) {
				path := strings.Replace(match[2], "ID", "codex-5", 1)
				if path == "/metrics" || strings.HasPrefix(path, "/debug/") { // not a part of this package
					continue
				}
				if got := page.status(match[1], path); got == 404 || got == 405 {
					t.Errorf("%s %s: %d", match[1], path, got)
				}
			}
		}
		if got := h.do(t, request("POST", "/", "{}")).Code; got != http.StatusMethodNotAllowed {
			t.Errorf("POST /: %d", got)
		}
	})
}
