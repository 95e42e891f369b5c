package readapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func TestEmpty(t *testing.T) {
	f := start(t)
	for _, path := range []string{"/runs", "/history", "/recent", "/builds", "/queue", "/artifacts", "/plans", "/packages", "/workers", "/stats/failures", "/stats/slowest"} {
		body := f.expect(path, http.StatusOK)
		f.same([]any{}, pick(body, "items"))
		f.same(nil, pick(body, "next"))
	}
	unknown := uuid.NewString()
	for _, path := range []string{
		"/plan", "/manifest", "/runs/" + unknown, "/plan?run_id=" + unknown, "/manifest?run_id=" + unknown,
		"/builds/flask/1.0/cp311/linux_x86_64", "/logs/flask/1.0",
	} {
		f.expect(path, http.StatusNotFound)
	}
	f.same("pending", pick(f.expect("/commands/"+unknown, http.StatusOK), "status"))
	summary := f.expect("/summary", http.StatusOK)
	f.same(nil, pick(summary, "last_run"))
	f.same([]any{}, pick(summary, "recent_failures"))
	f.same(0, pick(summary, "counts", "built"))
	stats := f.expect("/queue/stats", http.StatusOK)
	f.same(nil, pick(stats, "oldest_age_seconds"))
	f.same([]any{}, pick(stats, "by_tag"))
	f.same("ok", pick(f.expect("/health", http.StatusOK), "status"))
	f.same("file", pick(f.expect("/config", http.StatusOK), "queue_backend"))
}

func TestWhatIsNotUnderstoodIsRefused(t *testing.T) {
	f := start(t)
	for _, path := range []string{
		"/history?limit=0", "/history?limit=501", "/history?limit=x", "/history?limit=", "/history?cursor=!", "/history?cursor=AAAA",
		"/queue?cursor=WzFd", "/history?status=odd", "/history?from=yesterday", "/history?from=2026-01-01", "/history?packages=flask",
		"/history?run_id=1", "/runs?state=odd", "/runs/1", "/builds?status=x", "/summary?since=1", "/summary?failure_limit=101",
		"/history?min_position=-1", "/history?package=pkg%25", "/logs/flask/1.0?tail=0", "/logs/flask/1.0?tail=5&from=1", "/logs/flask/1.0?from=5&to=4",
		"/logs/flask/1.0?format=xml", "/commands/1", "/history?limit=1&limit=2",
	} {
		if status, _, body := f.get(path); status != http.StatusBadRequest {
			t.Errorf("%s: %d %v", path, status, body)
		}
	}
}

func TestHistoryFiltersAndPages(t *testing.T) {
	f := start(t)
	for i := range 25 {
		b := id(fmt.Sprintf("pkg-%d", i%5))
		if i%2 == 0 {
			f.add(b.Stream(), events.BuildFailed{Attempt: 1, Run: runID, Class: events.ClassCompiler, Reason: "cc"})
		} else {
			f.add(b.Stream(), events.BuildSucceeded{Attempt: 1, Wheel: wheel})
		}
	}
	var seen []float64
	pages := 0
	for query := "?limit=7&status=failed&status=built"; query != ""; pages++ {
		status, header, body := f.get("/history" + query)
		if status != http.StatusOK {
			t.Fatal(status, body)
		}
		items, _ := pick(body, "items").([]any)
		for _, item := range items {
			seen = append(seen, pick(item, "position").(float64))
		}
		// Link and next say the same.
		link := header.Get("Link")
		query = ""
		if next, ok := pick(body, "next").(string); ok {
			query = strings.TrimSuffix(strings.TrimPrefix(link, "<"+base+"/history"), `>; rel="next"`)
			if v, err := url.ParseQuery(strings.TrimPrefix(query, "?")); err != nil || v.Get("cursor") != next || v.Get("limit") != "7" || len(v["status"]) != 2 {
				t.Fatalf("link %q, next %q", link, next)
			}
		} else if link != "" {
			t.Errorf("a link after the last page: %q", link)
		}
	}
	if pages != 4 || len(seen) != 25 || seen[0] != 25 || seen[24] != 1 {
		t.Errorf("%d pages: %v", pages, seen)
	}
	count := func(path string, want int) {
		t.Helper()
		items, _ := pick(f.expect(path, http.StatusOK), "items").([]any)
		if len(items) != want {
			t.Errorf("%s: %d items, want %d", path, len(items), want)
		}
	}
	count("/history?package=PKG_1", 5)
	count("/history?package=pkg-1&version=1.0.0", 5) // PEP 440: equal
	count("/history?package=pkg-1&version=1.0.1", 0)
	count("/history?package=pkg-1&version=v1.0", 5)
	count("/history?status=failed", 13)
	count("/history?run_id="+runID.String(), 13)
	count("/history?python_tag=cp312", 0)
	count("/history?platform_tag=linux_x86_64&limit=500", 25)
	count("/history?from="+url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)), 0)
	count("/history?to="+url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)), 25)
	count("/recent?limit=3&status=built", 3)
	count("/recent?package=pkg-0", 5)
}

