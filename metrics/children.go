package metrics

import (
	"context"
	"errors"
	"time"

	"codexpool/pool"

	"github.com/prometheus/client_golang/prometheus"
)

// children is what is counted of the pool.
type children struct {
	wait         prometheus.Observer
	acquires     *prometheus.CounterVec
	held         prometheus.Observer
	starts       *prometheus.CounterVec
	startTime    prometheus.Observer
	deaths       *prometheus.CounterVec
	deathsInTurn *prometheus.CounterVec
	probes       *prometheus.CounterVec
	probeTime    prometheus.Observer
}

func (c *children) declare(m *Metrics) {
	c.wait = m.histogram("codexpool_pool_acquire_wait_seconds", "Time that requests stood in the queue for a child, whether they got one or not; those that were turned away at once are not in it.", waitBounds, none()).WithLabelValues()
	c.acquires = m.counter("codexpool_pool_acquires_total", "Requests for a child, by how they ended: full, unavailable (none can be started) and closing were turned away; timeout and left gave up in the queue.", by("outcome", waitOutcomes...))
	c.held = m.histogram("codexpool_pool_lease_seconds", "Time that a child was held for a completion, until it could be lent again or was to be stopped.", leaseBounds, none()).WithLabelValues()
	c.starts = m.counter("codexpool_child_starts_total", "Starts of children, by how they ended.", by("outcome", "ok", "error"))
	c.startTime = m.histogram("codexpool_child_start_seconds", "Time from the start of a child until it was warm.", startBounds, none()).WithLabelValues()
	c.deaths = m.counter("codexpool_child_deaths_total", "Children that were stopped or died, by reason.", by("reason", pool.Reasons...))
	c.deathsInTurn = m.counter("codexpool_child_deaths_in_turn_total", "Of them, those that failed while they were leased: a caller felt it.", by("reason", pool.Reasons...))
	c.probes = m.counter("codexpool_child_probes_total", "Health probes of idle children, by how they ended.", by("outcome", "ok", "error"))
	c.probeTime = m.histogram("codexpool_child_probe_seconds", "Time that children took to answer a health probe.", probeBounds, none()).WithLabelValues()
}

// PoolHooks counts what happens in a pool.
func (m *Metrics) PoolHooks() pool.Hooks {
	return pool.Hooks{
		Spawned: func(_ context.Context, took time.Duration, err error) { count(m.starts, m.startTime, took, err) },
		Probed:  func(_ context.Context, took time.Duration, err error) { count(m.probes, m.probeTime, took, err) },
		Acquired: func(ctx context.Context, waited time.Duration, _ int, err error) {
			outcome := waitOutcome(ctx, err)
			m.acquires.WithLabelValues(outcome).Inc()
			switch outcome {
			case "leased", "timeout", "left":
				m.wait.Observe(waited.Seconds())
			}
		},
		Released: func(_ context.Context, held time.Duration) { m.held.Observe(held.Seconds()) },
		Retired: func(_ context.Context, d pool.Death) {
			m.deaths.WithLabelValues(string(d.Why)).Inc()
			if d.InTurn {
				m.deathsInTurn.WithLabelValues(string(d.Why)).Inc()
			}
		},
	}
}

// count counts what ended with err, and the time that it took where it succeeded.
func count(ends *prometheus.CounterVec, times prometheus.Observer, took time.Duration, err error) {
	if err != nil {
		ends.WithLabelValues("error").Inc()
		return
	}
	ends.WithLabelValues("ok").Inc()
	times.Observe(took.Seconds())
}

// waitOutcomes are the ends of waiting for a child.
var waitOutcomes = []string{"leased", "full", "timeout", "left", "unavailable", "closing"}

// waitOutcome is how the waiting of a request ended, whose context is ctx.
func waitOutcome(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "leased"
	case errors.Is(err, pool.ErrFull):
		return "full"
	case errors.Is(err, pool.ErrUnavailable):
		return "unavailable"
	case errors.Is(err, pool.ErrDraining), errors.Is(err, pool.ErrClosed):
		return "closing"
	case errors.Is(err, pool.ErrTimeout), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "timeout"
	}
	return "left" // the client disconnected, or another choice of its request failed
}

func (m *Metrics) watchPool(s Sources) {
	m.read("codexpool_pool_children", "Children of the pool, by state: late ones have not answered their probe in time, leaving ones are being stopped. A leased one runs a turn, or is being made ready for the next.", by("state", "starting", "idle", "leased", "late", "leaving"), func(set set) {
		stat := s.Pool()
		set(float64(stat.Starting), "starting")
		set(float64(stat.Idle), "idle")
		set(float64(stat.Leased-stat.Late-stat.Leaving), "leased")
		set(float64(stat.Late), "late")
		set(float64(stat.Leaving), "leaving")
	})
	figure := func(name, help string, pick func(pool.Stat) float64) {
		m.read(name, help, none(), func(set set) { set(pick(s.Pool())) })
	}
	figure("codexpool_pool_size", "Children at most.", func(s pool.Stat) float64 { return float64(s.Size) })
	figure("codexpool_pool_waiting", "Requests in the queue for a child.", func(s pool.Stat) float64 { return float64(s.Waiting) })
	figure("codexpool_pool_waiting_limit", "Requests in the queue at most.", func(pool.Stat) float64 { return float64(s.MaxWaiting) })
	figure("codexpool_pool_memory_bytes", "Private memory of all children and their helpers.", func(s pool.Stat) float64 { return float64(s.Memory) })
	figure("codexpool_pool_child_memory_max_bytes", "Private memory of the largest child and its helpers.", func(s pool.Stat) float64 { return float64(s.Largest) })
	m.readCounter("codexpool_children_cpu_seconds_total", "CPU time that all children have used, the dead included.", func() float64 { return s.ChildrenCPU().Seconds() })
	m.read("codexpool_child_memory_limit_bytes", "Private memory above which a child is replaced; absent without a limit.", none(), func(set set) {
		if s.ChildMemory > 0 {
			set(float64(s.ChildMemory))
		}
	})
}
