package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/bus"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/policies"
	"github.com/wheelrefinery/refinery/projections"
)

// What a seeded log looks like, whatever its size: a run of buildsOfRun builds, about 100 builds of each project, 60 reasons for failures.
const (
	buildsOfRun     = 20
	eventsOfProject = 460
	reasons         = 60
)

// seeder appends histories as a refinery leaves them: runs that were planned and have ended, builds that were made, reused, skipped, handed
// back or failed, their logs and wheels.
type seeder struct {
	log *eventlog.Log
	rng *rand.Rand
	n   int // builds so far

	projects []string
	runs     []uuid.UUID
}

// seed brings the log of a database to size and its read models to the end of it. Nothing else runs on that database.
func seed(b *testing.B, dsn string, s *seeder, size int64) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	pool, err := eventlog.Pool(ctx, dsn, 16)
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	if s.log, err = eventlog.Open(ctx, pool, eventlog.Options{}); err != nil {
		b.Fatal(err)
	}
	defer s.log.Close()
	runner := projections.New(s.log, pool, slog.New(slog.DiscardHandler))
	if err := runner.Setup(ctx); err != nil {
		b.Fatal(err)
	}
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	following.Go(func() { _ = runner.Run(ctx) })
	// What reacts to events has nothing to do here: it is past.
	names := runner.Names()
	for _, f := range []eventlog.Follower{
		policies.Runs(nil, nil), policies.Clear(nil, nil), policies.Bulk(nil, nil), policies.Hints(policies.HintsOptions{}),
		{Name: policies.LeasesName},
		bus.Relay(nil), runner.Operators(),
	} {
		names = append(names, f.Name)
		f.Apply = func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
			return c.Save(ctx, batch[len(batch)-1].Position, nil)
		}
		following.Go(func() { _ = s.log.Run(ctx, f) })
	}
	for s.log.Head() < size {
		var entries []eventlog.Entry
		for range 10 {
			entries = append(entries, s.run(int(size))...)
		}
		results, err := s.log.Append(ctx, entries...)
		for _, r := range results {
			err = errors.Join(err, r.Err)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	waiting, stop := context.WithTimeout(ctx, 20*time.Minute)
	defer stop()
	if err := s.log.WaitFor(waiting, s.log.Head(), names...); err != nil {
		b.Fatal(err)
	}
	// What autovacuum would soon do, now and not while it is measured.
	if _, err := pool.Exec(ctx, `vacuum analyze`); err != nil {
		b.Fatal(err)
	}
}

func entryOf(stream string, expected int64, es ...events.Event) eventlog.Entry {
	return eventlog.Entry{
		Outcome: eventlog.Outcome{Command: uuid.Must(uuid.NewV7()), Name: "seed", Stream: stream, Actor: "bench", Status: eventlog.Applied},
		Events:  es, Expected: expected,
	}
}

// run is a run from submission to end.
func (s *seeder) run(size int) []eventlog.Entry {
	id := uuid.Must(uuid.NewV7())
	s.runs = append(s.runs, id)
	planned := events.RunPlanned{Plan: uuid.Must(uuid.NewV7()), Worker: "worker-1", PythonTag: "cp311", PlatformTag: "linux_s390x", DurationMS: 4000}
	finished := events.RunFinished{State: "failed", Counts: map[string]int{"built": 10, "failed": 3, "reused": 7}}
	var builds []eventlog.Entry
	for range buildsOfRun {
		b := s.id(size)
		sdist := events.File{Filename: b.Name + "-" + b.Version + ".tar.gz", URL: "https://files.example/" + b.Name, SHA256: fmt.Sprintf("%064x", s.n), Size: 40_000}
		planned.Nodes = append(planned.Nodes, events.Node{
			Name: b.Name, Version: b.Version, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag, Action: "build", Reason: "no-wheel", Sdist: &sdist,
		})
		planned.Edges = append(planned.Edges, events.Edge{From: planned.Nodes[0].Key(), To: b.Name + "/" + b.Version, Kind: "runtime"})
		made, entry := s.build(b, id, sdist)
		builds = append(builds, made...)
		finished.Manifest = append(finished.Manifest, entry)
	}
	stream := events.RunStream(id)
	all := append([]eventlog.Entry{entryOf(stream, 0, events.RunSubmitted{
		Requirements: planned.Nodes[0].Name + "\n", Strategy: "pinned", Build: "all",
	}, events.RunPlanLeased{Attempt: 1, Worker: "worker-1", ExpiresAt: time.Now().UTC()}, planned)}, builds...)
	return append(all, entryOf(stream, 3, finished))
}

// id is a build that was not there before.
func (s *seeder) id(size int) events.BuildID {
	projects := max(20, size/eventsOfProject)
	n := s.n
	s.n++
	name := fmt.Sprintf("project-%d", n%projects)
	if n < projects {
		s.projects = append(s.projects, name)
	}
	round := n / projects
	return events.BuildID{
		Name: name, Version: fmt.Sprintf("%d.%d.%d", size/1_000_000, round/40, round/8%5),
		PythonTag: fmt.Sprintf("cp3%d", 10+round%4), PlatformTag: []string{"linux_s390x", "linux_riscv64"}[round/4%2],
	}
}

var classes = []events.Class{events.ClassMissingHeader, events.ClassCompiler, events.ClassBackend, events.ClassMissingLibrary, events.ClassTest, events.ClassTimeout}

func (s *seeder) build(b events.BuildID, run uuid.UUID, sdist events.File) ([]eventlog.Entry, events.ManifestEntry) {
	entry := events.ManifestEntry{Name: b.Name, Version: b.Version, PythonTag: b.PythonTag, PlatformTag: b.PlatformTag}
	wheel := events.File{
		Filename: fmt.Sprintf("%s-%s-%s-%s-%s.whl", b.Name, b.Version, b.PythonTag, b.PythonTag, b.PlatformTag), SHA256: sdist.SHA256, Size: 90_000,
	}
	at, worker := time.Now().UTC(), fmt.Sprintf("worker-%d", s.rng.IntN(8))
	began := func(attempt int) []events.Event {
		return []events.Event{events.BuildLeased{Attempt: attempt, Worker: worker, ExpiresAt: at}, events.BuildStarted{Attempt: attempt}}
	}
	es := []events.Event{events.BuildPlanned{Run: run}, events.BuildQueued{Run: run, Sdist: &sdist, Constraints: []string{"setuptools==75.1.0"}}}
	ms := 2_000 + s.rng.Int64N(300_000)
	log := events.LogAppended{FirstLine: 1, Lines: 3, Text: "building " + b.Name + "\nrunning bdist_wheel\ndone\n"}
	switch kind := s.rng.IntN(20); {
	case kind < 5:
		entry.Status = projections.Reused
		return []eventlog.Entry{entryOf(b.Stream(), 0, events.BuildPlanned{Run: run}, events.BuildReused{Run: run, Wheel: wheel, Own: kind < 3})}, entry
	case kind < 7:
		entry.Status, entry.Reason = projections.Skipped, "needs what was not built"
		return []eventlog.Entry{entryOf(b.Stream(), 0, events.BuildPlanned{Run: run}, events.BuildSkipped{Run: run, Reason: entry.Reason})}, entry
	case kind < 10:
		class, reason := classes[s.rng.IntN(len(classes))], fmt.Sprintf("fatal error: header-%d.h: No such file or directory", s.rng.IntN(reasons))
		entry.Status, entry.Reason, entry.DurationMS = projections.Failed, reason, ms
		es = append(append(es, began(1)...), events.BuildFailed{
			Attempt: 1, Run: run, Worker: worker, Class: class, Reason: reason, Evidence: []string{reason, "error: command 'gcc' failed"}, StartedAt: at, DurationMS: ms, LogLines: 3,
		})
		return []eventlog.Entry{entryOf(b.Stream(), 0, es...), entryOf(b.Log(1), 0, log)}, entry
	default:
		attempt := 1
		es = append(es, began(1)...)
		if kind == 19 {
			es = append(append(es, events.BuildReleased{Attempt: 1, Worker: worker, Reason: "the worker stops"}), began(2)...)
			attempt = 2
		}
		entry.Status, entry.Wheel, entry.SHA256, entry.Size, entry.DurationMS = projections.Built, wheel.Filename, wheel.SHA256, wheel.Size, ms
		es = append(es, events.BuildSucceeded{Attempt: attempt, Run: run, Worker: worker, Wheel: wheel, StartedAt: at, DurationMS: ms, LogLines: 3})
		return []eventlog.Entry{
			entryOf(b.Stream(), 0, es...), entryOf(b.Log(attempt), 0, log),
			entryOf(events.ArtifactStream(wheel.Filename), 0, events.ArtifactPublished{
				Filename: wheel.Filename, SHA256: wheel.SHA256, Size: wheel.Size, Project: b.Name, Version: b.Version, Attempt: attempt, Build: b,
				Tags: []string{b.PythonTag + "-" + b.PythonTag + "-" + b.PlatformTag}, MetadataSHA256: sdist.SHA256,
			}),
		}, entry
	}
}
