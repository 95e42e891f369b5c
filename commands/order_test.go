package commands

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

func TestStreamsKeepTheirOrder(t *testing.T) {
	l := openLog(t, pgtest.New(t))
	h := start(t, l)
	const streams, chunks = 40, 25
	var wg sync.WaitGroup
	for s := range streams {
		wg.Go(func() {
			for n := range chunks {
				m, c := meta(), chunk(n, fmt.Sprintf("line %d\n", n))
				c.Attempt = s + 1
				if err := h.Handle(t.Context(), payload(t, m, c)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	next := map[string]int{}
	for _, e := range readAll(t, l) {
		got := e.Event.(events.LogAppended)
		if got.Chunk != next[e.Stream] || e.Version != int64(got.Chunk+1) {
			t.Errorf("%s: chunk %d at version %d, want chunk %d", e.Stream, got.Chunk, e.Version, next[e.Stream])
		}
		next[e.Stream]++
	}
	if len(next) != streams {
		t.Errorf("%d streams", len(next))
	}
	for s, n := range next {
		if n != chunks {
			t.Errorf("%s has %d chunks", s, n)
		}
	}
}

// redeliver does what the bus does: it hands c to one handler after another until one says that it is done, and now and then again.
func redeliver(ctx context.Context, t *testing.T, p []byte, handlers ...*Handler) bool {
	t.Helper()
	for {
		h := handlers[rand.IntN(len(handlers))]
		err := h.Handle(ctx, p)
		switch {
		case ctx.Err() != nil:
			t.Error(ctx.Err())
			return false
		case err == nil && rand.IntN(4) > 0:
			return true
		case err != nil && len(handlers) > 1:
			t.Error("overtaken by the other, and not decided again:", err)
			return false
		}
	}
}

// verify checks that each command has one outcome, and that the applied ones have just the events that their outcome names.
func verify(t *testing.T, l *eventlog.Log, sent []uuid.UUID) {
	t.Helper()
	outcomes, err := l.Outcomes(t.Context(), sent...)
	if err != nil {
		t.Fatal(err)
	}
	if len(outcomes) != len(sent) {
		t.Errorf("%d outcomes of %d commands", len(outcomes), len(sent))
	}
	at := map[uuid.UUID][]int64{}
	versions := map[string]int64{}
	for _, e := range readAll(t, l) {
		at[e.Command] = append(at[e.Command], e.Position)
		if versions[e.Stream]++; e.Version != versions[e.Stream] {
			t.Errorf("position %d of %s is version %d, want %d", e.Position, e.Stream, e.Version, versions[e.Stream])
		}
	}
	for id, o := range outcomes {
		if o.Status != eventlog.Applied {
			t.Errorf("%s %s: %s, %v", o.Name, o.Stream, o.Status, o.Problem)
			continue
		}
		if p := at[id]; len(p) != 1 || p[0] != o.First || p[0] != o.Last {
			t.Errorf("%s %s: events at %v, the outcome says %d..%d", o.Name, o.Stream, p, o.First, o.Last)
		}
		delete(at, id)
	}
	if len(at) > 0 {
		t.Errorf("events of %d commands that nobody sent", len(at))
	}
}

// senders hand commands to handlers: each sender has a log of its own, written in order, and all clear the same queue. All commands are
// applied with one event each; it returns their ids.
func senders(ctx context.Context, t *testing.T, n, each int, handlers ...*Handler) (ids []uuid.UUID) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for s := range n {
		wg.Go(func() {
			for i := range each {
				c := chunk(i, "x\n")
				c.Attempt = s + 1
				for _, c := range []Command{c, ClearQueue{}} {
					m := meta()
					p, err := Encode(m, c)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					ids = append(ids, m.ID)
					mu.Unlock()
					if !redeliver(ctx, t, p, handlers...) {
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return ids
}

// Two processes write the same streams: each overtakes the other all the time, and nothing is lost or doubled.
func TestTwoHandlersFight(t *testing.T) {
	pool := pgtest.New(t)
	l := openLog(t, pool)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ids := senders(ctx, t, 8, 25, start(t, l), start(t, openLog(t, pool)))
	verify(t, l, ids)
}

// The database goes and comes back, again and again, in the middle of everything.
func TestDatabaseGoneAndBack(t *testing.T) {
	pool := pgtest.New(t)
	breaker, err := pgxpool.NewWithConfig(t.Context(), pool.Config())
	if err != nil {
		t.Fatal(err)
	}
	defer breaker.Close()
	l := openLog(t, pool)
	h := start(t, l)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var broken int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 12 {
			var n int64
			err := breaker.QueryRow(ctx, `select count(pg_terminate_backend(pid)) from pg_stat_activity
				where datname = current_database() and pid <> pg_backend_pid()`).Scan(&n)
			if err != nil {
				t.Error(err)
				return
			}
			broken += n
			time.Sleep(50 * time.Millisecond)
		}
	})
	ids := senders(ctx, t, 16, 20, h)
	wg.Wait()
	if broken < 4 {
		t.Errorf("only %d connections were broken: this test shows nothing", broken)
	}
	var verified *eventlog.Log
	for verified == nil { // pooled connections may be dead still
		if verified, err = eventlog.Open(t.Context(), breaker, eventlog.Options{}); err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	defer verified.Close()
	verify(t, verified, ids)
}
