package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"codexpool/configs"
)

// verify asks the provider behind the relay for its models, and prints what that showed.
// It returns false where no completion could succeed. What needs tokens is not tried.
//
// c is the CLI, and chosen is CODEX_MODEL.
func (p *provider) verify(ctx context.Context, c cli, chosen string, environ []string, stdout io.Writer) bool {
	proved, open := "a child starts and answers", "a completion, which would cost tokens"
	switch p.upstream {
	case configs.ChatGPT:
		fmt.Fprintln(stdout, "network:   ", p.network(environ))
		return p.verifyPlan(ctx, c, chosen, stdout)
	case configs.Echo:
		open = "anything about a provider: the echo model is a part of codexpool"
	case configs.Direct:
		if !p.verifyDirect(ctx, c.version, stdout) {
			return false
		}
		open = "a completion: children call the provider themselves"
	default:
		fmt.Fprintln(stdout, "network:   ", p.network(environ))
		status, err := p.relay.Verify(ctx)
		if err != nil {
			fmt.Fprintln(stdout, "failed:     the provider cannot be reached:", err)
			return false
		}
		finding, usable := p.finding(status)
		fmt.Fprintf(stdout, "provider:   %s (status %d to GET /models)\n", finding, status)
		if !usable {
			fmt.Fprintln(stdout, "failed:     the provider", finding)
			return false
		}
		proved += "; the provider " + finding
	}
	fmt.Fprintln(stdout, "proved:    ", proved)
	fmt.Fprintln(stdout, "not proved:", open)
	return true
}

// finding is what a status of the list of models shows.
func (p *provider) finding(status int) (finding string, usable bool) {
	switch {
	case status == http.StatusUnauthorized:
		return "rejects the credential", false
	case status >= http.StatusInternalServerError:
		return "is there, and fails", false
	case p.credential == "none" && status == http.StatusOK:
		return "answers without a credential", true
	case status == http.StatusOK:
		return "accepts the credential", true
	case status == http.StatusForbidden:
		return "accepts the credential, which may not list models", true
	}
	return "answers, but does not list models: that says nothing about the credential", true
}

// network says how the provider is reached: by names only, because a proxy's URL may hold
// a password.
func (p *provider) network(environ []string) string {
	var set []string
	for _, entry := range only(environ, configs.Network()...) {
		// Go reads no ALL_PROXY and no certificate of Codex's own.
		if name := variable(entry); entry != name+"=" && !strings.EqualFold(name, "ALL_PROXY") && name != "CODEX_CA_CERTIFICATE" {
			set = append(set, name)
		}
	}
	slices.Sort(set)
	way := "no proxy"
	if proxy, err := p.relay.Proxy(); err == nil && proxy != nil {
		way = "through a proxy"
	}
	if len(set) == 0 {
		return way
	}
	return way + "; in force: " + strings.Join(set, ", ")
}
