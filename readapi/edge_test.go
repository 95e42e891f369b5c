package readapi_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/projections"
	"github.com/wheelrefinery/refinery/readapi"
)

// lists has every list, with what makes one more row in it.
var lists = map[string]func(f *fixture, n int){
	"/history": func(f *fixture, n int) {
		f.add(id(fmt.Sprintf("h-%d", n)).Stream(), events.BuildCancelled{Reason: "x"})
	},
	"/builds": func(f *fixture, n int) {
		f.add(id(fmt.Sprintf("b-%d", n)).Stream(), events.BuildQueued{})
	},
	"/queue": func(f *fixture, n int) {
		f.add(id(fmt.Sprintf("q-%d", n)).Stream(), events.BuildQueued{Priority: -n % 3})
	},
	"/artifacts": func(f *fixture, n int) {
		name := fmt.Sprintf("a%d-1-py3-none-any.whl", n)
		f.add(events.ArtifactStream(name), events.ArtifactPublished{Filename: name, Project: "a", Version: "1", Tags: []string{"py3-none-any"}, Build: id("a"), Attempt: 1})
	},
	"/packages": func(f *fixture, n int) {
		f.add(id(fmt.Sprintf("k-%d", n)).Stream(), events.BuildPlanned{})
	},
	"/plans": func(f *fixture, n int) {
		f.add(events.RunStream([16]byte{14: 1, 15: byte(n + 1)}), events.RunPlanned{Plan: [16]byte{14: 2, 15: byte(n + 1)}})
	},
	"/workers": func(f *fixture, n int) {
		f.add(events.WorkerStream(fmt.Sprintf("worker-%d", n)), events.WorkerRegistered{Slots: 1, PythonTag: "cp311", PlatformTag: "any"})
	},
	"/runs": func(f *fixture, n int) {
		f.add(events.RunStream([16]byte{15: byte(n + 1)}), events.RunSubmitted{Requirements: "x", Strategy: "pinned", Build: "all"})
	},
}

// identity is what tells the items of a list apart.
func identity(item any) string {
	return fmt.Sprint(pick(item, "id"), pick(item, "position"), pick(item, "name"), pick(item, "filename"))
}

func items(body any) []any {
	l, _ := pick(body, "items").([]any)
	return l
}

// Rows that come while a client pages are neither repeated nor do they push others out.
func TestPagingWhileRowsAreAdded(t *testing.T) {
	f := start(t)
	for path, grow := range lists {
		for n := range 7 {
			grow(f, n)
		}
		var before []string
		for _, item := range items(f.expect(path, http.StatusOK)) {
			before = append(before, identity(item))
		}
		if len(before) < 7 { // builds are queued too
			t.Fatalf("%s: %d rows", path, len(before))
		}
		var seen []string
		cursor, n := "", 7
		for {
			body := f.expect(path+"?limit=2"+cursor, http.StatusOK)
			for _, item := range items(body) {
				seen = append(seen, identity(item))
			}
			next, more := pick(body, "next").(string)
			if !more {
				break
			}
			cursor = "&cursor=" + next
			grow(f, n)
			n++
		}
		if slices.Sort(seen); len(slices.Compact(slices.Clone(seen))) != len(seen) {
			t.Errorf("%s: repeated: %v", path, seen)
		}
		for _, b := range before {
			if !slices.Contains(seen, b) {
				t.Errorf("%s: lost %s, saw %v", path, b, seen)
			}
		}
	}
}

func TestCursorsBelongToTheirList(t *testing.T) {
	f := start(t)
	cursors := map[string]string{}
	for path, grow := range lists {
		grow(f, 0)
		grow(f, 1)
		next, _ := pick(f.expect(path+"?limit=1", http.StatusOK), "next").(string)
		f.expect(path+"?cursor="+next, http.StatusOK)
		cursors[path] = next
	}
	for path := range lists {
		for other, cursor := range cursors {
			if other != path {
				f.expect(path+"?cursor="+cursor, http.StatusBadRequest)
			}
		}
		name := strings.TrimPrefix(path, "/")
		for _, forged := range []string{name, name + ".", name + ".x", name + ".1.2.3", name + ".99999999999999999999", name + ".+1", name + ".1;", ".1"} {
			f.expect(path+"?cursor="+base64.RawURLEncoding.EncodeToString([]byte(forged)), http.StatusBadRequest)
		}
		f.expect(path+"?cursor="+cursors[path]+"A", http.StatusBadRequest)
		f.expect(path+"?cursor=", http.StatusBadRequest)
	}
}

