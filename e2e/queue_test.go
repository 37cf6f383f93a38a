package e2e

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// arrival is a request: when it comes, and how long the provider takes for it.
type arrival struct{ at, takes time.Duration }

// arrivals draws requests that come independently of each other: the times between two of
// them, and those of the provider, are exponential with these means. The draws are always
// the same ones, stretched to the means.
func arrivals(n int, between, takes time.Duration) []arrival {
	rng := rand.New(rand.NewPCG(1, 2))
	drawn := func(mean time.Duration) time.Duration { return time.Duration(rng.ExpFloat64() * float64(mean)) }
	list, at := make([]arrival, n), time.Duration(0)
	for i := range list {
		at += drawn(between)
		list[i] = arrival{at, drawn(takes)}
	}
	return list
}

// simulate returns how long each request waits for one of so many children, first come,
// first served. A child is held for the provider's time and own.
func simulate(list []arrival, children int, own time.Duration) (waits []time.Duration) {
	free := make([]time.Duration, children) // when each child is
	for _, a := range list {
		slices.Sort(free)
		begins := max(a.at, free[0])
		free[0] = begins + a.takes + own
		waits = append(waits, begins-a.at)
	}
	return waits
}

// mean is the average.
func mean(times []time.Duration) (average time.Duration) {
	for _, t := range times {
		average += t
	}
	return average / time.Duration(len(times))
}

// most is what 95 % of the times do not exceed.
func most(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[(95*len(sorted)+99)/100-1]
}

// erlangC is the part of the requests that find all children busy, as textbooks have it.
func erlangC(children int, busy float64) float64 {
	term, idle := 1.0, 0.0
	for n := range children {
		idle += term
		term *= busy / float64(n+1)
	}
	term /= 1 - busy/float64(children)
	return term / (idle + term)
}

// TestSimulationAgreesWithErlangC holds the mean wait, and the part of the requests that
// wait for longer than a time, against the formula for such requests: it is exact for
// infinitely many.
func TestSimulationAgreesWithErlangC(t *testing.T) {
	const n, takes = 1_000_000, 200 * time.Millisecond
	for _, children := range []int{1, 4, 8} {
		for _, load := range []float64{0.5, 0.8} {
			busy := load * float64(children)
			waits := simulate(arrivals(n, time.Duration(float64(takes)/busy), takes), children, 0)
			agree := func(what string, got, want float64) {
				t.Helper()
				if math.Abs(got/want-1) > 0.05 {
					t.Errorf("%d children, load %v: %s is %v, and by Erlang C %v", children, load, what, got, want)
				}
			}
			spare := float64(children) - busy
			agree("the mean wait", mean(waits).Seconds(), erlangC(children, busy)*takes.Seconds()/spare)
			for _, than := range []time.Duration{0, takes / 10, takes / 2} {
				longer := 0
				for _, w := range waits {
					if w > than {
						longer++
					}
				}
				agree("the part that waits longer than "+than.String(), float64(longer)/n, erlangC(children, busy)*math.Exp(-spare*than.Seconds()/takes.Seconds()))
			}
		}
	}
}
