package policies

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/commands"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

const leases = "policy:leases"

func newLeases(t *testing.T) (*world, *Leases) {
	w := newWorld(t)
	w.loop = true
	l := NewLeases(w.pool, w.send, slog.New(slog.DiscardHandler))
	w.follow(l.Follower())
	return w, l
}

// queue brings builds to where a worker can lease them.
func (w *world) queue(names ...string) {
	w.Helper()
	for _, name := range names {
		w.do(commands.EnqueueBuild{Build: id(name), Sdist: sdist(name)})
	}
}

// held sends a heartbeat of worker w.
func (w *world) held(l *Leases, worker string, jobs ...Job) []Held {
	w.Helper()
	w.settle(leases)
	held, err := l.Beat(w.Context(), worker, jobs)
	if err != nil {
		w.Fatal(err)
	}
	return held
}

// left returns how long the lease of a stream still holds.
func (w *world) left(stream string) (d time.Duration, ok bool) {
	w.Helper()
	w.settle(leases)
	var seconds []float64
	err := w.pool.QueryRow(w.Context(), `select array_agg(extract(epoch from expires_at - now())::float8) from leases where stream = $1`, stream).Scan(&seconds)
	if err != nil {
		w.Fatal(err)
	}
	if len(seconds) == 0 {
		return 0, false
	}
	return time.Duration(seconds[0] * float64(time.Second)), true
}

// overdue lets the time of every lease be over.
func (w *world) overdue() {
	w.Helper()
	w.settle(leases)
	if _, err := w.pool.Exec(w.Context(), `update leases set expires_at = now() - interval '1 second'`); err != nil {
		w.Fatal(err)
	}
}

