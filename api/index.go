package api

import "net/http"

// What GET / says, to whoever opened an address in a browser or has the wrong port.
const (
	publicIndex = `codexpool serves the OpenAI API here. Give clients this address with /v1 as their base URL.

POST /v1/chat/completions   chat completions
POST /v1/completions        the legacy form
POST /v1/responses          the Responses API
GET  /v1/models             the models
GET  /v1/models/ID          one of them
GET  /healthz               health: the process serves
GET  /livez                 the same
GET  /readyz                a completion may be sent here

Metrics and the pool are on the admin listener, 127.0.0.1:11436 if nothing else is set.
`
	adminIndex = `This is the admin listener of codexpool. The OpenAI API is on the public one, port 11435 if nothing else is set.

GET  /                this page; in HTML, if a browser asks
GET  /runbooks/       what to do about each trouble
GET  /pool            the same in JSON: the children, and why the last ones died
POST /pool/recycle    replaces them, one after another
POST /pool/drain      makes the daemon not ready, and rejects new completions
POST /pool/resume     ends the drain
POST /auth/bypass     has /verify let everyone pass for a while: ?minutes=60; DELETE ends that
GET  /metrics         for Prometheus
GET  /healthz         health: the process serves
GET  /livez           the same
GET  /readyz          a completion may be sent to the public listener
GET  /debug/pprof/    profiles of the daemon
`
)

// index answers with a text.
func index(text string) handler {
	return func(res *response, _ *http.Request) error {
		res.Header().Set("Content-Type", "text/plain; charset=utf-8")
		return res.send([]byte(text))
	}
}
