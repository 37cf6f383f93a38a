package api_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"codexpool/api"
	"codexpool/codex/codextest"
	"codexpool/pool"

	"github.com/google/go-cmp/cmp"
)

// TestEveryErrorCodeHasAFault reads the codes from the source: one that is new must be
// given a fault.
func TestEveryErrorCodeHasAFault(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile(`(?:Code|counted)(?:: | = )"([a-z_]+)"`)
	found := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range code.FindAllStringSubmatch(string(source), -1) {
			found++
			if m[1] != "client_gone" && !slices.ContainsFunc(api.Kinds, func(k api.Kind) bool { return k.Code == m[1] }) {
				t.Errorf("%s: %s is not in Kinds", file, m[1])
			}
		}
	}
	if found < len(api.Kinds) {
		t.Errorf("only %d codes were found", found)
	}
}

// TestTimeoutIsByTheFaultOfWhoHadTheRequest has three that let a caller wait for too
// long: the provider, a child that does not ask it, and the queue.
func TestTimeoutIsByTheFaultOfWhoHadTheRequest(t *testing.T) {
	slow := codextest.Script{codextest.Handshake(), codextest.Serve(&codextest.Child{Delay: time.Hour})} // it never asks the relay
	for name, tt := range map[string]struct {
		timeout, idle time.Duration
		script        []codextest.Script
		before        bool // another request has the child
		code          string
		want          api.Fault
	}{
		"the provider is silent":           {time.Hour, time.Minute, nil, false, "idle_timeout", api.FaultUpstream},
		"the provider takes too long":      {time.Minute, time.Hour, nil, false, "request_timeout", api.FaultUpstream},
		"the child does not ask":           {time.Hour, time.Minute, []codextest.Script{slow}, false, "idle_timeout", api.FaultChild},
		"the child does not ask in time":   {time.Minute, time.Hour, []codextest.Script{slow}, false, "request_timeout", api.FaultChild},
		"the request stayed in the queue":  {20 * time.Second, time.Hour, nil, true, "request_timeout", api.FaultCapacity},
		"and one that waited for too long": {time.Hour, 2 * time.Hour, nil, true, "pool_saturated", api.FaultCapacity},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				silent := pausing{[]string{`{"type":"response.in_progress"}`}, 24 * time.Hour}
				relay := relayTo(silent)
				cfg := config()
				cfg.Timeout, cfg.IdleTimeout = tt.timeout, tt.idle
				h := openWith(t, cfg, pool.Config{Size: 1}, relay, tt.script...)
				if tt.before {
					lease, err := h.pool.Acquire(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer lease.Release()
				}
				h.do(t, chat(hello))
				if got := h.last(); got.Code != tt.code || got.Fault != tt.want {
					t.Errorf("%s by %q", got.Code, got.Fault)
				}
			})
		})
	}
}

func TestFaultIsInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, log := logged(t)
		h.do(t, chat(`{"messages":[]}`))
		var line struct{ Code, Fault string }
		if err := json.Unmarshal(log.Bytes(), &line); err != nil || line.Code != "invalid_request_error" || line.Fault != "client" {
			t.Errorf("%v %s", err, log)
		}
		log.Reset()
		h.do(t, chat(hello))
		if strings.Contains(log.String(), "fault") {
			t.Errorf("a request that did not fail: %s", log)
		}
		log.Reset()
		ctx, leave := context.WithCancel(t.Context())
		leave()
		h.do(t, chat(hello).WithContext(ctx))
		if strings.Contains(log.String(), `"fault"`) || !strings.Contains(log.String(), "client_gone") {
			t.Errorf("a client that left: %s", log)
		}
	})
}

// A child that calls the provider itself has one word for all that it has no word for.
func TestLogNamesAFailureThatCodexHasNoWordFor(t *testing.T) {
	for said, want := range map[string]string{
		`stream disconnected before completion: of "xyzzy"`: "turn failed: stream disconnected before completion",
		`{"xyzzy":1}`: "turn failed: other",
		"":            "turn failed: other",
		"one word " + strings.Repeat("a", 100) + "xyzzy": "turn failed: one word " + strings.Repeat("a", 71),
	} {
		synctest.Test(t, func(t *testing.T) {
			h, log := logged(t, codextest.Script{codextest.Handshake(), codextest.Thread(), codextest.Turn(), codextest.Fail("other", said)})
			h.do(t, chat(hello))
			var line struct{ Err string }
			if err := json.Unmarshal(log.Bytes(), &line); err != nil || line.Err != want || strings.Contains(log.String(), "xyzzy") {
				t.Errorf("%q, %v, want %q: %s", said, err, want, log)
			}
		})
	}
}

// TestRunbookHasARowForEachCode holds the table of codes of the runbooks against Kinds.
func TestRunbookHasARowForEachCode(t *testing.T) {
	text, err := os.ReadFile("../runbooks/Errors.md")
	if err != nil {
		t.Fatal(err)
	}
	got, want := map[string]string{}, map[string]string{"edge_unavailable": "none"} // which the daemon never sends
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|[^|]*\\|[^|]*\\| ([^|]*) \\|[^|]*[^| ] \\|").FindAllStringSubmatch(string(text), -1) {
		got[row[1]] = row[2]
	}
	for _, k := range api.Kinds {
		want[k.Code] = strings.TrimPrefix(want[k.Code]+", "+string(k.Fault), ", ")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("codes and their faults (-want +got)\n%s", diff)
	}
}
