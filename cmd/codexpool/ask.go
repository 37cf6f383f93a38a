package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"codexpool/configs"
)

// questions are the commands that ask the running daemon. They read the configuration as
// it does, for its addresses.
var questions = map[string]func(ctx context.Context, cfg configs.Config, line commandLine, stdout, stderr io.Writer) int{
	"health":  health,
	"pool":    showPool,
	"metrics": showMetrics,
}

// health prints whether the daemon is ready. A container's health check calls it.
func health(ctx context.Context, cfg configs.Config, _ commandLine, stdout, _ io.Writer) int {
	status, body, err := get(ctx, "http://"+here(cfg.Host, strconv.Itoa(cfg.Port))+"/readyz")
	if err != nil {
		fmt.Fprintln(stdout, err)
		return exitFailed
	}
	fmt.Fprintln(stdout, strings.TrimSpace(string(body[:min(len(body), 1024)])))
	if status != http.StatusOK {
		return exitFailed
	}
	return exitOK
}

// showMetrics prints the series whose line matches, with numbers that people can read.
func showMetrics(ctx context.Context, cfg configs.Config, line commandLine, stdout, stderr io.Writer) int {
	wanted, err := regexp.Compile(line.operand())
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: metrics: %v\n", err)
		return exitBadUsage
	}
	page, err := askAdmin(ctx, cfg, "/metrics")
	if err != nil {
		fmt.Fprintf(stderr, "codexpool: metrics: %v\n", err)
		return exitFailed
	}
	for series := range strings.Lines(string(page)) {
		if series = readable(series); series != "" && wanted.MatchString(series) {
			fmt.Fprintln(stdout, series)
		}
	}
	return exitOK
}

// readable is a line of the metrics without exponents, and with the time that a timestamp
// means. It is "" for a comment.
func readable(series string) string {
	name, value, ok := cutLast(strings.TrimSpace(series), " ")
	number, err := strconv.ParseFloat(value, 64)
	if !ok || err != nil || strings.HasPrefix(name, "#") {
		return ""
	}
	series = name + " " + strconv.FormatFloat(number, 'f', -1, 64)
	base, _, _ := strings.Cut(name, "{")
	if number > 0 && (strings.HasSuffix(base, "_timestamp_seconds") || base == "process_start_time_seconds") {
		series += " (" + time.Unix(int64(number), 0).UTC().Format(time.RFC3339) + ")"
	}
	return series
}

// cutLast cuts a text at the last separator in it.
func cutLast(text, separator string) (before, after string, ok bool) {
	i := strings.LastIndex(text, separator)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(separator):], true
}

// askAdmin asks the admin listener of the daemon that has this configuration.
func askAdmin(ctx context.Context, cfg configs.Config, path string) ([]byte, error) {
	if cfg.AdminAddr == "" {
		return nil, errors.New("the admin listener is off, because PROXY_ADMIN_ADDR is set but empty. Restart the daemon without that to have the pool and the metrics")
	}
	host, port, err := net.SplitHostPort(cfg.AdminAddr)
	if err != nil {
		return nil, fmt.Errorf("PROXY_ADMIN_ADDR: %q is not HOST:PORT", cfg.AdminAddr)
	}
	if port == "0" {
		return nil, fmt.Errorf("PROXY_ADMIN_ADDR is %s, which means any free port. The daemon logged the one that it has: set it for this command", cfg.AdminAddr)
	}
	status, body, err := get(ctx, "http://"+here(host, port)+path)
	if err != nil {
		return nil, fmt.Errorf("the daemon does not answer at its PROXY_ADMIN_ADDR: %w (see codexpool runbook Down)", err)
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s at PROXY_ADMIN_ADDR (%s) answers %d: %.200s", path, cfg.AdminAddr, status, bytes.TrimSpace(body))
	}
	return body, nil
}

// here is an address of this machine at which a listener answers.
func here(host, port string) string {
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1" // a wildcard listens there too; a name might need a resolver
	}
	return net.JoinHostPort(host, port)
}

const maxAnswer = 16 << 20 // of the daemon; its own are much smaller

// get reads one answer of the daemon, without a proxy.
func get(ctx context.Context, url string) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	return res.StatusCode, body, err
}

// indented is JSON as people read it.
func indented(text []byte) []byte {
	var out bytes.Buffer
	if json.Indent(&out, bytes.TrimSpace(text), "", "  ") != nil {
		return text
	}
	return out.Bytes()
}
