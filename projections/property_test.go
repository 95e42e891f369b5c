package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// anyFact draws any event of any stream, sensible in this order or not: a projection must make the same of it whatever the batches are.
func anyFact() *rapid.Generator[fact] {
	return rapid.Custom(func(t *rapid.T) fact {
		id := events.BuildID{
			Name: rapid.SampledFrom([]string{"flask", "jinja2", "markupsafe", "werkzeug"}).Draw(t, "name"), Version: "1.0",
			PythonTag:   rapid.SampledFrom([]string{"cp311", "cp312"}).Draw(t, "python"),
			PlatformTag: "linux_x86_64",
		}
		attempt := rapid.IntRange(1, 3).Draw(t, "attempt")
		run := uuid.NewSHA1(uuid.Nil, []byte{byte(rapid.IntRange(1, 3).Draw(t, "run"))})
		wheel := events.File{Filename: id.Name + "-1.0-py3-none-any.whl", SHA256: "ab", Size: 3}
		class := rapid.SampledFrom(events.Classes).Draw(t, "class")
		yes := rapid.Bool().Draw(t, "yes")
		lines := rapid.SliceOfN(rapid.StringMatching(`[a-zé ]{0,9}`), 0, 2).Draw(t, "lines")
		at := time.Date(2026, 1, 1, 0, 0, 0, 123456789, time.FixedZone("", 3600))
		hinted := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"libpq", "openssl", "gcc"}), 1, 3, rapid.ID).Draw(t, "hints")
		var matches []events.HintMatch
		for _, h := range hinted {
			matches = append(matches, events.HintMatch{Hint: h, Line: attempt, Recipes: []events.Recipe{{Kind: "apt", Items: lines}}})
		}
		entries := []events.ManifestEntry{{Name: id.Name, Version: id.Version, Status: Built, Reason: fmt.Sprint(attempt)}}
		node := events.Node{
			Name: id.Name, Version: id.Version, PythonTag: id.PythonTag, PlatformTag: id.PlatformTag,
			Action: rapid.SampledFrom([]string{"build", "reuse", "skip"}).Draw(t, "action"), Constraints: lines,
		}
		of := func(e events.BuildEvent) fact { return fact{id.Stream(), e} }
		ofRun := func(e events.RunEvent) fact { return fact{events.RunStream(run), e} }
		facts := []fact{
			of(events.BuildPlanned{Run: run}),
			of(events.BuildQueued{Run: run, Priority: attempt, Constraints: lines, Retry: yes, Sdist: &wheel}),
			of(events.BuildQueued{Priority: -attempt}),
			of(events.BuildQueued{Hints: hinted, NotBefore: at, Recipes: []events.Recipe{{Kind: "apt", Items: lines}}}),
			of(events.BuildHinted{Attempt: attempt, Hints: matches, Retry: yes}),
			of(events.BuildSucceeded{Attempt: attempt, Wheel: wheel, Hints: hinted}),
			{events.HintStream(hinted[0]), events.HintSaved{Hint: events.Hint{ID: hinted[0], Pattern: "x", Tags: lines}, Shipped: yes}},
			{events.HintStream(hinted[0]), events.HintDeleted{}},
			of(events.BuildLeased{Attempt: attempt, Worker: "w", ExpiresAt: at}),
			of(events.BuildStarted{Attempt: attempt}),
			of(events.BuildReleased{Attempt: attempt, Worker: "w", Reason: "gone", Lost: yes}),
			of(events.BuildSucceeded{Attempt: attempt, Run: run, Wheel: wheel, StartedAt: at, DurationMS: 5}),
			of(events.BuildFailed{Attempt: attempt, Run: run, Class: class, Reason: "broken", Evidence: lines, StartedAt: at}),
			of(events.BuildReused{Run: run, Wheel: wheel, Own: yes}),
			of(events.BuildSkipped{Run: run, Reason: "needs another"}),
			of(events.BuildCancelled{Run: run, Reason: "no", Attempt: attempt - 1}),
			of(events.BuildPriorityChanged{Priority: 10 * attempt}),
			{events.ArtifactStream(wheel.Filename), events.ArtifactYanked{Reason: "bad"}},
			{events.ArtifactStream(wheel.Filename), events.ArtifactUnyanked{}},
			{events.BulkStream(run), events.BulkRequested{Action: "cancel", Builds: make([]events.BuildID, attempt-1)}},
			{events.BulkStream(run), events.BulkProgressed{Applied: 1, Refused: attempt - 1}},
			{events.TriggerStream(run), events.TriggerRequested{Local: yes}},
			{events.TriggerStream(run), events.TriggerFailed{Attempt: attempt, RetryAt: at}},
			{events.TriggerStream(run), events.TriggerSucceeded{Attempt: attempt}},
			{events.SmokeStream(run), events.SmokeRequested{}},
			{events.SmokeStream(run), events.SmokeLeased{Worker: "w"}},
			{events.QueueStream, events.QueueCleared{IncludeLeased: yes}},
			{events.QueueStream, events.QueuePaused{Reason: "tea"}},
			{events.QueueStream, events.QueueResumed{}},
			ofRun(events.RunSubmitted{Requirements: "flask", Strategy: "pinned", Build: "all", Names: lines}),
			ofRun(events.RunPlanLeased{Attempt: attempt, Worker: "w", ExpiresAt: at}),
			ofRun(events.RunPlanReleased{Attempt: attempt, Reason: "gone"}),
			ofRun(events.RunPlanned{Plan: run, Nodes: []events.Node{node, node}, Warnings: lines}),
			ofRun(events.RunPlanFailed{Class: class, Reason: "no", Detail: lines}),
			ofRun(events.RunCancelled{Reason: "no"}),
			ofRun(events.RunFinished{State: "built", Counts: map[string]int{Built: 1}, Manifest: entries}),
			ofRun(events.ManifestRecorded{Entries: entries}),
			{events.ArtifactStream(wheel.Filename), events.ArtifactPublished{
				Filename: wheel.Filename, Project: id.Name, Version: "1.0", Tags: lines, Build: id, Attempt: attempt,
			}},
			// The same chunk twice is refused by the database and parks that log.
			{id.Log(attempt), events.LogAppended{Chunk: rapid.IntRange(0, 9).Draw(t, "chunk"), FirstLine: 1, Lines: 1, Text: "x\n"}},
			{events.WorkerStream("w"), events.WorkerRegistered{Slots: 1}},
			// No build has such a name: the handlers break.
			{"build/odd", events.BuildPlanned{Run: run}},
		}
		return facts[rapid.IntRange(0, len(facts)-1).Draw(t, "kind")]
	})
}

