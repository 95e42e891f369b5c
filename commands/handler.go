package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

const (
	mostBatch   = 500
	mostCached  = 20_000
	retryFirst  = 20 * time.Millisecond
	retryMost   = 2 * time.Second
	mostRetries = 20 // of a command whose stream keeps moving; other processes write it too
)

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
}

type task struct {
	meta    Meta
	command Command
	kind    kind
	tries   int
	done    chan error
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
	working := map[string]folded{}
	entries := make([]eventlog.Entry, len(tasks))
	for i, t := range tasks {
		stream := t.command.Stream()
		at, ok := working[stream]
		if !ok {
			at = h.cache[stream]
		}
		var failure error
		if entries[i], at, failure = decide(t, at); failure != nil {
			h.logger.Error("a command failed", "command", t.meta.ID, "name", t.command.Name(), "error", failure)
		}
		working[stream] = at
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
		switch err := results[i].Err; {
		case err == nil:
			if at, ok := working[stream]; ok {
				h.cache[stream] = at
			}
			t.done <- nil
		case errors.Is(err, eventlog.ErrDuplicate):
			delete(h.cache, stream)
			delete(working, stream)
			t.done <- nil
		case errors.Is(err, eventlog.ErrConflict) && t.tries < mostRetries:
			delete(h.cache, stream)
			delete(working, stream)
			t.tries++
			again = append(again, t)
		default:
			delete(h.cache, stream)
			delete(working, stream)
			t.done <- err
		}
	}
	return again, nil
}

// load fills the cache with the streams that tasks need, with one query.
func (h *Handler) load(ctx context.Context, tasks []*task) error {
	missing := map[string]kind{}
	for _, t := range tasks {
		if _, ok := h.cache[t.command.Stream()]; !ok {
			missing[t.command.Stream()] = t.kind
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
	for name, k := range missing {
		at := folded{state: k.zero}
		for _, e := range streams[name].Events {
			at.state = k.fold(at.state, e.Event)
		}
		at.version = streams[name].Version
		h.cache[name] = at
	}
	return nil
}

// decide is the pure heart: what the command does to its stream at this state, and the state after it. failure is a defect's detail,
// which goes to the log and not to the client.
func decide(t *task, at folded) (entry eventlog.Entry, after folded, failure error) {
	if at.state == nil {
		at.state = t.kind.zero
	}
	c := t.command
	o := eventlog.Outcome{
		Command: t.meta.ID, Name: c.Name(), Stream: c.Stream(), Actor: t.meta.Actor, Digest: t.meta.Digest, Status: eventlog.Applied,
	}
	evs, after, err := decideSafely(t, at)
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
		Outcome: o, Expected: at.version, Events: evs, Correlation: t.meta.Correlation, Causation: t.meta.Causation,
	}, after, failure
}

// decideSafely makes an error of a panic: a command that ended the process would come again and end the next one.
func decideSafely(t *task, at folded) (evs []events.Event, after folded, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s panicked: %v", t.command.Name(), r)
		}
	}()
	evs, err = t.kind.decide(at.state, t.command)
	for _, e := range evs {
		at.state = t.kind.fold(at.state, e)
		at.version++
	}
	return evs, at, err
}
