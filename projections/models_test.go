package projections

import (
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
)

var (
	flask  = events.BuildID{Name: "flask", Version: "3.0", PythonTag: "cp311", PlatformTag: "linux_s390x"}
	jinja  = events.BuildID{Name: "jinja2", Version: "3.1", PythonTag: "cp311", PlatformTag: "linux_s390x"}
	runA   = uuid.MustParse("00000000-0000-0000-0000-00000000000a")
	runB   = uuid.MustParse("00000000-0000-0000-0000-00000000000b")
	wheelF = events.File{Filename: "flask-3.0-py3-none-any.whl", SHA256: "f1", Size: 10}
)

func build(id events.BuildID, es ...events.BuildEvent) []fact {
	var facts []fact
	for _, e := range es {
		facts = append(facts, fact{id.Stream(), e})
	}
	return facts
}

func ofRun(id uuid.UUID, es ...events.RunEvent) []fact {
	var facts []fact
	for _, e := range es {
		facts = append(facts, fact{events.RunStream(id), e})
	}
	return facts
}

func (m *memory) time(position int64) time.Time {
	return epoch.Add(time.Duration(position) * time.Minute)
}

func same[V any](t *testing.T, want, got V) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestQueueKeepsThePlaceOfWhatIsHandedBack(t *testing.T) {
	m := newMemory()
	q := top[queueTables](m, "queue")
	m.apply(t, build(flask, events.BuildQueued{Run: runA, Sdist: &wheelF, Constraints: []string{"wheel==1"}, Priority: 2})...)
	m.apply(t, build(jinja, events.BuildQueued{Priority: 2})...)
	m.apply(t, build(flask, events.BuildLeased{Attempt: 1, Worker: "w"})...)
	if _, ok := q.entries.Get(flask.Stream()); ok {
		t.Error("a leased build is in the queue")
	}
	s, _ := q.state.Get(1)
	same(t, QueueState{ID: 1, Length: 1, Leased: 1, Tags: []QueueTag{{"cp311", "linux_s390x", 1, 1}}}, s)

	m.apply(t, build(flask, events.BuildReleased{Attempt: 1, Worker: "w", Lost: true})...)
	e, ok := q.entries.Get(flask.Stream())
	same(t, QueueEntry{Stream: flask.Stream(), PythonTag: "cp311", PlatformTag: "linux_s390x", Priority: 2, Position: 1}, e)
	row, _ := q.builds.Get(flask.Stream())
	same(t, QueueRow{
		Stream: flask.Stream(), Target: Target(flask), Status: Retrying, Priority: 2, Position: 1, QueuedAt: m.time(1), Attempts: 1,
		Run: runA, Sdist: &wheelF, Constraints: []string{"wheel==1"},
	}, row)
	if !ok {
		t.Error("a released build is not in the queue")
	}

	// Queued again after a failure: a new place, the source kept.
	m.apply(t, build(flask, events.BuildLeased{Attempt: 2}, events.BuildFailed{Attempt: 2}, events.BuildQueued{Retry: true})...)
	row, _ = q.builds.Get(flask.Stream())
	if row.Position != 7 || row.Sdist == nil || row.Constraints == nil || row.Attempts != 2 || row.Status != Queued {
		t.Errorf("queued again as %+v", row)
	}
}

func TestQueueCleared(t *testing.T) {
	m := newMemory()
	q := top[queueTables](m, "queue")
	m.apply(t, build(flask, events.BuildQueued{}, events.BuildLeased{Attempt: 1})...)
	m.apply(t, build(jinja, events.BuildQueued{})...)
	m.apply(t, fact{events.QueueStream, events.QueueCleared{IncludeLeased: true}})
	same(t, []QueueClear{{4, 2}}, q.clears.rows)
	m.apply(t, build(jinja, events.BuildCancelled{Reason: "the queue was cleared"})...)
	s, _ := q.state.Get(1)
	same(t, QueueState{ID: 1, Leased: 1, Tags: []QueueTag{{"cp311", "linux_s390x", 0, 1}}}, s)
	m.apply(t, fact{events.QueueStream, events.QueuePaused{Reason: "tea"}})
	m.apply(t, build(flask, events.BuildCancelled{Attempt: 1})...)
	s, _ = q.state.Get(1)
	same(t, QueueState{ID: 1, Paused: true, Reason: "tea", Tags: []QueueTag{{"cp311", "linux_s390x", 0, 0}}}, s)
}

