package projections

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// projection is a read model: its name is its schema's. Raise version when handlers change what they make of events; a change of the
// tables is noticed without.
type projection struct {
	name     string
	version  int
	subjects []reflect.Type
	open     func() *fold
}

// on subscribes f to the events of its argument's type.
func on[T any, E events.Event](f func(t *T, e E, m events.Recorded)) subscription[T] {
	return subscription[T]{reflect.TypeFor[E](), func(t *T) func(events.Recorded) {
		return func(m events.Recorded) { f(t, m.Event.(E), m) }
	}}
}

type subscription[T any] struct {
	event reflect.Type
	bind  func(*T) func(events.Recorded)
}

// define makes a projection. tables returns a new T whose tables registered themselves with the models that it is given.
func define[T any](name string, version int, tables func(*models) *T, subs ...subscription[T]) projection {
	p := projection{name: name, version: version}
	for _, s := range subs {
		p.subjects = append(p.subjects, s.event)
	}
	p.open = func() *fold {
		f := &fold{handlers: map[reflect.Type]func(events.Recorded){}, parked: map[string]parking{}}
		t := tables(&f.tables)
		f.dead = newTable[int64, DeadLetter](&f.tables, "dead_letters")
		f.top = t
		for _, s := range subs {
			f.handlers[s.event] = s.bind(t)
		}
		return f
	}
	return p
}

// hash changes with what the projection's tables would hold.
func (p projection) hash() string {
	f := p.open()
	text := []string{fmt.Sprint(p.version)}
	for _, t := range f.tables {
		text = append(text, t.create(p.name))
		text = append(text, t.createIndexes(p.name)...)
	}
	for _, s := range p.subjects {
		text = append(text, s.Name())
	}
	sum := sha256.Sum256([]byte(strings.Join(text, "\n")))
	return hex.EncodeToString(sum[:8])
}

// DeadLetter is an event that a projection could not apply, or one behind it in the same stream.
type DeadLetter struct {
	Position int64     `db:"position" sql:"bigint primary key"`
	Stream   string    `db:"stream" sql:"text"`
	Error    string    `db:"error" sql:"text"`
	At       time.Time `db:"at" sql:"timestamptz"` // when the event was recorded
}

// Key is the event's position.
func (d DeadLetter) Key() int64 { return d.Position }

// parking says from where on a stream is put aside.
type parking struct {
	position int64
	why      string
}

// fold applies events to the tables of one generation of a projection.
type fold struct {
	top      any // the struct of the tables, for tests
	tables   models
	dead     *table[int64, DeadLetter]
	handlers map[reflect.Type]func(events.Recorded)
	parked   map[string]parking
}

// restart forgets what was known of the database, and learns again what is parked. empty: its tables are.
func (f *fold) restart(ctx context.Context, q Querier, schema string, empty bool) error {
	for _, t := range f.tables {
		t.reset(empty)
	}
	letters, err := Query[DeadLetter](ctx, q, "from "+schema+".dead_letters order by position")
	if err != nil {
		return err
	}
	clear(f.parked)
	for _, d := range letters {
		if _, ok := f.parked[d.Stream]; !ok {
			f.parked[d.Stream] = parking{d.Position, d.Error}
		}
	}
	return nil
}

func (f *fold) subscribed(m events.Recorded) bool { return f.handlers[reflect.TypeOf(m.Event)] != nil }

// run folds events into the tables' working sets, reading the rows that it needs from schema.
func (f *fold) run(ctx context.Context, q Querier, schema string, batch []events.Recorded) error {
	for {
		bad, err := f.pass(batch)
		missing := slices.DeleteFunc(slices.Clone(f.tables), func(t stored) bool { return !t.misses() })
		switch {
		case len(missing) > 0: // and so what the pass made, or broke on, means nothing
			for _, t := range missing {
				if err := t.load(ctx, q, schema); err != nil {
					return err
				}
			}
		case err != nil:
			f.parked[bad.Stream] = parking{bad.Position, err.Error()}
		default:
			return nil
		}
	}
}

