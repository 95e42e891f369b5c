// Package metrics is what Prometheus reads. What happens is counted where it happens, by functions that the parts are handed; how things
// stand is looked up when somebody asks, at most once in a few seconds.
package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/eventlog"
)

const prefix = "refinery_"

// times are the buckets of what takes a moment, in seconds.
var times = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// Metrics counts. Its methods may be called from any goroutine.
type Metrics struct {
	registry *prometheus.Registry

	requests  *prometheus.CounterVec
	took      *prometheus.HistogramVec
	commands  *prometheus.CounterVec
	handled   prometheus.Histogram
	appended  prometheus.Histogram
	entries   prometheus.Histogram
	events    prometheus.Counter
	applied   *prometheus.HistogramVec
	followed  *prometheus.CounterVec
	poisoned  prometheus.Counter
	undecided prometheus.Counter
}

// New makes the counters, and asks from how things stand.
func New(version string, from Sources, logger *slog.Logger) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "http_requests_total", Help: "Requests that were answered, by the path's pattern; route is empty where there is none.",
		}, []string{"route", "method", "status"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "http_request_seconds", Help: "Time from a request's headers to the end of its answer. Long polls and streams wait on purpose.", Buckets: times,
		}, []string{"route", "method"}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "commands_total", Help: "Commands whose outcome was recorded here.",
		}, []string{"command", "status"}),
		handled: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "command_seconds", Help: "Time from a command's delivery to its outcome on disk.", Buckets: times,
		}),
		appended: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "append_seconds", Help: "Time of a transaction that appends to the event log.", Buckets: times,
		}),
		entries: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "append_batch_commands", Help: "Commands in one transaction.", Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		events: prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "events_total", Help: "Events appended here."}),
		applied: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "follower_batch_seconds", Help: "Time to apply a batch of events, by read model, policy or relay.", Buckets: times,
		}, []string{"follower"}),
		followed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "follower_events_total", Help: "Events that a read model, policy or relay has applied here.",
		}, []string{"follower"}),
		poisoned: prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "bus_poisoned_total", Help: "Messages that could not be processed."}),
		undecided: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "command_errors_total", Help: "Deliveries of commands that ended without an outcome; they come again.",
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: prefix + "build_info", Help: "Always 1; says which version runs.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.requests, m.took, m.commands, m.handled, m.appended, m.entries, m.events, m.applied, m.followed, m.poisoned,
		m.undecided, build, newState(from, logger),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{Namespace: "refinery"}))
	return m
}

// Handler answers GET /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	})
}

// methods are those that get a label of their own; anybody may send others.
var methods = map[string]bool{"GET": true, "HEAD": true, "POST": true, "PUT": true, "DELETE": true}

// Request counts an answered request.
func (m *Metrics) Request(r *api.Request, status int, took time.Duration) {
	method := r.Method
	if !methods[method] {
		method = "other"
	}
	m.requests.WithLabelValues(r.Route, method, strconv.Itoa(status)).Inc()
	m.took.WithLabelValues(r.Route, method).Observe(took.Seconds())
}

// Appended is for eventlog.Options.
func (m *Metrics) Appended(outcomes []eventlog.Outcome, events int, begin time.Time) {
	m.appended.Observe(time.Since(begin).Seconds())
	m.entries.Observe(float64(len(outcomes)))
	m.events.Add(float64(events))
	for _, o := range outcomes {
		m.commands.WithLabelValues(o.Name, string(o.Status)).Inc()
	}
}

// Applied counts a follower's batch.
func (m *Metrics) Applied(follower string, events int, begin time.Time) {
	m.applied.WithLabelValues(follower).Observe(time.Since(begin).Seconds())
	m.followed.WithLabelValues(follower).Add(float64(events))
}

// Handled counts a command's delivery.
func (m *Metrics) Handled(begin time.Time, err error) {
	if err != nil {
		m.undecided.Inc()
		return
	}
	m.handled.Observe(time.Since(begin).Seconds())
}

// Poisoned counts a message that could not be processed.
func (m *Metrics) Poisoned() { m.poisoned.Inc() }

// stateTime bounds how long a scrape waits for how things stand.
const stateTime = 5 * time.Second

func bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), stateTime)
}
