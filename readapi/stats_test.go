package readapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

func TestPackages(t *testing.T) {
	f := start(t)
	for _, v := range []string{"1.9", "1.10", "1.10rc1", "odd"} {
		b := id("flask")
		b.Version = v
		f.add(b.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1}, events.BuildFailed{Attempt: 1, Class: events.ClassTest, Reason: v})
	}
	b := id("flask")
	b.Version, b.PythonTag = "1.10", "cp312"
	for i := range 3 {
		f.add(b.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: i + 1}, events.BuildSucceeded{Attempt: i + 1, Wheel: wheel, DurationMS: int64(i+1) * 100})
	}
	f.add(id("jinja2").Stream(), events.BuildPlanned{})
	list := f.expect("/packages", http.StatusOK)
	f.same("jinja2", pick(list, "items", 0, "name"))
	f.same(nil, pick(list, "items", 0, "success_rate"))
	f.same(nil, pick(list, "items", 0, "latest_failure"))
	f.same(1, pick(list, "items", 0, "counts", "planned"))
	for _, p := range []any{pick(list, "items", 1), f.expect("/packages/Flask", http.StatusOK)} {
		f.same("flask", pick(p, "name"))
		f.same(4, pick(p, "counts", "failed"))
		f.same(1, pick(p, "counts", "built"))
		f.same(0, pick(p, "counts", "queued"))
		f.same(3.0/7, pick(p, "success_rate"))
		f.same(4, pick(p, "versions"))
		f.same(2, pick(p, "variants"))
		f.same(map[string]any{"count": 3.0, "median_ms": 200.0, "p90_ms": 300.0, "max_ms": 300.0}, pick(p, "durations"))
		f.same("odd", pick(p, "latest_failure", "reason"))
		f.same("test", pick(p, "latest_failure", "class"))
	}
	p := f.expect("/packages/flask", http.StatusOK)
	var order []any
	for _, v := range pick(p, "version_list").([]any) {
		order = append(order, pick(v, "version"))
	}
	f.same([]any{"1.10", "1.10rc1", "1.9", "odd"}, order)
	f.same(1, pick(p, "version_list", 0, "counts", "built"))
	f.same("cp312", pick(p, "variant_list", 1, "python_tag"))
	f.same(1, pick(p, "variant_list", 1, "counts", "built"))
	f.same(4, pick(p, "variant_list", 0, "counts", "failed"))
	f.same(1, len(items(f.expect("/packages?package=JINJA2", http.StatusOK))))
	f.expect("/packages/nothing", http.StatusNotFound)
	f.expect("/packages/-", http.StatusBadRequest)
}

func TestFailureStats(t *testing.T) {
	f := start(t)
	empty := f.expect("/stats/failures", http.StatusOK)
	f.same([]any{}, pick(empty, "items"))
	f.same([]any{}, pick(empty, "classes"))
	for i, r := range []string{"a", "b", "b", "c", "b"} {
		class := events.ClassCompiler
		if r == "c" {
			class = events.ClassTimeout
		}
		f.add(id(fmt.Sprintf("p-%d", i)).Stream(), events.BuildFailed{Attempt: 1, Class: class, Reason: r})
	}
	body := f.expect("/stats/failures", http.StatusOK)
	f.same("compiler", pick(body, "classes", 0, "class"))
	f.same(4, pick(body, "classes", 0, "count"))
	f.same("b", pick(body, "items", 0, "reason"))
	f.same(3, pick(body, "items", 0, "count"))
	f.same("p-4", pick(body, "items", 0, "last_build", "name"))
	f.same(3, len(items(body)))
	f.same(1, len(items(f.expect("/stats/failures?class=timeout", http.StatusOK))))
	f.same(1, len(items(f.expect("/stats/failures?limit=1", http.StatusOK))))
	for _, since := range []time.Time{{}, time.Now().AddDate(0, 0, -32), time.Now().Add(2 * time.Hour)} {
		for _, path := range []string{"failures", "slowest", "throughput"} {
			f.expect("/stats/"+path+"?since="+url.QueryEscape(since.Format(time.RFC3339)), http.StatusBadRequest)
		}
	}
}

