package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// defect is a command whose decision, or the state after it, panics.
type defect struct {
	ID     string `json:"id"`
	InFold bool   `json:"in_fold"`
}

// fragile is a state that no event can be folded into.
type fragile struct{}

func (fragile) Fold(events.QueueEvent) fragile { panic("a defect in Fold") }

func (defect) Name() string     { return "test.panic" }
func (c defect) Stream() string { return "test/" + c.ID }
func (defect) Validate() error  { return nil }
func (c defect) Decide(fragile) ([]events.QueueEvent, error) {
	if c.InFold {
		return []events.QueueEvent{events.QueueResumed{}}, nil
	}
	panic("a defect in Decide")
}

func init() { register[defect]() }

func openLog(t testing.TB, pool *pgxpool.Pool) *eventlog.Log {
	t.Helper()
	l, err := eventlog.Open(context.Background(), pool, eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// start runs a handler on l until the test ends.
func start(t testing.TB, l *eventlog.Log) *Handler {
	t.Helper()
	h := NewHandler(l, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("Run:", err)
		}
	})
	return h
}

// send hands c to h and returns its outcome.
func send(t testing.TB, h *Handler, m Meta, c Command) eventlog.Outcome {
	t.Helper()
	if err := h.Handle(t.Context(), payload(t, m, c)); err != nil {
		t.Fatalf("%s: %v", c.Name(), err)
	}
	return outcome(t, h.log, m.ID)
}

func outcome(t testing.TB, l *eventlog.Log, id uuid.UUID) eventlog.Outcome {
	t.Helper()
	found, err := l.Outcomes(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	o, ok := found[id]
	if !ok {
		t.Fatalf("no outcome of %s", id)
	}
	return o
}

func readAll(t testing.TB, l *eventlog.Log) (all []events.Recorded) {
	t.Helper()
	for {
		after := int64(len(all))
		batch, err := l.Read(t.Context(), after, 5000) // fails on a hole
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, batch...); len(batch) == 0 {
			return all
		}
	}
}

func TestHandle(t *testing.T) {
	pool := pgtest.New(t)
	l := openLog(t, pool)
	h := start(t, l)
	m := Meta{ID: uuid.New(), Actor: "tester", Correlation: runB, Causation: 9, Digest: "d"}
	o := send(t, h, m, enqueue)
	if o.Status != eventlog.Applied || o.First != 1 || o.Last != 1 || o.Stream != flask.Stream() || o.Name != "build.enqueue" || o.Actor != "tester" || o.Digest != "d" {
		t.Errorf("%+v", o)
	}
	if string(o.Result) != `{"status":"queued","attempt":0,"priority":3}` {
		t.Errorf("result %s", o.Result)
	}
	if e := readAll(t, l)[0]; e.Command != m.ID || e.Correlation != runB || e.Causation != 9 || e.Actor != "tester" {
		t.Errorf("%+v", e)
	}
	if o := send(t, h, meta(), enqueue); o.Status != eventlog.Applied || o.First != 0 || string(o.Result) == "" {
		t.Errorf("asking twice: %+v", o)
	}
	o = send(t, h, meta(), succeed)
	if o.Status != eventlog.Refused || o.Problem.Code != fault.Conflict || !strings.Contains(o.Problem.Message, "drop it") || o.First != 0 {
		t.Errorf("a refusal: %+v", o)
	}
	// A second process, with nothing in its cache, stands where the first does.
	if o := send(t, start(t, openLog(t, pool)), meta(), LeaseBuild{flask, "w1", noon}); o.First != 2 || string(o.Result) != `{"status":"leased","attempt":1,"priority":3}` {
		t.Errorf("another process: %+v", o)
	}
}

