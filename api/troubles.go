package api

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"codexpool/upstream"
)

// pageOf are the runbooks of states, of the daemon and of children, and of reasons why
// children die. Errors.md names those of errors.
var pageOf = map[string]string{
	string(Starting):           "ChildStartsFail.md",
	string(BackendUnavailable): "ChildStartsFail.md",
	string(Draining):           "Drain.md",
	string(UpstreamAuth):       "UpstreamAuth.md",

	"exited":       "ChildrenCrash.md",
	"protocol":     "ChildrenCrash.md",
	"failing":      "ChildrenCrash.md",
	"unresponsive": "ChildWedged.md",
	"late":         "ChildWedged.md",
	"memory":       "ChildMemoryGrows.md",
}

// trouble is what a person must know first, with the page that says what to do.
type trouble struct{ Text, Page string }

// whyNot says why completions may not be sent here.
var whyNot = map[State]string{
	Starting:           "No child is warm yet.",
	BackendUnavailable: "No child runs, and none can be started.",
	Draining:           "The daemon stops, or somebody posted to /pool/drain.",
	UpstreamAuth:       "The provider rejected our credential, or there is none that can be used.",
}

const (
	near        = 0.9         // the part of a limit that is a trouble
	longSilence = time.Minute // of a turn
	lately      = historySteps * historyStep
)

// troubles are those of now and of the last ten minutes; the worst comes first.
func (p *statusPage) troubles() (list []trouble) {
	add := func(is bool, page, format string, args ...any) {
		if is {
			list = append(list, trouble{fmt.Sprintf(format, args...), page})
		}
	}
	add(p.Stat.State != Ready, pageOf[string(p.Stat.State)], "%s", whyNot[p.Stat.State])
	if p.DrainSince != nil {
		add(true, "Drain.md", "New completions have been rejected for %s.", rounded(p.Now.Sub(*p.DrainSince)))
	}
	if p.Failure != nil {
		add(true, "ChildStartsFail.md", "The last start of a child failed: %s", p.Failure.Error)
	}
	failed := 0
	for _, row := range p.Problems {
		if row.Fault.ours() {
			failed += row.Count
		}
	}
	add(failed > 0, "ErrorBudgetBurn.md", "Requests that failed in the last ten minutes: %d.", failed)
	late := slices.ContainsFunc(p.Children, func(c childBody) bool { return c.State == "late" })
	add(late, "ChildWedged.md", "A child does not answer its probe.")
	add(p.Stat.Silence > longSilence, "ChildWedged.md", "A turn has been silent for %s.", rounded(p.Stat.Silence))
	died := slices.IndexFunc(p.Deaths, func(d deathBody) bool { return pageOf[d.Why] != "" && p.Now.Sub(d.At) < lately })
	if died >= 0 {
		add(true, pageOf[p.Deaths[died].Why], "A child died %s ago: %s.", rounded(p.Now.Sub(p.Deaths[died].At)), p.Deaths[died].Why)
	}
	add(p.Waiting > 0 && p.Idle == 0, "PoolSaturated.md", "All children are busy, and requests are in the queue: %d of at most %d.", p.Waiting, p.QueueLimit)
	add(p.Stat.MaxStreams > 0 && float64(p.Stat.Streams) > near*float64(p.Stat.MaxStreams), "StreamsNearLimit.md", "Streams: %d of at most %d.", p.Stat.Streams, p.Stat.MaxStreams)
	for _, l := range p.Limits {
		add(l.near(p.Now), "UpstreamLimits.md", "The provider's limit is near: %s.", l.Name)
	}
	add(!p.Stat.BypassUntil.IsZero(), "ForwardAuth.md", "/verify lets everyone pass for another %s.", rounded(p.Stat.BypassUntil.Sub(p.Now)))
	return list
}

// limitRow is one of the provider's limits. A rate limit has Limit and Remaining; a usage
// window has Used, and may have a length and an end.
type limitRow struct {
	Name             string
	Limit, Remaining *float64
	Used             *float64
	Window           time.Duration
	Ends             time.Time
}

func (l limitRow) near(now time.Time) bool {
	if l.Used != nil {
		return *l.Used > near && (l.Ends.IsZero() || l.Ends.After(now))
	}
	return l.Limit != nil && l.Remaining != nil && *l.Remaining < (1-near)**l.Limit
}

// limitRows are the limits that the provider has told.
func limitRows(said map[upstream.Limit]float64) (rows []limitRow) {
	get := func(kind, unit string) *float64 {
		if v, ok := said[upstream.Limit{Kind: kind, Unit: unit}]; ok {
			return &v
		}
		return nil
	}
	for _, unit := range []string{"requests", "tokens"} {
		if l := (limitRow{Name: unit, Limit: get("limit", unit), Remaining: get("remaining", unit)}); cmp.Or(l.Limit, l.Remaining) != nil {
			rows = append(rows, l)
		}
	}
	for _, window := range []string{"primary", "secondary"} {
		l := limitRow{Name: window + " window", Used: get("used", window)}
		if l.Used == nil {
			continue
		}
		if v := get("window", window); v != nil {
			l.Window = time.Duration(*v) * time.Second
		}
		if v := get("reset", window); v != nil {
			l.Ends = time.Unix(int64(*v), 0)
		}
		rows = append(rows, l)
	}
	return rows
}