func TestQueueFiltersCombine(t *testing.T) {
	f := start(t)
	for i, tags := range [][2]string{{"cp311", "linux_x86_64"}, {"cp311", "linux_s390x"}, {"cp312", "linux_x86_64"}, {"cp311", "linux_x86_64"}} {
		b := events.BuildID{Name: fmt.Sprintf("p%d", i), Version: "1", PythonTag: tags[0], PlatformTag: tags[1]}
		f.add(b.Stream(), events.BuildQueued{Priority: i})
	}
	for query, want := range map[string]string{
		"": "p3 p2 p1 p0", "?python_tag=cp311": "p3 p1 p0", "?platform_tag=linux_x86_64": "p3 p2 p0",
		"?python_tag=cp311&platform_tag=linux_x86_64": "p3 p0", "?python_tag=cp312&platform_tag=linux_s390x": "",
	} {
		var names []string
		for _, item := range items(f.expect("/queue"+query, http.StatusOK)) {
			names = append(names, pick(item, "name").(string))
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

// A build that nobody runs, of which little is known, stands in every list that it belongs to.
func TestOddRows(t *testing.T) {
	f := start(t)
	odd := events.BuildID{Name: "odd", Version: "0", PythonTag: "py3", PlatformTag: "any"}
	f.add(odd.Stream(), events.BuildFailed{Attempt: 3})
	f.add(id("released").Stream(), events.BuildReleased{Attempt: 1})
	f.add(id("reused").Stream(), events.BuildReused{})
	f.add(id("built").Stream(), events.BuildSucceeded{Attempt: 1})
	f.add(id("started").Stream(), events.BuildStarted{Attempt: 1})
	f.add(events.RunStream(runID), events.RunPlanFailed{Class: events.ClassResolve, Reason: "x"})
	f.same(5, len(items(f.expect("/builds", http.StatusOK))))
	f.same(4, len(items(f.expect("/history", http.StatusOK))))
	f.same(4, len(items(f.expect("/recent", http.StatusOK))))
	f.same(nil, pick(f.expect("/builds/odd/0/py3/any", http.StatusOK), "run_id"))
	for _, path := range []string{"/queue", "/queue/stats", "/summary", "/runs"} {
		f.expect(path, http.StatusOK)
	}
	f.expect("/logs/odd/0", http.StatusNotFound) // there was no lease, so there is no attempt
}

func TestHeadIsGetWithoutBody(t *testing.T) {
	f := start(t)
	b := id("flask")
	f.add(b.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1}, events.BuildFailed{Attempt: 1})
	f.add(b.Log(1), events.LogAppended{FirstLine: 1, Lines: 1, Text: "x\n"})
	for path, status := range map[string]int{
		"/history": 200, "/summary": 200, "/queue": 200, "/builds": 200, "/health": 200, "/logs/flask/1.0": 200, "/logs/flask/1.0?format=text": 200,
		"/plan": 404, "/history?limit=0": 400,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, f.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		_, header, _ := f.get(path)
		if err != nil || resp.StatusCode != status || len(body) > 0 {
			t.Errorf("%s: %d, want %d, %d bytes, %v", path, resp.StatusCode, status, len(body), err)
		}
		for _, name := range []string{"ETag", "Refinery-Position", "Content-Type"} {
			if resp.Header.Get(name) != header.Get(name) {
				t.Errorf("%s: %s %q with HEAD, %q with GET", path, name, resp.Header.Get(name), header.Get(name))
			}
		}
	}
}

func TestETagsDifferByQuery(t *testing.T) {
	f := start(t)
	if status, _, _ := f.get("/runs/"+runID.String(), "If-None-Match", "*"); status != http.StatusNotFound {
		t.Errorf("%d for a run that is not there", status)
	}
	lists["/history"](f, 1)
	_, a, _ := f.get("/history?limit=1")
	if status, _, _ := f.get("/history?limit=2", "If-None-Match", a.Get("ETag")); status != http.StatusOK {
		t.Errorf("%d for the ETag of another page", status)
	}
	if status, _, _ := f.get("/history?limit=1&min_position=1", "If-None-Match", a.Get("ETag")); status != http.StatusNotModified {
		t.Errorf("%d, and the wait alone changes nothing", status)
	}
}

// What ended in the first, broken hour of a window counts from its beginning on, and whole hours count once.
func TestWindowOfTheSummary(t *testing.T) {
	f := start(t)
	lists["/history"](f, 1)
	at, err := time.Parse(time.RFC3339Nano, pick(f.expect("/history", http.StatusOK), "items", 0, "time").(string))
	if err != nil {
		t.Fatal(err)
	}
	hour := at.Truncate(time.Hour)
	for since, want := range map[time.Time]int{
		at: 1, at.Add(time.Millisecond): 0, hour: 1, hour.Add(-time.Nanosecond): 1, hour.Add(-time.Minute): 1, hour.Add(time.Hour): 0, {}: 1,
	} {
		body := f.expect("/summary?since="+url.QueryEscape(since.Format(time.RFC3339Nano)), http.StatusOK)
		if got := pick(body, "window", "cancelled"); got != float64(want) {
			t.Errorf("since %v: %v, want %d; it was at %v", since, got, want, at)
		}
	}
}

// What a clear took out of the queue does not age in it, even before its builds are cancelled.
func TestOldestAfterAClear(t *testing.T) {
	f := start(t)
	lists["/queue"](f, 1)
	f.add(events.QueueStream, events.QueueCleared{})
	f.same(nil, pick(f.expect("/queue/stats", http.StatusOK), "oldest_age_seconds"))
	f.same(0, pick(f.expect("/queue/stats", http.StatusOK), "length"))
	lists["/queue"](f, 2)
	f.same(0, pick(f.expect("/queue/stats", http.StatusOK), "oldest_age_seconds"))
}

func TestAManifestBeforeTheRunHasEnded(t *testing.T) {
	f := start(t)
	f.add(events.RunStream(runID), events.RunSubmitted{Requirements: "x", Strategy: "pinned", Build: "all"},
		events.ManifestRecorded{Worker: "w", Entries: []events.ManifestEntry{{Name: "a", Version: "1", PythonTag: "cp311", PlatformTag: "any", Status: "built"}}})
	f.same("submitted", pick(f.expect("/manifest?run_id="+runID.String(), http.StatusOK), "state"))
	f.expect("/manifest", http.StatusNotFound) // none has ended
}

// A database that is down is no defect of ours and no empty list.
func TestNoDatabase(t *testing.T) {
	f := start(t)
	cfg := f.reads.Config()
	cfg.ConnConfig.Port, cfg.MinConns = 1, 0
	down, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	f.options.Pool = down
	f.serve()
	for _, path := range []string{"/history", "/summary", "/runs/" + runID.String(), "/logs/flask/1.0"} {
		body := f.expect(path, http.StatusServiceUnavailable)
		if detail, _ := pick(body, "detail").(string); strings.Contains(detail, cfg.ConnConfig.Host) {
			t.Errorf("%s: %s", path, detail)
		}
	}
	f.expect("/health", http.StatusOK)
}

func TestASlowReadEnds(t *testing.T) {
	f := start(t)
	cfg := f.reads.Config()
	cfg.ConnConfig.RuntimeParams["statement_timeout"] = "20"
	slow, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	f.options.Pool = slow
	f.serve()
	lists["/history"](f, 1)
	tx, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "lock table history.entries"); err != nil {
		t.Fatal(err)
	}
	f.expect("/history", http.StatusGatewayTimeout)
	f.expect("/summary", http.StatusGatewayTimeout)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.expect("/history", http.StatusOK)
}

func TestPool(t *testing.T) {
	dsn := pgtest.DSN(t)
	pool, err := readapi.Pool(t.Context(), dsn, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for name, want := range map[string]string{
		"default_transaction_read_only": "on", "jit": "off", "application_name": "refinery-read", "statement_timeout": "10s",
	} {
		var got string
		if err := pool.QueryRow(t.Context(), "select current_setting($1)", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, want %q: %v", name, got, want, err)
		}
	}
	if got := pool.Config().MaxConns; got != 2 {
		t.Errorf("%d connections", got)
	}
	for dsn, code := range map[string]fault.Code{
		"postgres://me:hunter2@127.0.0.1:1/x": fault.Unavailable, "postgres://me:hunter2@[": fault.Invalid,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := readapi.Pool(ctx, dsn, 1)
		cancel()
		if fault.CodeOf(err) != code || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", code, err)
		}
	}
}

// A rebuild swaps the tables under running reads.
func TestReadsGoOnThroughARebuild(t *testing.T) {
	f := start(t)
	for path, grow := range lists {
		for n := range 3 {
			grow(f, n)
		}
		f.expect(path, http.StatusOK) // the connection knows the old tables
	}
	for _, name := range f.runner.Names() {
		if err := f.runner.Rebuild(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for path := range lists {
		if n := len(items(f.expect(path, http.StatusOK))); n < 3 {
			t.Errorf("%s: %d rows after the rebuild", path, n)
		}
	}
	f.same(6, pick(f.expect("/summary", http.StatusOK), "counts", projections.Queued))
}

// failing is a client that does something after the first write.
type failing struct {
	http.ResponseWriter
	largest int
	then    func()
}

func (w *failing) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.largest = max(w.largest, len(p))
	if w.then != nil {
		w.then()
		w.then = nil
	}
	return n, err
}

// A log that breaks off is not taken for a whole one, and is sent chunk by chunk.
func TestHalfALogIsAborted(t *testing.T) {
	f := start(t)
	b := id("flask")
	f.add(b.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1})
	const chunks, atOnce = 70, 64
	chunk := strings.Repeat("x", 60_000) + "\n"
	var es []events.Event
	for n := range chunks {
		es = append(es, events.LogAppended{Chunk: n, FirstLine: n + 1, Lines: 1, Text: chunk})
	}
	f.add(b.Log(1), es...)
	read := func(then func()) (aborted any, got int, largest int) {
		rec := httptest.NewRecorder()
		w := &failing{ResponseWriter: rec, then: then}
		defer func() { aborted, got, largest = recover(), rec.Body.Len(), w.largest }()
		f.handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/logs/flask/1.0?format=text", nil))
		return nil, 0, 0
	}
	if aborted, got, largest := read(nil); aborted != nil || got != chunks*len(chunk) || largest != len(chunk) {
		t.Errorf("%v: %d bytes, at most %d at once", aborted, got, largest)
	}
	aborted, got, _ := read(func() {
		if _, err := f.pool.Exec(t.Context(), "alter table logs.pieces rename to gone"); err != nil {
			t.Error(err)
		}
	})
	if aborted != http.ErrAbortHandler || got != atOnce*len(chunk) {
		t.Errorf("aborted with %v after %d bytes", aborted, got)
	}
	f.expect("/logs/flask/1.0?format=text&tail=1", http.StatusInternalServerError) // before the first byte it is a problem
}

func TestVersionsOfAnySpelling(t *testing.T) {
	f := start(t)
	for _, v := range []string{"1.0", "2", "1!1.0rc1", "1.0+ubuntu.1"} {
		b := id("p")
		b.Version = v
		f.add(b.Stream(), events.BuildCancelled{Reason: "x"})
	}
	for asked, want := range map[string]int{
		"1": 1, "1.0": 1, "v1.0.0": 1, "1.0.0.0": 1, "2.0.0": 1, "1!1rc1": 1, "1!1.0.0.RC1": 1, "1.0+ubuntu.1": 1, "1.0.1": 0, "10": 0, "1rc1": 0,
		"nonsense": 0, strings.Repeat("9", 99): 0, "99999999999999999999!1": 0,
	} {
		for _, path := range []string{"/history?version=", "/builds?package=P&version="} {
			if n := len(items(f.expect(path+url.QueryEscape(asked), http.StatusOK))); n != want {
				t.Errorf("%s%s: %d, want %d", path, asked, n, want)
			}
		}
		status := http.StatusOK
		if want == 0 {
			status = http.StatusNotFound
		}
		f.expect("/builds/P/"+url.PathEscape(asked)+"/cp311/linux_x86_64", status)
	}
}
