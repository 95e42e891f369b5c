package health

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/projections"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// broken stands in for parts that are in trouble; the real ones are tried in cmd/refinery.
type broken struct {
	bus.Bus
	stats     []bus.Stats
	check     error
	standings []eventlog.Standing
	status    []projections.Status
	wheels    chan struct{} // a file system that hangs until it is closed
}

func (b *broken) Stats() ([]bus.Stats, error) { return b.stats, nil }

func (b *broken) Check(context.Context) error { return b.check }

func (b *broken) Standings(context.Context) ([]eventlog.Standing, error) { return b.standings, nil }

func (b *broken) Names() []string { return nil }

func (b *broken) Status(context.Context) ([]projections.Status, error) { return b.status, nil }

func (b *broken) Writable() error {
	if b.wheels != nil {
		<-b.wheels
	}
	return nil
}

func TestTrouble(t *testing.T) {
	pool := pgtest.New(t)
	group := func(s bus.Stats) []bus.Stats {
		s.Topic, s.Group = bus.TopicCommands, "handlers"
		return []bus.Stats{s}
	}
	live := []projections.Status{{Name: "builds", State: "live"}, {Name: "runs", State: "live"}}
	at := []eventlog.Standing{{Name: "builds"}, {Name: "runs"}}
	good := broken{stats: group(bus.Stats{}), standings: at, status: live}
	for name, c := range map[string]struct {
		change func(*broken)
		part   string
		status api.PartStatus
		detail string
	}{
		"all is well":      {func(*broken) {}, "handlers", api.Ok, "nothing waits"},
		"a young command":  {func(b *broken) { b.stats = group(bus.Stats{Unacked: 3, Oldest: time.Now().Add(-time.Second)}) }, "handlers", api.Ok, "3 commands wait"},
		"an old command":   {func(b *broken) { b.stats = group(bus.Stats{Unacked: 3, Oldest: time.Now().Add(-time.Minute)}) }, "handlers", api.Down, "for 1m0s"},
		"no handlers":      {func(b *broken) { b.stats = nil }, "handlers", api.Starting, "not begun"},
		"a bus that fails": {func(b *broken) { b.check = errors.New("secret path /x") }, "bus", api.Down, "the log says more"},
		"far behind": {func(b *broken) {
			b.standings = []eventlog.Standing{{Name: "builds", Lag: 5000, Late: 2 * time.Second}, {Name: "runs"}}
		}, "projections", api.Starting, "builds is 5000 events and 2s behind"},
		"stuck": {func(b *broken) {
			b.standings = []eventlog.Standing{{Name: "builds"}, {Name: "runs", Lag: 1, Late: time.Hour}}
		}, "projections", api.Down, "runs is stuck 1 events and 1h0m0s behind"},
		"not fed":     {func(b *broken) { b.standings = at[:1] }, "projections", api.Starting, "runs is not fed yet"},
		"rebuilt":     {func(b *broken) { b.status = []projections.Status{{Name: "builds", State: "rebuilding", Rebuilt: 17}} }, "projections", api.Ok, "builds is rebuilt, at 17"},
		"put aside":   {func(b *broken) { b.status = []projections.Status{{Name: "builds", State: "live", Parked: 2}} }, "projections", api.Ok, "builds has put 2 events aside"},
		"a full disk": {func(*broken) {}, "disk", api.Ok, "MiB are free"},
		"no workers":  {func(*broken) {}, "workers", api.Ok, "0 seen"},
	} {
		t.Run(name, func(t *testing.T) {
			b := good
			c.change(&b)
			checker := New(Parts{Writes: pool, Reads: pool, Bus: &b, Backend: "file", Group: "handlers", Log: &b, Projections: &b, Wheels: &b, Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
			for _, p := range checker.Check(t.Context()) {
				if p.Name == c.part && (p.Status != c.status || !strings.Contains(p.Detail, c.detail)) {
					t.Errorf("%+v, want %s and %q", p, c.status, c.detail)
				}
				if p.Name != c.part && p.Status != api.Ok {
					t.Errorf("%+v too", p)
				}
				if strings.Contains(p.Detail, "secret") {
					t.Errorf("%+v tells what is for the log", p)
				}
			}
		})
	}
}

// A part that hangs costs its answer and nobody else's, and one goroutine however often somebody asks.
func TestHanging(t *testing.T) {
	pool := pgtest.New(t)
	b := &broken{wheels: make(chan struct{})}
	c := New(Parts{Writes: pool, Reads: pool, Bus: b, Log: b, Projections: b, Wheels: b, Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	wheels := func() api.PartStatus {
		t.Helper()
		begin := time.Now()
		parts := c.Check(t.Context())
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		for _, p := range parts {
			if p.Name == "wheels" {
				return p.Status
			}
			if p.Name == "postgres" && p.Status != api.Ok {
				t.Errorf("%+v", p)
			}
		}
		return ""
	}
	if got := wheels(); got != api.Down {
		t.Error(got)
	}
	c.at = time.Time{}
	begin := time.Now()
	if got := wheels(); got != api.Down || time.Since(begin) > time.Second {
		t.Errorf("the second time: %s after %v", got, time.Since(begin))
	}
	close(b.wheels)
	begin = time.Now()
	for wheels() != api.Ok {
		c.at = time.Time{}
		if time.Since(begin) > 5*time.Second {
			t.Fatal("it does not come back")
		}
	}
}