func TestARunFromSubmissionToManifest(t *testing.T) {
	f := start(t)
	flask, jinja := id("flask"), id("jinja2")
	run := events.RunStream(runID)
	f.add(run, events.RunSubmitted{Requirements: "flask\n", Constraints: "jinja2<4", Strategy: "pinned", Build: "names", Names: []string{"flask"}})
	body := f.expect("/runs/"+runID.String(), http.StatusOK)
	f.same("flask\n", pick(body, "requirements"))
	f.same([]any{"flask"}, pick(body, "names"))
	f.same("submitted", pick(body, "state"))
	f.same(nil, pick(f.expect("/runs?state=submitted", http.StatusOK), "items", 0, "requirements"))
	f.add(run, events.RunPlanned{
		Plan: uuid.New(), Worker: "w", PythonTag: "cp311", PlatformTag: "linux_x86_64",
		Nodes: []events.Node{
			{Name: "flask", Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64", Action: "build", Reason: "asked", Sdist: &wheel},
			{Name: "jinja2", Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64", Action: "reuse", Reason: "own-wheel", Wheel: &wheel, Own: true},
			{Name: "colorama", Version: "1", PythonTag: "cp311", PlatformTag: "linux_x86_64", Action: "skip", Reason: "marker"},
		},
		Edges: []events.Edge{{From: "flask/1.0", To: "jinja2/1.0", Kind: "runtime"}},
	})
	f.add(jinja.Stream(), events.BuildReused{Run: runID, Wheel: wheel, Own: true})
	f.add(flask.Stream(), events.BuildQueued{Run: runID, Sdist: &wheel, Priority: 3}, events.BuildLeased{Attempt: 1, Worker: "w"})
	plan := f.expect("/plan", http.StatusOK)
	f.same("leased", pick(plan, "nodes", 0, "status"))
	f.same("reused", pick(plan, "nodes", 1, "status"))
	f.same("skipped", pick(plan, "nodes", 2, "status"))
	f.same([]any{}, pick(plan, "warnings"))
	f.same(map[string]any{"from": "flask/1.0", "to": "jinja2/1.0", "kind": "runtime"}, pick(plan, "edges", 0))
	f.same(pick(plan, "id"), pick(f.expect("/plan?run_id="+runID.String(), http.StatusOK), "id"))
	body = f.expect("/runs/"+runID.String(), http.StatusOK)
	f.same("building", pick(body, "state"))
	f.same(2, pick(body, "total"))
	f.same(1, pick(body, "counts", "leased"))
	f.same(1, pick(body, "counts", "reused"))
	f.same(1, pick(f.expect("/queue/stats", http.StatusOK), "leased"))

	f.add(flask.Stream(), events.BuildFailed{
		Attempt: 1, Run: runID, Worker: "w", Class: events.ClassMissingHeader, Reason: "ffi.h", Evidence: []string{"fatal error: ffi.h"}, DurationMS: 9,
	})
	b := f.expect("/builds/Flask/1.0/cp311/linux_x86_64", http.StatusOK)
	f.same("missing-header", pick(b, "class"))
	f.same("failed", pick(b, "attempts", 0, "status"))
	f.same(9, pick(b, "attempts", 0, "duration_ms"))
	f.same("fatal error: ffi.h", pick(b, "evidence", 0))
	f.same("flask", pick(f.expect("/builds?status=failed&run_id="+runID.String(), http.StatusOK), "items", 0, "name"))
	f.add(run, events.RunFinished{
		State: "failed", Counts: map[string]int{"failed": 1, "reused": 1},
		Manifest: []events.ManifestEntry{{Name: "flask", Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64", Status: "failed", Reason: "ffi.h"}},
	})
	m := f.expect("/manifest", http.StatusOK)
	f.same("failed", pick(m, "state"))
	f.same("ffi.h", pick(m, "items", 0, "reason"))
	s := f.expect("/summary?since="+url.QueryEscape(time.Now().Add(-time.Minute).Format(time.RFC3339)), http.StatusOK)
	f.same(1, pick(s, "window", "failed"))
	f.same(1, pick(s, "window", "reused"))
	f.same(1, pick(s, "cache", "hits"))
	f.same(1, pick(s, "cache", "misses"))
	f.same(1, pick(s, "counts", "failed"))
	f.same("ffi.h", pick(s, "recent_failures", 0, "reason"))
	f.same("failed", pick(s, "last_run", "state"))
	s = f.expect("/summary?failure_limit=0&since="+url.QueryEscape(time.Now().Add(time.Minute).Format(time.RFC3339)), http.StatusOK)
	f.same([]any{}, pick(s, "recent_failures"))
	f.same(float64(0), pick(s, "window", "failed"))
}

func TestQueueInLeaseOrder(t *testing.T) {
	f := start(t)
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		f.add(id(name).Stream(), events.BuildQueued{Priority: i % 2})
	}
	var order []any
	for path := "/queue?limit=2"; path != ""; {
		body := f.expect(path, http.StatusOK)
		for _, e := range pick(body, "items").([]any) {
			order = append(order, pick(e, "name"))
		}
		path = ""
		if next, ok := pick(body, "next").(string); ok {
			path = "/queue?limit=2&cursor=" + next
		}
	}
	f.same([]any{"b", "d", "a", "c", "e"}, order)
	stats := f.expect("/queue/stats", http.StatusOK)
	f.same(5, pick(stats, "length"))
	f.same(5, pick(stats, "by_tag", 0, "length"))
	f.same(float64(0), pick(stats, "oldest_age_seconds"))
	f.same([]any{}, pick(f.expect("/queue?python_tag=cp312", http.StatusOK), "items"))
}

func TestArtifacts(t *testing.T) {
	f := start(t)
	f.add(events.ArtifactStream(wheel.Filename), events.ArtifactPublished{
		Filename: wheel.Filename, SHA256: wheel.SHA256, Size: 10, Project: "flask", Version: "1.0", Tags: []string{"py3-none-any"}, Build: id("flask"), Attempt: 2,
	})
	a := pick(f.expect("/artifacts?package=Flask", http.StatusOK), "items", 0)
	f.same(base+"/artifacts/"+wheel.Filename, pick(a, "url"))
	f.same("linux_x86_64", pick(a, "build", "platform_tag"))
	f.same([]any{}, pick(f.expect("/artifacts?version=2", http.StatusOK), "items"))
}

func TestLogs(t *testing.T) {
	f := start(t)
	b := id("flask")
	f.add(b.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1}, events.BuildReleased{Attempt: 1}, events.BuildLeased{Attempt: 2})
	f.same([]any{}, pick(f.expect("/logs/flask/1.0", http.StatusOK), "lines"))
	n := 0
	chunk := func(c, lines int) events.LogAppended {
		e := events.LogAppended{Chunk: c, FirstLine: n + 1, Lines: lines}
		for range lines {
			n++
			e.Text += fmt.Sprintf("line %d\n", n)
		}
		return e
	}
	f.add(b.Log(2), chunk(0, 3), chunk(1, 1), chunk(2, 4))
	log := f.expect("/logs/flask/1.0", http.StatusOK)
	f.same(2, pick(log, "attempt"))
	f.same(8, pick(log, "total_lines"))
	f.same(float64(8), float64(len(pick(log, "lines").([]any))))
	f.same(false, pick(log, "complete"))
	for query, want := range map[string]string{
		"from=4&to=5": "4:line 4,line 5", "tail=2": "7:line 7,line 8", "from=8": "8:line 8", "from=9": "9:", "to=1": "1:line 1", "from=2&to=4": "2:line 2,line 3,line 4",
		"tail=100": "1:line 1,line 2,line 3,line 4,line 5,line 6,line 7,line 8",
	} {
		log := f.expect("/logs/flask/1.0?"+query, http.StatusOK)
		var lines []string
		for _, l := range pick(log, "lines").([]any) {
			lines = append(lines, l.(string))
		}
		if got := fmt.Sprintf("%v:%s", pick(log, "first_line"), strings.Join(lines, ",")); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	status, header, text := f.get("/logs/flask/1.0?format=text&tail=2")
	if status != http.StatusOK || text != "line 7\nline 8\n" || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") {
		t.Errorf("%d %q %s", status, text, header.Get("Content-Type"))
	}
	f.same(true, pick(f.expect("/logs/flask/1.0?attempt=1", http.StatusOK), "complete"))
	f.expect("/logs/flask/1.0?attempt=3", http.StatusNotFound)
	f.add(b.Stream(), events.BuildFailed{Attempt: 2, LogLines: 8})
	f.same(true, pick(f.expect("/logs/flask/1.0", http.StatusOK), "complete"))

	other := b
	other.PythonTag = "cp312"
	f.add(other.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1})
	f.same("cp312", pick(f.expect("/logs/Flask/1.0.0", http.StatusOK), "python_tag")) // the newest
	f.same(8, pick(f.expect("/logs/flask/1.0?python_tag=cp311&platform_tag=linux_x86_64", http.StatusOK), "total_lines"))
}

// A log that is larger than what one answer may hold.
func TestALongLog(t *testing.T) {
	f := start(t)
	b := id("flask")
	f.add(b.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1})
	var es []events.Event
	for i := range 100 {
		es = append(es, events.LogAppended{Chunk: i, FirstLine: i + 1, Lines: 1, Text: strings.Repeat("x", 60_000) + "\n"})
	}
	es = append(es, events.LogAppended{Chunk: 100, FirstLine: 101, Lines: 20_000, Text: strings.Repeat("é\n", 20_000)})
	f.add(b.Log(1), es...)
	for query, want := range map[string][2]int{ // first line, lines
		"":                          {1, 69}, // 4 MiB are the limit
		"?from=90&to=100":           {90, 11},
		"?from=101":                 {101, 10_000},
		"?from=10101":               {10_101, 10_000},
		"?tail=10000":               {10_101, 10_000},
		"?from=9223372036854775807": {9223372036854775807, 0},
	} {
		log := f.expect("/logs/flask/1.0"+query, http.StatusOK)
		f.same(float64(want[0]), pick(log, "first_line"))
		f.same(want[1], len(pick(log, "lines").([]any)))
		f.same(20_100, pick(log, "total_lines"))
	}
	f.same("é", pick(f.expect("/logs/flask/1.0?tail=1", http.StatusOK), "lines", 0))
	for query, want := range map[string]int{ // bytes
		"": 100*60_001 + 20_000*3, "&from=100&to=101": 60_001 + 3, "&tail=20": 60, "&from=30000": 0,
	} {
		status, header, text := f.get("/logs/flask/1.0?format=text" + query)
		if status != http.StatusOK || len(text.(string)) != want || header.Get("ETag") == "" || header.Get("Refinery-Position") == "" {
			t.Errorf("%s: %d, %d bytes, want %d: %v", query, status, len(text.(string)), want, header)
		}
	}
}

