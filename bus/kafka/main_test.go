package kafka

import (
	"context"
	"log/slog"
	"testing"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/internal/testserver"
)

func TestMain(m *testing.M) {
	bustest.Main(openAs)
	pgtest.Main(m, bustest.Leaks...)
}

// openAs opens a bus as other processes of the suite do.
func openAs(broker, owner string, logger *slog.Logger) (bus.Bus, error) {
	return Open(context.Background(), []string{broker}, owner, logger)
}

// openHere opens a bus on the broker that tests share.
func openHere(t testing.TB, log *bustest.Log, change ...func(*tuning)) *kafkaBus {
	t.Helper()
	tn := defaultTuning()
	for _, c := range change {
		c(&tn)
	}
	b, err := open(t.Context(), []string{testserver.Kafka(t)}, "", log.Logger(), tn)
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