func TestBeat(t *testing.T) {
	w, l := newLeases(t)
	w.queue("a")
	w.do(commands.LeaseBuild{Build: id("a"), Worker: "w", ExpiresAt: time.Now().Add(5 * time.Second)})
	a := Job{id("a").Stream(), 1}
	if d, ok := w.left(a.Stream); !ok || d > 5*time.Second || d < 0 {
		t.Errorf("the lease holds for %v, %v", d, ok)
	}
	for _, tc := range []struct {
		name, worker string
		jobs         []Job
		want         []Held
	}{
		{"another worker", "v", []Job{a}, []Held{Lost}},
		{"another attempt", "w", []Job{{a.Stream, 2}}, []Held{Lost}},
		{"an attempt that no column holds", "w", []Job{{a.Stream, 1 << 40}}, []Held{Lost}},
		{"what nobody leased", "w", []Job{{id("b").Stream(), 1}, {"", 0}}, []Held{Lost, Lost}},
		{"nothing to do", "w", nil, []Held{}},
	} {
		if got := w.held(l, tc.worker, tc.jobs...); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	if d, _ := w.left(a.Stream); d > 5*time.Second {
		t.Errorf("a stranger's heartbeat extended the lease to %v", d)
	}
	if got := w.held(l, "w", Job{id("b").Stream(), 1}, a); !slices.Equal(got, []Held{Lost, Continue}) {
		t.Errorf("%v", got)
	}
	if got := w.held(l, "w", Job{a.Stream, 2}, a, Job{a.Stream, 3}); !slices.Equal(got, []Held{Lost, Continue, Lost}) {
		t.Errorf("three attempts of one build: %v", got)
	}
	if d, _ := w.left(a.Stream); d < LeaseTime-5*time.Second || d > LeaseTime {
		t.Errorf("the heartbeat extended the lease to %v, want %v", d, LeaseTime)
	}
	var jobs int
	var ago time.Duration
	if err := w.pool.QueryRow(t.Context(), `select jobs, now() - seen_at from workers_seen where worker = 'w'`).Scan(&jobs, &ago); err != nil || jobs != 3 || ago > time.Minute {
		t.Errorf("%d jobs, seen %v ago, %v", jobs, ago, err)
	}
}

// How each end of an attempt shows in the next heartbeat.
func TestBeatAfterTheEnd(t *testing.T) {
	w, l := newLeases(t)
	names := []string{"cancelled", "failed", "released", "succeeded"}
	w.queue(names...)
	var jobs []Job
	for _, name := range names {
		w.lease(name)
		jobs = append(jobs, Job{id(name).Stream(), 1})
	}
	w.do(
		commands.CancelBuild{Build: id("cancelled")},
		commands.FailBuild{Build: id("failed"), Attempt: 1, Worker: "w", Class: events.ClassOther, Reason: "x"},
		commands.ReleaseBuild{Build: id("released"), Attempt: 1},
		commands.SucceedBuild{Build: id("succeeded"), Attempt: 1, Worker: "w", Wheel: *wheel("succeeded")},
	)
	before, _ := w.left(jobs[0].Stream)
	if got := w.held(l, "w", jobs...); !slices.Equal(got, []Held{Cancel, Lost, Lost, Lost}) {
		t.Errorf("%v", got)
	}
	if after, _ := w.left(jobs[0].Stream); after > before {
		t.Errorf("the heartbeat extended a cancelled lease from %v to %v", before, after)
	}
	// Queued and leased again: the new worker has it, the old one has not.
	w.queue("cancelled")
	w.do(commands.LeaseBuild{Build: id("cancelled"), Worker: "v", ExpiresAt: time.Now().Add(time.Hour)})
	if got := w.held(l, "w", jobs[0]); !slices.Equal(got, []Held{Lost}) {
		t.Errorf("the old worker: %v", got)
	}
	if got := w.held(l, "v", Job{jobs[0].Stream, 2}); !slices.Equal(got, []Held{Continue}) {
		t.Errorf("the new worker: %v", got)
	}
}

func TestLeaseOfAPlan(t *testing.T) {
	w, l := newLeases(t)
	run, other := uuid.New(), uuid.New()
	for _, r := range []uuid.UUID{run, other} {
		w.do(
			commands.SubmitRun{Run: r, Requirements: "x", Strategy: "pinned", Build: "all"},
			commands.LeasePlan{Run: r, Worker: "w", ExpiresAt: time.Now().Add(time.Hour)},
		)
	}
	a, b := Job{events.RunStream(run), 1}, Job{events.RunStream(other), 1}
	w.do(commands.CancelRun{Run: other})
	if got := w.held(l, "w", a, b); !slices.Equal(got, []Held{Continue, Cancel}) {
		t.Errorf("%v", got)
	}
	w.do(commands.RecordPlan{Run: run, Attempt: 1, Plan: uuid.New(), Worker: "w", PythonTag: "cp311", PlatformTag: "any"})
	if got := w.held(l, "w", a); !slices.Equal(got, []Held{Lost}) {
		t.Errorf("after the plan: %v", got)
	}
	w.do(commands.CancelRun{Run: run}) // long after its lease
	if _, ok := w.left(a.Stream); ok {
		t.Error("a run that is not leased has a lease")
	}
}

// A lease whose time is over goes back into the queue, by one command whoever sends it how often; one that is cancelled is forgotten.
func TestExpire(t *testing.T) {
	w, l := newLeases(t)
	w.loop = false
	run := uuid.New()
	w.queue("a", "alive", "cancelled")
	for _, name := range []string{"a", "alive", "cancelled"} {
		w.lease(name)
	}
	w.do(
		commands.CancelBuild{Build: id("cancelled")},
		commands.SubmitRun{Run: run, Requirements: "x", Strategy: "pinned", Build: "all"},
		commands.LeasePlan{Run: run, Worker: "w", ExpiresAt: time.Now().Add(time.Hour)},
	)
	expire := func() []Message {
		t.Helper()
		if err := l.expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		sent := w.messages()
		w.take()
		return sent
	}
	w.settle(leases)
	if sent := expire(); len(sent) > 0 {
		t.Fatalf("sent %v before the time", sent)
	}
	w.overdue()
	if got := w.held(l, "w", Job{id("alive").Stream(), 1}, Job{id("cancelled").Stream(), 1}); !slices.Equal(got, []Held{Continue, Cancel}) {
		t.Errorf("%v", got) // late, and not too late
	}
	first, second := expire(), expire()
	if d := cmp.Diff(first, second); d != "" {
		t.Errorf("the second time:\n%s", d)
	}
	reason := "the worker sent no heartbeat for 1m0s"
	want := map[string]commands.Command{
		id("a").Stream():      commands.ReleaseBuild{Build: id("a"), Attempt: 1, Worker: "w", Reason: reason, Lost: true},
		events.RunStream(run): commands.ReleasePlan{Run: run, Attempt: 1, Worker: "w", Reason: reason, Lost: true},
	}
	for _, m := range first {
		if d := cmp.Diff(want[m.Command.Stream()], m.Command); d != "" || m.Meta.Actor != leases || m.Meta.ID == uuid.Nil {
			t.Errorf("%+v:\n%s", m.Meta, d)
		}
		delete(want, m.Command.Stream())
		if o := w.handle(m); o.Status != eventlog.Applied {
			t.Errorf("%+v", o)
		}
	}
	if len(want) > 0 {
		t.Errorf("not sent: %v", want)
	}
	for stream, there := range map[string]bool{id("a").Stream(): false, id("alive").Stream(): true, id("cancelled").Stream(): false, events.RunStream(run): false} {
		if _, ok := w.left(stream); ok != there {
			t.Errorf("%s: lease %v, want %v", stream, ok, there)
		}
	}
	if sent := expire(); len(sent) > 0 {
		t.Errorf("sent %v of what was released", sent)
	}
	if got := w.held(l, "w", Job{id("a").Stream(), 1}, Job{id("cancelled").Stream(), 1}); !slices.Equal(got, []Held{Lost, Lost}) {
		t.Errorf("%v", got)
	}
	// The next attempt expires by a command of its own.
	w.lease("a")
	w.overdue()
	i := slices.IndexFunc(expire(), func(m Message) bool {
		return m.Command.Stream() == id("a").Stream() && m.Meta.ID != first[0].Meta.ID && m.Meta.ID != first[1].Meta.ID
	})
	if i < 0 {
		t.Error("the second attempt was not taken back")
	}
}

// A build that kills every worker ends, by expired leases alone.
func TestExpireGivesUp(t *testing.T) {
	w, l := newLeases(t)
	w.queue("a")
	for range 3 {
		w.lease("a")
		w.overdue()
		if err := l.expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if b := w.build("a"); b.Status != "failed" {
		t.Errorf("a is %s at attempt %d", b.Status, b.Attempt)
	}
	if _, ok := w.left(id("a").Stream()); ok {
		t.Error("the lease is left")
	}
}

// After a start nothing expires for a while: nobody could send a heartbeat. It ends with its context.
func TestExpireWaitsAfterAStart(t *testing.T) {
	w, l := newLeases(t)
	w.queue("a")
	w.lease("a")
	w.overdue()
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond) // longer than expireEvery
	defer cancel()
	l.takeBack(ctx)
	if got := w.take(); got != "" {
		t.Errorf("sent %s", got)
	}
}

// Leased, cancelled, queued and leased again between two looks at the log, in one batch or in several, comes out the same.
func TestLeasesInBatches(t *testing.T) {
	w := newWorld(t)
	w.queue("a", "b", "c", "d")
	for _, name := range []string{"a", "b", "c", "d"} {
		w.lease(name)
	}
	w.do(commands.CancelBuild{Build: id("a")}, commands.CancelBuild{Build: id("b")})
	w.queue("b")
	w.lease("b")
	w.do(commands.ReleaseBuild{Build: id("c"), Attempt: 1})
	w.lease("c")
	w.do(commands.SucceedBuild{Build: id("d"), Attempt: 1, Worker: "w", Wheel: *wheel("d")})
	for size := range 12 {
		if _, err := w.pool.Exec(t.Context(), `truncate followers, leases`); err != nil {
			t.Fatal(err)
		}
		f := NewLeases(w.pool, w.send, slog.New(slog.DiscardHandler)).Follower()
		apply := f.Apply
		f.Apply = func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
			for part := range slices.Chunk(batch, size+1) {
				if err := apply(ctx, c, part); err != nil {
					return err
				}
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.log.Run(ctx, f) }()
		w.settle(leases)
		var got []string
		if err := w.pool.QueryRow(t.Context(), `select array_agg(concat_ws(' ', split_part(stream, '/', 2), attempt, cancelled) order by stream) from leases`).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if want := "[a 1 t b 2 f c 2 f]"; fmt.Sprint(got) != want {
			t.Errorf("in batches of %d: %v, want %s", size+1, got, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
