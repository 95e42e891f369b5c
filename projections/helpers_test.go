package projections

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func TestMain(m *testing.M) {
	// Each check is a history through a real log; the flag still overrides.
	if err := flag.Set("rapid.checks", "6"); err != nil {
		panic(err)
	}
	flag.Parse()
	pgtest.Main(m)
}

// tester has testing.TB's and rapid.T's common methods.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// writer appends to a real log and knows the versions of the streams.
type writer struct {
	log      *eventlog.Log
	versions map[string]int64
}

func openLog(t tester, pool *pgxpool.Pool) *eventlog.Log {
	t.Helper()
	log, err := eventlog.Open(context.Background(), pool, eventlog.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return log
}

type fact struct {
	stream string
	event  events.Event
}

func (w *writer) append(t tester, facts ...fact) int64 {
	t.Helper()
	var entries []eventlog.Entry
	for _, f := range facts {
		entries = append(entries, eventlog.Entry{
			Outcome:  eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: f.stream, Actor: "tester", Status: eventlog.Applied},
			Expected: w.versions[f.stream],
			Events:   []events.Event{f.event},
		})
		w.versions[f.stream]++
	}
	results, err := w.log.Append(context.Background(), entries...)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	return results[len(results)-1].Outcome.Last
}

// feed runs r until stop is called, at the latest when the test ends.
func feed(t *testing.T, r *Runner) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// dump is every table of schema as text, rows in order.
func dump(t tester, pool *pgxpool.Pool, schema string, p projection) string {
	t.Helper()
	var b strings.Builder
	for _, tb := range p.open().tables {
		name := strings.TrimPrefix(strings.Fields(tb.create("x"))[2], "x.")
		rows, err := pool.Query(context.Background(), fmt.Sprintf("select to_jsonb(x)::text from %s.%s x order by to_jsonb(x)::text", schema, name))
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n\t%s\n", name, strings.Join(lines, "\n\t"))
	}
	return b.String()
}

// memory folds facts of a whole log without a database.
type memory struct {
	at       int64
	versions map[string]int64
	folds    map[string]*fold
}

func newMemory() *memory {
	m := &memory{versions: map[string]int64{}, folds: map[string]*fold{}}
	for _, p := range all {
		m.folds[p.name] = p.open()
	}
	return m
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// nothing is a database without rows.
type nothing struct{}

func (nothing) Query(context.Context, string, ...any) (pgx.Rows, error) { return noRows{}, nil }

type noRows struct{ pgx.Rows }

func (noRows) Next() bool { return false }
func (noRows) Err() error { return nil }
func (noRows) Close()     {}

// apply folds facts one by one.
func (m *memory) apply(t *testing.T, facts ...fact) {
	t.Helper()
	for _, f := range facts {
		m.batch(t, f)
	}
}

// batch folds facts in one go.
func (m *memory) batch(t *testing.T, facts ...fact) {
	t.Helper()
	var batch []events.Recorded
	for _, f := range facts {
		m.at++
		m.versions[f.stream]++
		batch = append(batch, events.Recorded{
			Position: m.at, Stream: f.stream, Version: m.versions[f.stream], Actor: "tester",
			Time: epoch.Add(time.Duration(m.at) * time.Minute), Event: f.event,
		})
	}
	for name, fold := range m.folds {
		if err := fold.run(context.Background(), nothing{}, name, batch); err != nil {
			t.Fatal(err)
		}
		for _, tb := range fold.tables {
			tb.commit()
		}
		if len(fold.parked) > 0 {
			t.Fatalf("%s parked %v", name, fold.parked)
		}
	}
}

// top is the struct of a projection's tables.
func top[T any](m *memory, name string) *T { return m.folds[name].top.(*T) }
