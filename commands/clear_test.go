package commands

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// What commands decide beside the queue. A history interleaves the events of a build and of the queue, as the log does.
func TestBesideTheQueue(t *testing.T) {
	var (
		all      = events.QueueCleared{IncludeLeased: true}
		some     = events.QueueCleared{}
		ask      = EnqueueBuild{Build: flask, Priority: 3}
		take     = LeaseBuild{flask, "w1", noon}
		cleared  = events.BuildCancelled{Reason: "the queue was cleared"}
		clearedA = events.BuildCancelled{Reason: "the queue was cleared", Attempt: 1}
		anew     = events.BuildQueued{Sdist: source1, Constraints: pins, Recipes: aptRuby, Priority: 3}
		retry    = events.BuildQueued{Sdist: source1, Constraints: pins, Recipes: aptRuby, Priority: 3, Retry: true}
		cancelAt = func(position int64, keep bool) CancelBuild {
			return CancelBuild{Build: flask, Reason: "no", KeepLeased: keep, Cleared: position}
		}
		gone = events.BuildCancelled{Reason: "no"}
	)
	for _, tc := range []struct {
		name    string
		log     []events.Event
		when    Command
		then    []events.Event
		refused string
	}{
		{"lease while paused", given(fullQueue, events.QueuePaused{}), take, nil, "paused"},
		{"lease after that", given(fullQueue, events.QueuePaused{}, events.QueueResumed{}), take, then(leased(1)), ""},
		{"lease of what the queue was cleared of", given(fullQueue, some), take, nil, "does not wait"},
		{"lease of what came after", given(some, fullQueue), take, then(leased(1)), ""},
		{"lease of what was left to its worker and handed back", given(fullQueue, leased(1), some, released(1, false)), take, then(leased(2)), ""},
		{"lease of what was taken from its worker and handed back", given(fullQueue, leased(1), all, released(1, false)), take, nil, "does not wait"},

		{"enqueue between clear and cancel", given(fullQueue, some), ask, then(cleared, anew), ""},
		{"enqueue after the cancel", given(fullQueue, some, cleared), ask, then(anew), ""},
		{"enqueue of what waits since the clear", given(some, fullQueue), ask, nil, ""},
		{"enqueue of what was left to its worker", given(fullQueue, leased(1), some), ask, nil, ""},
		{"enqueue of what was taken from its worker", given(fullQueue, leased(1), all), ask, then(clearedA, retry), ""},
		{"enqueue of what was handed back since", given(fullQueue, leased(1), all, released(1, false)), ask, then(cleared, retry), ""},

		{"cancel of what waited", given(fullQueue, some), cancelAt(2, true), then(gone), ""},
		{"cancel of what was queued anew", given(fullQueue, some, cleared, anew), cancelAt(2, true), nil, ""},
		{"cancel of what was queued anew, leased too", given(fullQueue, all, cleared, anew, leased(1)), cancelAt(2, false), nil, ""},
		{"cancel of what is left to its worker", given(fullQueue, leased(1), some), cancelAt(3, true), nil, ""},
		{"cancel of what was left and handed back", given(fullQueue, leased(1), some, released(1, false)), cancelAt(3, true), nil, ""},
		{"cancel of what was leased at the clear and handed back", given(fullQueue, leased(1), all, released(1, false)), cancelAt(3, false), then(gone), ""},
		{"cancel of what ended and is planned again", given(fullQueue, all, leased(1), failed(1), events.BuildPlanned{}), cancelAt(2, false), nil, ""},
	} {
		t.Run(strings.ReplaceAll(tc.name, " ", "_"), func(t *testing.T) {
			k := kinds[tc.when.Name()]
			q := modelOf[Queue, events.QueueEvent]()
			build, queue := k.zero, q.zero
			for i, e := range tc.log {
				build, queue = k.fold(build, e, int64(i+1)), q.fold(queue, e, int64(i+1))
			}
			got, err := k.decide(build, queue, tc.when)
			if tc.refused != "" {
				if fault.CodeOf(err) != fault.Conflict || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("%v, %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.then, got, everything); d != "" && len(tc.then)+len(got) > 0 {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// The order of commands is the order of decisions, in one batch or in several, and another process's pause is seen at once.
func TestBesideInBatches(t *testing.T) {
	pool := pgtest.New(t)
	l := openLog(t, pool)
	h := NewHandler(l, slog.New(slog.DiscardHandler))
	batch := func(h *Handler, cs ...Command) (outcomes []eventlog.Outcome) {
		t.Helper()
		var tasks []*task
		for _, c := range cs {
			tasks = append(tasks, newTask(meta(), c))
		}
		for left := tasks; len(left) > 0; {
			var err error
			if left, err = h.batch(context.Background(), left); err != nil {
				t.Fatal(err)
			}
		}
		for _, tk := range tasks {
			if err := <-tk.done; err != nil {
				t.Fatal(err)
			}
			outcomes = append(outcomes, outcome(t, l, tk.meta.ID))
		}
		return outcomes
	}
	other := flask
	other.Version = "3.0.1"
	ask := func(id events.BuildID) EnqueueBuild { return EnqueueBuild{Build: id} }
	lease := func(id events.BuildID) LeaseBuild { return LeaseBuild{id, "w1", noon} }
	got := batch(h, ask(flask), ask(flask), ClearQueue{}, lease(flask), ask(flask), ask(flask), lease(flask), ask(other), PauseQueue{}, lease(other), ResumeQueue{})
	var n []int64
	for _, o := range got {
		if o.Status == eventlog.Refused {
			n = append(n, -1)
		} else if n = append(n, 0); o.First > 0 {
			n[len(n)-1] = o.Last - o.First + 1
		}
	}
	if d := cmp.Diff([]int64{1, 0, 1, -1, 2, 0, 1, 1, 1, -1, 1}, n); d != "" {
		t.Errorf("events of each command, -1 refused:\n%s", d)
	}
	// What the batch was decided at is where the log has it: a clear from before does not take what came after it.
	at := got[2].First
	if o := batch(h, CancelBuild{Build: flask, Cleared: at})[0]; o.Status != eventlog.Applied || o.First != 0 {
		t.Errorf("cancelled what was queued after the clear: %+v", o)
	}
	second := NewHandler(l, slog.New(slog.DiscardHandler))
	batch(second, PauseQueue{})
	if o := batch(h, lease(other))[0]; o.Status != eventlog.Refused {
		t.Errorf("leased while another process has paused: %+v", o)
	}
}

// A stream with an event that cannot be read fails its own commands, visibly, and nobody else's; mended, it goes on.
func TestDamagedEvent(t *testing.T) {
	pool := pgtest.New(t)
	l := openLog(t, pool)
	send(t, start(t, l), meta(), enqueue)
	damage := func(data string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), `update events set data = $1::text::json where position = 1`, data); err != nil {
			t.Fatal(err)
		}
	}
	var before json.RawMessage
	if err := pool.QueryRow(t.Context(), `select data from events where position = 1`).Scan(&before); err != nil {
		t.Fatal(err)
	}
	damage(`{"priority":"high"}`)
	h := start(t, l) // with nothing in its cache
	other := enqueue
	other.Build.Version = "3.0.1"
	for range 2 {
		o := send(t, h, meta(), LeaseBuild{flask, "w1", noon})
		if o.Status != eventlog.Failed || o.Problem.Code != fault.Internal || !strings.Contains(o.Problem.Message, "cannot be read") || strings.Contains(o.Problem.Message, "high") {
			t.Fatalf("%+v", o)
		}
		if o := send(t, h, meta(), other); o.Status != eventlog.Applied {
			t.Fatalf("another stream: %+v", o)
		}
	}
	damage(string(before))
	if o := send(t, h, meta(), LeaseBuild{flask, "w1", noon}); o.Status != eventlog.Applied {
		t.Errorf("mended: %+v", o)
	}
}