func TestSlowest(t *testing.T) {
	f := start(t)
	f.same([]any{}, pick(f.expect("/stats/slowest", http.StatusOK), "items"))
	for i := range 70 {
		f.add(id(fmt.Sprintf("p-%d", i)).Stream(), events.BuildSucceeded{Attempt: 1, Wheel: wheel, DurationMS: int64(i * 11 % 70)})
	}
	body := f.expect("/stats/slowest?limit=50", http.StatusOK)
	for i, item := range items(body) {
		f.same(69-i, pick(item, "duration_ms"))
	}
	f.same(50, len(items(body)))
	f.same(20, len(items(f.expect("/stats/slowest", http.StatusOK))))
	f.expect("/stats/slowest?limit=51", http.StatusBadRequest)
}

func TestThroughput(t *testing.T) {
	f := start(t)
	f.add(id("a").Stream(), events.BuildSucceeded{Attempt: 1, Wheel: wheel})
	f.add(id("b").Stream(), events.BuildFailed{Attempt: 1})
	f.add(id("c").Stream(), events.BuildReused{Wheel: wheel})
	since := time.Now().UTC().Add(-5 * time.Hour)
	body := f.expect("/stats/throughput?since="+since.Format(time.RFC3339), http.StatusOK)
	rows := items(body)
	if len(rows) != 6 {
		t.Fatalf("%d hours from five hours ago on", len(rows))
	}
	f.same(since.Truncate(time.Hour).Format(time.RFC3339), pick(rows[0], "start"))
	f.same(0, pick(rows[0], "built"))
	sum := map[string]float64{}
	for _, r := range rows {
		for _, status := range []string{"built", "failed", "reused", "skipped"} {
			sum[status] += pick(r, status).(float64)
		}
	}
	f.same(map[string]float64{"built": 1, "failed": 1, "reused": 1, "skipped": 0}, sum)
	days := f.expect("/stats/throughput?bucket=day&since="+since.AddDate(0, 0, -3).Format(time.RFC3339), http.StatusOK)
	f.same(86400, pick(days, "bucket_seconds"))
	if n := len(items(days)); n != 4 && n != 5 {
		t.Errorf("%d days", n)
	}
	f.same(25, len(items(f.expect("/stats/throughput", http.StatusOK))))
}

func TestPlans(t *testing.T) {
	f := start(t)
	plans := []uuid.UUID{{15: 1}, {15: 2}}
	for i, plan := range plans {
		f.add(events.RunStream(uuid.UUID{14: 1, 15: byte(i)}), events.RunSubmitted{Requirements: "x", Strategy: "pinned", Build: "all"},
			events.RunPlanned{Plan: plan, Worker: "w", PythonTag: "cp311", PlatformTag: "any", DurationMS: 7, Nodes: []events.Node{
				{Name: "a", Version: "1", PythonTag: "cp311", PlatformTag: "any", Action: "build"},
				{Name: "b", Version: "1", PythonTag: "cp311", PlatformTag: "any", Action: "reuse"},
				{Name: "c", Version: "1", PythonTag: "cp311", PlatformTag: "any", Action: "build"},
			}})
	}
	list := f.expect("/plans", http.StatusOK)
	f.same(plans[1].String(), pick(list, "items", 0, "id"))
	f.same(map[string]any{"build": 2.0, "reuse": 1.0}, pick(list, "items", 0, "actions"))
	f.same(nil, pick(list, "items", 0, "nodes"))
	f.same(1, len(items(f.expect("/plans?run_id="+uuid.UUID{14: 1}.String(), http.StatusOK))))
	one := f.expect("/plans/"+plans[0].String(), http.StatusOK)
	f.same(plans[0].String(), pick(one, "id"))
	f.same("planned", pick(one, "nodes", 0, "status"))
	f.add(events.BuildID{Name: "a", Version: "1", PythonTag: "cp311", PlatformTag: "any"}.Stream(), events.BuildQueued{})
	f.same("queued", pick(f.expect("/plans/"+plans[0].String(), http.StatusOK), "nodes", 0, "status"))
	f.same(plans[1].String(), pick(f.expect("/plan", http.StatusOK), "id"))
	f.expect("/plans/"+uuid.NewString(), http.StatusNotFound)
	f.expect("/plans/1", http.StatusBadRequest)
}

