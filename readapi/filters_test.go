package readapi_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/hints"
)

// variety gives every list rows that each of its filters can tell apart.
func (f *fixture) variety() {
	f.t.Helper()
	for n := range 3 {
		for _, grow := range lists {
			grow(f, n)
		}
		run := uuid.UUID{0: 9, 15: byte(n)}
		f.add(events.RunStream(run), events.RunSubmitted{Requirements: "x", Strategy: "pinned", Build: "all"},
			events.RunPlanned{Plan: uuid.UUID{0: 8, 15: byte(n)}, Worker: "w", PythonTag: "cp311", PlatformTag: "any", Nodes: []events.Node{
				{Name: "v", Version: "1", PythonTag: "cp311", PlatformTag: "any", Action: "build"}, {Name: "w", Version: "1", PythonTag: "cp311", PlatformTag: "any", Action: "skip"},
			}})
		b := events.BuildID{Name: fmt.Sprintf("v-%d", n), Version: fmt.Sprint(n), PythonTag: fmt.Sprintf("cp31%d", n), PlatformTag: fmt.Sprintf("any_%d", n)}
		f.add(b.Stream(), events.BuildQueued{Run: run}, events.BuildLeased{Attempt: 1, Worker: "w"},
			events.BuildFailed{Attempt: 1, Run: run, Worker: "w", Class: events.Classes[n], Reason: fmt.Sprint(n), DurationMS: int64(n + 1)})
		hint := fmt.Sprintf("h-%d", n)
		f.add(events.HintStream(hint), events.HintSaved{Hint: events.Hint{ID: hint, Pattern: hint, Severity: hints.Severities[n], Tags: []string{hint}}})
		f.logs(b, "one\nneedle\nthree\n")
		f.worker(fmt.Sprintf("w-%d", n), b, time.Duration(n)*40*time.Second)
	}
}