func TestBuildKeepsItsAttempts(t *testing.T) {
	m := newMemory()
	m.apply(t, build(
		flask,
		events.BuildQueued{Run: runA, Priority: 3},
		events.BuildLeased{Attempt: 1, Worker: "a"},
		events.BuildReleased{Attempt: 1, Worker: "a", Reason: "no heartbeat", Lost: true},
		events.BuildLeased{Attempt: 2, Worker: "b"},
		events.BuildStarted{Attempt: 2},
		events.BuildFailed{Attempt: 2, Run: runA, Worker: "b", Class: events.ClassCompiler, Reason: "cc", Evidence: []string{"x"}, DurationMS: 7, LogLines: 8},
	)...)
	b, _ := top[buildTables](m, "builds").builds.Get(flask.Stream())
	same(t, BuildRow{
		Stream: flask.Stream(), Position: 1, Target: Target(flask), VersionKey: "3", Status: Failed, Attempt: 2, Priority: 3, Run: runA,
		QueuedAt: m.time(1), QueuedPosition: 1, UpdatedAt: m.time(6), UpdatedPosition: 6,
		Class: "compiler", Reason: "cc", Evidence: []string{"x"},
		Attempts: []Attempt{
			{Number: 1, Worker: "a", Status: "lost", Class: "lost-worker", Reason: "no heartbeat", LeasedAt: m.time(2), EndedAt: m.time(3)},
			{Number: 2, Worker: "b", Status: "failed", Class: "compiler", Reason: "cc", LeasedAt: m.time(4), EndedAt: m.time(6), DurationMS: 7, LogLines: 8},
		},
	}, b)
	m.apply(t, build(
		flask,
		events.BuildQueued{Run: runB, Retry: true},
		events.BuildLeased{Attempt: 3, Worker: "b"},
		events.BuildSucceeded{Attempt: 3, Run: runB, Worker: "b", Wheel: wheelF},
	)...)
	b, _ = top[buildTables](m, "builds").builds.Get(flask.Stream())
	if b.Status != Built || b.Class != "" || b.Reason != "" || len(b.Evidence) > 0 || b.Run != runB || b.Wheel.SHA256 != "f1" {
		t.Errorf("built after a failure: %+v", b)
	}
}

func TestHistoryHasOneRowForEachEnd(t *testing.T) {
	h := func(e events.BuildEvent) HistoryRow {
		m := newMemory()
		m.apply(t, build(flask, e)...)
		if rows := top[historyTables](m, "history").entries.rows; len(rows) > 0 {
			return rows[0]
		}
		return HistoryRow{}
	}
	base := HistoryRow{Position: 1, Time: epoch.Add(time.Minute), Target: Target(flask), VersionKey: "3"}
	want := func(f func(*HistoryRow)) HistoryRow { r := base; f(&r); return r }
	for _, c := range []struct {
		event events.BuildEvent
		want  HistoryRow
	}{
		{events.BuildPlanned{}, HistoryRow{}},
		{events.BuildQueued{}, HistoryRow{}},
		{events.BuildLeased{}, HistoryRow{}},
		{events.BuildStarted{}, HistoryRow{}},
		{events.BuildReleased{Attempt: 1, Worker: "w", Reason: "shutdown"}, want(func(r *HistoryRow) {
			r.Status, r.Attempt, r.Worker, r.Reason = Retrying, 1, "w", "shutdown"
		})},
		{events.BuildReleased{Attempt: 1, Lost: true}, want(func(r *HistoryRow) { r.Status, r.Attempt, r.Class = Retrying, 1, "lost-worker" })},
		{events.BuildSucceeded{Attempt: 2, Run: runA, Worker: "w", Wheel: wheelF, DurationMS: 5}, want(func(r *HistoryRow) {
			r.Status, r.Attempt, r.Run, r.Worker, r.Wheel, r.SHA256, r.Size, r.DurationMS = Built, 2, runA, "w", wheelF.Filename, "f1", 10, 5
		})},
		{events.BuildFailed{Attempt: 2, Run: runA, Class: "test", Reason: "bad"}, want(func(r *HistoryRow) {
			r.Status, r.Attempt, r.Run, r.Class, r.Reason = Failed, 2, runA, "test", "bad"
		})},
		{events.BuildReused{Run: runA, Wheel: wheelF}, want(func(r *HistoryRow) {
			r.Status, r.Run, r.Wheel, r.SHA256, r.Size = Reused, runA, wheelF.Filename, "f1", 10
		})},
		{events.BuildSkipped{Run: runA, Reason: "needs x"}, want(func(r *HistoryRow) { r.Status, r.Run, r.Reason = Skipped, runA, "needs x" })},
		{events.BuildCancelled{Reason: "no", Attempt: 4}, want(func(r *HistoryRow) { r.Status, r.Reason, r.Attempt = Cancelled, "no", 4 })},
	} {
		t.Run(c.event.Name(), func(t *testing.T) { same(t, c.want, h(c.event)) })
	}
}