func TestWorkers(t *testing.T) {
	f := start(t)
	b := id("flask")
	for name, ago := range map[string]time.Duration{"live": time.Second, "late": 45 * time.Second, "lost": 5 * time.Minute} {
		other := b
		other.Version = name
		f.worker(name, other, ago)
		body := f.expect("/workers?state="+name, http.StatusOK)
		f.same(1, len(items(body)))
		w := pick(body, "items", 0)
		f.same(name, pick(w, "id"))
		f.same(name, pick(w, "state"))
		f.same(2, pick(w, "slots"))
		f.same("build", pick(w, "jobs", 0, "kind"))
		f.same(name, pick(w, "jobs", 0, "build", "version"))
	}
	f.add(events.WorkerStream("silent"), events.WorkerRegistered{PythonTag: "cp311", PlatformTag: "any", Slots: 1}, events.WorkerRegistered{PythonTag: "cp312", PlatformTag: "any", Slots: 3})
	f.same(2, len(items(f.expect("/workers?state=lost", http.StatusOK))))
	silent := pick(f.expect("/workers?python_tag=cp312", http.StatusOK), "items", 0)
	f.same("lost", pick(silent, "state"))
	f.same(nil, pick(silent, "last_seen_at"))
	f.same([]any{}, pick(silent, "jobs"))
	f.same(3, pick(silent, "slots"))
	if _, err := f.pool.Exec(t.Context(), "insert into leases values ($1, 2, 'live', now(), true)", events.RunStream(runID)); err != nil {
		t.Fatal(err)
	}
	jobs := pick(f.expect("/workers?state=live", http.StatusOK), "items", 0, "jobs")
	f.same(2, len(jobs.([]any)))
	f.same(runID.String(), pick(jobs, 1, "run_id"))
	f.same(true, pick(jobs, 1, "cancelled"))
}

func TestProjections(t *testing.T) {
	f := start(t)
	f.add(id("a").Stream(), events.BuildQueued{})
	f.append("build/odd", events.BuildQueued{}) // no build has such a name
	f.add(id("b").Stream(), events.BuildQueued{})
	body := f.expect("/projections", http.StatusOK)
	if n := len(items(body)); n != len(f.runner.Names()) {
		t.Errorf("%d projections", n)
	}
	for _, p := range items(body) {
		f.same("live", pick(p, "state"))
		f.same(nil, pick(p, "rebuilt_percent"))
		f.same(1, pick(p, "generation"))
		if pick(p, "name") == "builds" {
			f.same(1, pick(p, "dead_letter_count"))
			f.same(2, pick(p, "dead_letters", 0, "id"))
			f.same("build/odd", pick(p, "dead_letters", 0, "stream"))
		}
		if pick(p, "name") == "artifacts" {
			f.same([]any{}, pick(p, "dead_letters"))
		}
	}
	if _, header, _ := f.get("/projections"); header.Get("ETag") == "" || header.Get("Refinery-Position") == "" {
		t.Error(header)
	}
	f.options.Status = func(context.Context) ([]projections.Status, error) {
		return []projections.Status{{Name: "builds", State: "rebuilding", Position: 150, Lag: 50, LagSeconds: 3, Rebuilt: 50}}, nil
	}
	f.serve()
	p := pick(f.expect("/projections", http.StatusOK), "items", 0)
	f.same(25.0, pick(p, "rebuilt_percent"))
	f.same(3, pick(p, "lag_seconds"))
	f.same([]any{}, pick(p, "dead_letters"))
}

// What a follower has not come to is late by as long as it has been in the log.
func TestLagInSeconds(t *testing.T) {
	f := start(t)
	f.add(id("a").Stream(), events.BuildQueued{})
	release := f.lock("builds.builds")
	defer release()
	f.append(id("b").Stream(), events.BuildQueued{})
	time.Sleep(1600 * time.Millisecond)
	status, err := f.runner.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range status {
		if s.Name == "builds" && (s.Lag != 1 || s.LagSeconds < 1) {
			t.Errorf("builds is %d events and %d s behind", s.Lag, s.LagSeconds)
		}
	}
}