// worker registers a worker of the tags of b that was heard of so long ago and holds a lease of b.
func (f *fixture) worker(name string, b events.BuildID, ago time.Duration) {
	f.t.Helper()
	f.add(events.WorkerStream(name), events.WorkerRegistered{PythonTag: b.PythonTag, PlatformTag: b.PlatformTag, Slots: 2, Version: "1", Host: "h"})
	_, err := f.pool.Exec(f.t.Context(), `insert into workers_seen values ($1, now() - $2::interval, 1)`, name, ago)
	if err == nil {
		_, err = f.pool.Exec(f.t.Context(), `insert into leases values ($1, 1, $2, now(), false)`, b.Stream(), name)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// values are some of a parameter's schema that select something else than its absence does.
func values(s *openapi3.Schema) []string {
	if s.Type.Is("array") {
		s = s.Items.Value
	}
	var all []string
	for _, v := range s.Enum {
		all = append(all, fmt.Sprint(v))
	}
	switch {
	case len(all) > 0:
	case s.Format == "date-time":
		now := time.Now().UTC()
		for _, at := range []time.Time{now.Add(time.Hour - time.Second), now.Add(-3 * time.Hour), now.AddDate(-20, 0, 0), now.AddDate(20, 0, 0)} {
			all = append(all, at.Format(time.RFC3339))
		}
	case s.Format == "uuid":
		all = append(all, uuid.NewString())
	case s.Type.Is("integer"):
		all = append(all, "1")
	case s.Type.Is("boolean"):
		all = append(all, "true", "false")
	default: // fits every pattern of the contract
		all = append(all, "999")
	}
	return all
}

// stripped is the answer without what time alone changes.
func stripped(body any) any {
	for _, item := range items(body) {
		if m, ok := item.(map[string]any); ok {
			delete(m, "age_seconds")
		}
	}
	if m, ok := body.(map[string]any); ok {
		delete(m, "since")
		delete(m, "next")
	}
	return body
}

// Each query parameter of each list in the contract does something, or is refused: none is ignored. And every list has rows here, so that
// none of this is vacuous.
func TestEveryFilterFilters(t *testing.T) {
	f := start(t)
	f.variety()
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for path, item := range doc.Paths.Map() {
		if item.Get == nil || strings.Contains(path, "{") {
			continue
		}
		content := item.Get.Responses.Status(200).Value.Content.Get("application/json")
		if content == nil || content.Schema.Value.Properties["items"] == nil || item.Get.Parameters == nil {
			continue
		}
		if path == "/manifest" { // a document, which is found and not filtered
			continue
		}
		needed := url.Values{}
		for _, p := range item.Get.Parameters {
			if p.Value.Required {
				needed.Set(p.Value.Name, "needle")
			}
		}
		all := stripped(f.expect(path+"?"+needed.Encode(), http.StatusOK))
		if len(items(all)) < 2 {
			t.Errorf("%s has %d rows: give it some in variety", path, len(items(all)))
			continue
		}
		for _, p := range item.Get.Parameters {
			if p.Value.In != "query" || p.Value.Name == "min_position" || p.Value.Name == "cursor" {
				continue // which have tests of their own
			}
			checked++
			changed, refused := 0, 0
			tried := values(p.Value.Schema.Value)
			for _, v := range tried {
				query := maps.Clone(needed)
				query.Set(p.Value.Name, v)
				status, _, body := f.get(path + "?" + query.Encode())
				switch {
				case status == http.StatusBadRequest:
					refused++
				case status != http.StatusOK:
					t.Errorf("%s?%s=%s: %d %v", path, p.Value.Name, v, status, body)
				case cmp.Diff(all, stripped(body)) != "":
					changed++
				}
			}
			if changed == 0 && refused < len(tried) {
				t.Errorf("%s?%s= changes nothing with any of %v", path, p.Value.Name, tried)
			}
		}
		needed.Set("no_such_filter", "1")
		f.expect(path+"?"+needed.Encode(), http.StatusBadRequest)
	}
	if checked < 40 {
		t.Errorf("%d parameters were checked", checked)
	}
}

// A span of time is one of history, whatever else is asked for.
func TestHistoryByTime(t *testing.T) {
	f := start(t)
	for n := range 9 {
		f.add(id(fmt.Sprintf("p-%d", n%3)).Stream(), events.BuildCancelled{Reason: "x"})
	}
	rows := items(f.expect("/history", http.StatusOK))
	at := func(i int) string { return url.QueryEscape(pick(rows[len(rows)-1-i], "time").(string)) } // of the i-th, from the oldest
	for query, want := range map[string]int{
		"from=" + at(0): 9, "from=" + at(4): 5, "to=" + at(4): 4, "from=" + at(2) + "&to=" + at(5): 3, "from=" + at(4) + "&to=" + at(4): 0,
		"package=p-1&from=" + at(3): 2, "package=p-1&to=" + at(3): 1, "to=" + at(0): 0, "limit=1&from=" + at(8): 1,
		"from=" + url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)): 0, "to=9999-12-31T23:59:59Z": 9, "from=0001-01-01T00:00:00Z": 9,
	} {
		f.same(want, len(items(f.expect("/history?"+query, http.StatusOK))))
	}
	seen := 0
	for path := "/history?limit=2&from=" + at(1) + "&to=" + at(8); path != ""; {
		body := f.expect(path, http.StatusOK)
		seen += len(items(body))
		next, more := pick(body, "next").(string)
		if path = ""; more {
			path = "/history?limit=2&from=" + at(1) + "&to=" + at(8) + "&cursor=" + next
		}
	}
	f.same(7, seen)
	f.expect("/history?from="+at(4)+"&to="+at(3), http.StatusBadRequest)
	for _, bad := range []string{"yesterday", "2026-01-01", "1735689600", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "", "%00"} {
		f.expect("/history?from="+bad, http.StatusBadRequest)
		f.expect("/history?to="+bad, http.StatusBadRequest)
	}
}

// A row whose columns no program of ours writes does not take the others with it, where a list is not the document itself.
func TestOneBadRowBreaksNoList(t *testing.T) {
	f := start(t)
	f.variety()
	for _, sql := range []string{
		`update history.entries set class = 'odd', status = 'unheard', worker = E'\u0001', version = '' where position = (select min(position) from history.entries)`,
		`update builds.builds set attempts = '[{"number": 1}]', evidence = 'null', wheel = '{}' where stream like 'build/v-0/%'`,
		`update runs.runs set counts = 'null', detail = 'null' where position = (select min(position) from runs.runs)`,
		`update summary.packages set counts = 'null', failure = '{}', durations = '{}' where name = 'v-0'`,
		`update summary.reasons set reason = E'\u0001', build = 'none', time = null where class = 'resolve'`,
		`update artifacts.files set tags = 'null' where filename like 'a0-%'`,
		`update plans.plans set actions = 'null' where id = '08000000-0000-0000-0000-000000000000'`,
		`update leases set stream = 'odd' where worker = 'w-0'`,
	} {
		if tag, err := f.pool.Exec(t.Context(), sql); err != nil || tag.RowsAffected() == 0 {
			t.Fatalf("%v: %s", err, sql)
		}
	}
	f.serve()
	for _, path := range []string{"/history", "/builds", "/runs", "/packages", "/packages/v-0", "/stats/failures", "/artifacts", "/plans", "/workers", "/summary"} {
		status, body := f.raw(path) // what such a row says may be outside the contract
		if status != http.StatusOK || strings.Contains(body, `"items":null`) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}
