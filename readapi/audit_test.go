package readapi_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/readapi"
)

// walk reads all pages of a list from the audit and returns the positions, and how many pages it took.
func (f *fixture) walk(query string) (positions string, pages int) {
	f.t.Helper()
	var all []string
	for cursor := ""; ; {
		body := f.expect("/audit?"+query+cursor, http.StatusOK)
		for _, item := range items(body) {
			all = append(all, fmt.Sprint(pick(item, "position")))
		}
		pages++
		next, ok := pick(body, "next").(string)
		if !ok {
			return strings.Join(all, " "), pages
		}
		cursor = "&cursor=" + next
	}
}

func TestAudit(t *testing.T) {
	f := start(t)
	f.same([]any{}, pick(f.expect("/audit", http.StatusOK), "items"))
	command, correlation := uuid.New(), uuid.New()
	append := func(actor string, id uuid.UUID, stream string, version int64, es ...events.Event) {
		results, err := f.log.Append(context.Background(), eventlog.Entry{
			Outcome:  eventlog.Outcome{Command: id, Name: "test", Stream: stream, Actor: actor, Status: eventlog.Applied},
			Expected: version, Events: es, Correlation: correlation, Causation: 1,
		})
		if err != nil || results[0].Err != nil {
			t.Fatal(err, results)
		}
	}
	a, b := id("a").Stream(), id("b").Stream()
	append("ann", uuid.New(), a, 0, events.BuildQueued{Priority: 7})
	append("bob", command, b, 0, events.BuildQueued{}, events.BuildLeased{Attempt: 1})
	time.Sleep(2 * time.Millisecond)
	between := url.QueryEscape(time.Now().UTC().Format(time.RFC3339Nano))
	time.Sleep(2 * time.Millisecond)
	append("ann", uuid.New(), events.QueueStream, 0, events.QueuePaused{})
	append("bob", uuid.New(), a, 1, events.BuildLeased{Attempt: 1}, events.BuildStarted{Attempt: 1})
	refused := uuid.New()
	append("bob", refused, a, 3)

	first := pick(f.expect("/audit?order=oldest", http.StatusOK), "items", 0)
	for name, want := range map[string]any{
		"position": 1, "version": 1, "stream": a, "type": "build.queued.v1", "actor": "ann", "correlation": correlation.String(), "causation": 1,
	} {
		f.same(want, pick(first, name))
	}
	f.same(7, pick(first, "data", "priority"))
	for _, limit := range []string{"limit=1&", "limit=2&", "limit=3&", ""} {
		for query, want := range map[string]string{
			"": "6 5 4 3 2 1", "stream=" + a: "6 5 1", "stream=" + b: "3 2", "stream=build/": "6 5 3 2 1", "stream=build/none": "", "type=build.queued.v1": "2 1",
			"type=build.queued.v1&type=queue.paused.v1": "4 2 1", "type=no.such.v1": "", "actor=ann": "4 1", "actor=ann&stream=" + a: "1", "actor=an": "",
			"command=" + command.String(): "3 2", "command=" + uuid.NewString(): "", "command=" + refused.String(): "", "command=" + command.String() + "&type=build.leased.v1": "3",
			"command=" + command.String() + "&stream=" + a: "", "command=" + command.String() + "&stream=" + b: "3 2",
			"from=" + between: "6 5 4", "to=" + between: "3 2 1", "from=" + between + "&stream=" + a: "6 5", "to=" + between + "&stream=" + a: "1",
			"after=4": "6 5", "after=4&stream=" + a: "6 5", "after=5&actor=bob": "6", "after=6": "", "after=9223372036854775807": "", "from=2100-01-01T00:00:00Z": "", "to=2000-01-01T00:00:00Z": "",
		} {
			if got, _ := f.walk(limit + query); got != want {
				t.Errorf("%s%s: %s, want %s", limit, query, got, want)
			}
			var turned []string
			for p := range strings.FieldsSeq(want) {
				turned = prepend(turned, p)
			}
			if got, _ := f.walk(limit + "order=oldest&" + query); got != strings.Join(turned, " ") {
				t.Errorf("oldest first, %s%s: %s, want %v", limit, query, got, turned)
			}
		}
	}
	for _, query := range []string{
		"order=up", "actor=", "command=1", "from=x", "to=2026-01-01", "after=-1", "kind=x", "stream=%25", "type=x", "cursor=x", "limit=0",
		"from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z",
	} {
		f.expect("/audit?"+query, http.StatusBadRequest)
	}
}

