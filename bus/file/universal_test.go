package file

import (
	"log/slog"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/pubsub/tests"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/bus/bustest"
)

func TestUniversal(t *testing.T) {
	dir := t.TempDir()
	bustest.Universal(t, tests.Features{GuaranteedOrder: true, Persistent: true}, func(t *testing.T) bus.Bus {
		return open(t, dir, func(tn *tuning) { tn.MaxBackoff = tn.MinBackoff })
	})
}

func TestSuite(t *testing.T) {
	bustest.Run(t, bustest.Transport{Open: openAs, Address: t.TempDir(), Takeover: 500 * time.Millisecond})
}

// openAs opens a bus as other processes of the suite do: with small segments.
func openAs(dir, _ string, logger *slog.Logger) (bus.Bus, error) {
	tn := defaultTuning()
	tn.segmentSize = 8 << 10
	return openFile(dir, logger, tn)
}