func TestETagHoldsUntilTheReadModelMoves(t *testing.T) {
	f := start(t)
	f.add(id("a").Stream(), events.BuildCancelled{Reason: "x"})
	_, header, _ := f.get("/history")
	tag := header.Get("ETag")
	for match, want := range map[string]int{
		tag: 304, `"other", ` + tag: 304, "*": 304, strings.TrimPrefix(tag, "W/"): 304, `"other"`: 200, "": 200,
	} {
		if status, h, _ := f.get("/history", "If-None-Match", match); status != want || h.Get("ETag") != tag {
			t.Errorf("If-None-Match %s: %d, want %d", match, status, want)
		}
	}
	position := f.add(id("b").Stream(), events.BuildCancelled{Reason: "x"})
	status, header, body := f.get("/history", "If-None-Match", tag)
	if status != http.StatusOK || len(pick(body, "items").([]any)) != 2 || header.Get("Refinery-Position") != fmt.Sprint(position) {
		t.Errorf("after another event: %d %v", status, header)
	}
	// What does not concern it changes nothing, and neither does another process that has the same.
	_, header, _ = f.get("/history")
	f.add(id("b").Log(1), events.LogAppended{FirstLine: 1, Lines: 1, Text: "x\n"})
	f.serve()
	if status, _, _ := f.get("/history", "If-None-Match", header.Get("ETag")); status != http.StatusNotModified {
		t.Errorf("%d after an event of a log", status)
	}
}

