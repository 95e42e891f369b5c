package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

const (
	mostBatch  = 500
	mostCached = 20_000
	retryFirst = 20 * time.Millisecond
	retryMost  = 2 * time.Second
	gatherMost = 100

	mostRetries = 20 // of a command whose stream keeps moving; other processes write it too
)

var gatherFor = 10 * time.Millisecond // more in a test

// Handler decides commands: it takes all that wait, loads the streams that it does not know with one query, decides in order in
// memory, and appends once.
type Handler struct {
	log    *eventlog.Log
	logger *slog.Logger
	tasks  chan *task
	cache  map[string]folded // of Run's goroutine alone
}

type folded struct {
	version int64
	state   any
	damaged error // an event of the stream cannot be read: nothing can be decided on it
}

// unstored begins the positions of events that are decided and not stored yet: after all that are.
const unstored = math.MaxInt64 / 2

type task struct {
	meta    Meta
	command Command
	kind    kind
	tries   int
	done    chan error
}

func (t *task) awaited() bool { return !t.meta.Async }

// beside is the second stream that t decides beside, or "".
func (t *task) beside() string {
	if t.kind.beside.fold == nil {
		return ""
	}
	return t.command.(interface{ Beside() string }).Beside()
}

// NewHandler makes a handler; Run does the work.
func NewHandler(log *eventlog.Log, logger *slog.Logger) *Handler {
	return &Handler{log: log, logger: logger, tasks: make(chan *task, mostBatch), cache: map[string]folded{}}
}

