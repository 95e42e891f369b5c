package metrics

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/projections"
)

// Sources are where how things stand is looked up. Each may fail by itself.
type Sources struct {
	Reads     func() projections.Querier
	Standings func(context.Context) ([]eventlog.Standing, error)
	Status    func(context.Context) ([]projections.Status, error)
	Bus       func() ([]bus.Stats, error)
	Head      func() int64
}

// keptFor is how old what a scrape shows may be.
const keptFor = 2 * time.Second

// state shows how things stand.
type state struct {
	from   Sources
	logger *slog.Logger

	mu   sync.Mutex
	at   time.Time
	kept []prometheus.Metric
}

func newState(from Sources, logger *slog.Logger) *state { return &state{from: from, logger: logger} }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

var (
	queueLength = describe("queue_builds", "Builds that wait in the queue.")
	queueLeased = describe("queue_leased", "Builds that workers have.")
	queueOldest = describe("queue_oldest_seconds", "Age of the build that waits longest; 0 for an empty queue.")
	queuePaused = describe("queue_paused", "1 while nothing is leased.")
	builds      = describe("builds", "Builds by status.", "status")
	failed      = describe("builds_failed", "Builds whose last attempt failed, by class.", "class")
	cacheHits   = describe("cache_hits_total", "Wheels that needed no build: from the own index, or from upstream.", "source")
	cacheMisses = describe("cache_misses_total", "Wheels that runs had to have built.")
	head        = describe("log_head", "Position of the newest event.")
	lagEvents   = describe("follower_lag_events", "Events that a read model, policy or relay has not applied.", "follower")
	lagSeconds  = describe("follower_lag_seconds", "Age of the oldest of these.", "follower")
	deadLetters = describe("projection_dead_letters", "Events that a read model could not apply and put aside.", "projection")
	rebuilding  = describe("projection_rebuilding", "1 while a read model is rebuilt.", "projection")
	busBytes    = describe("bus_lag_bytes", "Bytes that are published and not passed by a group; group is empty for a topic that nobody reads.", "topic", "group")
	busUnacked  = describe("bus_unacked_messages", "Messages that are read here and not acknowledged.", "topic", "group")
	busOldest   = describe("bus_oldest_seconds", "Age of the oldest of these.", "topic", "group")
	sourceUp    = describe("source_up", "0 where how things stand could not be looked up; then its figures are missing.", "source")
)

// Describe says nothing: which figures there are depends on what answers.
func (s *state) Describe(chan<- *prometheus.Desc) {}

// Collect looks things up, or shows what it did a moment ago.
func (s *state) Collect(out chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.at) > keptFor {
		s.kept = s.look()
		s.at = time.Now()
	}
	for _, m := range s.kept {
		out <- m
	}
}

func (s *state) look() []prometheus.Metric {
	ctx, cancel := bounded()
	defer cancel()
	var all []prometheus.Metric
	add := func(kind prometheus.ValueType, d *prometheus.Desc, v float64, labels ...string) {
		all = append(all, prometheus.MustNewConstMetric(d, kind, v, labels...))
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) { add(prometheus.GaugeValue, d, v, labels...) }
	for _, source := range []struct {
		name string
		look func() error
	}{
		{"queue", func() error {
			q, oldest, err := projections.QueueAge(ctx, s.from.Reads())
			if err != nil {
				return err
			}
			gauge(queueLength, float64(q.Length))
			gauge(queueLeased, float64(q.Leased))
			gauge(queuePaused, truth(q.Paused))
			gauge(queueOldest, age(oldest))
			return nil
		}},
		{"summary", func() error {
			sum, err := projections.Totals(ctx, s.from.Reads())
			if err != nil {
				return err
			}
			for _, status := range projections.Statuses {
				gauge(builds, float64(sum.Counts.Of(status)), status)
			}
			add(prometheus.CounterValue, cacheHits, float64(sum.HitsOwn), "own")
			add(prometheus.CounterValue, cacheHits, float64(sum.HitsUpstream), "upstream")
			add(prometheus.CounterValue, cacheMisses, float64(sum.Misses))
			return nil
		}},
		{"builds", func() error {
			classes, err := projections.FailedByClass(ctx, s.from.Reads())
			for class, n := range classes {
				gauge(failed, float64(n), class)
			}
			return err
		}},
		{"log", func() error {
			gauge(head, float64(s.from.Head()))
			standings, err := s.from.Standings(ctx)
			for _, f := range standings {
				gauge(lagEvents, float64(f.Lag), f.Name)
				gauge(lagSeconds, f.Late.Seconds(), f.Name)
			}
			return err
		}},
		{"projections", func() error {
			status, err := s.from.Status(ctx)
			for _, p := range status {
				gauge(deadLetters, float64(p.Parked), p.Name)
				gauge(rebuilding, truth(p.State == "rebuilding"), p.Name)
			}
			return err
		}},
		{"bus", func() error {
			stats, err := s.from.Bus()
			for _, b := range stats {
				gauge(busBytes, float64(b.Bytes), b.Topic, b.Group)
				gauge(busUnacked, float64(b.Unacked), b.Topic, b.Group)
				gauge(busOldest, age(b.Oldest), b.Topic, b.Group)
			}
			return err
		}},
	} {
		err := source.look()
		if err != nil {
			s.logger.Warn("measurements are missing", "source", source.name, "error", err)
		}
		gauge(sourceUp, truth(err == nil), source.name)
	}
	return all
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func age(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(0, time.Since(t).Seconds())
}
