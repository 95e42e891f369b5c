package redis

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	goredis "github.com/redis/go-redis/v9"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
	"github.com/wheelrefinery/refinery/bus/delivery"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/internal/testserver"
)

func TestMain(m *testing.M) {
	bustest.Main(openURL)
	pgtest.Main(m, bustest.Leaks...)
}

func openURL(url, owner string, logger *slog.Logger) (bus.Bus, error) {
	return Open(context.Background(), url, owner, logger)
}

// openQuiet opens a bus whose log is a failure of the test.
func openQuiet(t testing.TB, url string) *redisBus {
	t.Helper()
	return openLogging(t, url, bustest.Quiet(t), delivery.DefaultLimits())
}

func openLogging(t testing.TB, url string, log *bustest.Log, limits delivery.Limits) *redisBus {
	t.Helper()
	b, err := open(context.Background(), url, "", log.Logger(), limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close bus: %v", err)
		}
	})
	return b
}

// client connects to the server itself.
func client(t testing.TB, url string) *goredis.Client {
	t.Helper()
	o, err := goredis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	c := goredis.NewClient(o)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestUniversal(t *testing.T) {
	url := testserver.Redis(t)
	quick := delivery.DefaultLimits()
	quick.MaxBackoff = quick.MinBackoff
	bustest.Universal(t, tests.Features{GuaranteedOrder: true, Persistent: true}, func(t *testing.T) bus.Bus {
		return openLogging(t, url, bustest.Quiet(t), quick)
	})
}

func TestSuite(t *testing.T) {
	server := testserver.NewRedis(t)
	url := "redis://" + server.Addr() + "/0"
	c := client(t, url)
	bustest.Run(t, bustest.Transport{
		Open: openURL, Address: url, Kill: server.Kill, Start: server.Start, Takeover: leaseTime + 2*time.Second,
		Foreign: func(t testing.TB, topic string) {
			if err := c.XAdd(t.Context(), &goredis.XAddArgs{Stream: streamName(topic, 3), Values: []string{"other", "\xff\x00"}}).Err(); err != nil {
				t.Fatal(err)
			}
		},
	})
}
