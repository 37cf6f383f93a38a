package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"codexpool/api"
	"codexpool/configs"
)

// showPool prints the daemon's pool: once, or every second until ctx ends. While it
// watches, a daemon that does not answer may be restarting.
func showPool(ctx context.Context, cfg configs.Config, line commandLine, stdout, stderr io.Writer) int {
	if !line.watch {
		return showPoolOnce(ctx, cfg, line, stdout, stderr)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if terminal(stdout) && !line.json {
			fmt.Fprint(stdout, "\x1b[H\x1b[2J") // clears it
		}
		showPoolOnce(ctx, cfg, line, stdout, stderr)
		fmt.Fprintln(stdout)
		select {
		case <-ctx.Done():
			return exitOK
		case <-tick.C:
		}
	}
}

func showPoolOnce(ctx context.Context, cfg configs.Config, line commandLine, stdout, stderr io.Writer) int {
	body, err := askAdmin(ctx, cfg, "/pool")
	if ctx.Err() != nil {
		return exitOK // CTRL-C
	}
	var page api.Pool
	if err == nil {
		err = json.Unmarshal(body, &page)
	}
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: pool: %v\n", err)
		return exitFailed
	}
	if line.json {
		fmt.Fprintf(stdout, "%s\n", indented(body))
		return exitOK
	}
	printPool(stdout, page, time.Now())
	return exitOK
}

// printPool prints what /pool says as tables, in an order that suits whoever looks for a
// fault: all in all, each child, why none starts, why they died.
func printPool(w io.Writer, p api.Pool, now time.Time) {
	draining := "no"
	if p.DrainSince != nil {
		draining = span(now.Sub(*p.DrainSince))
	}
	table(w, []any{"SIZE", "STARTING", "IDLE", "LEASED", "WAITING", "WORN", "MEMORY", "DRAINING", "UPSTREAM"},
		[]any{p.Size, p.Starting, p.Idle, p.Leased, p.Waiting, p.Worn, megabyte(p.MemoryBytes), draining, p.Upstream.Choice})
	children := [][]any{{"PID", "STATE", "AGE", "TURNS", "MEMORY", "PROBE", "VERSION", "WORN", "TURN", "SILENT", "KEY", "REQUEST"}}
	for _, c := range p.Children {
		probe, turn, silent, key, request := "-", "-", "-", "-", "-"
		if c.Probe != nil {
			probe = cmp.Or(c.Probe.Error, span(seconds64(c.Probe.TookSeconds)))
		}
		if t := c.Turn; t != nil {
			turn, silent, key, request = span(now.Sub(t.Since)), span(seconds64(t.SilentSeconds)), cmp.Or(t.Key, "-"), t.Request
		}
		children = append(children, []any{c.PID, c.State, span(seconds64(c.AgeSeconds)), c.Turns, megabyte(c.MemoryBytes), probe, c.Version, cmp.Or(c.Worn, "-"), turn, silent, key, request})
	}
	fmt.Fprintln(w)
	table(w, children...)
	fmt.Fprintln(w)
	printFailure(w, p)
	if len(p.Deaths) == 0 {
		fmt.Fprintln(w, "deaths: none")
		return
	}
	fmt.Fprintln(w, "deaths, the last one first:")
	deaths := [][]any{{"AGO", "WHY", "AGE", "TURNS", "PID", "ERROR"}}
	for _, d := range p.Deaths {
		deaths = append(deaths, []any{span(now.Sub(d.At)), d.Why, span(seconds64(d.AgeSeconds)), d.Turns, d.PID, cmp.Or(d.Error, "-")})
	}
	table(w, deaths...)
}

// printFailure prints why the last start failed, with what the child said.
func printFailure(w io.Writer, p api.Pool) {
	if p.Failure == nil {
		fmt.Fprintln(w, "failure: none")
		return
	}
	fmt.Fprintln(w, "failure:", p.Failure.Error)
	for _, said := range p.Failure.Stderr {
		fmt.Fprintln(w, "  stderr:", said)
	}
}

// table prints rows in columns.
func table(w io.Writer, rows ...[]any) {
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(columns, "\t")
			}
			fmt.Fprint(columns, cell)
		}
		fmt.Fprintln(columns)
	}
	columns.Flush()
}

func megabyte(bytes int64) string { return fmt.Sprint(bytes/1e6, " MB") }

func seconds64(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// span is a duration with as many digits as matter.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
