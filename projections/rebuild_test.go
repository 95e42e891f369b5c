package projections

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"slices"
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

// seed fills the event table with about n events of runs of 50 wheels each, of which a third are reused and a few fail, on 64 workers;
// log text is left out.
func seed(tb testing.TB, pool *pgxpool.Pool, n int) int {
	rng := rand.New(rand.NewPCG(1, 2))
	versions := map[string]int64{}
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var rows [][]any
	add := func(stream string, es ...events.Event) {
		for _, e := range es {
			data, err := events.Encode(e)
			if err != nil {
				tb.Fatal(err)
			}
			versions[stream]++
			at = at.Add(7 * time.Millisecond)
			rows = append(rows, []any{
				int64(len(rows) + 1), stream, versions[stream], e.Name(), string(data),
				uuid.New(), uuid.New(), int64(len(rows)), "policy", at,
			})
		}
	}
	var active [][]fact // the rest of each build's history
	for r := 0; len(rows) < n; r++ {
		run := uuid.New()
		planned := events.RunPlanned{Plan: uuid.New(), Worker: "w", PythonTag: "cp311", PlatformTag: "linux_s390x"}
		var manifest []events.ManifestEntry
		for i := range 50 {
			name := fmt.Sprintf("package-%d-%d", r, i)
			node := events.Node{Name: name, Version: "1.2.3", PythonTag: "cp311", PlatformTag: "linux_s390x", Action: "build", Reason: "no-wheel"}
			id := node.Build()
			wheel := events.File{Filename: name + "-1.2.3-cp311-cp311-linux_s390x.whl", URL: "/artifacts/" + name, SHA256: fmt.Sprintf("%064x", i), Size: 1 << 16}
			sdist := events.File{Filename: name + "-1.2.3.tar.gz", URL: "https://files/" + name, SHA256: fmt.Sprintf("%064x", i), Size: 1 << 16}
			entry := events.ManifestEntry{Name: name, Version: "1.2.3", PythonTag: "cp311", PlatformTag: "linux_s390x", Status: Built, Wheel: wheel.Filename}
			var facts []fact
			b := func(e events.BuildEvent) { facts = append(facts, fact{id.Stream(), e}) }
			b(events.BuildPlanned{Run: run})
			if i%3 == 0 {
				node.Action, node.Wheel, entry.Status = "reuse", &wheel, Reused
				b(events.BuildReused{Run: run, Wheel: wheel})
			} else {
				node.Sdist = &sdist
				b(events.BuildQueued{Run: run, Sdist: &sdist, Priority: i, Constraints: []string{"setuptools==75.0", "wheel==0.44"}})
				b(events.BuildLeased{Attempt: 1, Worker: fmt.Sprintf("worker-%d", i), ExpiresAt: at})
				b(events.BuildStarted{Attempt: 1})
				if i%10 == 1 {
					entry.Status = Failed
					b(events.BuildFailed{Attempt: 1, Run: run, Worker: "w", Class: events.ClassMissingHeader, Reason: "ffi.h: no such file", Evidence: []string{"a", "b"}})
				} else {
					b(events.BuildSucceeded{Attempt: 1, Run: run, Worker: "w", Wheel: wheel, StartedAt: at, DurationMS: 1234, LogLines: 99})
					facts = append(facts, fact{events.ArtifactStream(wheel.Filename), events.ArtifactPublished{
						Filename: wheel.Filename, SHA256: wheel.SHA256, Size: wheel.Size, Project: name, Version: "1.2.3",
						Tags: []string{"cp311-cp311-linux_s390x"}, MetadataSHA256: wheel.SHA256, Build: id, Attempt: 1,
					}})
				}
			}
			planned.Nodes = append(planned.Nodes, node)
			if i > 0 {
				planned.Edges = append(planned.Edges, events.Edge{From: node.Key(), To: planned.Nodes[rng.IntN(i)].Key(), Kind: "runtime"})
			}
			manifest = append(manifest, entry)
			active = append(active, facts)
		}
		stream := events.RunStream(run)
		add(stream, events.RunSubmitted{Requirements: "flask\n", Strategy: "pinned", Build: "all"}, events.RunPlanLeased{Attempt: 1, Worker: "w", ExpiresAt: at}, planned)
		for len(active) > 200 {
			i := rng.IntN(min(64, len(active)))
			add(active[i][0].stream, active[i][0].event)
			if active[i] = active[i][1:]; len(active[i]) == 0 {
				active = slices.Delete(active, i, i+1)
			}
		}
		add(stream, events.RunFinished{State: "built", Counts: map[string]int{Built: 30}, Manifest: manifest})
	}
	ctx := context.Background()
	_, err := pool.CopyFrom(ctx, pgx.Identifier{"events"},
		[]string{"position", "stream", "version", "type", "data", "command", "correlation", "causation", "actor", "recorded_at"}, pgx.CopyFromRows(rows))
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `update head set position = $1`, len(rows)); err != nil {
		tb.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `vacuum analyze events`); err != nil {
		tb.Fatal(err)
	}
	return len(rows)
}

// BenchmarkRebuild measures how fast all read models but log text are built from the start of the log: the median of three rounds. The
// limit is 40,000 events/s.
func BenchmarkRebuild(b *testing.B) {
	debug.SetGCPercent(300)                                    // as cmd/refinery does
	pool, err := eventlog.Pool(b.Context(), pgtest.DSN(b), 24) // with the settings that the program's connections have
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	n := seed(b, pool, 200_000)
	log := openLog(b, pool)
	defer log.Close()
	r := New(log, pool, slog.New(slog.DiscardHandler))
	r.projections = slices.DeleteFunc(slices.Clone(all), func(p projection) bool { return p.name == "logs" })
	if err := r.Setup(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var rates []float64
		for range 3 {
			begin := time.Now()
			var wg sync.WaitGroup
			for _, p := range r.projections {
				wg.Go(func() {
					if err := r.Rebuild(b.Context(), p.name); err != nil {
						b.Error(err)
					}
				})
			}
			wg.Wait()
			rates = append(rates, float64(n)/time.Since(begin).Seconds())
		}
		slices.Sort(rates)
		b.ReportMetric(rates[1], "events/s")
	}
}
