package file

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
)

var benchPayload = bytes.Repeat([]byte(`{"a":1}`), 40)

func benchMessage(i int64) *message.Message {
	m := message.NewMessage(strconv.FormatInt(i, 10), benchPayload)
	m.Metadata.Set(bus.KeyMetadata, strconv.FormatInt(i%512, 10))
	return m
}

// BenchmarkBareFsync is what one publisher could reach at most: one write and fsync for each message.
func BenchmarkBareFsync(b *testing.B) {
	f, err := os.Create(b.TempDir() + "/f")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	line := make([]byte, 450)
	for b.Loop() {
		if _, err := f.Write(line); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, publishers := range []int{1, 64} {
		b.Run(fmt.Sprintf("publishers=%d", publishers), func(b *testing.B) {
			t := open(b, b.TempDir())
			var n atomic.Int64
			b.ResetTimer()
			var wg sync.WaitGroup
			for range publishers {
				wg.Go(func() {
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						if err := t.Publish("t", benchMessage(i)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

// BenchmarkDeliver measures from before Publish to the receipt by a subscriber, who acks at once.
func BenchmarkDeliver(b *testing.B) {
	for _, publishers := range []int{1, 64} {
		b.Run(fmt.Sprintf("publishers=%d", publishers), func(b *testing.B) {
			t := open(b, b.TempDir())
			ch, _ := bustest.Subscribe(b, t, "g", "t")
			sent := make([]time.Time, b.N+1)
			took := make([]time.Duration, 0, b.N)
			var n atomic.Int64
			b.ResetTimer()
			var wg sync.WaitGroup
			for range publishers {
				wg.Go(func() {
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						sent[i] = time.Now()
						if err := t.Publish("t", benchMessage(i)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			for range b.N {
				m := <-ch
				i, err := strconv.Atoi(m.UUID)
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(sent[i]))
				m.Ack()
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkConsume reads, delivers and acks what is stored, without any publishing.
func BenchmarkConsume(b *testing.B) {
	t := open(b, b.TempDir())
	for start := 0; start < b.N; start += 1000 {
		var ms []*message.Message
		for i := start; i < min(start+1000, b.N); i++ {
			ms = append(ms, benchMessage(int64(i)))
		}
		bustest.Publish(b, t, "t", ms...)
	}
	b.ResetTimer()
	ch, _ := bustest.Subscribe(b, t, "g", "t")
	for range b.N {
		(<-ch).Ack()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
