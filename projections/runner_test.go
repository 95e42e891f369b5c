package projections

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func start(t *testing.T) (*Runner, *writer, *pgxpool.Pool) {
	pool := pgtest.New(t)
	log := openLog(t, pool)
	t.Cleanup(log.Close)
	return New(log, pool, slog.New(slog.DiscardHandler)), &writer{log, map[string]int64{}}, pool
}

func one[V any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) V {
	t.Helper()
	rows, err := pool.Query(context.Background(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[V])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCandidatesInLeaseOrder(t *testing.T) {
	r, w, pool := start(t)
	feed(t, r)
	other := flask
	other.PythonTag = "cp312"
	third := events.BuildID{Name: "click", Version: "8", PythonTag: "cp311", PlatformTag: "linux_s390x"}
	recipes := []events.Recipe{{Kind: "apt", Items: []string{"libffi-dev"}}}
	w.append(t, build(flask, events.BuildQueued{Priority: 1})...)
	w.append(t, build(other, events.BuildQueued{Priority: 9})...)
	w.append(t, build(third, events.BuildQueued{Priority: 1})...)
	last := w.append(t, build(jinja, events.BuildQueued{Priority: 5, Sdist: &wheelF, Recipes: recipes})...)
	ctx := within(t, 10*time.Second)
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	rows, more, err := Candidates(ctx, pool, "cp311", "linux_s390x", epoch, 10)
	if err != nil || !more.IsZero() {
		t.Fatal(more, err)
	}
	var order []string
	for _, row := range rows {
		order = append(order, row.Name)
	}
	same(t, []string{"jinja2", "flask", "click"}, order)
	same(t, &wheelF, rows[0].Sdist)
	same(t, recipes, rows[0].Recipes)

	last = w.append(t, fact{events.QueueStream, events.QueueCleared{}})
	cleared, err := r.Cleared(ctx, last)
	if err != nil {
		t.Fatal(err)
	}
	same(t, []events.BuildID{flask, other, third, jinja}, cleared)
	if n, err := ClearCount(ctx, pool, last); n != 4 || err != nil {
		t.Errorf("%d cleared, %v", n, err)
	}
	if rows, _, err := Candidates(ctx, pool, "cp311", "linux_s390x", epoch, 10); len(rows) > 0 || err != nil {
		t.Errorf("%v, %v after the queue was cleared", rows, err)
	}
}

func TestPendingPlans(t *testing.T) {
	r, w, pool := start(t)
	feed(t, r)
	w.append(t, ofRun(runA, events.RunSubmitted{Requirements: "flask", Constraints: "c", Names: []string{"x"}, Python: "3.11"})...)
	last := w.append(t, ofRun(runB, events.RunSubmitted{Requirements: "jinja2"}, events.RunPlanLeased{Attempt: 1})...)
	ctx := within(t, 10*time.Second)
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	pending, err := PendingPlans(ctx, pool, 10)
	if err != nil || len(pending) != 1 {
		t.Fatal(pending, err)
	}
	same(t, RunRequest{runA, "flask", "c", []string{"x"}}, pending[0].RunRequest)
	same(t, "3.11", pending[0].Python)
}

// statements counts what is sent to the server.
type statements struct{ reads, batches atomic.Int64 }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	for _, p := range all {
		if strings.Contains(q.SQL, "from "+p.name+".") {
			s.reads.Add(1)
		}
	}
	return ctx
}
func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (s *statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	if b.Batch.Len() > 1 { // not a checkpoint that moves lazily
		s.batches.Add(1)
	}
	return ctx
}
func (s *statements) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (s *statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

func TestAnEventCostsOneRoundTripForEachProjectionThatItConcerns(t *testing.T) {
	c, err := pgxpool.ParseConfig(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	sent := &statements{}
	c.ConnConfig.Tracer = sent
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	versions := map[string]int64{}
	other := func(name string) events.BuildID {
		return events.BuildID{Name: name, Version: "1.0", PythonTag: flask.PythonTag, PlatformTag: flask.PlatformTag}
	}
	life := func(id events.BuildID) []fact {
		return build(id,
			events.BuildPlanned{}, events.BuildQueued{Run: runA}, events.BuildLeased{Attempt: 1}, events.BuildStarted{Attempt: 1},
			events.BuildReleased{Attempt: 1}, events.BuildLeased{Attempt: 2}, events.BuildSucceeded{Attempt: 2})
	}
	for _, process := range []struct {
		name           string
		warm, build    events.BuildID
		worker         string
		planned, built int64 // reads
		registered     int64
	}{
		// What it has not written itself is not there.
		{name: "from the start of the log", warm: flask, build: jinja, worker: "w"},
		// Before a build's first event it is not known whether a run waits for it, nor what there is of its project; nor how long others
		// of the project took, before it is built.
		{name: "after a restart", warm: other("markupsafe"), build: other("werkzeug"), worker: "v", planned: 2, built: 1, registered: 1},
	} {
		t.Run(process.name, func(t *testing.T) {
			log := openLog(t, pool)
			t.Cleanup(log.Close)
			r, w := New(log, pool, slog.New(slog.DiscardHandler)), &writer{log, versions}
			feed(t, r)
			ctx := within(t, 20*time.Second)
			do := func(f fact) (reads, batches int64) {
				reads, batches = sent.reads.Load(), sent.batches.Load()
				if err := r.Wait(ctx, w.append(t, f)); err != nil {
					t.Fatal(err)
				}
				return sent.reads.Load() - reads, sent.batches.Load() - batches
			}
			for _, f := range life(process.warm) { // warms the rows that all builds share
				do(f)
			}
			for _, f := range life(process.build) {
				reads, batches := do(f)
				want := map[string]int64{
					"build.planned.v1": 2, "build.queued.v1": 3, "build.leased.v1": 3, "build.started.v1": 2,
					"build.released.v1": 5, "build.succeeded.v1": 5,
				}[f.event.Name()]
				var look int64
				switch f.event.Name() {
				case "build.planned.v1":
					look = process.planned
				case "build.succeeded.v1":
					look = process.built
				}
				if reads != look || batches != want {
					t.Errorf("%s: %d reads and %d saves, want %d and %d", f.event.Name(), reads, batches, look, want)
				}
			}
			reads, batches := do(fact{events.WorkerStream(process.worker), events.WorkerRegistered{}})
			if reads != process.registered || batches != 1 {
				t.Errorf("an event that concerns one: %d reads, %d saves", reads, batches)
			}
		})
	}
}

// broken is a projection with a handler that panics and rows that the database refuses.
func broken() projection {
	type tables struct {
		lines *journal[LogPiece]
		t     *table[string, LogEnd]
	}
	return define("broken", 1, func(m *models) *tables {
		return &tables{newJournal[LogPiece](m, "lines"), newTable[string, LogEnd](m, "ends")}
	}, on(func(t *tables, e events.LogAppended, m events.Recorded) {
		if e.Text == "panic" {
			t.t.Put(LogEnd{"half", 0}) // must not be seen
			panic("cannot")
		}
		t.lines.Insert(LogPiece{Stream: m.Stream, Chunk: e.Chunk, FirstLine: e.FirstLine, Lines: e.Lines, Text: e.Text})
	}))
}

func TestWhatCannotBeAppliedIsParkedWithTheRestOfItsStream(t *testing.T) {
	r, w, pool := start(t)
	r.projections = append(r.projections, broken())
	appended := func(id events.BuildID, chunk int, text string) fact {
		return fact{id.Log(1), events.LogAppended{Chunk: chunk, Text: text}}
	}
	other := flask
	other.Version = "4"
	// One batch, since nothing follows yet.
	last := w.append(
		t,
		appended(flask, 0, "a"), appended(jinja, 0, "a"), appended(other, 0, "a"),
		appended(flask, 1, "panic"), appended(jinja, 0, "again"), // the key is there: the database refuses it
		appended(flask, 2, "c"), appended(jinja, 1, "c"), appended(other, 1, "c"),
	)
	stop := feed(t, r)
	ctx := within(t, 20*time.Second)
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	letters, err := Query[DeadLetter](ctx, pool, "from broken.dead_letters order by position")
	if err != nil {
		t.Fatal(err)
	}
	var parked []int64
	for _, d := range letters {
		parked = append(parked, d.Position)
	}
	same(t, []int64{4, 5, 6, 7}, parked)
	if !strings.Contains(letters[0].Error, "cannot") || !strings.Contains(letters[1].Error, "duplicate key") || letters[2].Error != "behind the event at 4" {
		t.Errorf("letters: %+v", letters)
	}
	same(t, 4, one[int](t, pool, "select count(*)::int from broken.lines"))
	same(t, 0, one[int](t, pool, "select count(*)::int from broken.ends"))

	// What is parked stays parked for a process that starts later, and the logs projection parked only what it refused itself.
	stop()
	feed(t, r)
	last = w.append(t, appended(flask, 3, "d"), appended(other, 2, "d"))
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	same(t, 5, one[int](t, pool, "select count(*)::int from broken.dead_letters"))
	same(t, 2, one[int](t, pool, "select count(*)::int from logs.dead_letters"))
	status, err := r.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s := status[len(status)-1]; s.Name != "broken" || s.Parked != 5 || s.State != "live" || s.Generation != 1 {
		t.Errorf("status: %+v", s)
	}
}

func TestOneThatFailsDoesNotStopTheOthers(t *testing.T) {
	r, w, pool := start(t)
	ctx := within(t, 20*time.Second)
	if err := r.Setup(ctx); err != nil {
		t.Fatal(err)
	}
	// Not an event's fault: nothing is parked, and it goes on when the trouble is over.
	if _, err := pool.Exec(ctx, "alter table history.entries rename to gone"); err != nil {
		t.Fatal(err)
	}
	feed(t, r)
	last := w.append(t, build(flask, events.BuildQueued{}, events.BuildCancelled{})...)
	if err := r.log.WaitFor(ctx, last, "builds", "queue", "summary", "runs"); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "alter table history.gone rename to entries"); err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	same(t, 0, one[int](t, pool, "select count(*)::int from history.dead_letters"))
	same(t, 1, one[int](t, pool, "select count(*)::int from history.entries"))
}

func TestTablesThatAreGoneAreMadeAgain(t *testing.T) {
	r, w, pool := start(t)
	ctx := within(t, 20*time.Second)
	last := w.append(t, build(flask, events.BuildQueued{}, events.BuildCancelled{})...)
	feed(t, r)
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "drop schema history cascade"); err != nil {
		t.Fatal(err)
	}
	w.append(t, build(jinja, events.BuildQueued{}, events.BuildCancelled{})...)
	for ctx.Err() == nil {
		var n int
		if pool.QueryRow(ctx, "select count(*) from history.entries").Scan(&n) == nil && n == 2 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the history did not come back")
}

func TestReadsNeverStopAndNeverSeeHalfATableDuringARebuild(t *testing.T) {
	r, w, pool := start(t)
	feed(t, r)
	ctx := within(t, 30*time.Second)
	const n = 300
	var last int64
	for i := range n {
		id := flask
		id.Version = "1." + string(rune('a'+i%26)) + strings.Repeat("x", i/26)
		last = w.append(t, build(id, events.BuildQueued{}, events.BuildCancelled{})...)
	}
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	reading, stop := context.WithCancel(ctx)
	var reads, appends atomic.Int64
	var g errgroup.Group
	g.Go(func() error {
		for least := n; reading.Err() == nil; reads.Add(1) {
			var got int
			if err := pool.QueryRow(ctx, "select count(*) from history.entries").Scan(&got); err != nil {
				return err
			}
			if got < least {
				return fmt.Errorf("%d rows after %d", got, least)
			}
			least = got
		}
		return nil
	})
	for i := range 4 { // what comes during the rebuild must be in the new generation, too
		g.Go(func() error {
			id := jinja
			id.Version = fmt.Sprint(i)
			for version := int64(0); reading.Err() == nil; version++ {
				_, err := r.log.Append(ctx, eventlog.Entry{
					Outcome:  eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: id.Stream(), Status: eventlog.Applied},
					Expected: version, Events: []events.Event{events.BuildCancelled{}},
				})
				if err != nil {
					return err
				}
				appends.Add(1)
			}
			return nil
		})
	}
	for range 5 {
		if err := r.Rebuild(ctx, "history"); err != nil {
			t.Error(err)
		}
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if err := r.Wait(ctx, n*2+appends.Load()); err != nil {
		t.Fatal(err)
	}
	same(t, n+int(appends.Load()), one[int](t, pool, "select count(*)::int from history.entries"))
	same(t, int64(6), one[int64](t, pool, "select generation from projections where name = 'history'"))
	same(t, 0, one[int](t, pool, "select count(*)::int from followers where name like '%\\_next'"))
	if reads.Load() < 10 || appends.Load() < 10 {
		t.Errorf("only %d reads and %d appends during the rebuilds", reads.Load(), appends.Load())
	}
	if err := r.Rebuild(ctx, "nothing"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("rebuilding what is not there: %v", err)
	}
}

func TestAChangedDefinitionRebuilds(t *testing.T) {
	r, w, pool := start(t)
	ctx := within(t, 20*time.Second)
	last := w.append(t, build(flask, events.BuildQueued{}, events.BuildCancelled{})...)
	oldRun, stopOld := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { _ = r.Run(oldRun); close(done) }()
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}

	// The next release starts while the old one still runs, with a handler that does otherwise.
	changed := define("history", 2, func(m *models) *historyTables {
		return &historyTables{entries: newJournal[HistoryRow](m, "entries", "(name)")}
	}, onEach(func(t *historyTables, m events.Recorded) {
		if row, ok := historyOf(m); ok {
			row.Reason = "changed"
			t.entries.Insert(row)
		}
	}, buildEvents...)...)
	log := openLog(t, pool)
	t.Cleanup(log.Close)
	newer := New(log, pool, slog.New(slog.DiscardHandler))
	newer.projections = []projection{changed}
	feed(t, newer)
	reason := func() (s string) {
		_ = pool.QueryRow(ctx, "select min(reason) from history.entries").Scan(&s)
		return s
	}
	for reason() != "changed" && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	// The old one does not touch the new tables and leaves the feeding to the newer.
	last = w.append(t, build(jinja, events.BuildQueued{}, events.BuildCancelled{})...)
	for one[int](t, pool, "select count(*)::int from history.entries") != 2 && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	same(t, "changed", one[string](t, pool, "select min(reason) from history.entries"))
	same(t, int64(2), one[int64](t, pool, "select generation from projections where name = 'history'"))
	stopOld()
	<-done
	if err := log.WaitFor(ctx, last, "history"); err != nil {
		t.Error(err)
	}
}