func TestMinPosition(t *testing.T) {
	f := start(t)
	position := f.add(id("a").Stream(), events.BuildCancelled{Reason: "x"})
	// An event that the history does not concern: its checkpoint is stored later, and the answer still covers it.
	position = max(position, f.add(events.WorkerStream("w"), events.WorkerRegistered{Slots: 1}))
	status, header, _ := f.get(fmt.Sprintf("/history?min_position=%d", position))
	if status != http.StatusOK || header.Get("Refinery-Position") != fmt.Sprint(position) {
		t.Errorf("%d at %s", status, header.Get("Refinery-Position"))
	}
	// Another process may feed the read models: what was waited for is covered, whatever this one knows.
	f.options.Covered = func(...string) (int64, uint64) { return 0, 0 }
	f.serve()
	if _, header, _ := f.get(fmt.Sprintf("/history?min_position=%d", position)); header.Get("Refinery-Position") != fmt.Sprint(position) {
		t.Errorf("covers %s, waited for %d", header.Get("Refinery-Position"), position)
	}
	// The wait itself is faked: it would take 5 s.
	f.options.Wait = func(ctx context.Context, _ int64, _ ...string) error {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 5*time.Second {
			t.Error("it does not wait 5 s at the most")
		}
		return context.DeadlineExceeded
	}
	f.serve()
	status, _, body := f.get("/history?min_position=1000")
	if detail, _ := pick(body, "detail").(string); status != http.StatusGatewayTimeout || !strings.Contains(detail, " before min_position") {
		t.Errorf("%d %v", status, body)
	}
}

