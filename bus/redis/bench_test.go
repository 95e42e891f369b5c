package redis

import (
	"strconv"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/wheelrefinery/refinery/bus/bustest"
	"github.com/wheelrefinery/refinery/internal/testserver"
)

func BenchmarkRedis(b *testing.B) { bustest.Bench(b, openQuiet(b, testserver.Redis(b))) }

// BenchmarkServer is what the server itself does: XADD one after the other, XADD by 64 in a pipeline, and XREADGROUP of 100 at a time with
// XACK, on one stream and one connection.
func BenchmarkServer(b *testing.B) {
	c := client(b, testserver.Redis(b))
	entry := func() *goredis.XAddArgs {
		return &goredis.XAddArgs{Stream: "s", Values: []string{"payload", strings.Repeat("x", 500)}}
	}
	b.Run("XADD", func(b *testing.B) {
		for b.Loop() {
			if err := c.XAdd(b.Context(), entry()).Err(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	b.Run("XADD-pipelined", func(b *testing.B) {
		for n := 0; n < b.N; n += 64 {
			pipe := c.Pipeline()
			for range min(64, b.N-n) {
				pipe.XAdd(b.Context(), entry())
			}
			if _, err := pipe.Exec(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
	groups := 0
	b.Run("XREADGROUP", func(b *testing.B) {
		pipe := c.Pipeline()
		for range b.N {
			pipe.XAdd(b.Context(), entry())
		}
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		groups++
		group := "g" + strconv.Itoa(groups)
		if err := c.XGroupCreate(b.Context(), "s", group, "0").Err(); err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		for n := 0; n < b.N; {
			got, err := c.XReadGroup(b.Context(), &goredis.XReadGroupArgs{Group: group, Consumer: "c", Streams: []string{"s", ">"}, Count: 100}).Result()
			if err != nil {
				b.Fatal(err)
			}
			ids := make([]string, len(got[0].Messages))
			for i, m := range got[0].Messages {
				ids[i] = m.ID
			}
			if err := c.XAck(b.Context(), "s", group, ids...).Err(); err != nil {
				b.Fatal(err)
			}
			n += len(ids)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	})
}
