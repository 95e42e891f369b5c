package readapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// caused appends an event that another one caused.
func (f *fixture) caused(by int64, stream string, e events.Event) {
	f.t.Helper()
	results, err := f.log.Append(f.t.Context(), eventlog.Entry{
		Outcome:  eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: stream, Actor: "tester", Status: eventlog.Applied},
		Expected: f.versions[stream], Events: []events.Event{e}, Causation: by,
	})
	if err != nil || results[0].Err != nil {
		f.t.Fatal(err, results)
	}
	f.versions[stream]++
	if err := f.runner.Wait(f.t.Context(), results[0].Outcome.Last); err != nil {
		f.t.Fatal(err)
	}
}

func TestHints(t *testing.T) {
	f := start(t)
	f.same([]any{}, pick(f.expect("/hints", http.StatusOK), "items"))
	f.expect("/hints/libpq", http.StatusNotFound)
	apt := []events.Recipe{{Kind: "apt", Items: []string{"libpq-dev"}}}
	f.add(events.HintStream("libpq"), events.HintSaved{Shipped: true, Hint: events.Hint{
		ID: "libpq", Pattern: `libpq-fe\.h 100%`, Note: "Of Postgres", Tags: []string{"db", "header"}, Severity: "error", Confidence: 0.6, Recipes: apt,
		AppliesTo: events.AppliesTo{Arch: []string{"s390x"}},
	}})
	f.add(events.HintStream("gcc"), events.HintSaved{Hint: events.Hint{ID: "gcc", Pattern: "gcc_x", Severity: "info", Tags: []string{"header"}}})

	// What becomes of a build by it.
	s := id("psycopg2").Stream()
	f.add(s, events.BuildQueued{Run: runID}, events.BuildLeased{Attempt: 1, Worker: "w"})
	failed := f.add(s, events.BuildFailed{Attempt: 1, Run: runID, Worker: "w", Class: events.ClassMissingHeader, Reason: "no header"})
	f.caused(failed, s, events.BuildHinted{Attempt: 1, Retry: true, Hints: []events.HintMatch{{Hint: "libpq", Line: 7, Text: "libpq-fe.h", Recipes: apt}, {Hint: "gcc", Line: 9}}})
	due := time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC)
	f.add(s, events.BuildQueued{Run: runID, Retry: true, Recipes: apt, Hints: []string{"libpq"}, NotBefore: due})

	one := "/builds/psycopg2/1.0/cp311/linux_x86_64"
	b := f.expect(one, http.StatusOK)
	f.same("retrying", pick(b, "status"))
	f.same("no header", pick(b, "reason")) // until it is known how the next attempt ends
	f.same([]any{"gcc", "libpq"}, pick(b, "hints"))
	f.same([]any{map[string]any{"kind": "apt", "items": []any{"libpq-dev"}}}, pick(b, "recipes"))
	f.same(7, pick(b, "attempts", 0, "hints", 0, "line"))
	f.same("libpq-dev", pick(b, "attempts", 0, "hints", 0, "recipes", 0, "items", 0))
	f.same([]any{}, pick(b, "attempts", 0, "hints", 1, "recipes"))
	f.same("2100-01-02T03:04:05Z", pick(f.expect("/queue", http.StatusOK), "items", 0, "not_before"))

	built := f.add(s, events.BuildLeased{Attempt: 2, Worker: "w"}, events.BuildSucceeded{Attempt: 2, Run: runID, Wheel: wheel, Hints: []string{"libpq"}})
	f.same([]any{"libpq"}, pick(f.expect(one, http.StatusOK), "hints"))
	f.add(id("other").Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1}, events.BuildFailed{Attempt: 1})
	for filter, want := range map[string][]int64{"libpq": {built, failed}, "gcc": {failed}, "none": {}} {
		var got []int64
		items, _ := pick(f.expect("/history?hint_id="+filter, http.StatusOK), "items").([]any)
		for _, item := range items {
			got = append(got, int64(pick(item, "position").(float64)))
		}
		f.same(fmt.Sprint(want), fmt.Sprint(got))
	}
	all := f.expect("/history", http.StatusOK)
	f.same(nil, pick(all, "items", 0, "hints"))
	f.same([]any{"libpq"}, pick(all, "items", 1, "hints"))
	f.same([]any{"gcc", "libpq"}, pick(all, "items", 2, "hints"))
	f.expect("/history?hint_id=a/b", http.StatusBadRequest)

	h := f.expect("/hints/libpq", http.StatusOK)
	f.same(map[string]any{
		"id": "libpq", "version": 1.0, "pattern": `libpq-fe\.h 100%`, "note": "Of Postgres", "tags": []any{"db", "header"}, "severity": "error",
		"confidence": 0.6, "recipes": []any{map[string]any{"kind": "apt", "items": []any{"libpq-dev"}}}, "applies_to": map[string]any{"arch": []any{"s390x"}},
		"examples": []any{}, "shipped": true, "updated_at": pick(h, "updated_at"), "matched": 1.0, "tried": 1.0, "helped": 1.0,
	}, h)

	// Each filter filters, and no character of a text means anything but itself.
	for query, want := range map[string]string{
		"": "[libpq gcc]", "q=LIBPQ": "[libpq]", "q=postgres": "[libpq]", "q=" + url.QueryEscape("100%"): "[libpq]", "q=" + url.QueryEscape("%"): "[libpq]",
		"q=_": "[gcc]", "q=" + url.QueryEscape(`\`): "[libpq]", "q=nothing": "[]", "tag=db": "[libpq]", "tag=header": "[libpq gcc]", "tag=d": "[]",
		"severity=info": "[gcc]", "severity=error&tag=header&q=lib": "[libpq]", "limit=1": "[libpq]",
	} {
		items, _ := pick(f.expect("/hints?"+query, http.StatusOK), "items").([]any)
		ids := []any{}
		for _, item := range items {
			ids = append(ids, pick(item, "id"))
		}
		f.same(want, fmt.Sprint(ids))
	}
	next := pick(f.expect("/hints?limit=1", http.StatusOK), "next").(string)
	f.same("gcc", pick(f.expect("/hints?limit=1&cursor="+next, http.StatusOK), "items", 0, "id"))
	f.expect("/hints?severity=fatal", http.StatusBadRequest)
	f.expect("/hints?tags=x", http.StatusBadRequest)
}

// The ETag of a hint is its version first, by which it can be changed, and changes with all that is shown.
func TestHintETag(t *testing.T) {
	f := start(t)
	saved := func(pattern string) {
		f.add(events.HintStream("h"), events.HintSaved{Hint: events.Hint{ID: "h", Pattern: pattern, Severity: "error"}})
	}
	tag := func() string {
		_, h, _ := f.get("/hints/h")
		return h.Get("ETag")
	}
	saved("a")
	f.same(`"1.0.0.0"`, tag())
	if status, _, _ := f.get("/hints/h", "If-None-Match", tag()); status != http.StatusNotModified {
		t.Errorf("%d", status)
	}
	f.add(id("x").Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1}, events.BuildFailed{Attempt: 1},
		events.BuildHinted{Attempt: 1, Hints: []events.HintMatch{{Hint: "h"}}})
	if status, _, _ := f.get("/hints/h", "If-None-Match", `"1.0.0.0"`); status != http.StatusOK {
		t.Errorf("%d, and it has matched since", status)
	}
	saved("b")
	f.same(`"2.1.0.0"`, tag())
	f.add(events.HintStream("h"), events.HintDeleted{})
	f.expect("/hints/h", http.StatusNotFound)
}