// What is not made of read models is asked for again as cheaply: the outcome of a command, the read models themselves, the configuration.
func TestReadsBesideTheReadModels(t *testing.T) {
	f := start(t)
	command := "/commands/" + uuid.NewString()
	for _, path := range []string{command, "/projections", "/config"} {
		_, header, _ := f.get(path)
		if status, again, _ := f.get(path, "If-None-Match", header.Get("ETag")); header.Get("ETag") == "" || status != http.StatusNotModified || again.Get("ETag") != header.Get("ETag") {
			t.Errorf("%s: %d for its ETag %q", path, status, header.Get("ETag"))
		}
	}
	// A command is decided where no read model moves, and its outcome is new nevertheless.
	_, pending, _ := f.get(command)
	f.options.Outcomes = func(context.Context, uuid.UUID) (eventlog.Outcome, bool, error) {
		return eventlog.Outcome{Name: "queue.pause", Status: eventlog.Applied, First: 1000, Last: 1000}, true, nil
	}
	f.options.Wait = func(_ context.Context, position int64, models ...string) error {
		if position != 900 || len(models) > 0 {
			t.Errorf("it waits for %d of %v", position, models)
		}
		return nil
	}
	f.serve()
	status, header, body := f.get(command+"?min_position=900", "If-None-Match", pending.Get("ETag"))
	if status != http.StatusOK || pick(body, "status") != "applied" || header.Get("Refinery-Position") != "1000" {
		t.Errorf("%d at %s: %v", status, header.Get("Refinery-Position"), body)
	}
	f.expect("/projections?min_position=900", http.StatusOK)
}

func TestReadyNamesWhatIsDown(t *testing.T) {
	f := start(t)
	f.same("ok", pick(f.expect("/ready", http.StatusOK), "status"))
	f.options.Ready = func(context.Context) []api.Part {
		return []api.Part{{Name: "postgres", Status: api.Down, Detail: "no answer"}, {Name: "worker", Status: api.Starting}}
	}
	f.serve()
	body := f.expect("/ready", http.StatusServiceUnavailable)
	f.same("down", pick(body, "status"))
	f.same("no answer", pick(body, "parts", 0, "detail"))
	f.options.Ready = func(context.Context) []api.Part {
		return []api.Part{{Name: "postgres", Status: api.Ok}, {Name: "worker", Status: api.Starting}}
	}
	f.serve()
	f.same("starting", pick(f.expect("/ready", http.StatusServiceUnavailable), "status"))
}

func TestCommands(t *testing.T) {
	f := start(t)
	applied, refused := uuid.New(), uuid.New()
	_, err := f.log.Append(t.Context(),
		eventlog.Entry{
			Outcome: eventlog.Outcome{Command: applied, Name: "queue.pause", Stream: events.QueueStream, Status: eventlog.Applied, Result: []byte(`{"paused":true}`)},
			Events:  []events.Event{events.QueuePaused{}},
		},
		eventlog.Entry{Outcome: eventlog.Outcome{
			Command: refused, Name: "build.cancel", Stream: "build/x", Status: eventlog.Refused,
			Problem: fault.New(fault.Conflict, "the build has ended already"),
		}})
	if err != nil {
		t.Fatal(err)
	}
	c := f.expect("/commands/"+applied.String(), http.StatusOK)
	f.same("applied", pick(c, "status"))
	f.same(map[string]any{"first": 1.0, "last": 1.0}, pick(c, "positions"))
	f.same(true, pick(c, "result", "paused"))
	c = f.expect("/commands/"+refused.String(), http.StatusOK)
	f.same("refused", pick(c, "status"))
	f.same(http.StatusConflict, pick(c, "problem", "status"))
	f.same("the build has ended already", pick(c, "problem", "detail"))
}

func TestConnectionsCannotWrite(t *testing.T) {
	f := start(t)
	for _, sql := range []string{"update head set position = 7", "create table x (y int)", "truncate history.entries", "select save_checkpoint('history', 1, 0, 9)"} {
		if _, err := f.reads.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("%s: %v", sql, err)
		}
	}
}
