package readapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// tracer notes the statements that reads send.
type tracer struct {
	mu    sync.Mutex
	sent  []statement
	trips int // round trips
}

type statement struct {
	sql  string
	args []any
}

func (r *tracer) note(sql string, args []any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if strings.HasPrefix(sql, "select ") {
		if len(args) > 0 {
			if _, ok := args[0].(pgx.QueryExecMode); ok {
				args = args[1:]
			}
		}
		r.sent = append(r.sent, statement{sql, args})
	}
}

func (r *tracer) take() []statement {
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.sent
	r.sent = nil
	return sent
}

func (r *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	r.trips++
	r.note(d.SQL, d.Args)
	return ctx
}
func (r *tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (r *tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	r.trips++
	for _, q := range d.Batch.QueuedQueries {
		r.note(q.SQL, q.Arguments)
	}
	return ctx
}
func (r *tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (r *tracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// fill makes n builds and as many history entries, artifacts, runs and log chunks, a quarter of the builds queued, over targets.
func (f *fixture) fill(n int) {
	f.t.Helper()
	var entries []eventlog.Entry
	add := func(stream string, es ...events.Event) {
		entries = append(entries, eventlog.Entry{
			Outcome: eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: stream, Actor: "tester", Status: eventlog.Applied}, Events: es,
		})
	}
	for i := range n {
		b := events.BuildID{
			Name: fmt.Sprintf("pkg-%d", i%500), Version: fmt.Sprintf("1.%d", i/500),
			PythonTag: fmt.Sprintf("cp3%d", 9+i%5), PlatformTag: []string{"linux_x86_64", "linux_s390x", "linux_riscv64"}[i%3],
		}
		run := uuid.UUID{0: byte(i / 50 >> 8), 1: byte(i / 50), 15: 1}
		end := []events.Event{
			events.BuildQueued{Run: run, Priority: i % 4},
			events.BuildFailed{Attempt: 1, Run: run, Class: events.ClassCompiler, Reason: "no compiler"},
			events.BuildSucceeded{Attempt: 1, Run: run, Wheel: wheel, Hints: []string{fmt.Sprintf("h-%d", i%100)}},
			events.BuildReused{Run: run, Wheel: wheel},
		}[i%4]
		add(b.Stream(), end)
		if i%4 == 0 { // history has n entries, one for each position or so
			add(id(fmt.Sprintf("c-%d", i)).Stream(), events.BuildCancelled{Run: run, Reason: "x"})
		}
		filename := fmt.Sprintf("pkg_%d-1.%d-cp39-cp39-linux_x86_64.whl", i%500, i/500)
		add(events.ArtifactStream(filename), events.ArtifactPublished{Filename: filename, Project: b.Name, Version: b.Version, Tags: []string{}, Build: b, Attempt: 1})
		if i%20 == 0 {
			hint := fmt.Sprintf("h-%d", i/20)
			add(events.HintStream(hint), events.HintSaved{Hint: events.Hint{
				ID: hint, Pattern: "x", Severity: []string{"error", "info"}[i/20%2], Tags: []string{fmt.Sprintf("t-%d", i%1000)},
			}})
		}
		if i%20 == 1 {
			add(b.Log(1), events.LogAppended{FirstLine: 1, Lines: 1, Text: "x\n"})
		}
		add(events.RunStream(uuid.UUID{0: byte(i >> 16), 1: byte(i >> 8), 2: byte(i), 15: 2}),
			events.RunSubmitted{Requirements: "x", Strategy: "pinned", Build: "all"},
			events.RunPlanned{Plan: uuid.UUID{0: byte(i >> 16), 1: byte(i >> 8), 2: byte(i), 15: 3}}, events.RunCancelled{Reason: "x"})
		if i%10 == 0 {
			add(events.WorkerStream(fmt.Sprintf("w-%d", i)), events.WorkerRegistered{PythonTag: b.PythonTag, PlatformTag: b.PlatformTag, Slots: 1})
		}
	}
	add(events.RunStream(runID), events.RunSubmitted{Requirements: "x", Strategy: "pinned", Build: "all"})
	logged := id("logged")
	add(logged.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1})
	var chunks []events.Event
	for i := range n {
		chunks = append(chunks, events.LogAppended{Chunk: i, FirstLine: i + 1, Lines: 1, Text: "x\n"})
	}
	add(logged.Log(1), chunks...)
	for len(entries) > 0 {
		k := min(500, len(entries))
		results, err := f.log.Append(f.t.Context(), entries[:k]...)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, r := range results {
			if r.Err != nil {
				f.t.Fatal(r.Err)
			}
		}
		entries = entries[k:]
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	if err := f.runner.Wait(ctx, f.log.Head()); err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.pool.Exec(f.t.Context(), "vacuum analyze"); err != nil {
		f.t.Fatal(err)
	}
}

// Every list, with each of its filters, on the first page and a deep one, is read by an index in its order or by a few rows that an index
// finds; tables that are bounded may be read whole.
func TestReadsUseIndexes(t *testing.T) {
	f := start(t)
	f.fill(20_000)
	seen := &tracer{}
	cfg := f.reads.Config()
	cfg.ConnConfig.Tracer = seen
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	f.options.Pool = pool
	f.serve()
	run := uuid.UUID{1: 3, 15: 1}.String()
	for path, filters := range map[string][]string{
		"/history": {
			"", "package=pkg-7", "package=pkg-7&version=1.3", "status=failed", "status=failed&status=built", "run_id=" + run, "platform_tag=linux_s390x",
			"python_tag=cp310", "python_tag=cp310&platform_tag=linux_s390x", "from=2020-01-01T00:00:00Z", "to=2020-01-01T00:00:00Z", "from=2100-01-01T00:00:00Z", "platform_tag=any",
			"version=1.3", "version=nothing", "python_tag=nothing", "version=1.3&status=failed", "package=pkg-7&from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z",
			"from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z", "status=failed&from=2100-01-01T00:00:00Z",
			"hint_id=h-6", "hint_id=none", "hint_id=h-6&status=failed",
			"package=pkg-7&status=failed&python_tag=cp310&platform_tag=linux_s390x&run_id=" + run,
		},
		"/hints":          {"", "q=x", "q=h-77", "severity=error", "tag=t-40", "tag=t-40&severity=info&q=h"},
		"/hints/h-7":      {""},
		"/recent":         {"", "package=pkg-7", "status=failed"},
		"/builds":         {"", "package=pkg-7", "package=pkg-7&version=1.3", "package=pkg-7&version=nothing", "status=queued", "status=queued&status=failed", "run_id=" + run},
		"/artifacts":      {"", "package=pkg-7", "package=pkg-7&version=1.3", "version=1.3", "version=nothing"},
		"/packages":       {"", "package=pkg-7"},
		"/plans":          {"", "run_id=" + runID.String()},
		"/workers":        {"", "state=lost", "python_tag=cp310", "platform_tag=linux_s390x"},
		"/packages/pkg-7": {""}, "/stats/failures": {"", "class=compiler"}, "/stats/slowest": {""}, "/stats/throughput": {""},
		"/runs":        {"", "state=cancelled", "state=submitted"},
		"/queue":       {"", "python_tag=cp310", "platform_tag=linux_s390x", "python_tag=cp310&platform_tag=linux_s390x"},
		"/summary":     {"", "since=" + time.Now().UTC().Format(time.RFC3339)},
		"/queue/stats": {""}, "/runs/" + runID.String(): {""},
		"/builds/pkg-7/1.0/cp311/linux_s390x": {""},
		"/logs/logged/1.0":                    {"", "tail=10", "from=15000&to=15010", "format=text&from=15000&to=15010"},
		"/logs/search":                        {"q=xyzzy", "q=x%0A+x", "q=xyzzy&package=pkg-7&version=1.3", "q=xyzzy&from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z"},
		"/audit": {
			"", "stream=" + id("logged").Log(1), "stream=" + id("logged").Log(1) + "&type=no.such.v1", "stream=build/", "type=no.such.v1", "actor=nobody", "command=" + runID.String(),
			"from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z", "after=1000&order=oldest",
		},
	} {
		for _, filter := range filters {
			f.checkPlans(seen, path+"?"+filter)
		}
	}
	for _, path := range []string{"/summary", "/queue/stats", "/runs/" + runID.String()} {
		f.serve() // which keeps nothing yet
		seen.trips = 0
		if f.expect(path, http.StatusOK); seen.trips != 1 {
			t.Errorf("%s takes %d round trips", path, seen.trips)
		}
	}
}

// checkPlans reads path, and its second page if there is one, and explains each statement that this took.
func (f *fixture) checkPlans(seen *tracer, path string) {
	f.t.Helper()
	seen.take()
	status, _, body := f.get(path)
	if status != http.StatusOK && status != http.StatusNotFound {
		f.t.Fatal(path, status, body)
	}
	if next, ok := pick(body, "next").(string); ok {
		f.expect(path+"&cursor="+next, http.StatusOK)
	}
	sent := seen.take()
	if len(sent) == 0 {
		f.t.Errorf("%s: no statement was seen", path)
	}
	for _, s := range sent {
		var text string
		if err := f.pool.QueryRow(f.t.Context(), "explain (format json) "+s.sql, s.args...).Scan(&text); err != nil {
			f.t.Fatalf("%s: %v: %s", path, err, s.sql)
		}
		var plan any
		if err := json.Unmarshal([]byte(text), &plan); err != nil {
			f.t.Fatal(err)
		}
		for _, table := range scanned(plan) {
			switch table {
			case "totals", "state", "hours", "head": // one row, one row, six rows an hour, one row
			case "failures", "reasons", "slow": // thirteen rows an hour, fifty of each of these, fifty rows an hour
			case "leases", "workers_seen": // as many as there are slots, as workers
			default:
				f.t.Errorf("%s reads all of %s:\n%s\n%s", path, table, s.sql, text)
			}
		}
	}
}

// scanned lists the tables that a plan reads whole.
func scanned(plan any) []string {
	var tables []string
	switch p := plan.(type) {
	case []any:
		for _, v := range p {
			tables = append(tables, scanned(v)...)
		}
	case map[string]any:
		if p["Node Type"] == "Seq Scan" {
			tables = append(tables, fmt.Sprint(p["Relation Name"]))
		}
		for _, v := range p {
			tables = append(tables, scanned(v)...)
		}
	}
	return tables
}
