package eventlog_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func open(t testing.TB, pool *pgxpool.Pool) *eventlog.Log {
	t.Helper()
	l, err := eventlog.Open(t.Context(), pool, eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// entry appends n events to a queue-like stream.
func entry(stream string, expected int64, n int) eventlog.Entry {
	e := eventlog.Entry{
		Outcome: eventlog.Outcome{
			Command: uuid.Must(uuid.NewV7()), Name: "test", Stream: stream, Actor: "tester", Status: eventlog.Applied,
			Digest: "d", Result: json.RawMessage(`{"n":1}`),
		},
		Expected: expected, Correlation: uuid.New(), Causation: 7,
	}
	for i := range n {
		e.Events = append(e.Events, events.QueuePaused{Reason: fmt.Sprint(i)})
	}
	return e
}

func appendOK(t testing.TB, l *eventlog.Log, entries ...eventlog.Entry) []eventlog.Result {
	t.Helper()
	results, err := l.Append(t.Context(), entries...)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func TestAppendAndRead(t *testing.T) {
	l := open(t, pgtest.New(t))
	a, b, refused := entry("queue/a", 0, 2), entry("queue/b", 0, 1), entry("queue/c", 0, 0)
	a2 := entry("queue/a", 2, 1) // follows a in the same call
	refused.Outcome.Status, refused.Outcome.Result = eventlog.Refused, nil
	refused.Outcome.Problem = &fault.Error{Code: fault.Conflict, Message: "no", Fields: []fault.Field{{Pointer: "/x", Detail: "y"}}}
	results := appendOK(t, l, a, b, refused, a2)
	for i, want := range [][2]int64{{1, 2}, {3, 3}, {0, 0}, {4, 4}} {
		o := results[i].Outcome
		if results[i].Err != nil || o.First != want[0] || o.Last != want[1] {
			t.Errorf("entry %d: %v, positions %d..%d, want %v", i, results[i].Err, o.First, o.Last, want)
		}
	}
	recorded, err := l.Read(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	want := []events.Recorded{
		{Position: 1, Stream: "queue/a", Version: 1, Command: a.Outcome.Command, Correlation: a.Correlation, Event: a.Events[0]},
		{Position: 2, Stream: "queue/a", Version: 2, Command: a.Outcome.Command, Correlation: a.Correlation, Event: a.Events[1]},
		{Position: 3, Stream: "queue/b", Version: 1, Command: b.Outcome.Command, Correlation: b.Correlation, Event: b.Events[0]},
		{Position: 4, Stream: "queue/a", Version: 3, Command: a2.Outcome.Command, Correlation: a2.Correlation, Event: a2.Events[0]},
	}
	for i := range want {
		want[i].Causation, want[i].Actor, want[i].Time, want[i].Size = 7, "tester", results[0].Outcome.Time, len(`{"reason":"0"}`)
	}
	if d := cmp.Diff(want, recorded, cmp.AllowUnexported(events.QueuePaused{})); d != "" {
		t.Error(d)
	}
	streams, err := l.Load(t.Context(), "queue/a", "queue/none")
	if err != nil || streams["queue/a"].Version != 3 || len(streams["queue/a"].Events) != 3 || streams["queue/none"].Version != 0 {
		t.Errorf("Load: %v, %+v", err, streams)
	}
	outcomes, err := l.Outcomes(t.Context(), refused.Outcome.Command, uuid.New())
	if o := outcomes[refused.Outcome.Command]; err != nil || len(outcomes) != 1 || o.Status != eventlog.Refused || o.Problem.Fields[0].Detail != "y" {
		t.Errorf("Outcomes: %v, %+v", err, outcomes)
	}
}

func TestConflictsAndDuplicates(t *testing.T) {
	l := open(t, pgtest.New(t))
	first := entry("queue/a", 0, 1)
	appendOK(t, l, first)
	again, stale, other := first, entry("queue/b", 5, 1), entry("queue/c", 0, 1)
	behind := entry("queue/a", 2, 1) // decided on top of the duplicate
	twin := other                    // the same command twice in one call
	results := appendOK(t, l, again, behind, stale, other, twin)
	for i, want := range []error{eventlog.ErrDuplicate, eventlog.ErrConflict, eventlog.ErrConflict, nil, eventlog.ErrDuplicate} {
		if !errors.Is(results[i].Err, want) {
			t.Errorf("entry %d: %v, want %v", i, results[i].Err, want)
		}
	}
	if results[0].Outcome.First != 1 || results[3].Outcome.First != 2 || results[4].Outcome.First != 2 {
		t.Errorf("positions: %+v", results)
	}
	if l.Head() != 2 {
		t.Errorf("head is %d, want 2", l.Head())
	}
}

// A row that Postgres refuses must cost only its own command, not those that share its transaction.
func TestRejectedData(t *testing.T) {
	l := open(t, pgtest.New(t))
	var entries []eventlog.Entry
	for i := range 9 {
		entries = append(entries, entry(fmt.Sprintf("queue/%d", i), 0, 1))
	}
	entries[4].Outcome.Actor = "nul\x00"
	for i, r := range appendOK(t, l, entries...) {
		if bad := errors.Is(r.Err, eventlog.ErrRejected); bad != (i == 4) || (r.Err != nil && !bad) {
			t.Errorf("entry %d: %v", i, r.Err)
		}
	}
	if recorded, err := l.Read(t.Context(), 0, 100); err != nil || len(recorded) != 8 {
		t.Errorf("%d events, %v; want 8 without a hole", len(recorded), err)
	}
}

// A reader must never see position n+1 before n, however commits are delayed: that is what sequences and timestamps get wrong. One
// transaction is held open after it took its position; nobody may pass it.
func TestOutOfOrderCommit(t *testing.T) {
	pool := pgtest.New(t)
	l := open(t, pool)
	ctx := t.Context()
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	_, err = tx.Exec(ctx, `select append_events(now(), array[$1::uuid], '{x}', '{queue/slow}', '{me}', '{applied}', '{1}', '{1}', array[''], '{"{}"}',
		'{queue/slow}', '{1}', '{1}', '{1}', '{}', '{}', '{}', '{}', '{}', '{}',
		'{queue/slow}', '{1}', '{queue.resumed.v1}', '{"{}"}', array[$1::uuid], array[$1::uuid], '{0}', '{me}')`, uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan []eventlog.Result)
	go func() {
		r, err := l.Append(ctx, entry("queue/fast", 0, 1))
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	select {
	case <-done:
		t.Fatal("an append passed one that had its position and was not committed")
	case <-time.After(300 * time.Millisecond):
	}
	if recorded, err := l.Read(ctx, 0, 10); err != nil || len(recorded) != 0 {
		t.Fatalf("%d events are visible, %v", len(recorded), err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r[0].Outcome.First != 2 {
		t.Errorf("the later append is at %d, want 2", r[0].Outcome.First)
	}
	if recorded, err := l.Read(ctx, 0, 10); err != nil || len(recorded) != 2 {
		t.Errorf("%d events, %v; want 2", len(recorded), err)
	}
}

// Many writers in two processes, while a reader follows: each event once, in order, without a hole.
func TestConcurrentAppend(t *testing.T) {
	pool := pgtest.New(t)
	a, b := open(t, pool), open(t, pool)
	const writers, each = 16, 40
	ctx, cancel := context.WithCancel(t.Context())
	var seen []int64
	var following sync.WaitGroup
	following.Go(func() {
		err := b.Run(ctx, eventlog.Follower{Name: "reader", Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
			for _, r := range batch {
				seen = append(seen, r.Position)
			}
			return c.Save(ctx, batch[len(batch)-1].Position, nil)
		}})
		if err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for w := range writers {
		l := []*eventlog.Log{a, b}[w%2]
		wg.Go(func() {
			version := int64(0)
			for range each {
				n := rand.IntN(3)
				r, err := l.Append(t.Context(), entry(fmt.Sprintf("queue/%d", w), version, n))
				if err != nil || r[0].Err != nil {
					t.Error(err, r)
					return
				}
				version += int64(n)
			}
		})
	}
	wg.Wait()
	head := max(a.Head(), b.Head())
	wait, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := a.WaitFor(wait, head, "reader"); err != nil { // from the other process, over the checkpoint
		t.Error(err)
	}
	cancel()
	following.Wait()
	if int64(len(seen)) != head {
		t.Fatalf("the reader saw %d events of %d", len(seen), head)
	}
	for i, p := range seen {
		if p != int64(i+1) {
			t.Fatalf("the reader saw position %d at place %d", p, i+1)
		}
	}
}

func TestFollowerFencing(t *testing.T) {
	pool := pgtest.New(t)
	l := open(t, pool)
	appendOK(t, l, entry("queue/a", 0, 3))
	if _, err := pool.Exec(t.Context(), `create table seen (position bigint primary key)`); err != nil {
		t.Fatal(err)
	}
	insert := func(p int64) *eventlog.Writes {
		b := &eventlog.Writes{}
		b.Queue(`insert into seen values ($1)`, p)
		return b
	}
	ctx, cancel := context.WithCancel(t.Context())
	var stale *eventlog.Checkpoint
	var runs int
	if err := l.Run(ctx, eventlog.Follower{Name: "f", Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
		switch runs++; runs {
		case 1:
			stale = c
			// Rows that cannot be written take the checkpoint with them.
			b := insert(1)
			b.Queue(`insert into seen values (1)`)
			if err := c.Save(ctx, 3, b); err == nil || errors.Is(err, eventlog.ErrFenced) {
				t.Errorf("a bad row gave %v", err)
			}
			return errors.New("try again")
		case 2:
			if batch[0].Position != 1 || len(batch) != 3 {
				t.Errorf("the second try got %d events from %d", len(batch), batch[0].Position)
			}
			if err := stale.Save(ctx, 3, insert(2)); !errors.Is(err, eventlog.ErrFenced) {
				t.Errorf("the old epoch saved: %v", err)
			}
			if err := c.Save(ctx, 3, insert(3)); err != nil {
				t.Error(err)
			}
			cancel()
			return nil
		}
		return errors.New("not reached")
	}}); err != nil {
		t.Error(err)
	}
	var rows []int64
	if err := pool.QueryRow(t.Context(), `select array_agg(position) from seen`).Scan(&rows); err != nil || len(rows) != 1 || rows[0] != 3 {
		t.Errorf("rows %v, %v; want [3]", rows, err)
	}
}

// A process with the name of a dead one takes over at once; one with another name waits for the lease.
func TestTakeOver(t *testing.T) {
	pool := pgtest.New(t)
	start := func(owner string) (*eventlog.Log, chan struct{}, context.CancelFunc) {
		l, err := eventlog.Open(t.Context(), pool, eventlog.Options{Owner: owner})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		running := make(chan struct{}, 100)
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.Run(ctx, eventlog.Follower{Name: "f", Apply: func(ctx context.Context, c *eventlog.Checkpoint, b []events.Recorded) error {
				running <- struct{}{}
				return c.Save(ctx, b[len(b)-1].Position, nil)
			}})
		}()
		t.Cleanup(func() { cancel(); <-done; l.Close() })
		return l, running, cancel
	}
	a, running, _ := start("one")
	appendOK(t, a, entry("queue/a", 0, 1))
	<-running
	_, other, _ := start("two")
	_, again, stop := start("one") // as after kill -9: the first never gave the lease back
	appendOK(t, a, entry("queue/a", 1, 1))
	select {
	case <-again:
	case <-other:
		t.Fatal("a standby ran beside the holder of the lease")
	case <-time.After(5 * time.Second):
		t.Fatal("the successor did not take over")
	}
	_ = stop
}

func TestExpect(t *testing.T) {
	pool := pgtest.New(t)
	here, elsewhere := open(t, pool), open(t, pool)
	for name, l := range map[string]*eventlog.Log{"here": here, "elsewhere": elsewhere} {
		e := entry("queue/"+name, 0, 1)
		wait, forget := l.Expect(e.Outcome.Command)
		defer forget()
		go here.Append(t.Context(), e)
		o, err := wait(t.Context())
		if err != nil || o.Command != e.Outcome.Command || o.First == 0 {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
}
