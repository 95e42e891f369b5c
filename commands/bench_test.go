package commands

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// BenchmarkHandler measures 64 senders, each with builds of its own to ask for and to lease, beside 64 writers that append the same
// number of events to the log without deciding anything. Figures are medians of three rounds.
func BenchmarkHandler(b *testing.B) {
	const rounds, clients, window = 3, 64, 1500 * time.Millisecond
	for b.Loop() {
		l := openLog(b, pgtest.Durable(b))
		h := start(b, l)
		var handled, appended, p50, p99 []float64
		for round := range rounds {
			rate, lat := load(clients, window, func(client, i int) error {
				id := flask
				id.Version = fmt.Sprintf("%d.%d.%d", round, client, i/2)
				var c Command = EnqueueBuild{Build: id, Run: runA, Sdist: source1, Priority: 3}
				if i%2 == 1 {
					c = LeaseBuild{id, "w1", noon}
				}
				p, err := Encode(meta(), c)
				if err != nil {
					return err
				}
				return h.Handle(b.Context(), p)
			}, b)
			handled = append(handled, rate)
			p50 = append(p50, lat[len(lat)/2].Seconds()*1000)
			p99 = append(p99, lat[len(lat)*99/100].Seconds()*1000)
			rate, _ = load(clients, window, func(client, i int) error {
				results, err := l.Append(context.Background(), eventlog.Entry{
					Outcome: eventlog.Outcome{Command: meta().ID, Name: "bench", Stream: fmt.Sprintf("bench/%d.%d.%d", round, client, i), Status: eventlog.Applied},
					Events:  []events.Event{events.BuildQueued{Run: runA, Sdist: source1, Priority: 3}},
				})
				if err != nil {
					return err
				}
				return results[0].Err
			}, b)
			appended = append(appended, rate)
		}
		b.ReportMetric(median(handled), "commands/s")
		b.ReportMetric(median(appended), "appends/s")
		b.ReportMetric(median(handled)/median(appended), "commands/appends")
		b.ReportMetric(median(p50), "p50-ms")
		b.ReportMetric(median(p99), "p99-ms")
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// load calls do from n goroutines, one call after the other in each, until the time is over.
func load(n int, window time.Duration, do func(client, i int) error, b *testing.B) (rate float64, latencies []time.Duration) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	begin := time.Now()
	for client := range n {
		wg.Go(func() {
			var own []time.Duration
			for i := 0; time.Since(begin) < window; i++ {
				t := time.Now()
				if err := do(client, i); err != nil {
					b.Error(err)
					return
				}
				own = append(own, time.Since(t))
			}
			mu.Lock()
			defer mu.Unlock()
			latencies = append(latencies, own...)
		})
	}
	wg.Wait()
	slices.Sort(latencies)
	return float64(len(latencies)) / time.Since(begin).Seconds(), latencies
}