func (f *fold) pass(batch []events.Recorded) (at events.Recorded, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: %v", at.Event.Name(), r)
		}
	}()
	for _, t := range f.tables {
		t.begin()
	}
	for _, at = range batch {
		handle := f.handlers[reflect.TypeOf(at.Event)]
		if handle == nil {
			continue
		}
		if p, ok := f.parked[at.Stream]; ok && at.Position >= p.position {
			why := p.why
			if at.Position > p.position {
				why = fmt.Sprintf("behind the event at %d", p.position)
			}
			f.dead.Put(DeadLetter{at.Position, at.Stream, why, at.Time})
			continue
		}
		handle(at)
	}
	return at, nil
}

// generation is a projection with the schema that it is written to.
type generation struct {
	projection
	schema     string // also the name of its follower
	db         Querier
	fold       *fold
	checkpoint *eventlog.Checkpoint // that the fold's memory belongs to
	check      func(context.Context) error
}

// apply is the follower: it brings the tables from the checkpoint to the end of batch.
func (g *generation) apply(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
	if c != g.checkpoint {
		if err := g.check(ctx); err != nil {
			return err
		}
		if err := g.fold.restart(ctx, g.db, g.schema, c.Position() == 0); err != nil {
			return err
		}
		g.checkpoint = c
	}
	if err := g.save(ctx, c, batch); err != nil {
		g.checkpoint = nil // it may have been saved all the same: forget what was there before
		return err
	}
	return nil
}

// save applies batch and moves the checkpoint to its end. When the database refuses the rows, halves of the batch find out which event
// it is, and that one is parked.
func (g *generation) save(ctx context.Context, c *eventlog.Checkpoint, batch []events.Recorded) error {
	f, position := g.fold, batch[len(batch)-1].Position
	if !slices.ContainsFunc(batch, f.subscribed) {
		return c.Save(ctx, position, nil)
	}
	if err := f.run(ctx, g.db, g.schema, batch); err != nil {
		return err
	}
	err := f.write(ctx, c, position, g.schema)
	if err == nil {
		for _, t := range f.tables {
			t.commit()
		}
		return nil
	}
	why, ok := refused(err)
	if !ok {
		return err
	}
	if half := len(batch) / 2; half > 0 {
		if err := g.save(ctx, c, batch[:half]); err != nil {
			return err
		}
		return g.save(ctx, c, batch[half:])
	}
	if _, ok := f.parked[batch[0].Stream]; ok {
		return err // not even the dead letter is taken
	}
	f.parked[batch[0].Stream] = parking{batch[0].Position, why.Message}
	return g.save(ctx, c, batch)
}

func (f *fold) write(ctx context.Context, c *eventlog.Checkpoint, position int64, schema string) error {
	w, err := f.writes(schema)
	if err != nil {
		return err
	}
	return c.Save(ctx, position, w)
}

// writes is what the events that were folded last do to the tables.
func (f *fold) writes(schema string) (*eventlog.Writes, error) {
	w := &eventlog.Writes{}
	for _, t := range f.tables {
		if err := t.write(w, schema); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// refused tells an error that is the data's fault, by SQLSTATE class: data exception, constraint, program limit.
func refused(err error) (*pgconn.PgError, bool) {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return pg, ok && slices.Contains([]string{"22", "23", "54"}, pg.Code[:2])
}

// onEach subscribes f to events of several types.
func onEach[T any](f func(t *T, m events.Recorded), of ...events.Event) []subscription[T] {
	subs := make([]subscription[T], len(of))
	for i, e := range of {
		subs[i] = subscription[T]{reflect.TypeOf(e), func(t *T) func(events.Recorded) {
			return func(m events.Recorded) { f(t, m) }
		}}
	}
	return subs
}
