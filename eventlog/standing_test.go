package eventlog_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// Standings tells of a follower that keeps up and of one that does not, and the functions of Options hear of every batch.
func TestStandingsAndWhoIsTold(t *testing.T) {
	pool := pgtest.New(t)
	var mu sync.Mutex
	var outcomes, appended, applied int
	l, err := eventlog.Open(t.Context(), pool, eventlog.Options{
		Appended: func(o []eventlog.Outcome, n int, begin time.Time) {
			mu.Lock()
			defer mu.Unlock()
			outcomes, appended = outcomes+len(o), appended+n
			for _, one := range o {
				if one.Name != "test" || one.Status != eventlog.Applied || one.Last == 0 || time.Since(begin) < 0 {
					t.Errorf("told of %+v, begun %v", one, begin)
				}
			}
		},
		Applied: func(follower string, batch []events.Recorded, _ time.Time) {
			mu.Lock()
			defer mu.Unlock()
			if follower == "quick" {
				applied += len(batch)
			} else {
				t.Errorf("told of %s", follower)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for name, apply := range map[string]func(context.Context, *eventlog.Checkpoint, []events.Recorded) error{
		"quick": func(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
			return c.Save(ctx, batch[len(batch)-1].Position, nil)
		},
		"stuck": func(ctx context.Context, _ *eventlog.Checkpoint, _ []events.Recorded) error {
			<-ctx.Done()
			return ctx.Err()
		},
	} {
		wg.Go(func() { _ = l.Run(ctx, eventlog.Follower{Name: name, Apply: apply}) })
	}
	appendOK(t, l, entry("a", 0, 2), entry("b", 0, 1))
	if err := l.WaitFor(t.Context(), 3, "quick"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(30 * time.Millisecond)
	all, err := l.Standings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]eventlog.Standing{}
	for _, s := range all {
		at[s.Name] = s
	}
	if s := at["quick"]; s.Position != 3 || s.Lag != 0 || s.Late != 0 {
		t.Errorf("%+v", s)
	}
	if s := at["stuck"]; s.Position != 0 || s.Lag != 3 || s.Late < 30*time.Millisecond || s.Late > time.Minute {
		t.Errorf("%+v", s)
	}
	mu.Lock()
	defer mu.Unlock()
	if outcomes != 2 || appended != 3 || applied != 3 {
		t.Errorf("told of %d outcomes, %d events appended, %d applied", outcomes, appended, applied)
	}
}
