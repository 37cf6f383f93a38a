package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"codexpool/upstream"
)

// model is the model behind the aliases: the chosen one, or else the first of the
// catalog that the plan has.
func (p *provider) model(c cli, chosen string) string {
	if has := p.plan.Load(); has != nil && chosen == "" {
		for _, m := range c.models { // the default is the first
			if slices.Contains(*has, m.ID) {
				return m.ID
			}
		}
	}
	return c.model(chosen)
}

// learnPlan asks the backend of the login for the models of its plan. A failure here is a
// warning: a completion may succeed all the same.
func (p *provider) learnPlan(ctx context.Context) {
	if p.expired() {
		return // it is being refreshed
	}
	if err := p.askForPlan(ctx); err != nil && ctx.Err() == nil {
		p.log.Warn("ChatGPT login not proved", "err", explain(err))
	}
}

// expired reports whether the access token of the login has expired.
func (p *provider) expired() bool { return p.login.Authorize(http.Header{}) != nil }

// planTimeout is for the list of the plan's models.
const planTimeout = 10 * time.Second

func (p *provider) askForPlan(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	models, err := p.relay.Models(ctx)
	if err != nil {
		return err
	}
	ids := []string{}
	for _, m := range models {
		ids = append(ids, m.ID)
	}
	p.plan.Store(&ids)
	return nil
}

// explain says what an error of askForPlan means, and what to do. It may be logged: the
// request had no prompt that the provider could quote.
func explain(err error) string {
	f := (*upstream.Failure)(nil)
	if !errors.As(err, &f) {
		return "the provider cannot be reached: " + err.Error()
	}
	said := fmt.Sprintf("status %d", f.Status)
	switch {
	case f.Cause != nil:
		said += ": " + f.Cause.Error()
	case f.Message != "" && f.Head == "":
		said += ": " + f.Message
	}
	switch {
	case f.Blocked:
		return fmt.Sprintf("a firewall before the provider rejects this machine (status %d): try another network, or CODEX_UPSTREAM=direct", f.Status)
	case f.Region:
		return "the login is valid, but its workspace may not be used in this region (" + said + ")"
	case f.Status == http.StatusUnauthorized:
		return "the provider rejects the login (" + said + "): log in again, with codexpool login"
	case f.Status == http.StatusPaymentRequired:
		return "the login's workspace is not paid for (" + said + ")"
	case f.Status == http.StatusBadRequest:
		return "the provider rejects the request, perhaps because this Codex CLI is too old for it (" + said + ")"
	case f.Status == http.StatusTooManyRequests:
		return "the usage limit of the login is reached (" + said + ")"
	}
	return "the provider fails (" + said + ")"
}

// verifyPlan is verify for a ChatGPT login.
func (p *provider) verifyPlan(ctx context.Context, c cli, chosen string, stdout io.Writer) bool {
	if p.expired() {
		fmt.Fprintln(stdout, "proved:     a child starts and answers")
		fmt.Fprintln(stdout, "not proved: the login: its access token has expired, and the daemon refreshes it when it starts")
		return true
	}
	if err := p.askForPlan(ctx); err != nil {
		fmt.Fprintln(stdout, "failed:    ", explain(err))
		return false
	}
	has := *p.plan.Load()
	printPlan(c, has, stdout)
	model := p.model(c, chosen)
	if model != c.model(chosen) {
		fmt.Fprintf(stdout, "model:      %s, because the plan does not have %s\n", model, c.model(chosen))
	}
	if !slices.Contains(has, model) {
		fmt.Fprintf(stdout, "failed:     the plan does not have %s: set CODEX_MODEL to a model that it has\n", model)
		return false
	}
	fmt.Fprintf(stdout, "proved:     a child starts and answers; the provider accepts the login and this version of the CLI; the plan has %s\n", model)
	fmt.Fprintln(stdout, "not proved: a completion, which would cost tokens")
	return true
}

// printPlan compares the models of the plan with those of the catalog.
func printPlan(c cli, has []string, stdout io.Writer) {
	var both, lacks []string
	for _, m := range c.models {
		if slices.Contains(has, m.ID) {
			both = append(both, m.ID)
		} else {
			lacks = append(lacks, m.ID)
		}
	}
	besides := slices.DeleteFunc(slices.Clone(has), func(id string) bool { return slices.Contains(both, id) })
	for _, line := range []struct {
		of     string
		models []string
	}{
		{"plan:       has ", both}, {"plan:       lacks of the CLI's models ", lacks}, {"plan:       has models that the CLI does not list: ", besides},
	} {
		if len(line.models) > 0 {
			fmt.Fprintln(stdout, line.of+strings.Join(line.models, ", "))
		}
	}
}
