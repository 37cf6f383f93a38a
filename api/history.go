package api

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// The last ten minutes, in steps of ten seconds.
const (
	historyStep  = 10 * time.Second
	historySteps = 60
)

// history is what happened lately, for the status page. Its size does not depend on
// how much that was.
type history struct {
	mu    sync.Mutex
	steps [historySteps]step // a ring; guarded by mu
}

// step is one step of the history.
type step struct {
	number      int64 // of the step since 1970
	completions int
	failed      int // of them, by no fault of the client, nor by a limit
	firstTokens times
	errors      map[problem]int
}

// problem is an error as metrics name it. The list of them is closed.
type problem struct {
	Code  string
	Fault Fault
}

// add counts a request that ended now.
func (h *history) add(r Result) {
	if !r.Completion && r.Code == "" {
		return
	}
	number := time.Now().UnixNano() / int64(historyStep)
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &h.steps[number%historySteps]
	if s.number != number {
		*s = step{number: number, errors: map[problem]int{}}
	}
	if r.Code != "" {
		s.errors[problem{r.Code, r.Fault}]++
	}
	if !r.Completion {
		return
	}
	s.completions++
	if r.Fault.ours() {
		s.failed++
	}
	if r.FirstToken > 0 {
		s.firstTokens.add(r.FirstToken)
	}
}

// recent are the steps of the last ten minutes, oldest first; that of now is the last.
func (h *history) recent() []step {
	last := time.Now().UnixNano() / int64(historyStep)
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]step, historySteps)
	for i := range list {
		number := last - historySteps + 1 + int64(i)
		if s := h.steps[number%historySteps]; s.number == number {
			list[i] = s
			list[i].errors = nil // they change under the lock only
		}
	}
	return list
}

// errors are those of the last ten minutes: ours first, then the most frequent.
func (h *history) errors() []problemRow {
	oldest := time.Now().UnixNano()/int64(historyStep) - historySteps + 1
	counts := map[problem]int{}
	h.mu.Lock()
	for i := range h.steps {
		if h.steps[i].number >= oldest {
			for p, n := range h.steps[i].errors {
				counts[p] += n
			}
		}
	}
	h.mu.Unlock()
	var rows []problemRow
	for p, n := range counts {
		rows = append(rows, problemRow{p, n})
	}
	slices.SortFunc(rows, func(a, b problemRow) int {
		if a.Fault.ours() != b.Fault.ours() {
			if a.Fault.ours() {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Code, b.Code), strings.Compare(string(a.Fault), string(b.Fault)))
	})
	return rows
}

// problemRow is an error with how often it occurred.
type problemRow struct {
	problem
	Count int
}

// times counts durations by their size. Each size is a tenth longer than that before it,
// from a millisecond to two minutes.
type times [136]uint32

const sizesOfDouble = 8 // how many sizes double a time

func (t *times) add(d time.Duration) {
	size := math.Log2(float64(d)/float64(time.Millisecond)) * sizesOfDouble
	t[int(min(max(0, size), float64(len(t)-1)))]++
}

// quantile is the time, in seconds, that the part q of all did not exceed; NaN of none.
func (t *times) quantile(q float64) float64 {
	total := 0.0
	for _, n := range t {
		total += float64(n)
	}
	rank := max(1, math.Ceil(q*total))
	for size, n := range t {
		if rank -= float64(n); n > 0 && rank <= 0 {
			return math.Exp2((float64(size)+.5)/sizesOfDouble) / 1000
		}
	}
	return math.NaN()
}

// chart is a small drawing of the last ten minutes.
type chart struct {
	Name, Unit string
	Lines      []chartLine
	top        float64 // the largest value
}

// chartLine has a value for each step; NaN where there is none.
type chartLine struct {
	Name   string
	values []float64
	top    float64 // of the chart
}

// charts draws the last ten minutes.
func (h *history) charts() []chart {
	steps := h.recent()
	// The step of now is not over: what it has is of so many seconds.
	soFar := max(1, float64(time.Now().UnixNano()%int64(historyStep))/1e9)
	line := func(name string, value func(s *step, seconds float64) float64) chartLine {
		values := make([]float64, len(steps))
		for i := range steps {
			values[i] = value(&steps[i], historyStep.Seconds())
		}
		values[len(values)-1] = value(&steps[len(steps)-1], soFar)
		return chartLine{Name: name, values: values}
	}
	return []chart{
		newChart("First token", " s",
			line("median", func(s *step, _ float64) float64 { return s.firstTokens.quantile(.5) }),
			line("95th percentile", func(s *step, _ float64) float64 { return s.firstTokens.quantile(.95) })),
		newChart("Completions", "/s", line("ended", func(s *step, seconds float64) float64 { return float64(s.completions) / seconds })),
		newChart("Errors", "/s", line("failed", func(s *step, seconds float64) float64 { return float64(s.failed) / seconds })),
	}
}

func newChart(name, unit string, lines ...chartLine) chart {
	c := chart{Name: name, Unit: unit, Lines: lines}
	for _, l := range lines {
		for _, v := range l.values {
			if v > c.top { // not for NaN
				c.top = v
			}
		}
	}
	for i := range c.Lines {
		c.Lines[i].top = c.top
	}
	return c
}

// Top is the largest value.
func (c chart) Top() string { return fmt.Sprintf("%.2f%s", c.top, c.Unit) }

// Last is the newest value of a line.
func (c chart) Last(l chartLine) string {
	for _, v := range slices.Backward(l.values) {
		if !math.IsNaN(v) {
			return fmt.Sprintf("%.2f%s", v, c.Unit)
		}
	}
	return "none"
}

// height is that of a drawing; its width is a unit for each step.
const height = 20

// Path draws the line in SVG. It is interrupted where there is no value.
func (l chartLine) Path() string {
	var path strings.Builder
	drawing := false
	for i, v := range l.values {
		if math.IsNaN(v) {
			drawing = false
			continue
		}
		y := height - v/max(l.top, 1e-9)*(height-1)
		if drawing {
			fmt.Fprintf(&path, "L%d %.1f", i, y)
			continue
		}
		fmt.Fprintf(&path, "M%d %.1fh0", i, y)
		drawing = true
	}
	return path.String()
}

// Blocks draws the line in a row of text.
func (l chartLine) Blocks() string {
	blocks := []rune("▁▂▃▄▅▆▇█")
	var row strings.Builder
	for _, v := range l.values {
		if math.IsNaN(v) {
			row.WriteByte(' ')
			continue
		}
		row.WriteRune(blocks[int(v/max(l.top, 1e-9)*float64(len(blocks)-1))])
	}
	return row.String()
}