func prepend(s []string, first string) []string { return append([]string{first}, s...) }

// What is rare is looked for in a bounded part of the log for each page, and found in the end.
func TestAuditLooksAtABoundedPart(t *testing.T) {
	f := start(t)
	f.appendAt("worker/first", 0, events.WorkerRegistered{Slots: 1})
	var es []events.Event
	for range 2*readapi.AuditEvents + 10 {
		es = append(es, events.BuildQueued{})
	}
	f.appendAt(id("a").Stream(), 0, es...)
	for query, want := range map[string]int{"type=worker.registered.v1": 3, "stream=worker/": 3, "stream=worker/first": 1, "actor=nobody": 3} {
		got, pages := f.walk(query)
		if pages != want || got != "1" && query != "actor=nobody" {
			t.Errorf("%s: %s in %d pages, want %d", query, got, pages, want)
		}
	}
	if _, pages := f.walk("type=worker.registered.v1&order=oldest&limit=5"); pages != 3 {
		t.Errorf("%d pages", pages)
	}
	if _, pages := f.walk("type=worker.registered.v1&stream=" + id("a").Stream()); pages != 3 {
		t.Errorf("%d pages of a long stream", pages)
	}
}

// A page of large events is shorter, and nothing is left out.
func TestAuditPagesAreBoundedInBytes(t *testing.T) {
	f := start(t)
	var es []events.Event
	for n := range 150 {
		es = append(es, events.LogAppended{Chunk: n, FirstLine: n + 1, Lines: 1, Text: strings.Repeat("\x1b", 60_000) + "\n"})
	}
	f.appendAt(id("a").Log(1), 0, es...)
	got, pages := f.walk("limit=500&order=oldest")
	if n := len(strings.Fields(got)); n != 150 || pages < 10 {
		t.Errorf("%d events in %d pages", n, pages)
	}
}

// BenchmarkAudit reads a log of a million events with each filter, the first page and one in the middle; milliseconds, medians of 11. The
// events are copied into the log's tables; reading is what is measured.
func BenchmarkAudit(b *testing.B) {
	for b.Loop() {
		f := start(b)
		if _, err := f.pool.Exec(b.Context(), `
			insert into events select n, 'build/pkg-' || n / 8 || '/1.0/cp311/linux_x86_64', n % 8 + 1, case when n = 300000 then 'rare.v1' else 'build.queued.v1' end,
				'{"priority":1,"sdist":{"filename":"a.tar.gz","url":"https://files.example/a.tar.gz"}}', md5(n::text)::uuid, md5(n::text)::uuid, 0, 'local',
				timestamptz '2026-01-01' + n * interval '1 second' from generate_series(1, 1000000) n;
			insert into streams select stream, max(version), min(position), max(position) from events group by stream;
			insert into commands select command, 'x', stream, actor, 'applied', position, position, '', '{}', recorded_at from events;
			update head set position = 1000000; analyze events; analyze streams`); err != nil {
			b.Fatal(err)
		}
		middle := "&cursor=" + base64.RawURLEncoding.EncodeToString([]byte("audit.500000"))
		for _, c := range []struct{ name, query string }{
			{"all", ""},
			{"middle", middle},
			{"500", "limit=500"},
			{"stream", "stream=build/pkg-777/1.0/cp311/linux_x86_64"},
			{"prefix", "stream=build/pkg-777/"},
			{"type-common", "type=build.queued.v1"},
			{"type-rare", "type=rare.v1"},
			{"actor-absent", "actor=x" + middle},
			{"command", "command=" + "c4ca4238-a0b9-2382-0dcc-509a6f75849b"},
			{"from-to", "from=2026-01-03T00:00:00Z&to=2026-01-03T00:01:00Z"},
			{"after", "after=400000&order=oldest"},
		} {
			var took []time.Duration
			for range 11 {
				w := httptest.NewRecorder()
				begin := time.Now()
				f.handler.ServeHTTP(w, httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/audit?"+c.query, nil))
				if took = append(took, time.Since(begin)); w.Code != http.StatusOK {
					b.Fatal(c.name, w.Code, w.Body)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[5].Microseconds())/1000, c.name+"-ms")
		}
		b.ReportMetric(0, "ns/op")
	}
}