func TestSummaryCounts(t *testing.T) {
	m := newMemory()
	s := top[summaryTables](m, "summary")
	m.apply(t, build(flask, events.BuildPlanned{Run: runA}, events.BuildQueued{Run: runA}, events.BuildLeased{Attempt: 1},
		events.BuildSucceeded{Attempt: 1}, events.BuildReused{Run: runB, Own: true})...)
	m.apply(t, build(jinja, events.BuildReused{Run: runA}, events.BuildQueued{})...)
	sum, _ := s.totals.Get(1)
	same(t, countsOf(map[string]int32{Reused: 1, Queued: 1}), sum.Counts)
	if sum.HitsOwn != 1 || sum.HitsUpstream != 1 || sum.Misses != 1 {
		t.Errorf("cache: %+v", sum)
	}
	hour, _ := s.hours.Get(HourKey{epoch.Unix() / 3600, Reused})
	if hour.Count != 2 {
		t.Errorf("%d reused in the hour, want 2", hour.Count)
	}
}

func node(id events.BuildID, action string) events.Node {
	return events.Node{Name: id.Name, Version: id.Version, PythonTag: id.PythonTag, PlatformTag: id.PlatformTag, Action: action}
}

func TestRunFollowsItsBuilds(t *testing.T) {
	m := newMemory()
	tb := top[runTables](m, "runs")
	state := func(id uuid.UUID, state string, total int, counts map[string]int) {
		t.Helper()
		r, _ := tb.runs.Get(id)
		got := maps.Clone(r.Counts)
		maps.DeleteFunc(got, func(_ string, n int) bool { return n == 0 })
		if r.State != state || r.Total != total || !cmp.Equal(got, counts) {
			t.Errorf("run is %s %d %v, want %s %d %v", r.State, r.Total, got, state, total, counts)
		}
	}
	skip := events.BuildID{Name: "colorama", Version: "1", PythonTag: "cp311", PlatformTag: "linux_s390x"}
	reuse := events.BuildID{Name: "click", Version: "8", PythonTag: "cp311", PlatformTag: "linux_s390x"}
	m.apply(t, ofRun(runA, events.RunSubmitted{Requirements: "flask", Build: "all", Strategy: "pinned"})...)
	state(runA, RunSubmitted, 0, nil)
	m.apply(t, ofRun(runA, events.RunPlanLeased{Attempt: 1}, events.RunPlanReleased{Attempt: 1, Reason: "shutdown"})...)
	state(runA, RunSubmitted, 0, nil)
	m.apply(t, ofRun(runA, events.RunPlanLeased{Attempt: 2})...)
	state(runA, RunPlanning, 0, nil)
	m.apply(t, ofRun(runA, events.RunPlanned{Plan: runA, Nodes: []events.Node{
		node(flask, "build"), node(jinja, "build"), node(reuse, "reuse"), node(skip, "skip"),
	}})...)
	state(runA, RunPlanned, 3, map[string]int{Planned: 2, Reused: 1})
	m.apply(t, build(flask, events.BuildPlanned{Run: runA})...)
	state(runA, RunPlanned, 3, map[string]int{Planned: 2, Reused: 1})
	m.apply(t, build(jinja, events.BuildQueued{Run: runA}, events.BuildLeased{Attempt: 1})...)
	state(runA, RunBuilding, 3, map[string]int{Planned: 1, Leased: 1, Reused: 1})

	// A second run wants what is under way for the first.
	m.apply(t, ofRun(runB, events.RunSubmitted{}, events.RunPlanned{Plan: runB, Nodes: []events.Node{node(jinja, "build")}})...)
	state(runB, RunPlanned, 1, map[string]int{Leased: 1})
	m.apply(t, build(jinja, events.BuildFailed{Attempt: 1}, events.BuildHinted{Attempt: 1})...)
	m.apply(t, build(flask, events.BuildSkipped{Run: runA})...)
	state(runA, RunBuilding, 3, map[string]int{Skipped: 1, Failed: 1, Reused: 1})
	state(runB, RunBuilding, 1, map[string]int{Failed: 1})

	// What happens to a build after that is not theirs any more.
	m.apply(t, build(jinja, events.BuildQueued{})...)
	state(runA, RunBuilding, 3, map[string]int{Skipped: 1, Failed: 1, Reused: 1})
	if n, ok := tb.nodes.Get(jinja.Stream()); ok {
		t.Errorf("still wanted: %+v", n)
	}
	m.apply(t, ofRun(runA, events.RunFinished{State: Failed, Counts: map[string]int{Failed: 1, Skipped: 1, Reused: 1}})...)
	state(runA, Failed, 3, map[string]int{Skipped: 1, Failed: 1, Reused: 1})
	r, _ := tb.runs.Get(runA)
	if !r.Closed || r.FinishedAt != m.time(m.at) || r.PlanAttempts != 2 {
		t.Errorf("finished as %+v", r)
	}
	m.apply(t, ofRun(runB, events.RunCancelled{Reason: "enough"})...)
	if r, _ := tb.runs.Get(runB); r.State != Cancelled || r.Closed || r.Reason != "enough" {
		t.Errorf("cancelled with a plan: %+v", r)
	}
}

