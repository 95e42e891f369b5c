package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/projections"
)

// append appends events to a wheel's stream and waits until the read models have them.
func (c *control) append(filename string, expected int64, evs ...events.Event) (last int64) {
	c.Helper()
	return c.appendTo(events.ArtifactStream(filename), expected, evs...)
}

func (c *control) appendTo(stream string, expected int64, evs ...events.Event) (last int64) {
	c.Helper()
	results, err := c.log.Append(c.Context(), eventlog.Entry{
		Outcome:  eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: stream, Status: eventlog.Applied},
		Expected: expected, Events: evs,
	})
	if err != nil || results[0].Err != nil {
		c.Fatal(err, results)
	}
	c.covered(results[0].Outcome.Last)
	return results[0].Outcome.Last
}

func (c *control) covered(position int64) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
	defer cancel()
	if err := c.read.Wait(ctx, position); err != nil {
		c.Fatal(err)
	}
}

func (c *control) exec(sql string) {
	c.Helper()
	if _, err := c.pool.Exec(c.Context(), sql); err != nil {
		c.Fatal(err)
	}
}

func published(name string) events.ArtifactPublished {
	return events.ArtifactPublished{
		Filename: name + "-1.0-py3-none-any.whl", SHA256: strings.Repeat("a", 64), Size: 1, Project: name, Version: "1.0", Tags: []string{"py3-none-any"},
		MetadataSHA256: strings.Repeat("b", 64), Build: events.BuildID{Name: name, Version: "1.0", PythonTag: "cp311", PlatformTag: "any"}, Attempt: 1,
	}
}

func (c *control) artifacts() (names []string) {
	c.Helper()
	var list api.ArtifactList
	c.call(200, "GET", "/artifacts", nil, &list)
	for _, a := range list.Items {
		names = append(names, fmt.Sprintf("%s %v %s", a.Project, a.Yanked, a.YankReason))
	}
	return names
}

func TestDeadLetters(t *testing.T) {
	c := startControl(t)
	bad, odd := published("bad"), published("odd")
	c.exec(`alter table artifacts.files add constraint broken check (project = 'good')`)
	last := c.append(bad.Filename, 0, bad, events.ArtifactYanked{Reason: "wrong"})
	first := last - 1
	at := func(id int64, action string) string {
		return fmt.Sprintf("/projections/artifacts/dead-letters/%d/%s", id, action)
	}
	c.append("good-1.0-py3-none-any.whl", 0, published("good")) // the others go on
	if got := c.artifacts(); len(got) != 1 || got[0] != "good false " {
		t.Fatalf("%q", got)
	}
	c.call(404, "POST", "/projections/nothing/dead-letters/1/retry", nil, nil)
	c.call(404, "POST", at(last+1000, "retry"), nil, nil)
	c.call(400, "POST", at(0, "retry"), nil, nil)
	var a api.DeadLetterAnswer
	c.call(200, "POST", at(first, "retry"), nil, &a)
	if a.Applied != 0 || a.Parked != 2 || !strings.Contains(a.Error, "broken") || a.Stream != events.ArtifactStream(bad.Filename) {
		t.Errorf("not mended: %+v", a)
	}
	c.call(409, "POST", at(last, "skip"), nil, nil)

	// Mended: all of them, in order, by way of any.
	c.exec(`alter table artifacts.files drop constraint broken`)
	a = api.DeadLetterAnswer{}
	c.call(200, "POST", at(last, "retry"), nil, &a)
	if a.Applied != 2 || a.Parked != 0 || a.Error != "" {
		t.Errorf("mended: %+v", a)
	}
	if got := c.artifacts(); len(got) != 2 || got[1] != "bad true wrong" {
		t.Errorf("%q", got)
	}
	c.call(404, "POST", at(first, "retry"), nil, nil)
	// Whoever feeds the read model knows that the stream is not parked any more.
	c.append(bad.Filename, 2, events.ArtifactUnyanked{})
	if got := c.artifacts(); len(got) != 2 || got[1] != "bad false " {
		t.Errorf("%q", got)
	}

	// Skipped: what is behind it is applied.
	c.exec(`alter table artifacts.files add constraint broken check (project <> 'odd')`)
	last = c.append(odd.Filename, 0, odd, events.ArtifactYanked{}, events.ArtifactUnyanked{})
	c.call(200, "POST", at(last-2, "skip"), nil, &a)
	if a.Applied != 3 || a.Parked != 0 {
		t.Errorf("skipped: %+v", a)
	}
	if got := c.artifacts(); len(got) != 2 {
		t.Errorf("%q", got)
	}
	// A rebuild from the log shows it again.
	c.exec(`alter table artifacts.files drop constraint broken`)
	c.rebuilt("artifacts", 2)
	if got := c.artifacts(); len(got) != 3 {
		t.Errorf("%q", got)
	}
	var actions []string
	if err := c.pool.QueryRow(t.Context(), `select array_agg(type order by position) from events where stream = 'projection/artifacts'`).Scan(&actions); err != nil || len(actions) != 4 {
		t.Errorf("%v %v", actions, err)
	}
}

// rebuilt asks for a rebuild and waits until that generation serves.
func (c *control) rebuilt(name string, generation int64) {
	c.Helper()
	var a api.ProjectionAnswer
	c.call(200, "POST", "/projections/"+name+"/rebuild", nil, &a)
	if a.Name != name || a.State != api.RebuildStateRebuilding {
		c.Errorf("%+v", a)
	}
	eventually(c.T, 20*time.Second, func() error {
		all, err := c.read.Status(c.Context())
		if err != nil {
			return err
		}
		for _, s := range all {
			if s.Name == name && (s.Generation != generation || s.State != "live") {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
}

func TestRebuild(t *testing.T) {
	c := startControl(t)
	c.call(404, "POST", "/projections/nothing/rebuild", nil, nil)
	c.call(400, "POST", "/projections/No%20thing/rebuild", nil, nil)
	c.enqueue("a", 0)
	for generation := range int64(2) {
		c.rebuilt("queue", generation+2)
		c.enqueue(fmt.Sprintf("b%d", generation), 0) // and it is fed on
		var s api.QueueStats
		if c.call(200, "GET", "/queue/stats", nil, &s); s.Length != generation+2 {
			t.Errorf("%d wait", s.Length)
		}
	}
	state, err := projections.Queue(t.Context(), c.reads)
	if err != nil || state.Length != 3 {
		t.Errorf("%+v %v", state, err)
	}
}
