package projections

import (
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/events"
)

func hintFacts(id string, es ...events.HintEvent) []fact {
	var facts []fact
	for _, e := range es {
		facts = append(facts, fact{events.HintStream(id), e})
	}
	return facts
}

func TestHintCounts(t *testing.T) {
	m := newMemory()
	hints := top[hintTables](m, "hints").hints
	libpq := events.Hint{ID: "libpq", Pattern: `libpq-fe\.h`, Note: "Postgres", Severity: "error", Tags: []string{"db"}}
	m.apply(t, hintFacts("libpq", events.HintSaved{Hint: libpq, Shipped: true})...)
	m.apply(t, hintFacts("noise", events.HintSaved{Hint: events.Hint{ID: "noise", Pattern: "e"}})...)
	apt := []events.Recipe{{Kind: "apt", Items: []string{"libpq-dev"}}}
	m.apply(t, build(
		flask,
		events.BuildQueued{},
		events.BuildLeased{Attempt: 1, Worker: "w"},
		events.BuildFailed{Attempt: 1},
		events.BuildHinted{Attempt: 1, Retry: true, Hints: []events.HintMatch{{Hint: "libpq", Line: 3, Recipes: apt}, {Hint: "noise", Line: 4}, {Hint: "gone"}}},
		events.BuildQueued{Hints: []string{"libpq"}, Recipes: apt, NotBefore: epoch, Retry: true},
		events.BuildLeased{Attempt: 2, Worker: "w"},
		events.BuildSucceeded{Attempt: 2, Wheel: wheelF, Hints: []string{"libpq"}},
	)...)
	h, _ := hints.Get("libpq")
	same(t, HintRow{
		ID: "libpq", Position: 1, Version: 1, Hint: libpq, Severity: "error", Tags: []string{"db"}, Twin: libpq.Twin(), Shipped: true,
		Search: "libpq\nlibpq-fe\\.h\npostgres", UpdatedAt: m.time(1), Matched: 1, Tried: 1, Helped: 1,
	}, h)
	if h, _ := hints.Get("noise"); h.Matched != 1 || h.Tried != 0 || h.Helped != 0 {
		t.Errorf("a hint without recipes is counted as %+v", h)
	}
	b, _ := top[buildTables](m, "builds").builds.Get(flask.Stream())
	same(t, []string{"libpq"}, b.Hints)
	same(t, apt, b.Recipes)
	same(t, []events.HintMatch{{Hint: "libpq", Line: 3, Recipes: apt}, {Hint: "noise", Line: 4}, {Hint: "gone"}}, b.Attempts[0].Hints)

	// What somebody edits keeps its place and its counts; what is made again has none.
	edited := libpq
	edited.Tags = nil
	m.apply(t, hintFacts("libpq", events.HintSaved{Hint: edited})...)
	h, _ = hints.Get("libpq")
	if h.Position != 1 || h.Version != 2 || h.Shipped || h.Helped != 1 || len(h.Tags) != 0 {
		t.Errorf("edited: %+v", h)
	}
	m.apply(t, hintFacts("libpq", events.HintDeleted{})...)
	if _, ok := hints.Get("libpq"); ok {
		t.Error("a deleted hint is there")
	}
	m.apply(t, hintFacts("libpq", events.HintSaved{Hint: libpq})...)
	if h, _ = hints.Get("libpq"); h.Position != 12 || h.Version != 4 || h.Helped != 0 {
		t.Errorf("made again: %+v", h)
	}
}

// While a failed build may be tried again, its run goes on with it; after the verdict that it is not, it is through.
func TestRunWaitsForTheVerdict(t *testing.T) {
	m := newMemory()
	runs := top[runTables](m, "runs")
	node := events.Node{Name: flask.Name, Version: flask.Version, PythonTag: flask.PythonTag, PlatformTag: flask.PlatformTag, Action: "build"}
	m.apply(t, ofRun(runA, events.RunSubmitted{}, events.RunPlanned{Plan: runB, Nodes: []events.Node{node}})...)
	m.apply(t, build(
		flask, events.BuildQueued{Run: runA}, events.BuildLeased{Attempt: 1}, events.BuildFailed{Attempt: 1},
		events.BuildHinted{Attempt: 1, Retry: true}, events.BuildQueued{Run: runA, Hints: []string{"h"}},
	)...)
	count := func(status string) int {
		r, _ := runs.runs.Get(runA)
		return r.Counts[status]
	}
	if count(Retrying) != 1 || count(Failed) != 0 {
		t.Errorf("%d retrying, %d failed", count(Retrying), count(Failed))
	}
	m.apply(t, build(flask, events.BuildLeased{Attempt: 2}, events.BuildFailed{Attempt: 2})...)
	if _, ok := runs.nodes.Get(flask.Stream()); !ok {
		t.Error("the run is through with a build that may be tried again")
	}
	m.apply(t, build(flask, events.BuildHinted{Attempt: 2})...)
	if _, ok := runs.nodes.Get(flask.Stream()); ok || count(Failed) != 1 {
		t.Errorf("the run still waits for a build that has failed, %d failed", count(Failed))
	}
}

// What waits for its time is no candidate before, and does not hold up what stands behind it.
func TestCandidatesInTime(t *testing.T) {
	r, w, pool := start(t)
	feed(t, r)
	due := epoch.Add(time.Hour)
	w.append(t, build(flask, events.BuildQueued{Priority: 9, Hints: []string{"h"}, NotBefore: due})...)
	last := w.append(t, build(jinja, events.BuildQueued{})...)
	ctx := within(t, 10*time.Second)
	if err := r.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now  time.Time
		want []string
		more time.Time
	}{
		{due.Add(-time.Millisecond), []string{"jinja2"}, due},
		{due, []string{"flask", "jinja2"}, time.Time{}},
	} {
		rows, more, err := Candidates(ctx, pool, "cp311", "linux_s390x", c.now, 1+len(c.want))
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		for _, row := range rows {
			order = append(order, row.Name)
		}
		same(t, c.want, order)
		same(t, c.more, more)
	}
}

// The end of a log is whole chunks, with the right number of its first line, and what it takes is bounded.
func TestLogTail(t *testing.T) {
	r, w, _ := start(t)
	feed(t, r)
	stream := flask.Log(1)
	w.append(t,
		fact{stream, events.LogAppended{Chunk: 0, FirstLine: 1, Lines: 2, Text: "one\ntwo\n"}},
		fact{stream, events.LogAppended{Chunk: 1, FirstLine: 3, Lines: 1, Text: "three\n"}})
	last := w.append(t, fact{stream, events.LogAppended{Chunk: 2, FirstLine: 4, Lines: 1, Text: "four\n"}})
	for _, c := range []struct {
		most  int
		text  string
		first int
	}{{100, "one\ntwo\nthree\nfour\n", 1}, {12, "three\nfour\n", 3}, {10, "four\n", 4}, {1, "", 1}} {
		text, first, err := r.LogTail(within(t, 10*time.Second), stream, last, c.most)
		if text != c.text || first != c.first || err != nil {
			t.Errorf("%d bytes: %q from line %d, %v", c.most, text, first, err)
		}
	}
}
