package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"time"

	"codexpool/upstream"
)

// chatGPT is where Codex finds the services of a ChatGPT login.
const chatGPT = "https://chatgpt.com/backend-api/"

// elsewhere finds settings of a config.toml with which a child calls other services.
var elsewhere = regexp.MustCompile(`(?m)^\s*(model_provider|chatgpt_base_url|openai_base_url)\s*=`)

// verifyDirect asks, with direct, for what a child with a ChatGPT login asks for before its
// first turn, since Codex 0.156. Without an answer to the first the child runs no turn; the
// second concerns business and enterprise plans only. It is free.
func (p *provider) verifyDirect(ctx context.Context, version string, stdout io.Writer) bool {
	config, err := p.directConfig()
	if p.login == nil || err != nil || p.expired() || elsewhere.Match(config) {
		return true
	}
	network := transport(1)
	defer network.CloseIdleConnections()
	usable := true
	for _, service := range []string{"wham/accounts/check", "wham/config/bundle"} {
		finding, ok := p.askService(ctx, network, service, version)
		fmt.Fprintf(stdout, "provider:   GET %s%s: %s\n", chatGPT, service, finding)
		if !ok {
			fmt.Fprintf(stdout, "failed:     children ask for %s before their first turn: rules for outgoing connections must let %swham/ through\n", service, chatGPT)
			usable = false
		}
	}
	return usable
}

func (p *provider) askService(ctx context.Context, network http.RoundTripper, service, version string) (finding string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, chatGPT+service, nil)
	if err != nil {
		return err.Error(), false
	}
	req.Header.Set("Originator", "codexpool")
	req.Header.Set("User-Agent", "codexpool/"+version)
	if err := p.login.Authorize(req.Header); err != nil {
		return err.Error(), false
	}
	res, err := network.RoundTrip(req)
	if err != nil {
		return err.Error(), false
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err.Error(), false
	}
	switch {
	case res.StatusCode == http.StatusNotFound && service == "wham/config/bundle":
		return "status 404, which matters to business and enterprise plans only", true
	case res.StatusCode != http.StatusOK:
		return explain(upstream.ReadFailure(res, body)), false
	case service == "wham/accounts/check" && !lists(body, req.Header.Get("Chatgpt-Account-Id")):
		return "the login's account is not among its accounts", false
	}
	return "ok", true
}

// lists reports whether an account is in an answer about accounts.
func lists(body []byte, account string) bool {
	var answer struct{ Accounts []struct{ ID string } }
	return json.Unmarshal(body, &answer) == nil &&
		slices.ContainsFunc(answer.Accounts, func(a struct{ ID string }) bool { return a.ID == account })
}
