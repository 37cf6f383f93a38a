package upstream

import (
	"bytes"
	"html"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxSentence = 500 // of a provider's message, characters
	maxHead     = 80  // of an answer that is not JSON, bytes
)

// ReadFailure reads an answer that is not a stream of events, as far as it was read.
func ReadFailure(res *http.Response, body []byte) *Failure {
	f, ok := parseFailure(eventData(body))
	f.Status = res.StatusCode
	if wait, given := parseRetryAfter(res.Header); given {
		f.RetryAfter = wholeSeconds(wait.Seconds())
	}
	page := bytes.HasPrefix(bytes.TrimSpace(body), []byte("<"))
	if !ok && len(body) > 0 {
		f.Kind, f.Head = bounded(res.Header.Get("Content-Type")), string(body)
		f.Message = firstLine(body, page)
	}
	f.Blocked = f.Status == http.StatusForbidden && (page || res.Header.Get("Cf-Mitigated") != "")
	f.Region = f.Status == http.StatusUnauthorized && strings.Contains(f.Message, "in this region")
	return f.of(res)
}

// eventData is the data of the first event, where an error came as one.
func eventData(body []byte) []byte {
	for line := range bytes.Lines(body) {
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			return data
		}
	}
	return body
}

var title = regexp.MustCompile(`(?is)<title[^>]*>(.*?)</title>`)

// firstLine is what an answer says that is not JSON: the title of a page, or the first
// line of a text. What follows may be a stack.
func firstLine(body []byte, page bool) string {
	if !utf8.Valid(body) {
		return ""
	}
	text := string(body)
	if page {
		found := title.FindStringSubmatch(text)
		if found == nil {
			return ""
		}
		text = html.UnescapeString(found[1])
	}
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(line)
}

// bounded cuts a provider's text.
func bounded(s string) string {
	s = strings.ToValidUTF8(s, "")
	if n := 0; len(s) > maxSentence {
		for i := range s {
			if n++; n > maxSentence {
				return s[:i] + "…"
			}
		}
	}
	return s
}

// requestIDs are the headers in which providers and gateways name a request.
var requestIDs = []string{"X-Request-Id", "Request-Id", "Apim-Request-Id", "X-Amzn-Requestid", "Cf-Ray"}

// of completes a failure with the provider's id of the request, and takes out of its
// texts what only we and the provider may know: the credential, and where it is sent.
// Only then they are cut, for a half of a secret is not found.
func (f *Failure) of(res *http.Response) *Failure {
	for _, name := range requestIDs {
		if f.RequestID == "" {
			f.RequestID = res.Header.Get(name)
		}
	}
	hide := hider(res.Request)
	for _, text := range []*string{&f.Message, &f.Head, &f.Type, &f.Code, &f.Param} {
		*text = hide(*text)
	}
	f.Head = f.Head[:min(len(f.Head), maxHead)]
	f.bound()
	return f
}

// shortest is the length of the shortest secret: a shorter text may be in any sentence.
const shortest = 8

// hider returns what takes the secrets of a request out of a text.
func hider(req *http.Request) func(string) string {
	if req == nil || req.URL == nil {
		return func(s string) string { return s }
	}
	secrets := []string{req.URL.String(), req.URL.RequestURI(), req.URL.Path}
	for _, values := range req.URL.Query() {
		secrets = append(secrets, values...)
	}
	for _, name := range []string{"Authorization", "Chatgpt-Account-Id"} {
		secrets = append(secrets, strings.Fields(req.Header.Get(name))...)
	}
	var pairs []string
	for _, secret := range secrets {
		if len(secret) >= shortest && !slices.Contains(pairs, secret) {
			pairs = append(pairs, secret, "…")
		}
	}
	return strings.NewReplacer(pairs...).Replace
}
