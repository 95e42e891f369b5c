package bustest

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/wheelrefinery/refinery/bus"
)

var benchPayload = bytes.Repeat([]byte(`{"a":1}`), 40)

func benchMessage(i int64) *message.Message {
	return bus.NewMessage(strconv.FormatInt(i, 10), strconv.FormatInt(i%512, 10), benchPayload)
}

// Bench measures a transport by itself, each part on a topic of its own.
func Bench(b *testing.B, t bus.Bus) {
	for _, publishers := range []int{1, 64} {
		b.Run(fmt.Sprintf("Publish/publishers=%d", publishers), func(b *testing.B) { benchPublish(b, t, publishers) })
	}
	for _, publishers := range []int{1, 64} {
		b.Run(fmt.Sprintf("Deliver/publishers=%d", publishers), func(b *testing.B) { benchDeliver(b, t, publishers) })
	}
	b.Run("Consume", func(b *testing.B) { benchConsume(b, t) })
}

// each calls publish with the numbers from 1 to b.N, from some goroutines, and waits for them.
func each(b *testing.B, publishers int, publish func(i int64) error) (wait func()) {
	var n atomic.Int64
	var wg sync.WaitGroup
	for range publishers {
		wg.Go(func() {
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				if err := publish(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	return wg.Wait
}

func rate(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s") }

func benchPublish(b *testing.B, t bus.Bus, publishers int) {
	name := topic()
	b.ResetTimer()
	each(b, publishers, func(i int64) error { return t.Publish(name, benchMessage(i)) })()
	rate(b)
}

// benchDeliver measures from before Publish to the receipt by a subscriber, who acks at once.
func benchDeliver(b *testing.B, t bus.Bus, publishers int) {
	name := topic()
	ch, sub := Subscribe(b, t, "g", name)
	defer sub.Close()
	sent := make([]time.Time, b.N+1)
	took := make([]time.Duration, 0, b.N)
	b.ResetTimer()
	wait := each(b, publishers, func(i int64) error {
		sent[i] = time.Now()
		return t.Publish(name, benchMessage(i))
	})
	for range b.N {
		m := <-ch
		i, err := strconv.Atoi(m.UUID)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(sent[i]))
		m.Ack()
	}
	wait()
	b.StopTimer()
	rate(b)
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// benchConsume reads, delivers and acks what is stored, without any publishing.
func benchConsume(b *testing.B, t bus.Bus) {
	name := topic()
	for start := 0; start < b.N; start += 1000 {
		var ms []*message.Message
		for i := start; i < min(start+1000, b.N); i++ {
			ms = append(ms, benchMessage(int64(i)))
		}
		Publish(b, t, name, ms...)
	}
	b.ResetTimer()
	ch, sub := Subscribe(b, t, "g", name)
	for range b.N {
		(<-ch).Ack()
	}
	rate(b)
	b.StopTimer()
	sub.Close()
}
