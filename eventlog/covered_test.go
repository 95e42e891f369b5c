package eventlog_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// What another process feeds is covered as far as its checkpoint says, never more; and whatever may have changed what a follower made
// changes the version.
func TestCovered(t *testing.T) {
	pool := pgtest.New(t)
	here, there := open(t, pool), open(t, pool)
	if _, err := pool.Exec(t.Context(), "create table made (at bigint)"); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	feed := func(l *eventlog.Log, name string) {
		wg.Go(func() {
			_ = l.Run(ctx, eventlog.Follower{Name: name, Apply: func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
				select {
				case <-hold:
				case <-ctx.Done():
					return ctx.Err()
				}
				b := &eventlog.Writes{}
				if batch[len(batch)-1].Stream == "queue/rows" {
					b.Queue("insert into made values ($1)", batch[0].Position)
				}
				return c.Save(ctx, batch[len(batch)-1].Position, b)
			}})
		})
	}
	feed(here, "own")
	feed(there, "other")
	appendOK(t, here, entry("queue/rows", 0, 1))
	time.Sleep(300 * time.Millisecond) // time for a wrong answer: three looks at the checkpoints
	for _, name := range []string{"own", "other", "nobody"} {
		if at, _ := here.Covered(name); at != 0 {
			t.Errorf("%s has done nothing, and covers %d", name, at)
		}
	}
	close(hold)
	reach := func(l *eventlog.Log, name string, position int64) uint64 {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if at, version := l.Covered(name); at >= position {
				return version
			}
		}
		t.Fatalf("%s does not come to %d", name, position)
		return 0
	}
	own, other := reach(here, "own", 1), reach(here, "other", 1)

	// Without rows the position moves and the version of what this process feeds stays.
	appendOK(t, here, entry("queue/no-rows", 0, 1))
	if v := reach(here, "own", 2); v != own {
		t.Errorf("nothing was written, and the version went from %d to %d", own, v)
	}
	appendOK(t, here, entry("queue/rows", 1, 1))
	if v := reach(here, "own", 3); v == own {
		t.Error("rows were written, and the version stays")
	}
	if v := reach(here, "other", 3); v == other {
		t.Error("another process wrote rows, and the version stays")
	}
	// Who has waited is told of it at once, before the next look.
	appendOK(t, here, entry("queue/rows", 2, 1))
	if err := here.WaitFor(ctx, 4, "other"); err != nil {
		t.Fatal(err)
	}
	if at, _ := here.Covered("other"); at != 4 {
		t.Errorf("waited for 4, and covers %d", at)
	}
	// Other tables in the place of those that are fed, as a rebuild in another process puts there.
	_, before := here.Covered("own")
	if _, err := pool.Exec(ctx, "update followers set epoch = epoch + 1 where name = 'own'"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, v := here.Covered("own"); v != before {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the tables are others, and the version stays")
		}
	}
	_, before = here.Covered("own")
	here.Touch("own")
	if _, v := here.Covered("own"); v == before {
		t.Error("touched, and the version stays")
	}
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if err := here.WaitFor(short, 1, "nobody"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited for nobody: %v", err)
	}
}