func TestManifestHasEachBuildOnce(t *testing.T) {
	m := newMemory()
	entry := func(id events.BuildID, status string) events.ManifestEntry {
		return events.ManifestEntry{Name: id.Name, Version: id.Version, PythonTag: id.PythonTag, PlatformTag: id.PlatformTag, Status: status}
	}
	m.apply(t, ofRun(runA,
		events.ManifestRecorded{Entries: []events.ManifestEntry{entry(jinja, Failed)}},
		events.RunFinished{State: Built, Manifest: []events.ManifestEntry{entry(jinja, Built), entry(flask, Reused)}},
	)...)
	r, _ := top[manifestTables](m, "manifest").manifests.Get(runA)
	same(t, ManifestRow{Run: runA, State: Built, Finished: 2, Entries: []events.ManifestEntry{entry(flask, Reused), entry(jinja, Built)}}, r)
}

// A fold that misses a row is thrown away: what it changed on the way must not have changed what was there before.
func TestAFoldThatIsThrownAwayLeavesNoTrace(t *testing.T) {
	m := newMemory()
	m.apply(t, ofRun(runA, events.RunSubmitted{}, events.RunPlanned{Plan: runA, Nodes: []events.Node{node(jinja, "build")}})...)
	m.apply(t, build(jinja, events.BuildQueued{Run: runA}, events.BuildLeased{Attempt: 1})...)
	m.versions[flask.Stream()] = 7 // not its first event, so that its rows are looked for
	m.batch(t, append(build(jinja, events.BuildStarted{Attempt: 1}), build(flask, events.BuildQueued{})...)...)
	r, _ := top[runTables](m, "runs").runs.Get(runA)
	same(t, map[string]int{Planned: 0, Queued: 0, Leased: 0, Building: 1}, r.Counts)
	s, _ := top[queueTables](m, "queue").state.Get(1)
	same(t, []QueueTag{{"cp311", "linux_s390x", 1, 1}}, s.Tags)
	sum, _ := top[summaryTables](m, "summary").totals.Get(1)
	same(t, countsOf(map[string]int32{Queued: 1, Building: 1}), sum.Counts)
}

func countsOf(by map[string]int32) (c StatusCounts) {
	for i, status := range Statuses {
		c[i] = by[status]
	}
	return c
}

// The stored form names statuses, so that their order here is nobody's business, and one of a newer program does no harm.
func TestStatusCountsJSON(t *testing.T) {
	full := countsOf(map[string]int32{Planned: 1, Skipped: 7, Built: -2})
	data, err := json.Marshal(full)
	if err != nil || string(data) != `{"planned":1,"built":-2,"skipped":7}` {
		t.Errorf("%s %v", data, err)
	}
	for text, want := range map[string]StatusCounts{
		string(data): full, `{}`: {}, `null`: {}, `{"unheard-of": 3, "queued": 1}`: countsOf(map[string]int32{Queued: 1}),
	} {
		var got StatusCounts
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
	if n := full.moved(Built, Queued).moved("", Queued).Of(Queued); n != 2 {
		t.Errorf("%d queued", n)
	}
}
