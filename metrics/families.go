package metrics

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// family is one metric, as the reference page shows it.
type family struct {
	name, kind, help string
	labels           labels
}

// labels are the labels of a metric, and the series that it has from the start: all
// those of closed lists. A rate over a series that appears with its first event misses
// that event.
type labels struct {
	names  []string
	values [][]string // of each label; nil where they are no closed list
	what   []string   // of each label: what its values are, where they are no closed list
	series [][]string // the values of each series, nil where a label's values are no closed list
}

// none is for a metric of one series.
func none() labels { return labels{series: [][]string{{}}} }

// by is for a metric with one label.
func by[T ~string](name string, values ...T) labels { return and(none(), name, values...) }

// and has each series of l once for each value of one more label.
func and[T ~string](l labels, name string, values ...T) labels {
	var texts []string
	var series [][]string
	for _, v := range values {
		texts = append(texts, string(v))
	}
	for _, s := range l.series {
		for _, v := range texts {
			series = append(series, append(slices.Clone(s), v))
		}
	}
	return labels{append(l.names, name), append(l.values, texts), append(l.what, ""), series}
}

// open has one more label, whose values are no closed list.
func (l labels) open(name, what string) labels {
	return labels{append(l.names, name), append(l.values, nil), append(l.what, what), nil}
}

// of is for labels that do not all occur together: these are the series.
func of(names []string, series [][]string) labels {
	l := labels{names: names, values: make([][]string, len(names)), what: make([]string, len(names)), series: series}
	for _, s := range series {
		for i, v := range s {
			if !slices.Contains(l.values[i], v) {
				l.values[i] = append(l.values[i], v)
			}
		}
	}
	return l
}

// list shows values as the reference page does.
func list(values []string) string { return "`" + strings.Join(values, "`, `") + "`" }

func (m *Metrics) counter(name, help string, l labels) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, l.names)
	m.add(family{name, "counter", help, l}, c)
	for _, values := range l.series {
		c.WithLabelValues(values...)
	}
	return c
}

func (m *Metrics) gauge(name, help string, l labels) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, l.names)
	m.add(family{name, "gauge", help, l}, g)
	return g
}

func (m *Metrics) histogram(name, help string, buckets []float64, l labels) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, l.names)
	m.add(family{name, "histogram", help, l}, h)
	for _, values := range l.series {
		h.WithLabelValues(values...)
	}
	return h
}

func (m *Metrics) add(f family, c prometheus.Collector) {
	m.registry.MustRegister(c)
	m.families = append(m.families, f)
}

// set sets a series of a metric that is read at each scrape.
type set func(value float64, labels ...string)

// read is a gauge that is read at each scrape. A series that read does not set is absent.
func (m *Metrics) read(name, help string, l labels, read func(set)) {
	m.add(family{name, "gauge", help, l}, reader{prometheus.NewDesc(name, help, l.names, nil), prometheus.GaugeValue, read})
}

// readCounter is a counter of one series that is read at each scrape.
func (m *Metrics) readCounter(name, help string, read func() float64) {
	m.add(family{name, "counter", help, none()}, reader{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, func(set set) { set(read()) }})
}

// reader is a metric that is read at each scrape.
type reader struct {
	desc  *prometheus.Desc
	value prometheus.ValueType
	read  func(set)
}

func (r reader) Describe(descs chan<- *prometheus.Desc) { descs <- r.desc }

func (r reader) Collect(metrics chan<- prometheus.Metric) {
	r.read(func(v float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(r.desc, r.value, v, labels...)
	})
}
