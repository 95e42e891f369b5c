package eventlog_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// What another process does is known here as soon as it is done, not at the next poll: outcomes, how far followers are whether they wrote
// or not, and that a table was changed. Each of the twenty rounds would take about 0.1 s if it were polled for.
func TestProcessesTellEachOther(t *testing.T) {
	pool := pgtest.New(t)
	here, there := open(t, pool), open(t, pool)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if _, err := pool.Exec(ctx, "create table made (at bigint)"); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		_ = there.Run(ctx, eventlog.Follower{Name: "other", Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
			b := &eventlog.Writes{}
			if last := batch[len(batch)-1]; last.Position%2 == 0 {
				b.Queue("insert into made values ($1)", last.Position)
			}
			return c.Save(ctx, batch[len(batch)-1].Position, b)
		}})
	})
	here.Watch("other")
	// They know of each other after a second.
	appendOK(t, there, entry("queue/first", 0, 1))
	if err := here.WaitFor(ctx, 1, "other"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)

	const rounds = 20
	within := func(what string, f func(i int)) {
		t.Helper()
		begin := time.Now()
		for i := range rounds {
			f(i)
		}
		if took := time.Since(begin); took > 1500*time.Millisecond {
			t.Errorf("%s: %d rounds took %v, so it was polled for", what, rounds, took)
		}
	}
	within("outcomes", func(i int) {
		e := entry("queue/outcomes", int64(i), 1)
		wait, forget := here.Expect(e.Outcome.Command)
		defer forget()
		appendOK(t, there, e)
		if o, err := wait(ctx); err != nil || o.First != int64(i)+2 {
			t.Fatalf("outcome %d is %+v, %v", i, o, err)
		}
	})
	within("outcomes without events", func(i int) {
		e := entry("queue/refused", 0, 0)
		wait, forget := here.Expect(e.Outcome.Command)
		defer forget()
		appendOK(t, there, e)
		if o, err := wait(ctx); err != nil || o.First != 0 {
			t.Fatalf("outcome %d is %+v, %v", i, o, err)
		}
	})
	within("followers", func(i int) {
		appendOK(t, here, entry("queue/followers", int64(i), 1))
		position := here.Head()
		_, before := here.Covered("other")
		if err := here.WaitFor(ctx, position, "other"); err != nil {
			t.Fatal(err)
		}
		at, after := here.Covered("other")
		if at != position || position%2 == 0 && before == after {
			t.Fatalf("covers %d of %d, and the version of what it made goes from %d to %d", at, position, before, after)
		}
	})
	within("tables", func(int) {
		_, before := here.Covered("other")
		there.Touch("other")
		for {
			if _, now := here.Covered("other"); now != before {
				return
			}
			if time.Sleep(time.Millisecond); ctx.Err() != nil {
				t.Fatal(ctx.Err())
			}
		}
	})
}

// What a follower's Lead does, one process does: another begins when the lease has gone to it, and the one that was paused stops, though
// no event comes that would tell it.
func TestLead(t *testing.T) {
	pool := pgtest.New(t)
	var mu sync.Mutex
	leads := map[string]bool{}
	note := func(who string, is bool) {
		mu.Lock()
		defer mu.Unlock()
		leads[who] = is
	}
	who := func() string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(leads["one"], leads["two"])
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	start := func(name string) {
		log := open(t, pool)
		wg.Go(func() {
			_ = log.Run(ctx, eventlog.Follower{Name: "f", Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
				return c.Save(ctx, batch[len(batch)-1].Position, nil)
			}, Lead: func(ctx context.Context) {
				note(name, true)
				<-ctx.Done()
				note(name, false)
			}})
		})
	}
	becomes := func(want string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); who() != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("they lead: %s, want %s", who(), want)
			}
		}
	}
	start("one")
	becomes("true false")
	start("two")
	time.Sleep(time.Second) // two looks at the lease
	becomes("true false")
	// What a pause looks like to others.
	if _, err := pool.Exec(ctx, `update followers set owner = 'two', epoch = epoch + 1, leased_until = now() + interval '3 s'`); err != nil {
		t.Fatal(err)
	}
	becomes("false false")
	for end := time.Now().Add(20 * time.Second); who() != "true false" && who() != "false true"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody leads after the lease")
		}
	}
}

// Each message costs Postgres something for each process that listens, so one that appends and wants to know nothing does not. It knows the
// head all the same.
func TestWhoWantsNoNewsDoesNotListen(t *testing.T) {
	pool := pgtest.New(t)
	log := open(t, pool)
	// A connection that listens is not one of the pool.
	listens := func() bool {
		t.Helper()
		var connections int32
		err := pool.QueryRow(t.Context(), `select count(*) from pg_stat_activity where datname = current_database() and backend_type = 'client backend'`).Scan(&connections)
		if err != nil {
			t.Fatal(err)
		}
		return connections > pool.Stat().TotalConns()
	}
	becomes := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("this did not come about: ", what)
			}
		}
	}
	appendOK(t, log, entry("queue/first", 0, 1))
	if _, err := pool.Exec(t.Context(), `update head set position = 7`); err != nil {
		t.Fatal(err)
	}
	becomes("the head is 7", func() bool { return log.Head() == 7 })
	if listens() {
		t.Error("it listens, and nothing waits")
	}
	log.Changed()
	becomes("it listens", listens)
}