// A repeated delivery answers with the first outcome, at once, later, in another process, and while the first is under way.
func TestRedelivery(t *testing.T) {
	pool := pgtest.New(t)
	l := openLog(t, pool)
	h, other := start(t, l), start(t, openLog(t, pool))
	for i := range 20 {
		m, c := meta(), ClearQueue{Reason: fmt.Sprint(i)} // each is an event
		p := payload(t, m, c)
		var wg sync.WaitGroup
		for n := range 4 {
			wg.Go(func() {
				if err := []*Handler{h, other}[n%2].Handle(t.Context(), p); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for range 2 {
			if err := h.Handle(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
		if o := outcome(t, l, m.ID); o.First != int64(i+1) {
			t.Fatalf("command %d is at %d", i, o.First)
		}
	}
	if n := len(readAll(t, l)); n != 20 {
		t.Errorf("%d events of 20 commands", n)
	}
}

// The same command twice in one batch, with another behind it.
func TestTwinsInOneBatch(t *testing.T) {
	l := openLog(t, pgtest.New(t))
	h := NewHandler(l, slog.New(slog.DiscardHandler))
	twin, behind := meta(), meta()
	tasks := []*task{newTask(twin, ClearQueue{Reason: "twin"}), newTask(twin, ClearQueue{Reason: "twin"}), newTask(behind, ClearQueue{Reason: "behind"})}
	left := tasks
	for round := 0; len(left) > 0; round++ {
		var err error
		if left, err = h.batch(t.Context(), left); err != nil || round > 5 {
			t.Fatalf("%d commands are left after %d rounds, %v", len(left), round, err)
		}
	}
	for i, task := range tasks {
		if err := <-task.done; err != nil {
			t.Errorf("task %d: %v", i, err)
		}
	}
	if all := readAll(t, l); len(all) != 2 || all[0].Command != twin.ID || all[1].Command != behind.ID {
		t.Errorf("%+v", all)
	}
}

func newTask(m Meta, c Command) *task {
	return &task{meta: m, command: c, kind: kinds[c.Name()], done: make(chan error, 1)}
}

// Many streams at once, each in order: a chunk of a log that came before the one before it would be refused.
// What nobody waits for gathers, for a while at most; what somebody waits for keeps nobody waiting.
func TestGather(t *testing.T) {
	defer func(d time.Duration) { gatherFor = d }(gatherFor)
	h := NewHandler(nil, nil)
	async, awaited := &task{meta: Meta{Async: true}}, &task{}
	after := func(wait time.Duration, first *task, more ...*task) int {
		t.Helper()
		gatherFor = wait
		go func() {
			for _, m := range more {
				h.tasks <- m
			}
		}()
		batch := h.gather(t.Context(), []*task{first})
		for range 1 + len(more) - len(batch) {
			<-h.tasks
		}
		return len(batch)
	}
	const long = time.Hour
	for i, c := range []struct{ got, want int }{
		{after(long, awaited), 1},
		{after(long, async, async, awaited, async), 3},
		{after(long, async, slices.Repeat([]*task{async}, gatherMost)...), gatherMost},
		{after(time.Millisecond, async), 1},
	} {
		if c.got != c.want {
			t.Errorf("case %d: %d gathered, want %d", i, c.got, c.want)
		}
	}
}

func TestPanicEndsAsFailed(t *testing.T) {
	l := openLog(t, pgtest.New(t))
	h := start(t, l)
	for _, c := range []defect{{ID: "decide"}, {ID: "fold", InFold: true}} {
		o := send(t, h, meta(), c)
		if o.Status != eventlog.Failed || o.Problem.Code != fault.Internal || o.First != 0 {
			t.Errorf("%s: %+v", c.ID, o)
		}
		if text, _ := json.Marshal(o.Problem); strings.Contains(string(text), "defect") {
			t.Errorf("%s: the client sees %s", c.ID, text)
		}
	}
	if o := send(t, h, meta(), enqueue); o.Status != eventlog.Applied {
		t.Errorf("the next command: %+v", o)
	}
	if n := len(readAll(t, l)); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// What cannot be decoded is Invalid at once, and Fail makes an outcome of it, whatever it is, once.
func TestUndecodable(t *testing.T) {
	l := openLog(t, pgtest.New(t))
	h := start(t, l)
	id := uuid.NewString()
	for name, p := range map[string]string{
		"no JSON":     "\x00\xff",
		"unknown":     `{"id":"` + id + `","actor":"me","digest":"d","name":"build.steal","data":{}}`,
		"invalid":     `{"id":"` + id + `","actor":"me","digest":"d","name":"build.start","data":{}}`,
		"hostile":     `{"id":"` + id + `","actor":"\u0000","digest":"\u0000","name":"queue.resume","data":{}}`,
		"wrong types": `{"actor":"\u0000","digest":"d\u0000","correlation":1,"id":2}`,
		"endless":     `{"actor":"` + strings.Repeat("a", 1<<20) + `"}`,
	} {
		err := h.Handle(t.Context(), []byte(p))
		if fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v is not Invalid", name, err)
			continue
		}
		message := uuid.New()
		for range 2 { // the message comes again when its acknowledgement was lost
			if err := h.Fail(t.Context(), message.String(), []byte(p), err); err != nil {
				t.Fatalf("%s: no outcome, and so for ever again: %v", name, err)
			}
		}
		o := outcome(t, l, message)
		if o.Status != eventlog.Failed || o.Problem.Code != fault.Invalid || o.Problem.Message != err.Error() || o.First != 0 {
			t.Errorf("%s: %+v", name, o)
		}
		if name == "invalid" && (o.Name != "build.start" || o.Actor != "me" || o.Digest != "d" || len(o.Problem.Fields) == 0) {
			t.Errorf("%s: %+v", name, o)
		}
	}
	if err := h.Fail(t.Context(), "not a UUID \x00", nil, errors.New("secret detail")); err != nil {
		t.Error(err)
	}
	o := outcome(t, l, uuid.NewSHA1(uuid.NameSpaceOID, []byte("not a UUID \x00")))
	if o.Problem.Code != fault.Internal || strings.Contains(o.Problem.Message, "secret") {
		t.Errorf("%+v", o)
	}
}

// A message that was handled after all, and then given up by who delivered it, keeps its outcome.
func TestFailAfterHandled(t *testing.T) {
	l := openLog(t, pgtest.New(t))
	h := start(t, l)
	m := meta()
	send(t, h, m, enqueue)
	if err := h.Fail(t.Context(), m.ID.String(), payload(t, m, enqueue), errors.New("late")); err != nil {
		t.Error(err)
	}
	if o := outcome(t, l, m.ID); o.Status != eventlog.Applied {
		t.Errorf("%+v", o)
	}
}

// Who gives up waiting gets its context's error, and the command is handled once all the same.
func TestHandleCancelled(t *testing.T) {
	l := openLog(t, pgtest.New(t))
	h := NewHandler(l, slog.New(slog.DiscardHandler)) // does not run yet
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	m := meta()
	p := payload(t, m, ClearQueue{})
	if err := h.Handle(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	run, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(run) }()
	if err := h.Handle(t.Context(), p); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(readAll(t, l)); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// The cache is bounded, and what falls out of it is read again.
func TestCacheIsBounded(t *testing.T) {
	l := openLog(t, pgtest.New(t))
	h := NewHandler(l, slog.New(slog.DiscardHandler))
	for i := range mostCached {
		h.cache[fmt.Sprint(i)] = folded{}
	}
	for n := range 3 {
		tk := newTask(meta(), chunk(n, "x\n"))
		if again, err := h.batch(t.Context(), []*task{tk}); err != nil || len(again) > 0 {
			t.Fatal(again, err)
		}
		if err := <-tk.done; err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			clear(h.cache)
		}
	}
	if len(h.cache) > 10 {
		t.Errorf("%d streams are cached", len(h.cache))
	}
	if all := readAll(t, l); len(all) != 3 {
		t.Errorf("%d chunks of 3", len(all))
	}
}