// Handle takes one message of the bus and returns when its outcome is on disk, or with an error when there is none: fault.Invalid when
// the payload cannot be decoded (it never will be), another when it may be tried again. Callers must keep the order of a stream: the
// next command of a stream only after this one has returned. Any number may be under way at once.
func (h *Handler) Handle(ctx context.Context, payload []byte) error {
	m, c, err := Decode(payload)
	if err != nil {
		return err
	}
	t := &task{meta: m, command: c, kind: kinds[c.Name()], done: make(chan error, 1)}
	select {
	case h.tasks <- t:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-t.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fail records that the message with this id ends without having been handled, as an outcome that its sender sees.
func (h *Handler) Fail(ctx context.Context, id string, payload []byte, reason error) error {
	m, c, _ := Decode(payload)
	o := eventlog.Outcome{Name: "undecodable", Actor: m.Actor, Status: eventlog.Failed, Digest: m.Digest, Problem: problem(reason)}
	if c != nil {
		o.Name = c.Name()
	}
	var err error
	if o.Command, err = uuid.Parse(id); err != nil {
		o.Command = uuid.NewSHA1(uuid.NameSpaceOID, []byte(id)) // a stranger's message: still one outcome
	}
	// No stream takes part: it is not known which, or it is what cannot be written.
	o.Stream = "failed/" + o.Command.String()
	results, err := h.log.Append(ctx, eventlog.Entry{Outcome: o, Correlation: m.Correlation})
	if err != nil {
		return err
	}
	if err := results[0].Err; err != nil && !errors.Is(err, eventlog.ErrDuplicate) {
		return err
	}
	return nil
}

func problem(err error) *fault.Error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	return fault.New(fault.Internal, "the command could not be handled")
}

// Run decides what Handle takes until ctx ends.
func (h *Handler) Run(ctx context.Context) error {
	wait := retryFirst
	var again []*task
	for {
		batch := again
		if len(batch) == 0 {
			select {
			case t := <-h.tasks:
				batch = append(batch, t)
			case <-ctx.Done():
				return nil
			}
		}
	drain:
		for len(batch) < mostBatch {
			select {
			case t := <-h.tasks:
				batch = append(batch, t)
			default:
				break drain
			}
		}
		batch = h.gather(ctx, batch)
		var err error
		if again, err = h.batch(ctx, batch); err == nil {
			wait = retryFirst
			continue
		}
		if ctx.Err() != nil {
			return nil // unacknowledged messages come again
		}
		// Nothing else could be handled either: stay with these, in their order, until the database is back.
		clear(h.cache)
		again = batch
		h.logger.Error("commands wait for the event log", "commands", len(batch), "error", err, "again_in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, retryMost)
	}
}

// gather lets a few more come while nobody waits for those that are there: to load and to append costs as much as twenty commands.
func (h *Handler) gather(ctx context.Context, batch []*task) []*task {
	if slices.ContainsFunc(batch, (*task).awaited) {
		return batch
	}
	timer := time.NewTimer(gatherFor)
	defer timer.Stop()
	for len(batch) < gatherMost {
		select {
		case t := <-h.tasks:
			batch = append(batch, t)
			if t.awaited() {
				return batch
			}
		case <-timer.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// batch decides tasks and tells each what became of it. Those whose stream moved meanwhile are returned to be decided again; an error
// says that nothing is known of any.
func (h *Handler) batch(ctx context.Context, all []*task) (again []*task, err error) {
	tasks := make([]*task, 0, len(all))
	here := make(map[uuid.UUID]bool, len(all))
	for _, t := range all {
		if here[t.meta.ID] {
			again = append(again, t) // delivered twice: what follows must not be decided on top of the second
			continue
		}
		here[t.meta.ID] = true
		tasks = append(tasks, t)
	}
	if err := h.load(ctx, tasks); err != nil {
		return nil, err
	}
	stored, working := map[string]folded{}, map[string]folded{}
	look := func(stream string) folded {
		if at, ok := working[stream]; ok {
			return at
		}
		stored[stream] = h.cache[stream]
		return stored[stream]
	}
	entries := make([]eventlog.Entry, len(tasks))
	position := int64(unstored)
	for i, t := range tasks {
		at := look(t.command.Stream())
		var beside folded
		if t.beside() != "" {
			beside = look(t.beside())
		}
		var failure error
		if entries[i], at, failure = decide(t, at, beside, position); failure != nil {
			h.logger.Error("a command failed", "command", t.meta.ID, "name", t.command.Name(), "error", failure)
		}
		position += int64(len(entries[i].Events))
		working[t.command.Stream()] = at
	}
	results, err := h.log.Append(ctx, entries...)
	if err != nil {
		return nil, err
	}
	if len(h.cache)+len(working) > mostCached {
		clear(h.cache)
	}
	for i, t := range tasks {
		stream := t.command.Stream()
		err := results[i].Err
		if err == nil {
			// Again, since now it is known where the events stand.
			at := stored[stream]
			for n, e := range entries[i].Events {
				at.state = t.kind.fold(at.state, e, results[i].Outcome.First+int64(n))
				at.version++
			}
			stored[stream], h.cache[stream] = at, at
		}
		if err != nil || stored[stream].damaged != nil {
			delete(h.cache, stream) // it is loaded again
			delete(h.cache, t.beside())
		}
		switch {
		case errors.Is(err, eventlog.ErrConflict) && t.tries < mostRetries:
			t.tries++
			again = append(again, t)
		case errors.Is(err, eventlog.ErrDuplicate):
			t.done <- nil
		default:
			t.done <- err
		}
	}
	return again, nil
}

// load fills the cache with the streams that tasks need, with one query.
func (h *Handler) load(ctx context.Context, tasks []*task) error {
	missing := map[string]model{}
	need := func(stream string, m model) {
		if _, ok := h.cache[stream]; !ok {
			missing[stream] = m
		}
	}
	for _, t := range tasks {
		need(t.command.Stream(), t.kind.model)
		if t.beside() != "" {
			need(t.beside(), t.kind.beside)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	names := make([]string, 0, len(missing))
	for s := range missing {
		names = append(names, s)
	}
	streams, err := h.log.Load(ctx, names...)
	if err != nil {
		return err
	}
	for name, m := range missing {
		s := streams[name]
		at := folded{version: s.Version, state: m.zero, damaged: s.Err}
		if s.Err == nil {
			for _, e := range s.Events {
				at.state = m.fold(at.state, e.Event, e.Position)
			}
		}
		h.cache[name] = at
	}
	return nil
}

// decide is the pure heart: what the command does to its stream at this state, and the state after it; its events stand from position
// on. failure is a defect's detail, which goes to the log and not to the client.
func decide(t *task, at, beside folded, position int64) (entry eventlog.Entry, after folded, failure error) {
	c := t.command
	o := eventlog.Outcome{
		Command: t.meta.ID, Name: c.Name(), Stream: c.Stream(), Actor: t.meta.Actor, Digest: t.meta.Digest, Status: eventlog.Applied,
	}
	evs, after, err := decideSafely(t, at, beside, position)
	if err == nil {
		o.Result, err = json.Marshal(after.state)
	}
	if err != nil {
		o.Status, o.Problem, evs, after = eventlog.Refused, problem(err), nil, at
		if o.Problem.Code == fault.Internal {
			o.Status, failure = eventlog.Failed, err
		}
	}
	return eventlog.Entry{
		Outcome: o, Expected: at.version, Beside: t.beside(), BesideVersion: beside.version, Events: evs,
		Correlation: t.meta.Correlation, Causation: t.meta.Causation,
	}, after, failure
}

// decideSafely makes an error of a panic: a command that ended the process would come again and end the next one.
func decideSafely(t *task, at, beside folded, position int64) (evs []events.Event, after folded, err error) {
	if damaged := errors.Join(at.damaged, beside.damaged); damaged != nil {
		return nil, at, fmt.Errorf("%w: %w", damaged,
			fault.New(fault.Internal, "an event of this stream cannot be read, so nothing can be decided: an operator must mend it; the server's log names it"))
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s panicked: %v", t.command.Name(), r)
		}
	}()
	evs, err = t.kind.decide(at.state, beside.state, t.command)
	for i, e := range evs {
		at.state = t.kind.fold(at.state, e, position+int64(i))
		at.version++
	}
	return evs, at, err
}