// empty makes the database as it was before the first event.
func empty(t tester, pool *pgxpool.Pool) {
	ctx := context.Background()
	sql := `truncate events, streams, commands, followers; update head set position = 0; drop table if exists projections;`
	for _, p := range all {
		sql += fmt.Sprintf("drop schema if exists %[1]s cascade; drop schema if exists %[1]s_old cascade; drop schema if exists %[1]s_next cascade;", p.name)
	}
	if _, err := pool.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
}

var errKilled = errors.New("killed")

// feedRoughly brings p up to position in batches of any size, by three processes that take turns whenever one is killed or held up:
// what one had in memory is gone or out of date, and sometimes what it was about to save is lost.
func feedRoughly(r *Runner, p projection, position int64, rng *rand.Rand) error {
	deadline, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	processes := make([]eventlog.Follower, 3)
	for deadline.Err() == nil {
		turn := rng.IntN(len(processes))
		if processes[turn].Apply == nil || rng.IntN(4) == 0 {
			processes[turn] = r.follower(p, p.name)
		}
		inner := processes[turn]
		// What is saved while it is killed may be the last of it: then no batch comes any more.
		ctx, kill := context.WithTimeout(deadline, 300*time.Millisecond)
		var broken error
		_ = r.log.Run(ctx, eventlog.Follower{Name: p.name, Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
			for len(batch) > 0 {
				n := 1 + rng.IntN(min(len(batch), 12))
				switch rng.IntN(8) {
				case 0:
					kill()
					return errKilled
				case 1:
					time.AfterFunc(time.Duration(rng.IntN(2000))*time.Microsecond, kill)
				}
				if err := inner.Apply(ctx, c, batch[:n]); err != nil {
					if ctx.Err() == nil {
						broken = err
					}
					kill()
					return err
				}
				batch = batch[n:]
			}
			if c.Position() == position {
				kill() // the checkpoint is still saved
			}
			return nil
		}})
		kill()
		if broken != nil {
			return broken
		}
		var at int64
		err := r.pool.QueryRow(deadline, `select coalesce((select position from followers where name = $1), 0)`, p.name).Scan(&at)
		if err != nil || at == position {
			return err
		}
	}
	return fmt.Errorf("%s did not get to %d", p.name, position)
}

func TestRebuiltEqualsLive(t *testing.T) {
	pool := pgtest.New(t)
	defer func(rows int) { worthCopy = rows }(worthCopy)
	worthCopy = 5 // so that a rebuild copies, and what is live hardly ever
	rapid.Check(t, func(t *rapid.T) {
		empty(t, pool)
		log := openLog(t, pool)
		defer log.Close()
		r := New(log, pool, slog.New(slog.DiscardHandler))
		if err := r.Setup(context.Background()); err != nil {
			t.Fatal(err)
		}
		facts := rapid.SliceOfN(anyFact(), 120, 400).Draw(t, "facts")
		seed := rapid.Uint64().Draw(t, "seed")
		rng := rand.New(rand.NewPCG(seed, 0))
		w := &writer{log, map[string]int64{}}

		// Half of the events are there before the followers start, and half come while they run.
		half := len(facts) / 2
		if half > 0 {
			w.append(t, facts[:half]...)
		}
		var wg sync.WaitGroup
		fed := make([]error, len(all))
		for i, p := range all {
			wg.Go(func() { fed[i] = feedRoughly(r, p, int64(len(facts)), rand.New(rand.NewPCG(seed, uint64(i+1)))) })
		}
		for rest := facts[half:]; len(rest) > 0; {
			n := 1 + rng.IntN(len(rest))
			w.append(t, rest[:n]...)
			rest = rest[n:]
		}
		wg.Wait()
		if err := errors.Join(fed...); err != nil {
			t.Fatal(err)
		}

		live := map[string]string{}
		for _, p := range all {
			live[p.name] = dump(t, pool, p.name, p)
		}
		for _, p := range all {
			// A rebuild that is interrupted somewhere and goes on in another process.
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(20))*time.Millisecond)
			err := r.Rebuild(ctx, p.name)
			cancel()
			if err != nil {
				if err := r.prepare(context.Background(), p, false); err != nil {
					t.Fatal(err)
				}
				if err := r.resume(context.Background(), p); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(live[p.name], dump(t, pool, p.name, p)); diff != "" {
				t.Fatalf("%s: live (-) and rebuilt (+) differ:\n%s", p.name, diff)
			}
		}
	})
}
