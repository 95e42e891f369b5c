package main

import (
	"bytes"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/transport"
)

// BenchmarkBus measures POST /queue/enqueue until the read models that serve GET have it, on each transport, beside what the bare
// transport publishes, delivers and consumes in the same run: messages of a command's size, no control plane. Client, control plane,
// Postgres and the transport's server share the machine, and everything is durable. Medians of three rounds. The limits are at most 5,
// 10 and 20 ms (1-p50-ms) and at least 2,500, 1,500 and 1,000 commands a second (64/s) on file, Redis and Kafka.
func BenchmarkBus(b *testing.B) {
	const rounds, window = 3, 2 * time.Second
	for _, backend := range backends {
		b.Run(backend.name, func(b *testing.B) {
			for b.Loop() {
				var settings controlSettings
				p := startBench(b, func(c *controlSettings) { backend.set(b, c); settings = *c })
				var publish1, publish64, consume, deliver, one50, w64, w64p50, w64p99 []float64
				for range rounds {
					bare := settings
					if backend.name != "file" {
						backend.set(b, &bare) // not where the control plane reads
					}
					t := bareBus(b, bare)
					deliver = append(deliver, bareDeliver(b, t))
					publish1 = append(publish1, barePublish(b, t, 1, window/4))
					publish64 = append(publish64, barePublish(b, t, 64, window/4))
					consume = append(consume, bareConsume(b, t))
					if err := t.Close(); err != nil {
						b.Fatal(err)
					}
					one50 = append(one50, p.load(b, 1, window/2, "", http.StatusCreated).percentile(50))
					l := p.load(b, 64, window, "", http.StatusCreated)
					w64, w64p50, w64p99 = append(w64, l.rate), append(w64p50, l.percentile(50)), append(w64p99, l.percentile(99))
				}
				b.ReportMetric(middle(publish1), "bare-publish1/s")
				b.ReportMetric(middle(publish64), "bare-publish64/s")
				b.ReportMetric(middle(consume), "bare-consume/s")
				b.ReportMetric(middle(deliver), "bare-deliver-p50-ms")
				b.ReportMetric(middle(one50), "1-p50-ms")
				b.ReportMetric(middle(w64), "64/s")
				b.ReportMetric(middle(w64p50), "64-p50-ms")
				b.ReportMetric(middle(w64p99), "64-p99-ms")
			}
		})
	}
}

// bareBus opens a transport for itself.
func bareBus(b *testing.B, c controlSettings) bus.Bus {
	b.Helper()
	t, err := transport.Open(b.Context(), c.transport(b.TempDir(), "", slog.New(slog.DiscardHandler)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { t.Close() })
	return t
}

// barePublish is the limit of accepting: messages of the same size onto a bus, nothing else.
func barePublish(b *testing.B, t bus.Bus, publishers int, window time.Duration) float64 {
	b.Helper()
	payload := bytes.Repeat([]byte("x"), 500)
	var n atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range publishers {
		wg.Go(func() {
			for time.Since(begin) < window {
				id := uuid.NewString()
				if err := t.Publish(bus.TopicCommands, bus.NewMessage(id, id, payload)); err != nil {
					b.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(n.Load()) / time.Since(begin).Seconds()
}

// bareConsume is how many of the messages that barePublish left a group reads and acknowledges a second.
func bareConsume(b *testing.B, t bus.Bus) float64 {
	b.Helper()
	s, err := t.Subscriber("bare-" + uuid.NewString())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	begin := time.Now()
	in, err := s.Subscribe(b.Context(), bus.TopicCommands)
	if err != nil {
		b.Fatal(err)
	}
	for n := 0; ; n++ {
		select {
		case m := <-in:
			m.Ack()
		case <-time.After(time.Second):
			return float64(n) / (time.Since(begin) - time.Second).Seconds()
		}
	}
}

// bareDeliver is the median of milliseconds from before Publish until a subscriber has the message, one after the other.
func bareDeliver(b *testing.B, t bus.Bus) float64 {
	b.Helper()
	s, err := t.Subscriber("bare")
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	in, err := s.Subscribe(b.Context(), bus.TopicCommands)
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for range 200 {
		begin := time.Now()
		id := uuid.NewString()
		if err := t.Publish(bus.TopicCommands, bus.NewMessage(id, id, []byte(strings.Repeat("x", 500)))); err != nil {
			b.Fatal(err)
		}
		m := <-in
		took = append(took, time.Since(begin))
		m.Ack()
	}
	slices.Sort(took)
	return float64(took[len(took)/2].Microseconds()) / 1000
}
