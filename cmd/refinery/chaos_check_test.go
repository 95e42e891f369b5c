package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// settle waits until everything that was accepted has its outcome and nothing moves any more, and returns the end of the log.
func (c *chaos) settle() (head int64) {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), c.dsn)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(c.t.Context()))
	ids := make([]uuid.UUID, len(c.writes))
	for i, w := range c.writes {
		ids[i] = w.id
	}
	eventually(c.t, chaosSettle, func() error {
		before := head
		var missing []uuid.UUID
		err := conn.QueryRow(c.t.Context(), `select (select position from head), coalesce(array_agg(id), '{}') from unnest($1::uuid[]) id
			where not exists (select from commands c where c.id = id.id)`, ids).Scan(&head, &missing)
		if err == nil && len(missing) > 0 {
			err = fmt.Errorf("%d of %d accepted commands have no outcome, such as %s", len(missing), len(ids), missing[0])
		}
		if err == nil && head != before {
			err = errors.New("the log still grows")
			time.Sleep(time.Second) // what policies send takes a moment
		}
		return err
	})
	return head
}

// check looks at what is left when all have stopped.
func (c *chaos) check(head int64) {
	t := c.t
	p := &program{t: t, dsn: c.dsn}
	p.consistent()
	pool := p.pool()
	defer pool.Close()
	rows, err := pool.Query(t.Context(), `select name, detail::text from commands where status = 'failed' limit 3`)
	if err != nil {
		t.Fatal(err)
	}
	var name, detail string
	if _, err := pgx.ForEachRow(rows, []any{&name, &detail}, func() error {
		t.Errorf("%s failed: %s", name, detail)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Open(t.Context(), pool, eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if log.Head() != head {
		t.Errorf("the log went on to %d after it had come to rest at %d", log.Head(), head)
	}
	var all []events.Recorded
	for int64(len(all)) < head {
		batch, err := log.Read(t.Context(), int64(len(all)), 1000) // says where there is a hole
		if err != nil || len(batch) == 0 {
			t.Fatal(len(batch), err)
		}
		all = append(all, batch...)
	}
	leasedOnce(c, all)
	c.linearizable(all)
}

// leasedOnce checks that no build is leased while it is leased, and no attempt twice.
func leasedOnce(c *chaos, all []events.Recorded) {
	leased := map[string]int{} // attempt by stream, 0: not leased
	last := map[string]int{}
	for _, m := range all {
		switch e := m.Event.(type) {
		case events.BuildLeased:
			if leased[m.Stream] != 0 || e.Attempt <= last[m.Stream] {
				c.t.Errorf("%s is leased as attempt %d at %d, and was as %d (the last was %d)", m.Stream, e.Attempt, m.Position, leased[m.Stream], last[m.Stream])
			}
			leased[m.Stream], last[m.Stream] = e.Attempt, e.Attempt
		case events.BuildSucceeded, events.BuildFailed, events.BuildReleased, events.BuildCancelled:
			leased[m.Stream] = 0
		}
	}
}

// versions is a stream's version as operations see and change it.
var versions = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(at, in, _ any) (bool, any) { return at == in.(versionStep).before, in.(versionStep).after },
}

// versionStep leads from one version to another; a look stays.
type versionStep struct{ before, after int64 }

// linearizable checks for each stream that there is one order of writes and looks that all saw: each took effect once, at some moment
// between its call and its return.
func (c *chaos) linearizable(all []events.Recorded) {
	times := map[uuid.UUID]chaosWrite{}
	for _, w := range c.writes {
		times[w.id] = w
	}
	history := map[string][]porcupine.Operation{}
	add := func(stream string, step versionStep, call, ret int64) {
		ops := history[stream]
		history[stream] = append(ops, porcupine.Operation{ClientId: len(ops), Input: step, Call: call, Return: ret})
	}
	timed := 0
	for i := 0; i < len(all); {
		m := all[i]
		step := versionStep{m.Version - 1, m.Version}
		for i++; i < len(all) && all[i].Command == m.Command; i++ {
			step.after = all[i].Version
		}
		call, ret := int64(0), int64(math.MaxInt64)
		if w, ok := times[m.Command]; ok {
			call = w.call
			if w.ret > 0 {
				ret = w.ret
				timed++
			}
		}
		add(m.Stream, step, call, ret)
	}
	for _, l := range c.looks {
		add(l.stream, versionStep{l.version, l.version}, l.call, l.ret)
	}
	longest := 0
	for stream, ops := range history {
		longest = max(longest, len(ops))
		if result := porcupine.CheckOperationsTimeout(versions, ops, 20*time.Second); result != porcupine.Ok {
			c.t.Errorf("the versions of %s are not linearizable: %s\n%s", stream, result, describeHistory(ops))
		}
	}
	c.t.Logf("%d streams are linearizable, the longest with %d operations; %d writes had a known end", len(history), longest, timed)
}

func describeHistory(ops []porcupine.Operation) string {
	var lines []string
	for _, o := range ops {
		lines = append(lines, fmt.Sprintf("%d → %d from %d to %d", o.Input.(versionStep).before, o.Input.(versionStep).after, o.Call, o.Return))
	}
	return strings.Join(lines, "\n")
}
